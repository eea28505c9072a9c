//! What keeps an operator's slip from becoming a loss, or from passing unseen: a target that is another directory, a source
//! spelled in another way, a key that nobody has, a repository without backups.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;
use std::path::Path;

use mover_tests::mover::{self, Outcome, Protection, Repo, exit};
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;

fn tool(scratch: &Scratch, args: &[&str]) -> Outcome {
    Outcome::of(mover::command(&scratch.dir("home")).args(args))
}

/// A source of one directory with one file.
fn small_source(scratch: &Scratch, name: &str) -> std::path::PathBuf {
    let source = scratch.dir(name);
    fs::create_dir(source.join("base")).expect("directory");
    fs::write(source.join("base/rows"), "rows").expect("file");
    source
}

#[test]
fn a_delta_restore_over_another_directory_needs_a_confirmation() {
    let scratch = Scratch::new("foreign");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let source = small_source(&scratch, "source");
    repo.backup(&source).summary();
    let target = scratch.dir("target");
    for name in ["bin", "etc", "home", "opt", "srv", "usr"] {
        fs::create_dir(target.join(name)).expect("directory");
        fs::write(target.join(name).join("mine"), "mine").expect("file");
    }
    let before = Tree::read(&target);
    let restore = |args: &[&str]| {
        let mut command = repo.restore_command("latest", &target);
        Outcome::of(command.arg("--delta").args(args))
    };
    let error = restore(&[]).told(exit::TARGET, target.to_str().expect("path"));
    let (message, hint) = (error["message"].to_string(), error["hint"].to_string());
    assert!(
        message.contains("12 names (bin, etc, home, opt, srv, ...)") && hint.contains("--confirm"),
        "{error}"
    );
    let plan = restore(&["--dry-run"]).summary();
    assert_eq!(plan["removes"], 12, "{plan}");
    assert_eq!(plan["foreign_names"][1], "etc", "{plan}");
    let mut dry = repo.command("restore");
    dry.args(["--delta", "--dry-run", "--to"]).arg(&target);
    let text = Outcome::of(&mut dry).expect(exit::OK).stdout;
    assert!(text.contains("--confirm"), "{text}");
    // Neither a file nor a variable says it for the call.
    let file = scratch.join("config.toml");
    fs::write(&file, "[restore]\ndelta = true\n").expect("file");
    let error = restore(&["--config", file.to_str().expect("path")]).told(exit::USAGE, "delta");
    assert!(error["hint"].to_string().contains("flag"), "{error}");
    let mut by_variable = repo.restore_command("latest", &target);
    by_variable
        .env("HELIOS_MOVER_RESTORE_DELTA", "true")
        .env("HELIOS_MOVER_RESTORE_CONFIRM", "true");
    Outcome::of(&mut by_variable).expect(exit::TARGET);
    before.assert_same(&Tree::read(&target), "the target of refused restores");

    assert_eq!(restore(&["--confirm"]).summary()["removed"], 12);
    Tree::read(&source).assert_same(&Tree::read(&target), "confirmed");
    // From now on it is the backup's directory, whatever else comes into it.
    fs::write(target.join("extra"), "extra").expect("file");
    let plan = restore(&["--dry-run"]).summary();
    assert_eq!(plan["foreign_names"], serde_json::json!([]), "{plan}");
    assert_eq!(restore(&[]).summary()["removed"], 1);
}
