//! What the shells complete, tried in the shell itself.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;
use std::process::Command;

use mover_tests::mover::{self, Outcome, exit, isolated};
use mover_tests::scratch::Scratch;

/// Calls the function that the script gives to bash, as bash does: with the command, the word at the cursor and the one before.
const COMPLETE: &str = r#"
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
name=$(complete -p helios-mover | sed 's/.*-F \([^ ]*\).*/\1/')
"$name" helios-mover "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

#[test]
fn bash_completes_verbs_their_options_and_values() {
    let scratch = Scratch::new("completion");
    let home = scratch.dir("home");
    let mut command = mover::command(&home);
    let script = Outcome::of(command.args(["completions", "bash"])).expect(exit::OK);
    let file = scratch.join("helios-mover.bash");
    fs::write(&file, &script.stdout).expect("script");
    let complete = |words: &str| -> Vec<String> {
        let mut bash = isolated(Command::new("bash"), &home);
        bash.args(["--norc", "-c", COMPLETE, "bash"]).arg(&file);
        let outcome = Outcome::of(bash.args(words.split(' '))).expect(exit::OK);
        assert_eq!(outcome.stderr, "", "{words}");
        outcome.stdout.lines().map(str::to_owned).collect()
    };
    assert_eq!(complete("helios-mover back"), ["backup"]);
    assert_eq!(complete("helios-mover restore --del"), ["--delta"]);
    assert_eq!(
        complete("helios-mover --json expire --keep-d"),
        ["--keep-daily"]
    );
    assert_eq!(complete("helios-mover key ad"), ["add"]);
    assert_eq!(complete("helios-mover key generate --out"), ["--output"]);
    assert_eq!(complete("helios-mover backup --type di"), ["diff"]);
    // An option of another verb is none of this one.
    assert_eq!(complete("helios-mover list --del"), [""]);
}
