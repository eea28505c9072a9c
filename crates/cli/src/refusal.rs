//! The answer to a command line that no verb came of: help, version, what is wrong with it or with a lower layer.
//!
//! Invariants: it comes in the manner that was asked for, as far as the layers that can be read tell; an error names what is
//! missing or what would be possible, in JSON as in text. What was typed is repeated without control characters.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, ValueEnum};
use mover_base::{Error, Kind};

use crate::args::{ColorWhen, RawArgs};
use crate::config::Refusal;
use crate::config::layers::{self, Environment};
use crate::output::{Manner, Output, Shape};
use crate::table::clean;

/// Flags that have the parser print something instead of parsing the rest.
const PRINTING: [&str; 4] = ["-h", "--help", "-V", "--version"];

/// Tells why there is no call.
pub fn refuse(refusal: Refusal, argv: &[OsString], environment: &Environment) -> ExitCode {
    let guess = Guess::of(argv, environment);
    let mut out = Output::standard(Manner::new(guess.json, false, 0, guess.color));
    out.begin(&guess.verb, Shape::Query);
    let error = match refusal {
        Refusal::Wrong(error) => error,
        Refusal::Clap(error) if !error.use_stderr() => {
            out.rendered(&error.render(), false);
            match out.finish() {
                Ok(()) => return ExitCode::SUCCESS,
                Err(error) => error,
            }
        }
        Refusal::Clap(error) if guess.json => usage_error(&escaped(error), &guess),
        Refusal::Clap(error) => {
            let mut error = escaped(error);
            if let Some(tip) = tip(&error, &guess) {
                let tips = ContextValue::StyledStrs(vec![tip.into()]);
                error.insert(ContextKind::Suggested, tips);
            }
            let text: StyledStr = error.render();
            out.rendered(&text, true);
            return ExitCode::from(Kind::Usage.exit_code());
        }
    };
    out.error(&error);
    ExitCode::from(error.kind().exit_code())
}

/// Escapes what was typed wherever the error repeats it: clap takes it over as it is, with all that could drive a terminal.
fn escaped(mut error: clap::Error) -> clap::Error {
    let context: Vec<(ContextKind, ContextValue)> = error
        .context()
        .map(|(kind, value)| (kind, value.clone()))
        .collect();
    let typed = context.iter().filter_map(|(_, value)| match value {
        ContextValue::String(text) => Some(text.as_str()),
        _ => None,
    });
    let typed: Vec<&str> = typed.collect();
    for (kind, value) in &context {
        let value = match value {
            ContextValue::String(text) => ContextValue::String(clean(text)),
            ContextValue::Strings(texts) => {
                ContextValue::Strings(texts.iter().map(|text| clean(text)).collect())
            }
            ContextValue::StyledStrs(tips) => {
                ContextValue::StyledStrs(tips.iter().map(|tip| escaped_in(tip, &typed)).collect())
            }
            _ => continue,
        };
        error.insert(*kind, value);
    }
    error
}

/// A tip of clap's with what was typed in it. It has clap's own colours in it too, so that nothing else is escaped.
fn escaped_in(tip: &StyledStr, typed: &[&str]) -> StyledStr {
    let text = tip.ansi().to_string();
    let escape = |text: String, typed: &&str| text.replace(*typed, &clean(typed));
    typed.iter().fold(text, escape).into()
}

/// What a command line that does not parse, and layers that may be wrong, still tell.
#[derive(Debug, PartialEq, Eq)]
struct Guess {
    /// `key add`; empty where none was recognised.
    verb: String,
    json: bool,
    color: ColorWhen,
    /// Whether a source is named.
    source: bool,
}

impl Guess {
    fn of(argv: &[OsString], environment: &Environment) -> Self {
        let parsed = argv
            .iter()
            .filter(|arg| !PRINTING.iter().any(|printing| arg == printing));
        let matches = RawArgs::command()
            .ignore_errors(true)
            .try_get_matches_from(parsed)
            .unwrap_or_default();
        let lower = |key| layers::readable(key, &matches, environment);
        let is_on = || lower("json").is_some_and(|value| value == "true");
        let color = layers::deepest::<ColorWhen>(&matches, "color")
            .or_else(|| ColorWhen::from_str(&lower("color")?, false).ok());
        Guess {
            verb: layers::verb(&matches),
            json: argv.iter().any(|arg| arg == "--json") || is_on(),
            color: color.unwrap_or(ColorWhen::Auto),
            source: argv
                .iter()
                .any(|arg| arg.to_string_lossy().starts_with("--source")),
        }
    }
}

/// What to write instead of what other verbs and other tools take: their names of verbs, a bare id, a bare path, a time, and a dry
/// run where nothing else happens without a confirmation.
fn tip(error: &clap::Error, guess: &Guess) -> Option<String> {
    let wrong = match error.kind() {
        ErrorKind::UnknownArgument => ContextKind::InvalidArg,
        ErrorKind::InvalidSubcommand => ContextKind::InvalidSubcommand,
        _ => return None,
    };
    let Some(ContextValue::String(typed)) = error.get(wrong) else {
        return None;
    };
    if error.kind() == ErrorKind::InvalidSubcommand {
        return verb_here(typed).map(|verb| format!("here that is `helios-mover {verb}`"));
    }
    match (guess.verb.as_str(), typed.starts_with('-')) {
        ("restore" | "verify", false) => Some(format!("to name a backup, write --set {typed}")),
        // What a shell makes of an unquoted pattern looks like this.
        ("backup" | "check", false) if guess.source => Some(
            "if the shell has put names in a pattern's place, quote it: --exclude '*.log'"
                .to_owned(),
        ),
        ("backup" | "check", false) => Some(format!("to name a source, write --source {typed}")),
        ("restore" | "verify", true) if typed == "--time" => Some(
            "to name a backup by when it began, write --set and the beginning of its id, as in --set 20261122-18"
                .to_owned(),
        ),
        ("expire", true) if typed == "--dry-run" => {
            Some("expire only plans unless --confirm is given".to_owned())
        }
        _ => None,
    }
}

/// The verb that does what another tool has this name for.
fn verb_here(typed: &str) -> Option<&'static str> {
    match typed {
        "forget" | "prune" => Some("expire"),
        "snapshots" => Some("list"),
        _ => None,
    }
}

/// clap's error as a message, what it is about, and a hint.
fn usage_error(error: &clap::Error, guess: &Guess) -> Error {
    let listed = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => Vec::new(),
    };
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    let message = match error.kind() {
        // Its text is the whole help.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "no verb is given",
        _ => first.strip_prefix("error: ").unwrap_or(first),
    };
    let mut wrong = Error::new(Kind::Usage, message.trim_end_matches(':'));
    if error.kind() == ErrorKind::MissingRequiredArgument {
        wrong = wrong.object(listed(ContextKind::InvalidArg).join(", "));
    }
    let mut hints = Vec::new();
    let possible = [ContextKind::ValidValue, ContextKind::ValidSubcommand].map(listed);
    let possible = possible.concat();
    if !possible.is_empty() {
        hints.push(format!("possible: {}", possible.join(", ")));
    }
    let meant = [
        ContextKind::SuggestedArg,
        ContextKind::SuggestedValue,
        ContextKind::SuggestedSubcommand,
    ];
    let meant = meant.map(listed).concat();
    if !meant.is_empty() {
        hints.push(format!("perhaps {} was meant", meant.join(" or ")));
    }
    hints.extend(tip(error, guess));
    let words: Vec<&str> = ["helios-mover", &guess.verb, "--help"]
        .into_iter()
        .filter(|word| !word.is_empty())
        .collect();
    hints.push(format!("see `{}`", words.join(" ")));
    wrong.hint(hints.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn told(line: &str) -> Error {
        let argv = argv(line);
        let error = RawArgs::command().try_get_matches_from(&argv).unwrap_err();
        usage_error(&error, &Guess::of(&argv, &Environment::default()))
    }

    #[test]
    fn what_is_missing_or_possible_is_told() {
        let error = told("helios-mover hold add --json");
        assert_eq!(error.object_name(), Some("<BACKUP>"));
        assert_eq!(
            error.hint_text(),
            Some("see `helios-mover hold add --help`")
        );
        for (line, in_message, in_hint) in [
            (
                "helios-mover backup --type fast",
                "'fast'",
                "full, incr, diff",
            ),
            ("helios-mover backup --sourc x", "'--sourc'", "--source"),
            ("helios-mover bakup", "'bakup'", "backup"),
            ("helios-mover restore 2026", "'2026'", "--set 2026"),
            ("helios-mover verify latest", "'latest'", "--set latest"),
            (
                "helios-mover backup /srv/db",
                "'/srv/db'",
                "--source /srv/db",
            ),
            (
                "helios-mover check /srv/db",
                "'/srv/db'",
                "--source /srv/db",
            ),
            (
                "helios-mover backup --source /srv/db --exclude a.log b.log",
                "'b.log'",
                "quote it",
            ),
            (
                "helios-mover expire --keep-last 1 --dry-run",
                "'--dry-run'",
                "only plans unless --confirm",
            ),
            ("helios-mover forget", "'forget'", "`helios-mover expire`"),
            ("helios-mover prune", "'prune'", "`helios-mover expire`"),
            (
                "helios-mover snapshots",
                "'snapshots'",
                "`helios-mover list`",
            ),
            (
                "helios-mover restore --time 18:00",
                "'--time'",
                "--set 20261122-18",
            ),
            ("helios-mover hold", "no verb", "helios-mover hold --help"),
            ("helios-mover", "no verb", "`helios-mover --help`"),
            (
                "helios-mover list --limit-read fast",
                "'--limit-read <RATE>'",
                "helios-mover list --help",
            ),
        ] {
            let error = told(line);
            let hint = error.hint_text().unwrap();
            assert!(error.message().contains(in_message), "{line}: {error}");
            assert!(hint.contains(in_hint), "{line}: {hint}");
        }
    }

    #[test]
    fn what_was_typed_is_repeated_without_control_characters_and_in_full() {
        // ESC, BEL, CR, a newline and the single character that begins a sequence in eight bits.
        let wild = "x\u{1b}[31mred\u{7}\r\n\u{9b}5m";
        let shown = "x\\u{1b}[31mred\\u{7}\\r\\n\\u{9b}5m";
        let refused = |args: &[&str]| {
            let words = ["helios-mover"].iter().chain(args);
            let argv: Vec<OsString> = words.map(OsString::from).collect();
            let error = RawArgs::command().try_get_matches_from(&argv).unwrap_err();
            let error = escaped(error);
            let text = error.render().ansi().to_string();
            let message = usage_error(&error, &Guess::of(&argv, &Environment::default()));
            (text, message.message().to_owned())
        };
        let (flag, value) = (format!("--{wild}"), format!("--type={wild}"));
        let (flag, value) = (flag.as_str(), value.as_str());
        for args in [
            &[wild][..],
            &["hold", wild],
            &["list", flag],
            // The tip repeats it twice.
            &["show", flag],
            &["restore", wild],
            &["backup", value],
            &["list", "--limit-read", wild],
            &["list", "--shards", wild],
        ] {
            let (text, message) = refused(args);
            assert!(text.contains(shown) && message.contains(shown), "{text:?}");
            for part in ["\u{1b}[31mred", "\u{7}", "\r", "\u{9b}"] {
                assert!(!text.contains(part), "{part:?} in {text:?}");
                assert!(!message.contains(part), "{part:?} in {message:?}");
            }
        }
    }

    #[test]
    fn the_manner_of_a_refusal_comes_from_every_layer() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        let guess = |line: &str, variable: Option<(&str, &str)>, text: &str| {
            std::fs::write(&file, text).unwrap();
            let mut environment = Environment {
                files: vec![file.clone()],
                ..Environment::default()
            };
            let variables = variable.into_iter();
            environment
                .variables
                .extend(variables.map(|(name, value)| (name.to_owned(), value.into())));
            let guess = Guess::of(&argv(line), &environment);
            (guess.verb, guess.json, guess.color)
        };
        let wrong = "helios-mover list --wrong";
        let list = |json, color| ("list".to_owned(), json, color);
        assert_eq!(guess(wrong, None, ""), list(false, ColorWhen::Auto));
        let in_file = "json = true\ncolor = 'never'\nwrong = 1";
        assert_eq!(guess(wrong, None, in_file), list(true, ColorWhen::Never));
        assert_eq!(
            guess(wrong, Some(("HELIOS_MOVER_JSON", "false")), in_file),
            list(false, ColorWhen::Never)
        );
        let flags = "helios-mover list --json --color always --help";
        assert_eq!(guess(flags, None, ""), list(true, ColorWhen::Always));
        assert_eq!(
            guess(wrong, None, "json = = 1"),
            list(false, ColorWhen::Auto)
        );
    }
}
