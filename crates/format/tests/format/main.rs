//! Tests of the repository format from outside: frozen samples, properties, hostile bytes.

mod golden;
mod hostile;
mod properties;
mod samples;
