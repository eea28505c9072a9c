//! Measurement helpers shared by the benchmark programs.
