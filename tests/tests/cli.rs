//! The command line as people and programs use it: help, layers of configuration, secrets, completions, and
//! every command that the README shows.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use mover_tests::mover::{self, Outcome, Protection, Repo, dir_url, exit, secret_file};
use mover_tests::plant;
use mover_tests::random::Random;
use mover_tests::run;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;
use mover_tests::workspace;

/// Verbs that were promised, with those below them.
const VERBS: [&str; 14] = [
    "init",
    "backup",
    "list",
    "show",
    "restore",
    "verify",
    "key list",
    "key add",
    "key remove",
    "key generate",
    "check",
    "tune",
    "completions",
    "demo",
];

fn tool(scratch: &Scratch, args: &[&str]) -> Outcome {
    Outcome::of(mover::command(&scratch.dir("home")).args(args))
}

#[test]
fn every_verb_shows_an_example_that_parses() {
    let scratch = Scratch::new("help");
    let overview = tool(&scratch, &["--help"]).expect(exit::OK);
    for verb in VERBS {
        let words: Vec<&str> = verb.split(' ').collect();
        assert!(
            overview.stdout.contains(words[0]),
            "{verb} is not in the overview\n{overview}"
        );
        let args: Vec<&str> = words.iter().copied().chain(["--help"]).collect();
        let help = tool(&scratch, &args).expect(exit::OK).stdout;
        let examples: Vec<&str> = help
            .lines()
            .filter(|line| line.contains(&format!("helios-mover {verb}")))
            .collect();
        let shown = examples
            .iter()
            .filter(|line| !line.trim_start().starts_with("Usage:"))
            .count();
        assert!(shown > 0, "no example in the help of {verb}:\n{help}");
    }
    let version = tool(&scratch, &["--version"]).expect(exit::OK).stdout;
    assert!(
        version.starts_with("helios-mover ") && version.contains(env!("CARGO_PKG_VERSION")),
        "{version}"
    );
}

#[test]
fn help_is_not_wider_than_a_terminal() {
    let scratch = Scratch::new("width");
    for verb in VERBS {
        let args: Vec<&str> = verb.split(' ').chain(["--help"]).collect();
        for line in tool(&scratch, &args)
            .stdout
            .lines()
            .filter(|line| !line.contains("helios-mover "))
        {
            assert!(line.chars().count() <= 120, "{verb}: {line}");
        }
    }
}

#[test]
fn flags_win_over_environment_over_file() {
    let scratch = Scratch::new("layers");
    let home = scratch.dir("home");
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(1), 1 << 20);
    let repos: BTreeMap<&str, Repo> = ["flag", "environment", "file"]
        .into_iter()
        .map(|name| (name, Repo::create(&scratch, name, Protection::None)))
        .collect();
    fs::create_dir_all(home.join(".config/helios-mover")).expect("directory");
    let config = home.join(".config/helios-mover/config.toml");
    let write = |text: &str| fs::write(&config, text).expect("configuration file");
    write(&format!(
        "repo = \"{}\"\n\n[backup]\nsource = \"{}\"\nlevel = 1\n",
        repos["file"].url(),
        dir_url(&source)
    ));

    let backup = || {
        let mut command = mover::command(&home);
        command.args(["backup", "--json"]);
        command
    };
    let counts = || ["flag", "environment", "file"].map(|name| repos[name].ids().len());
    Outcome::of(&mut backup()).summary();
    assert_eq!(counts(), [0, 0, 1], "the file alone");
    Outcome::of(backup().env("HELIOS_MOVER_REPO", repos["environment"].url())).summary();
    assert_eq!(counts(), [0, 1, 1], "the environment wins over the file");
    Outcome::of(
        backup()
            .env("HELIOS_MOVER_REPO", repos["environment"].url())
            .args(["--repo", repos["flag"].url()]),
    )
    .summary();
    assert_eq!(counts(), [1, 1, 1], "a flag wins over both");

    // A file named by a flag is used instead of the user's.
    let other = scratch.join("other.toml");
    fs::write(&other, format!("repo = \"{}\"\n", repos["flag"].url())).expect("configuration file");
    let outcome = Outcome::of(
        backup()
            .arg("--config")
            .arg(&other)
            .args(["--source", &dir_url(&source)]),
    );
    outcome.summary();
    assert_eq!(counts(), [2, 1, 1]);

    for (text, word) in [
        ("repo = 5\n", "repo"),
        ("no-such-option = true\n", "no-such-option"),
        ("[backup]\nlevel = 99\n", "level"),
        ("repo = \"unterminated\n", "config.toml"),
    ] {
        write(text);
        let outcome =
            Outcome::of(backup().args(["--source", &dir_url(&source)])).expect(exit::USAGE);
        let error = outcome.error().to_string();
        assert!(error.contains(word), "{text:?} is not named: {error}");
    }
}

#[test]
fn secrets_reach_no_output() {
    let scratch = Scratch::new("secrets");
    let home = scratch.dir("home");
    let source = scratch.dir("source");
    fs::write(source.join("file"), "content").expect("file");
    let secret = "Tr0ub4dor-and-3-horses";
    let passphrase = scratch.join("passphrase");
    secret_file(&passphrase, &format!("{secret}\n"));
    let wrong = scratch.join("wrong");
    secret_file(&wrong, &format!("{secret}-no\n"));
    let (identity, recipient) = mover::identity(&scratch, "escrow");
    let identity_text = fs::read_to_string(&identity).expect("identity");
    let url = format!("file://{}", scratch.join("repo").display());
    let source_url = dir_url(&source);
    let target = scratch.join("target").display().to_string();
    let passphrase = passphrase.to_str().expect("path");
    let open = |file: &str, args: &[&str]| {
        let mut command = mover::command(&home);
        command
            .args(args)
            .args(["--repo", &url, "--passphrase-file", file, "-vv"])
            .env("HELIOS_MOVER_LOG", "trace");
        Outcome::of(&mut command)
    };
    let outcomes = [
        open(passphrase, &["init"]).expect(exit::OK),
        open(
            passphrase,
            &["key", "add", "--recipient", &recipient, "--label", "escrow"],
        )
        .expect(exit::OK),
        open(passphrase, &["key", "list", "--json"]).expect(exit::OK),
        open(passphrase, &["backup", "--source", &source_url]).expect(exit::OK),
        open(passphrase, &["show", "--json"]).expect(exit::OK),
        open(passphrase, &["verify", "--json"]).expect(exit::OK),
        open(passphrase, &["check"]),
        // As other tools call it.
        open(passphrase, &["restore", "--target", &target]).expect(exit::OK),
        open(wrong.to_str().expect("path"), &["list"]).expect(exit::KEY),
        Outcome::of(
            mover::command(&home)
                .args(["list", "--repo", &url, "-vv", "--identity-file"])
                .arg(&identity),
        )
        .expect(exit::OK),
        // The wrong kind of file: its name is shown, its content is not.
        open(identity.to_str().expect("path"), &["list"]).expect(exit::KEY),
    ];
    for outcome in &outcomes {
        for text in [&outcome.stdout, &outcome.stderr] {
            assert!(!text.contains(secret), "the passphrase is shown\n{outcome}");
            assert!(
                !text.contains("AGE-SECRET-KEY-"),
                "an identity is shown\n{outcome}"
            );
            assert!(
                !text.contains(identity_text.trim()),
                "an identity is shown\n{outcome}"
            );
        }
    }
    for (name, bytes) in Repo::objects_of(&scratch.join("repo")) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(
            !text.contains(secret) && !text.contains("AGE-SECRET-KEY-"),
            "a secret lies in {}",
            name.display()
        );
        assert!(
            !text.contains("content") || name == Path::new("config"),
            "plain content lies in {}",
            name.display()
        );
    }
}

#[test]
fn whose_only_slot_is_damaged_sees_that_and_what_to_do() {
    let scratch = Scratch::new("damaged-slot");
    let repo = Repo::create(&scratch, "repo", Protection::Passphrase);
    let (slot, mut bytes) = repo
        .objects()
        .into_iter()
        .find(|(name, _)| name.starts_with("keys"))
        .expect("a slot");
    bytes[60] ^= 1;
    fs::write(repo.dir.join(&slot), bytes).expect("damage");
    let listed = Outcome::of(repo.command("key list").arg("--json"));
    let listed = listed.expect(exit::OK).document();
    assert_eq!(listed["slots"][0]["damaged"], true, "{listed}");
    let error = repo.list().expect(exit::CORRUPT).error();
    assert_eq!(error["object"], slot.to_str().expect("name"), "{error}");
    let hint = error["hint"].as_str().expect("what to do next");
    assert!(hint.contains("key list"), "{hint}");
}

#[test]
fn keys_are_added_and_removed_and_the_last_one_stays() {
    let scratch = Scratch::new("key");
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(2), 1 << 20);
    let repo = Repo::create(&scratch, "repo", Protection::Passphrase);
    repo.backup(&source).summary();
    let (identity, recipient) = mover::identity(&scratch, "second");
    let key = |verb: &str, args: &[&str]| Outcome::of(repo.command(verb).arg("--json").args(args));
    key("key add", &["--recipient", &recipient, "--label", "second"]).expect(exit::OK);
    let slots = key("key list", &[]).expect(exit::OK).document();
    let slots = slots["slots"].as_array().cloned().expect("slots");
    assert_eq!(slots.len(), 2, "{slots:?}");

    let second = repo.opened_with(&["--identity-file".as_ref(), identity.as_os_str()]);
    second
        .restore("latest", &scratch.join("by-second"))
        .summary();
    Tree::read(&source).assert_same(
        &Tree::read(&scratch.join("by-second")),
        "opened with the second key",
    );

    let slot = |kind: &str| {
        let found = slots
            .iter()
            .find(|slot| slot["kind"] == kind)
            .expect("slot of this kind");
        found["slot_id"].as_str().expect("slot id").to_string()
    };
    key("key remove", &[&slot("x25519")]).expect(exit::USAGE);
    key("key remove", &[&slot("x25519"), "--confirm"]).expect(exit::OK);
    second.list().expect(exit::KEY);
    // The last one stays.
    key("key remove", &[&slot("passphrase"), "--confirm"]).expect(exit::CONFLICT);
    repo.restore("latest", &scratch.join("by-first")).summary();

    let file = scratch.join("generated");
    let generate = || {
        Outcome::of(
            mover::command(&scratch.dir("home"))
                .args(["key", "generate", "--output"])
                .arg(&file),
        )
    };
    generate().expect(exit::OK);
    let text = fs::read_to_string(&file).expect("identity");
    assert!(text.contains("AGE-SECRET-KEY-1") && text.contains("age1"));
    generate().expect(exit::CONFLICT);
    assert_eq!(
        fs::read_to_string(&file).expect("identity"),
        text,
        "an identity was overwritten"
    );
}

#[test]
fn completions_are_valid_scripts() {
    let scratch = Scratch::new("completions");
    for shell in ["bash", "zsh", "fish"] {
        let script = tool(&scratch, &["completions", shell])
            .expect(exit::OK)
            .stdout;
        for verb in ["backup", "restore", "verify"] {
            assert!(script.contains(verb), "{shell} does not know {verb}");
        }
        if shell == "bash" {
            let file = scratch.join("completions.bash");
            fs::write(&file, &script).expect("script");
            run::run("bash", ["-n".as_ref(), file.as_os_str()]);
        }
    }
}

#[test]
fn demo_ends_well_and_cleans_up() {
    let scratch = Scratch::new("demo");
    let temporary = scratch.dir("tmp");
    let outcome = Outcome::of(
        mover::command(&scratch.dir("home"))
            .args(["demo", "--json"])
            .env("TMPDIR", &temporary),
    )
    .expect(exit::OK);
    assert_eq!(
        Tree::read(&temporary).0.len(),
        1,
        "the demo left something behind"
    );
    let summary = outcome.summary();
    for (backup, backup_type, comparison) in [
        ("first_backup", "full", "comparison_of_first"),
        ("second_backup", "incremental", "comparison"),
    ] {
        let (backup, comparison) = (&summary[backup], &summary[comparison]);
        assert_eq!(backup["backup_type"], backup_type, "{summary}");
        assert_eq!(
            comparison["position"], backup["lsn_range"]["end"],
            "{summary}"
        );
        assert!(
            comparison["transactions"].as_u64() > Some(0),
            "nothing was committed: {summary}"
        );
    }
}

#[test]
fn check_and_tune_report_in_json() {
    let scratch = Scratch::new("check");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let source = scratch.dir("source");
    let outcome =
        Outcome::of(
            repo.command("check")
                .args(["--source", &dir_url(&source), "--json"]),
        )
        .expect(exit::OK);
    let document = outcome.document();
    assert!(
        document["items"]
            .as_array()
            .is_some_and(|items| !items.is_empty()),
        "{document}"
    );
    let outcome = Outcome::of(repo.command("check").args([
        "--source",
        &dir_url(&scratch.join("absent")),
        "--json",
    ]));
    outcome.expect(52);
    tool(&scratch, &["tune", "--json"])
        .expect(exit::OK)
        .document();
}

#[test]
fn exit_codes_are_documented() {
    let text = fs::read_to_string(workspace::root().join("docs/exit-codes.md"))
        .expect("docs/exit-codes.md");
    let row = |code: i32| {
        text.lines()
            .any(|line| line.starts_with(&format!("| {code} |")))
    };
    for code in [0, 1, 2, 10, 11, 20, 30, 31, 32, 33, 40, 50, 51, 52, 60, 130] {
        assert!(row(code), "exit code {code} is not in docs/exit-codes.md");
    }
}

/// Each block marked `sh` is one script. They run in one scratch directory, in the order in which they stand, with
/// the tool in PATH and the directory as HOME.
#[test]
fn commands_of_the_readme_work() {
    let scratch = Scratch::new("readme");
    let text = fs::read_to_string(workspace::root().join("README.md")).expect("README.md");
    let bin = scratch.dir("bin");
    fs::copy(mover::binary(), bin.join("helios-mover")).expect("binary can be copied");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").expect("PATH"));
    let temporary = scratch.dir("tmp");
    let mut blocks = 0;
    for block in text.split("```sh\n").skip(1) {
        let script = block.split("```").next().expect("a block ends");
        let mut bash = mover::isolated(Command::new("bash"), &scratch.dir("home"));
        let outcome = Outcome::of(
            bash.args(["-euo", "pipefail", "-c", script])
                .env("PATH", &path)
                .env("TMPDIR", &temporary),
        );
        assert_eq!(
            outcome.code,
            Some(0),
            "this block of the README fails:\n{script}\n{outcome}"
        );
        blocks += 1;
    }
    assert!(blocks > 0, "the README shows no command");
}
