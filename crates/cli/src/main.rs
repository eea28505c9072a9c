//! The `helios-mover` binary: arguments, then settings, then one verb.
//!
//! Invariants: the exit code is 0 or that of a [`Kind`], also after a panic; errors are reported here and
//! nowhere else; standard streams are written by [`output`] alone; the process leaves no core file.

mod args;
mod config;
mod demo;
#[cfg(test)]
mod exit_codes;
mod figures;
mod output;
mod progress;
mod refusal;
mod signals;
mod table;
mod tune;
mod values;
mod verbs;

use std::ffi::{OsStr, OsString};
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

use mover_base::{Error, Kind, Result};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use config::Call;
use config::layers::{Environment, LOG_VARIABLE};
use output::{LogWriter, Manner, Output};

#[global_allocator]
static ALLOCATOR: mover_io::HugeAlloc = mover_io::HugeAlloc;

fn main() -> ExitCode {
    forbid_core_dumps();
    let argv: Vec<OsString> = std::env::args_os().collect();
    let environment = Environment::of_process();
    let call = match config::resolve(&argv, &environment) {
        Ok(call) => call,
        Err(refusal) => return refusal::refuse(refusal, &argv, &environment),
    };
    let settings = &call.settings;
    let manner = Manner::new(
        settings.json,
        settings.quiet,
        settings.verbose,
        settings.color,
    );
    let mut out = Output::standard(manner);
    if let Err(error) = start_log(&out, &manner, &environment) {
        out.error(&error);
        return ExitCode::from(error.kind().exit_code());
    }
    // The panic's message has gone to standard error; what is left is to keep the promise about exit codes.
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| run(call, &mut out)));
    let result = ended
        .unwrap_or_else(|_| Err(bug()))
        .and_then(|()| out.finish());
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            out.error(&error);
            ExitCode::from(error.kind().exit_code())
        }
    }
}

/// Keys, passphrases and tokens lie in this process's memory, and a core file would outlive it. That they stay out of
/// one is worth more than the core; where the kernel refuses, it says nothing worth ending for.
fn forbid_core_dumps() {
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

fn run(call: Call, out: &mut Output) -> Result<()> {
    let signals = signals::Signals::install()?;
    verbs::run(call, out, &signals)
}

fn bug() -> Error {
    Error::new(Kind::Internal, "the mover stopped at a bug in itself")
        .hint("please report it with the lines above; what was committed before is intact")
}

/// Logs go to standard error: warnings, more with `-v`, and whatever `HELIOS_MOVER_LOG` asks for.
fn start_log(out: &Output, manner: &Manner, environment: &Environment) -> Result<()> {
    let level = match (manner.quiet, manner.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    let asked = environment.variables.get(LOG_VARIABLE);
    let filter = match asked {
        Some(text) => log_filter(text)?,
        None => EnvFilter::new(level),
    };
    let writer = LogWriter(out.bars().clone());
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(manner.colours_err)
        .with_writer(move || writer.clone())
        .with_filter(filter)
        .with_filter(filter_fn(|metadata| !is_unheard(metadata.target())));
    tracing_subscriber::registry().with(layer).init();
    Ok(())
}

/// The filter that the variable asks for.
fn log_filter(text: &OsStr) -> Result<EnvFilter> {
    let wrong = || {
        let what = format!("`{}` is not a filter of the log", text.to_string_lossy());
        Error::new(Kind::Usage, what)
            .object(LOG_VARIABLE)
            .hint("levels and targets, such as `debug` or `mover_io=trace,warn`")
    };
    let text = text.to_str().ok_or_else(wrong)?;
    EnvFilter::try_new(text).map_err(|error| wrong().cause(error))
}

/// Whether nobody gets to see what comes from there, whatever is asked for: the libraries that load credentials print
/// whole providers, tokens included; what the verifier logs about a certificate, the error says too; and who connects prints a
/// proxy's URL, with the rest of a password whose `@` is not percent-encoded.
fn is_unheard(target: &str) -> bool {
    const UNHEARD: [&str; 3] = ["reqsign", "rustls_platform_verifier", "reqwest::connect"];
    UNHEARD.iter().any(|unheard| target.starts_with(unheard))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_filter_that_is_wrong_is_told_with_its_variable() {
        for text in ["debug", "mover_io=trace,warn"] {
            assert!(log_filter(OsStr::new(text)).is_ok(), "{text}");
        }
        let error = log_filter(OsStr::new("foo=[")).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert_eq!(error.object_name(), Some("HELIOS_MOVER_LOG"));
    }
}
