//! The one place that writes to standard output and standard error.
//!
//! Invariants: with `--json` standard output holds JSON lines only and its last line is a `summary`, or an
//! `error` exactly when the exit code is not 0 (an error that standard output does not take is told as text on standard
//! error); without it, standard output holds what was asked for and
//! standard error everything else. A reader that goes away (broken pipe) is not an error; a full disk under
//! standard output is. Text from outside never reaches the terminal with control characters in it.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use clap::builder::StyledStr;
use indicatif::{MultiProgress, ProgressDrawTarget};
use mover_base::{Error, Kind, Result};
use serde::Serialize;

use crate::args::ColorWhen;
use crate::table::{Table, TableLine, clean, paint};

/// Style of `error:`.
pub const RED: Style = AnsiColor::Red.on_default().bold();
/// Style of `warning:` and of values that differ.
pub const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
/// Style of good news.
pub const GREEN: Style = AnsiColor::Green.on_default();
/// Style of `hint:`.
pub const CYAN: Style = AnsiColor::Cyan.on_default();
/// Style of titles.
pub const BOLD: Style = Style::new().bold();
/// Style of what matters less.
pub const DIM: Style = Style::new().dimmed();

/// What to say where a result could not be written and the verb has done nothing else.
const OUTPUT_LOST: &str =
    "nothing else failed, and only this output is lost: have it written where there is room";
/// Between two tries to write to a stream that does not block and takes nothing.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// What a verb prints with `--json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One document; warnings stand in it.
    Query,
    /// JSON lines; warnings are lines of their own, and stand in the summary again.
    Job,
}

/// How to write.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// JSON instead of text.
    pub json: bool,
    /// Errors only.
    pub quiet: bool,
    /// How much more to tell.
    pub verbose: u8,
    /// Colours on standard output.
    pub colours_out: bool,
    /// Colours on standard error.
    pub colours_err: bool,
}

impl Manner {
    /// Text without colours, for tests.
    #[cfg(test)]
    pub const PLAIN: Manner = Manner {
        json: false,
        quiet: false,
        verbose: 0,
        colours_out: false,
        colours_err: false,
    };

    /// Decides about colours from what the user said, NO_COLOR and the terminals.
    pub fn new(json: bool, quiet: bool, verbose: u8, color: ColorWhen) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        let decide = |terminal: bool| match color {
            ColorWhen::Always => true,
            ColorWhen::Never => false,
            ColorWhen::Auto => terminal && !refused,
        };
        Manner {
            json,
            quiet,
            verbose,
            colours_out: decide(io::stdout().is_terminal()),
            colours_err: decide(io::stderr().is_terminal()),
        }
    }
}

/// Writes results, warnings, progress and errors.
pub struct Output {
    manner: Manner,
    shape: Shape,
    verb: String,
    /// Warnings that a summary is to have: of a query those told so far, of a job too, which were lines of their own.
    held_warnings: Vec<String>,
    failure: Option<io::Error>,
    /// Whether standard output did not take something, as where nobody reads it any more: an error is then told on standard error.
    out_failed: bool,
    done: Option<String>,
    bars: MultiProgress,
    out: Box<dyn Write>,
    err: Box<dyn Write>,
}

#[derive(Serialize)]
struct Line<'a, T: Serialize> {
    message_type: &'a str,
    verb: &'a str,
    #[serde(flatten)]
    body: T,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

#[derive(Serialize)]
struct ErrorLine<'a> {
    message_type: &'static str,
    verb: Option<&'a str>,
    kind: &'static str,
    exit_code: u8,
    message: &'a str,
    object: Option<&'a str>,
    cause: Option<&'a str>,
    hint: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

#[derive(Serialize)]
struct WarningLine<'a> {
    message: &'a str,
}

impl Output {
    /// Writes to the standard streams of the process.
    pub fn standard(manner: Manner) -> Self {
        // Bars hide themselves where standard error is not a terminal.
        let target = if manner.quiet || manner.json {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        Self::to(
            manner,
            Box::new(io::stdout()),
            Box::new(io::stderr()),
            target,
        )
    }

    fn to(
        manner: Manner,
        out: Box<dyn Write>,
        err: Box<dyn Write>,
        target: ProgressDrawTarget,
    ) -> Self {
        Output {
            manner,
            shape: Shape::Query,
            verb: String::new(),
            held_warnings: Vec::new(),
            failure: None,
            out_failed: false,
            done: None,
            bars: MultiProgress::with_draw_target(target),
            out,
            err,
        }
    }

    /// Names the verb and says what its JSON looks like.
    pub fn begin(&mut self, verb: &str, shape: Shape) {
        self.verb = verb.to_owned();
        self.shape = shape;
    }

    /// Whether JSON is wanted.
    pub fn is_json(&self) -> bool {
        self.manner.json
    }

    /// How much more to tell.
    pub fn verbosity(&self) -> u8 {
        if self.manner.quiet {
            0
        } else {
            self.manner.verbose
        }
    }

    /// Where progress bars live; lines written here pass above them.
    pub fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// `text` in `style` if standard output has colours.
    pub fn paint(&self, text: &str, style: Style) -> String {
        paint(text, Some(style).filter(|_| self.manner.colours_out))
    }

    /// A line of the human result; nothing with `--json` or `--quiet`.
    pub fn line(&mut self, text: impl AsRef<str>) {
        if !self.manner.json && !self.manner.quiet {
            self.write_out(format!("{}\n", text.as_ref()));
        }
    }

    /// Something that a verb found to be wrong, a part of the human result. With `--quiet` it is what the error is about, and so
    /// goes to standard error.
    pub fn finding(&mut self, title: &str, text: &str) {
        if self.manner.json {
            return;
        }
        let text = clean(text);
        if self.manner.quiet {
            let title = self.paint_err(title, RED);
            self.write_err(&format!("{title}  {text}\n"));
        } else {
            let title = self.paint(title, RED);
            self.line(format!("{title}  {text}"));
        }
    }

    /// Whether only errors are wanted.
    pub fn is_quiet(&self) -> bool {
        self.manner.quiet
    }

    /// A table of the human result; nothing with `--json` or `--quiet`.
    pub fn table(&mut self, table: &Table) {
        if !self.manner.json && !self.manner.quiet {
            self.write_out(table.render(self.manner.colours_out));
        }
    }

    /// One line of a table that is printed with other lines between.
    pub fn table_line(&mut self, line: &TableLine) {
        let text = line.render(self.manner.colours_out);
        self.line(text);
    }

    /// Text that is the result itself (a script, a key), printed in every manner.
    pub fn verbatim(&mut self, text: &str) {
        self.write_out(text.to_owned());
    }

    /// The parser's own text: help, or what is wrong with the command line.
    pub fn rendered(&mut self, text: &StyledStr, is_error: bool) {
        let manner = self.manner;
        match is_error {
            true if manner.colours_err => self.write_err(&text.ansi().to_string()),
            true => self.write_err(&text.to_string()),
            false if manner.colours_out => self.write_out(text.ansi().to_string()),
            false => self.write_out(text.to_string()),
        }
    }

    /// The document that ends a verb; only with `--json`. That of a job has its own list of warnings.
    pub fn summary(&mut self, body: impl Serialize) {
        let mut warnings = std::mem::take(&mut self.held_warnings);
        if self.shape == Shape::Job {
            warnings.clear();
        }
        self.json_line("summary", body, &warnings);
    }

    /// Puts what was warned of before a job knew of it, such as a key file that others can read, before the warnings of its
    /// summary.
    pub fn merge_warnings(&mut self, warnings: &mut Vec<String>) {
        let mut all = std::mem::take(&mut self.held_warnings);
        all.retain(|told| !warnings.contains(told));
        all.append(warnings);
        *warnings = all;
    }

    /// One line of a running job; only with `--json`.
    pub fn status(&mut self, body: impl Serialize) {
        self.json_line("status", body, &[]);
    }

    fn json_line(&mut self, message_type: &str, body: impl Serialize, warnings: &[String]) {
        if !self.manner.json {
            return;
        }
        let line = Line {
            message_type,
            verb: &self.verb,
            body,
            warnings,
        };
        match serde_json::to_string(&line) {
            Ok(text) => self.write_out(text + "\n"),
            Err(error) => self.failure = Some(io::Error::other(error)),
        }
    }

    /// Something that the user should know and that does not stop the verb.
    pub fn warning(&mut self, message: &str) {
        if self.manner.json {
            if self.shape == Shape::Job {
                self.json_line("warning", WarningLine { message }, &[]);
            }
            self.held_warnings.push(message.to_owned());
        } else if !self.manner.quiet {
            self.warn_err(message);
        }
    }

    fn warn_err(&mut self, message: &str) {
        let title = self.paint_err("warning:", YELLOW);
        self.write_err(&format!("{title} {}\n", clean(message)));
    }

    /// A line about what goes on, to standard error; nothing with `--json` or `--quiet`.
    pub fn note(&mut self, text: &str) {
        if !self.manner.json && !self.manner.quiet {
            self.write_err(&format!("{}\n", clean(text)));
        }
    }

    /// The error that ends the verb.
    pub fn error(&mut self, error: &Error) {
        let hint = error.advice();
        let cause = std::error::Error::source(error).map(ToString::to_string);
        if self.manner.json {
            // Those of a query that has no summary would be told nowhere else; a job has told its own.
            let held = std::mem::take(&mut self.held_warnings);
            let warnings: &[String] = match self.shape {
                Shape::Query => &held,
                Shape::Job => &[],
            };
            let line = ErrorLine {
                message_type: "error",
                verb: Some(self.verb.as_str()).filter(|verb| !verb.is_empty()),
                kind: error.kind().name(),
                exit_code: error.kind().exit_code(),
                message: error.message(),
                object: error.object_name(),
                cause: cause.as_deref(),
                hint: Some(hint),
                warnings,
            };
            match serde_json::to_string(&line) {
                Ok(text) => self.write_out(text + "\n"),
                Err(error) => self.failure = Some(io::Error::other(error)),
            }
            if !self.out_failed {
                return;
            }
            for warning in &held {
                self.warn_err(warning);
            }
        }
        let mut text = format!(
            "{} {}",
            self.paint_err("error:", RED),
            clean(error.message())
        );
        for part in error
            .object_name()
            .map(str::to_owned)
            .into_iter()
            .chain(cause)
        {
            text += &format!(": {}", clean(&part));
        }
        text.push('\n');
        text += &format!("{}  {}\n", self.paint_err("hint:", CYAN), clean(hint));
        self.write_err(&text);
    }

    fn paint_err(&self, text: &str, style: Style) -> String {
        paint(text, Some(style).filter(|_| self.manner.colours_err))
    }

    fn write_out(&mut self, text: String) {
        let Output { out, bars, .. } = self;
        let written = bars.suspend(|| write_whole(out.as_mut(), text.as_bytes()));
        if let Err(error) = written {
            self.out_failed = true;
            if error.kind() != io::ErrorKind::BrokenPipe {
                self.failure.get_or_insert(error);
            }
        }
    }

    /// Notes what the verb has done for good, for whom does not get to read its result.
    pub fn done(&mut self, text: String) {
        self.done = Some(text);
    }

    fn write_err(&mut self, text: &str) {
        let Output { err, bars, .. } = self;
        // Nobody is left to tell when standard error fails.
        let _ = bars.suspend(|| write_whole(err.as_mut(), text.as_bytes()));
    }

    /// Whether everything written arrived; a reader that went away counts as arrived. To be asked where nothing else failed.
    pub fn finish(&mut self) -> Result<()> {
        match self.failure.take() {
            None => Ok(()),
            Some(cause) => {
                let error = Error::new(Kind::Target, "standard output cannot be written");
                let done = self.done.take();
                let hint = done.unwrap_or_else(|| OUTPUT_LOST.to_owned());
                Err(error.cause(cause).hint(hint))
            }
        }
    }
}

/// Writes all of `bytes` and flushes, also to a pipe or a terminal that somebody made non-blocking: what it does not take waits, as
/// it does where writes block. `write_all` does not say how much of its bytes was taken when it fails, so that it cannot be tried again.
fn write_whole(to: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    let mut left = bytes;
    while !left.is_empty() {
        match to.write(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(taken) => left = &left[taken..],
            Err(error) => wait_after(error)?,
        }
    }
    while let Err(error) = to.flush() {
        wait_after(error)?;
    }
    Ok(())
}

/// Waits until what failed so can be tried again; gives the error back where that would not help.
fn wait_after(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::WouldBlock => {
            std::thread::sleep(RETRY_INTERVAL);
            Ok(())
        }
        _ => Err(error),
    }
}

/// Log lines, written above the progress bars.
#[derive(Clone)]
pub struct LogWriter(pub MultiProgress);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Nobody is left to tell when standard error fails, and whoever logs would panic.
        let _ = self.0.suspend(|| write_whole(&mut io::stderr(), bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// Bytes that a test reads back.
    #[derive(Clone, Default)]
    pub struct Sink(Rc<RefCell<Vec<u8>>>);

    impl Sink {
        /// What was written.
        pub fn text(&self) -> String {
            String::from_utf8(self.0.borrow().clone()).unwrap()
        }
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// An output into memory.
    pub fn captured(manner: Manner) -> (Output, Sink, Sink) {
        let (out, err) = (Sink::default(), Sink::default());
        let output = Output::to(
            manner,
            Box::new(out.clone()),
            Box::new(err.clone()),
            ProgressDrawTarget::hidden(),
        );
        (output, out, err)
    }

    const JSON: Manner = Manner {
        json: true,
        ..Manner::PLAIN
    };

    #[derive(Serialize)]
    struct Body {
        backups: u64,
    }

    fn error() -> Error {
        Error::new(Kind::Key, "the passphrase is wrong")
            .object("file:///r")
            .hint("try another")
            .cause("why")
    }

    #[test]
    fn findings_are_all_that_is_left_when_it_is_quiet() {
        let tell = |manner: Manner| {
            let (mut output, out, err) = captured(manner);
            output.line("figures");
            output.finding("finding", "packs/ab is missing");
            (out.text(), err.text())
        };
        let found = "finding  packs/ab is missing\n";
        assert_eq!(
            tell(Manner::PLAIN),
            (format!("figures\n{found}"), String::new())
        );
        let quiet = Manner {
            quiet: true,
            ..Manner::PLAIN
        };
        assert_eq!(tell(quiet), (String::new(), found.to_owned()));
        assert_eq!(tell(JSON), (String::new(), String::new()));
    }

    #[test]
    fn human_errors_name_object_cause_and_hint() {
        let (mut output, out, err) = captured(Manner::PLAIN);
        output.error(&error());
        assert_eq!(out.text(), "");
        assert_eq!(
            err.text(),
            "error: the passphrase is wrong: file:///r: why\nhint:  try another\n"
        );
    }

    #[test]
    fn json_error_is_one_line_on_standard_output() {
        let (mut output, out, err) = captured(JSON);
        output.begin("list", Shape::Query);
        output.error(&error());
        let value: serde_json::Value = serde_json::from_str(out.text().trim_end()).unwrap();
        assert_eq!(value["message_type"], "error");
        assert_eq!(
            (&value["kind"], &value["exit_code"]),
            (&"key".into(), &40.into())
        );
        assert_eq!(
            (&value["cause"], &value["hint"]),
            (&"why".into(), &"try another".into())
        );
        assert_eq!(err.text(), "");
    }

    #[test]
    fn a_query_is_one_document_with_its_warnings_inside() {
        let (mut output, out, err) = captured(JSON);
        output.begin("list", Shape::Query);
        output.warning("careful");
        output.line("not for machines");
        output.summary(Body { backups: 2 });
        assert_eq!(
            out.text(),
            "{\"message_type\":\"summary\",\"verb\":\"list\",\"backups\":2,\"warnings\":[\"careful\"]}\n"
        );
        assert_eq!(err.text(), "");
    }

    #[test]
    fn the_error_of_a_query_has_the_warnings_that_no_summary_told() {
        let told = |shape, has_summary: bool| {
            let (mut output, out, _) = captured(JSON);
            output.begin("check", shape);
            output.warning("careful");
            if has_summary {
                output.summary(Body { backups: 2 });
            }
            output.error(&error());
            let text = out.text();
            let last = text.lines().last().unwrap_or_default();
            let line: serde_json::Value = serde_json::from_str(last).unwrap();
            assert_eq!(line["message_type"], "error");
            line.get("warnings").cloned()
        };
        assert_eq!(
            told(Shape::Query, false),
            Some(serde_json::json!(["careful"]))
        );
        assert_eq!(told(Shape::Query, true), None, "it stood in the summary");
        assert_eq!(told(Shape::Job, false), None, "it was a line of its own");
    }

    #[test]
    fn a_job_warns_in_lines_of_their_own() {
        let (mut output, out, _) = captured(JSON);
        output.begin("backup", Shape::Job);
        output.warning("careful");
        output.summary(Body { backups: 2 });
        assert_eq!(
            out.text(),
            "{\"message_type\":\"warning\",\"verb\":\"backup\",\"message\":\"careful\"}\n\
             {\"message_type\":\"summary\",\"verb\":\"backup\",\"backups\":2}\n"
        );
    }

    #[test]
    fn what_was_warned_of_before_a_job_stands_in_its_summary_once() {
        let (mut output, _, _) = captured(JSON);
        output.begin("backup", Shape::Job);
        output.warning("early");
        output.warning("of the plan");
        let mut warnings = vec!["of the plan".to_owned(), "late".to_owned()];
        output.merge_warnings(&mut warnings);
        assert_eq!(warnings, ["early", "of the plan", "late"]);
    }

    #[test]
    fn quiet_leaves_errors_only() {
        let (mut output, out, err) = captured(Manner {
            quiet: true,
            ..Manner::PLAIN
        });
        output.line("result");
        output.warning("careful");
        output.note("going on");
        assert_eq!((out.text(), err.text()), (String::new(), String::new()));
        output.error(&error());
        assert!(err.text().starts_with("error: "));
    }

    #[test]
    fn a_broken_pipe_is_no_failure_and_a_full_disk_is() {
        let sink = || Box::new(Sink::default());
        let broken = |kind| {
            let mut output = Output::to(
                Manner::PLAIN,
                Box::new(Broken(kind)),
                sink(),
                ProgressDrawTarget::hidden(),
            );
            output.line("x");
            output.done("it was made".to_owned());
            output.finish()
        };
        assert!(broken(io::ErrorKind::BrokenPipe).is_ok());
        let error = broken(io::ErrorKind::StorageFull).unwrap_err();
        assert_eq!(error.kind(), Kind::Target);
        assert_eq!(error.hint_text(), Some("it was made"));
    }

    #[test]
    fn an_error_that_nobody_reads_on_standard_output_is_told_on_standard_error() {
        let err = Sink::default();
        let mut output = Output::to(
            JSON,
            Box::new(Broken(io::ErrorKind::BrokenPipe)),
            Box::new(err.clone()),
            ProgressDrawTarget::hidden(),
        );
        output.warning("careful");
        output.error(&error());
        assert_eq!(
            err.text(),
            "warning: careful\nerror: the passphrase is wrong: file:///r: why\nhint:  try another\n"
        );
        assert!(output.finish().is_ok());
    }

    /// Takes three bytes at a time, and nothing at every second call.
    #[derive(Default)]
    struct Reluctant {
        taken: Vec<u8>,
        calls: usize,
    }

    impl Reluctant {
        fn is_ready(&mut self) -> io::Result<()> {
            self.calls += 1;
            match self.calls % 4 {
                1 => Err(io::ErrorKind::WouldBlock.into()),
                3 => Err(io::ErrorKind::Interrupted.into()),
                _ => Ok(()),
            }
        }
    }

    impl Write for Reluctant {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.is_ready()?;
            let taken = bytes.len().min(3);
            self.taken.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            self.is_ready()
        }
    }

    #[test]
    fn what_a_stream_does_not_take_at_once_is_written_once_and_whole() {
        let text = "first\nsecond line\nthird";
        let mut plain = Reluctant::default();
        write_whole(&mut plain, text.as_bytes()).unwrap();
        assert_eq!(plain.taken, text.as_bytes());
        // As standard output is: lines go at once, and what it holds back it writes before anything else.
        let mut lines = io::LineWriter::with_capacity(8, Reluctant::default());
        write_whole(&mut lines, text.as_bytes()).unwrap();
        assert_eq!(lines.get_ref().taken, text.as_bytes());
        let full = write_whole(&mut [0u8; 4].as_mut_slice(), text.as_bytes()).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn text_from_outside_cannot_drive_the_terminal() {
        let (mut output, _, err) = captured(Manner::PLAIN);
        output.warning("a\u{1b}[2Jb");
        assert_eq!(err.text(), "warning: a\\u{1b}[2Jb\n");
    }
}
