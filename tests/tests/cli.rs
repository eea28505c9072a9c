//! The command line as people and programs use it: help, layers of configuration, secrets, completions, what `check` and
//! plans say, and every command that the documentation shows.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use mover_test_servers::FilesystemS3;
use mover_tests::bucket::variables;
use mover_tests::mover::{self, Outcome, Protection, Repo, dir_url, exit, secret_file};
use mover_tests::plant;
use mover_tests::random::Random;
use mover_tests::run;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;
use mover_tests::workspace;

fn tool(scratch: &Scratch, args: &[&str]) -> Outcome {
    Outcome::of(mover::command(&scratch.dir("home")).args(args))
}

/// What `--help` prints, by the words before it: of the program itself, of every verb and of every verb below a verb.
fn helps(scratch: &Scratch) -> BTreeMap<String, String> {
    let mut helps = BTreeMap::new();
    let mut open = vec![String::new()];
    while let Some(words) = open.pop() {
        let args: Vec<&str> = words.split_whitespace().chain(["--help"]).collect();
        let help = tool(scratch, &args).expect(exit::OK).stdout;
        let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
        let names = listed.map_while(|line| line.split_whitespace().next());
        for name in names.filter(|name| *name != "help") {
            open.push(format!("{words} {name}").trim().to_owned());
        }
        helps.insert(words, help);
    }
    helps
}

/// The verbs that do something: those without verbs below them.
fn verbs(helps: &BTreeMap<String, String>) -> BTreeSet<&str> {
    let has_verbs = |words: &str| {
        helps
            .keys()
            .any(|other| other.starts_with(&format!("{words} ")))
    };
    let verbs = helps.keys().map(String::as_str);
    verbs
        .filter(|words| !words.is_empty() && !has_verbs(words))
        .collect()
}

/// That the examples parse is tested where the arguments are.
#[test]
fn every_verb_shows_an_example_and_is_documented() {
    let scratch = Scratch::new("help");
    let helps = helps(&scratch);
    let verbs = verbs(&helps);
    for verb in &verbs {
        let help = &helps[*verb];
        let shown = help.lines().any(|line| {
            line.contains(&format!("helios-mover {verb}")) && !line.starts_with("Usage:")
        });
        assert!(shown, "no example in the help of {verb}:\n{help}");
    }
    // The table of verbs: its first column holds one or more of them.
    let page = fs::read_to_string(workspace::root().join("docs/cli.md")).expect("docs/cli.md");
    let rows = page
        .lines()
        .skip_while(|line| !line.starts_with("| verb "))
        .skip(2);
    let rows = rows.map_while(|line| line.strip_prefix("| ")?.split(" | ").next());
    let documented: BTreeSet<&str> = rows
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    assert_eq!(
        verbs, documented,
        "what --help lists, and what docs/cli.md does"
    );
    let version = tool(&scratch, &["--version"]).expect(exit::OK).stdout;
    assert!(
        version.starts_with("helios-mover ") && version.contains(env!("CARGO_PKG_VERSION")),
        "{version}"
    );
}

#[test]
fn help_is_not_wider_than_a_terminal() {
    let scratch = Scratch::new("width");
    for (words, help) in helps(&scratch) {
        for line in help.lines().filter(|line| !line.contains("helios-mover ")) {
            assert!(line.chars().count() <= 120, "{words}: {line}");
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
fn a_key_that_is_typed_encrypts_whatever_the_file_says() {
    let scratch = Scratch::new("no-encryption");
    let home = scratch.dir("home");
    let (key, config) = (scratch.join("passphrase"), scratch.join("config.toml"));
    secret_file(&key, mover::PASSPHRASE);
    let key = key.display().to_string();
    let init = |name: &str, text: &str, flags: &[&str]| {
        fs::write(&config, text).expect("configuration file");
        let mut command = mover::command(&home);
        command
            .args(["init", "--json", "--repo"])
            .arg(scratch.join(name))
            .arg("--config")
            .arg(&config);
        Outcome::of(command.args(flags))
    };
    let plain = "[init]\nno-encryption = true\n";
    let made = init("typed", plain, &["--passphrase-file", &key]);
    let made = made.expect(exit::OK).document();
    assert_eq!(made["cipher"], "aes-256-gcm", "{made}");

    let in_file = format!("passphrase-file = '{key}'\n");
    let made = init("unused", &in_file, &["--no-encryption"]);
    let made = made.expect(exit::OK).document();
    assert_eq!(made["cipher"], "none", "{made}");
    let warned = made["warnings"].to_string();
    assert!(warned.contains("`passphrase-file` in "), "{made}");

    let both: [(&str, &str, &[&str]); 2] = [
        ("flags", "", &["--passphrase-file", &key, "--no-encryption"]),
        ("file", &format!("{in_file}{plain}"), &[]),
    ];
    for (name, text, flags) in both {
        let error = init(name, text, flags).expect(exit::USAGE).error();
        assert!(error["hint"].is_string(), "{error}");
        assert!(!scratch.join(name).exists(), "{name}: something was made");
    }
}

#[test]
fn whose_backup_is_latest_is_said_and_never_guessed_over_data() {
    let scratch = Scratch::new("whose");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let (first, second) = (scratch.dir("first"), scratch.dir("second"));
    fs::write(first.join("rows"), "first").expect("file");
    fs::write(second.join("rows"), "second").expect("file");
    let of_first = repo.backup(&first).summary();
    let list = |args: &[&str]| Outcome::of(repo.command("list").args(args)).expect(exit::OK);
    assert!(!list(&[]).stdout.contains("SOURCE"), "there is one only");
    repo.backup(&second).summary();
    let listed = list(&[]).stdout;
    assert!(
        listed.contains("SOURCE") && listed.contains(&dir_url(&first)),
        "{listed}"
    );
    let only = list(&["--json", "--source", &dir_url(&first)]).document();
    let backups = only["backups"].as_array().expect("backups");
    assert_eq!(backups.len(), 1, "{only}");
    assert_eq!(backups[0]["backup_id"], of_first["backup_id"], "{only}");

    let target = scratch.dir("target");
    fs::write(target.join("rows"), "kept").expect("file");
    let restore = |args: &[&str]| {
        let mut command = repo.command("restore");
        command.args(["--json", "--delta", "--to"]).arg(&target);
        Outcome::of(command.args(args))
    };
    let rows = || fs::read_to_string(target.join("rows")).expect("file");
    let error = restore(&[]).expect(exit::USAGE).error();
    let named = error["object"].as_str().expect("whose they are");
    assert!(
        named.contains(&dir_url(&first)) && named.contains(&dir_url(&second)),
        "{error}"
    );
    assert_eq!(rows(), "kept");

    let latest = restore(&["--set", "latest"]).summary();
    assert_eq!(latest["source"], dir_url(&second), "{latest}");
    let warned = latest["warnings"].to_string();
    assert!(warned.contains(&dir_url(&first)), "{latest}");
    assert_eq!(rows(), "second");

    let host = latest["host"].as_str().expect("host");
    let named = ["--source", &dir_url(&first), "--host", host];
    let restored = restore(&named).summary();
    assert_eq!(restored["source"], dir_url(&first), "{restored}");
    assert_eq!(restored["warnings"], serde_json::json!([]), "{restored}");
    assert_eq!(rows(), "first");
    restore(&["--host", "nobody"]).expect(exit::NOT_FOUND);
    let id = of_first["backup_id"].as_str().expect("id");
    restore(&["--set", id, "--source", &dir_url(&second)]).expect(exit::USAGE);
    // Nothing is replaced here.
    repo.restore("latest", &scratch.join("fresh")).summary();
}

/// With `--quiet`, as cron jobs run it, what is wrong is all that is printed.
#[test]
fn who_asks_for_quiet_reads_what_is_damaged() {
    let scratch = Scratch::new("quiet-damage");
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(5), 1 << 20);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    repo.backup(&source).summary();
    let objects = repo.objects();
    let (pack, _) = objects
        .iter()
        .find(|(name, _)| name.starts_with("packs"))
        .expect("a pack");
    fs::remove_file(repo.dir.join(pack)).expect("a pack can be lost");
    let name = pack.to_str().expect("name");
    let error = repo.verify().expect(exit::VERIFY_FAILED).error();
    assert!(error["object"].to_string().contains(name), "{error}");
    let quiet = Outcome::of(repo.command("verify").arg("--quiet"));
    let quiet = quiet.expect(exit::VERIFY_FAILED);
    assert_eq!(quiet.stdout, "");
    let found = quiet.stderr.lines().next().expect("a finding");
    assert!(
        found.starts_with("finding  ") && found.contains(name),
        "{quiet}"
    );

    let absent = dir_url(&scratch.join("absent"));
    let quiet = Outcome::of(
        mover::command(&scratch.dir("home")).args(["check", "--quiet", "--source", &absent]),
    );
    let quiet = quiet.expect(exit::CHECK_FAILED);
    assert!(
        quiet.stdout.is_empty() && quiet.stderr.starts_with("FAIL  source, readable: "),
        "{quiet}"
    );
}

#[test]
fn what_a_plan_warns_of_is_told_before_the_job_and_stays_told_if_that_fails() {
    let scratch = Scratch::new("warned");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let source = scratch.dir("source");
    plant::file(&source.join("file"), &mut Random::new(6), 3 << 20);
    let _socket = UnixListener::bind(source.join("socket")).expect("a socket");
    let told = |outcome: &Outcome| {
        let lines = outcome.lines();
        let warnings = lines
            .iter()
            .filter(|line| line["message_type"] == "warning");
        let texts = warnings.map(|line| line["message"].as_str().expect("text").to_owned());
        texts.collect::<Vec<_>>()
    };
    let outcome = repo.backup(&source);
    let summary = outcome.summary();
    let warnings = told(&outcome);
    assert_eq!(warnings.len(), 1, "{outcome}");
    assert!(warnings[0].contains("socket"), "{outcome}");
    assert_eq!(
        summary["warnings"],
        serde_json::json!(warnings),
        "{summary}"
    );

    // No file may become larger than a block of this size, so that no pack can be written.
    let limited = |json: &[&str]| {
        let mut bash = mover::isolated(Command::new("bash"), &scratch.dir("home"));
        bash.args(["-c", "ulimit -f 64; exec \"$@\"", "bash"])
            .arg(mover::binary())
            .args([
                "backup",
                "--repo",
                repo.url(),
                "--source",
                &dir_url(&source),
            ])
            .args(json);
        plant::file(&source.join("new"), &mut Random::new(7), 3 << 20);
        Outcome::of(&mut bash).expect(exit::STORAGE)
    };
    let outcome = limited(&["--json"]);
    outcome.error();
    assert_eq!(told(&outcome), warnings, "{outcome}");
    let text = limited(&[]).stderr;
    assert_eq!(text.matches("warning: ").count(), 1, "{text}");
}

#[test]
fn a_result_that_cannot_be_written_is_an_error_that_names_the_backup() {
    let scratch = Scratch::new("full");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let source = scratch.dir("source");
    for at in 0..2 {
        let full = fs::File::options().write(true).open("/dev/full");
        let mut command = repo.backup_command(&source);
        command
            .stdout(full.expect("/dev/full"))
            .stderr(Stdio::piped());
        let output = command
            .spawn()
            .and_then(std::process::Child::wait_with_output);
        let outcome = Outcome::new("backup".to_owned(), &output.expect("a process"));
        let outcome = outcome.expect(exit::TARGET);
        let ids = repo.ids();
        assert_eq!(ids.len(), at + 1);
        assert!(
            outcome
                .stderr
                .starts_with("error: standard output cannot be written")
                && outcome.stderr.contains(&ids[at]),
            "{outcome}"
        );
    }
}

#[test]
fn the_command_that_a_wrong_session_id_leads_to_works() {
    let scratch = Scratch::new("session-hint");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let forget = ["--forget-session", "abc", "--confirm", "--json"];
    let error = Outcome::of(repo.command("expire").args(forget)).expect(exit::NOT_FOUND);
    let error = error.error();
    let hint = error["hint"].as_str().expect("what to do next");
    let shown = hint.split('`').nth(1).expect("a command");
    let words: Vec<&str> = shown.split(' ').skip(1).collect();
    let planned = Outcome::of(repo.command(words[0]).args(&words[1..]).arg("--json"));
    assert!(planned.summary()["sessions"].is_array(), "{shown}");
}

/// Has every verb that handles a secret say as much as it can, on a new repository at `url` whose objects lie in `objects`. No secret
/// is shown or lies there. Returns what those said that asked the store for something.
fn secrets_stay_hidden(
    url: &str,
    environment: &[(&str, &str)],
    objects: &Path,
    scratch: &Scratch,
) -> Vec<Outcome> {
    let home = scratch.dir("home");
    let source = scratch.dir("source");
    fs::write(source.join("file"), "content").expect("file");
    let secret = "Tr0ub4dor-and-3-horses";
    let passphrase = scratch.join("passphrase");
    secret_file(&passphrase, &format!("{secret}\n"));
    let wrong = scratch.join("wrong");
    secret_file(&wrong, &format!("{secret}-no\n"));
    let (identity, recipient) = mover::identity(scratch, "escrow");
    let identity_text = fs::read_to_string(&identity).expect("identity");
    let source_url = dir_url(&source);
    let target = scratch.join("target").display().to_string();
    let by = |key: [&OsStr; 2], args: &[&str]| {
        let mut command = mover::command(&home);
        command
            .args(args)
            .args(["--repo", url, "-vv"])
            .args(key)
            .envs(environment.iter().copied())
            .env("HELIOS_MOVER_LOG", "trace");
        Outcome::of(&mut command)
    };
    let [passphrase_file, identity_file] = ["--passphrase-file", "--identity-file"].map(OsStr::new);
    let open = |file: &Path, args: &[&str]| by([passphrase_file, file.as_os_str()], args);
    let outcomes = vec![
        open(&passphrase, &["init"]).expect(exit::OK),
        open(
            &passphrase,
            &["key", "add", "--recipient", &recipient, "--label", "escrow"],
        )
        .expect(exit::OK),
        open(&passphrase, &["key", "list", "--json"]).expect(exit::OK),
        open(&passphrase, &["backup", "--source", &source_url]).expect(exit::OK),
        open(&passphrase, &["show", "--json"]).expect(exit::OK),
        open(&passphrase, &["verify", "--json"]).expect(exit::OK),
        open(&passphrase, &["check"]).expect(exit::OK),
        // As other tools call it.
        open(&passphrase, &["restore", "--target", &target]).expect(exit::OK),
        open(&wrong, &["list"]).expect(exit::KEY),
        by([identity_file, identity.as_os_str()], &["list"]).expect(exit::OK),
    ];
    // The wrong kind of file, which is told before anything is asked for: its name is shown, its content is not.
    let unasked = open(&identity, &["list"]).expect(exit::KEY);
    let mut hidden = vec![secret, "AGE-SECRET-KEY-", identity_text.trim()];
    let keys = environment.iter();
    let keys = keys.filter(|(name, _)| *name == "AWS_SECRET_ACCESS_KEY");
    hidden.extend(keys.map(|(_, key)| *key));
    for outcome in outcomes.iter().chain([&unasked]) {
        for text in [&outcome.stdout, &outcome.stderr] {
            for secret in &hidden {
                assert!(!text.contains(*secret), "{secret} is shown\n{outcome}");
            }
        }
    }
    let stored = Repo::objects_of(objects);
    assert!(!stored.is_empty(), "{} is empty", objects.display());
    for (name, bytes) in stored {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        for secret in &hidden {
            assert!(!text.contains(*secret), "{secret} in {}", name.display());
        }
        assert!(
            !text.contains("content") || name == Path::new("config"),
            "plain content lies in {}",
            name.display()
        );
    }
    outcomes
}

#[test]
fn secrets_reach_no_output() {
    let scratch = Scratch::new("secrets");
    let objects = scratch.join("repo");
    let url = format!("file://{}", objects.display());
    secrets_stay_hidden(&url, &[], &objects, &scratch);
}

/// On a local disk there is nothing to log. Here there is, and the key of the store is one more secret.
#[test]
fn secrets_reach_no_output_of_verbs_that_log() {
    let scratch = Scratch::new("secrets-logged");
    let server = FilesystemS3::start(scratch.path());
    let access = server.access();
    let objects = server.objects().join("secrets");
    let environment = variables(&access.key);
    let said = secrets_stay_hidden(&access.url("secrets"), &environment, &objects, &scratch);
    for outcome in said {
        assert!(outcome.stderr.contains("TRACE"), "no trace\n{outcome}");
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
    // Not by its own key: that shows no other way in.
    let own =
        Outcome::of(
            second
                .command("key remove")
                .args([&slot("x25519"), "--confirm", "--json"]),
        );
    mover_tests::bucket::told(
        own,
        exit::CONFLICT,
        "opens no other key slot",
        "a slot that stays",
    );
    let removed = key("key remove", &[&slot("x25519"), "--confirm"]).expect(exit::OK);
    assert_eq!(removed.document()["slot"]["kind"], "x25519");
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
fn slots_of_recipients_are_told_apart_without_a_label() {
    let scratch = Scratch::new("labels");
    let (identity, first) = mover::identity(&scratch, "first");
    let (_, second) = mover::identity(&scratch, "second");
    let url = scratch.join("repo").display().to_string();
    let run = |args: &[&str]| {
        let mut command = mover::command(&scratch.dir("home"));
        Outcome::of(command.args(args).args(["--json", "--repo", &url]))
    };
    run(&["init", "--recipient", &first, "--recipient", &first]).expect(exit::USAGE);
    let (_, third) = mover::identity(&scratch, "third");
    run(&["init", "--recipient", &first, "--recipient", &third]).expect(exit::OK);
    let key = identity.to_str().expect("path");
    run(&["key", "add", "--recipient", &second, "--identity-file", key]).expect(exit::OK);
    let listed = run(&["key", "list"]).expect(exit::OK).document();
    let slots = listed["slots"].as_array().expect("slots");
    let labels: BTreeSet<&str> = slots
        .iter()
        .map(|slot| slot["label"].as_str().expect("label"))
        .collect();
    let begins = [&first, &second, &third].map(|recipient| format!("{}...", &recipient[..12]));
    assert_eq!(labels, begins.iter().map(String::as_str).collect());
}

#[test]
fn a_note_that_is_put_in_twice_is_refused_by_both_verbs() {
    let scratch = Scratch::new("twice");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let source = scratch.dir("source");
    let mut backup = repo.backup_command(&source);
    Outcome::of(backup.args(["--annotation", "a=1", "--annotation", "a=2"])).expect(exit::USAGE);
    repo.backup(&source).summary();
    let mut annotate = repo.command("annotate");
    Outcome::of(annotate.args(["latest", "a=1", "a=2"])).expect(exit::USAGE);
    let listed = repo.list().document();
    let notes = &listed["backups"][0]["metadata"]["annotations"];
    assert_eq!(notes, &serde_json::json!({}), "{listed}");
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

/// What the documentation's blocks marked `sh` are run with: the tool in PATH, and a directory of their own as HOME.
struct Shell {
    scratch: Scratch,
    path: String,
}

impl Shell {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let bin = scratch.dir("bin");
        mover::copy_binary(&bin.join("helios-mover"));
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").expect("PATH"));
        Shell { scratch, path }
    }

    fn run(&self, page: &str, script: &str, environment: &[(&str, &str)]) {
        let mut bash = mover::isolated(Command::new("bash"), &self.scratch.dir("home"));
        let outcome = Outcome::of(
            bash.args(["-euo", "pipefail", "-c", script])
                .env("PATH", &self.path)
                .env("TMPDIR", self.scratch.dir("tmp"))
                .envs(environment.iter().copied()),
        );
        assert_eq!(
            outcome.code,
            Some(0),
            "this block of {page} fails:\n{script}\n{outcome}"
        );
    }
}

/// Whoever pastes the blocks one after the other has them all in one shell, so what one leaves behind reaches the next.
#[test]
fn commands_of_the_readme_work() {
    let shell = Shell::new("readme");
    let (page, text) = workspace::pages().remove(0);
    let blocks = workspace::blocks(&text, "sh");
    assert!(blocks.len() > 2, "the README shows commands");
    shell.run(&page, &blocks.join("\n"), &[]);
}

/// The other pages show commands on a repository that is there, named by the environment, and holds a backup. What no test has
/// is in blocks of another kind; their command lines are parsed where the arguments are.
#[test]
fn commands_of_the_other_pages_work() {
    let shell = Shell::new("pages");
    let source = shell.scratch.dir("source");
    fs::write(source.join("file"), "content").expect("file");
    let mut blocks = 0;
    for (at, (page, text)) in workspace::pages().iter().enumerate().skip(1) {
        let scripts = workspace::blocks(text, "sh");
        if scripts.is_empty() {
            continue;
        }
        let repo = Repo::create(&shell.scratch, &format!("repo-{at}"), Protection::None);
        repo.backup(&source).summary();
        let id = repo.ids().remove(0);
        for script in scripts {
            // Ids that a page makes up: of a session whose host is gone, and of a hold. Whoever removes either needs its name only.
            for (command, prefix, begin) in [
                ("expire --forget-session ", "sessions".to_owned(), "5f0c"),
                ("hold remove ", format!("holds/{id}"), "3f9a"),
            ] {
                if script.contains(&format!("{command}{begin}")) {
                    let dir = repo.dir.join(prefix);
                    fs::create_dir_all(&dir).expect("directory");
                    fs::write(dir.join(format!("{begin:0<32}")), "made up").expect("object");
                }
            }
            let environment = [("HELIOS_MOVER_REPO", repo.url())];
            shell.run(page, script, &environment);
            blocks += 1;
        }
    }
    assert!(blocks > 0, "no other page shows a command");
}

/// Whether `name` is one that `pattern` stands for, where `<...>` stands for what the page on the format says.
fn is_named_so(name: &str, pattern: &str) -> bool {
    let (names, patterns): (Vec<&str>, Vec<&str>) =
        (name.split('/').collect(), pattern.split('/').collect());
    let is_hex = |text: &str, digits: usize| {
        text.len() == digits
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    names.len() == patterns.len()
        && names
            .iter()
            .zip(&patterns)
            .all(|(part, pattern)| match *pattern {
                "<slot id>" | "<pack id>" | "<session id>" | "<hold id>" => is_hex(part, 32),
                "<first two digits>" => is_hex(part, 2) && names[2].starts_with(part),
                "<backup id>" => {
                    let parts: Vec<&str> = part.split('-').collect();
                    let are_digits =
                        parts[..2.min(parts.len())]
                            .iter()
                            .zip([8, 6])
                            .all(|(part, digits)| {
                                part.len() == digits && part.bytes().all(|b| b.is_ascii_digit())
                            });
                    parts.len() == 3 && are_digits && is_hex(parts[2], 8)
                }
                "<number>" => part
                    .parse()
                    .is_ok_and(|number: u32| number.to_string() == *part),
                fixed => *part == fixed,
            })
}

#[test]
fn objects_have_the_names_that_the_format_gives_them() {
    let scratch = Scratch::new("names");
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(3), 1 << 20);
    let repo = Repo::create(&scratch, "repo", Protection::Passphrase);
    repo.backup(&source).summary();
    for (verb, args) in [
        ("hold add", ["latest", "--reason", "test"].as_slice()),
        ("annotate", &["latest", "ticket=4711"]),
    ] {
        Outcome::of(repo.command(verb).args(args)).expect(exit::OK);
    }
    let page = workspace::root().join("docs/repository-format.md");
    let page = fs::read_to_string(page).expect("docs/repository-format.md");
    let rows = page
        .lines()
        .skip_while(|line| !line.starts_with("| name | object |"))
        .skip(2);
    let patterns: Vec<&str> = rows
        .map_while(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    let mut used = BTreeSet::new();
    for (name, _) in repo.objects() {
        let name = name.to_str().expect("UTF-8");
        let pattern = patterns.iter().find(|pattern| is_named_so(name, pattern));
        used.insert(*pattern.unwrap_or_else(|| panic!("{name} is none of {patterns:?}")));
    }
    // Those of a backup and of an expire that are under way.
    let gone = ["sessions/<session id>", "expired/<backup id>/<session id>"];
    let expected = patterns
        .iter()
        .copied()
        .filter(|pattern| !gone.contains(pattern));
    assert_eq!(used, expected.collect(), "a pattern that nothing has");
}

#[test]
fn check_opens_what_a_backup_would_have_to_read() {
    run::require_root();
    let scratch = Scratch::new("check-readable");
    let binary = scratch.join("helios-mover");
    mover::copy_binary(&binary);
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
    };
    let source = scratch.dir("source");
    for table in 0..5 {
        let path = source.join(format!("table-{table}"));
        fs::write(&path, "rows").expect("file");
        mode(&path, 0o600);
    }
    mode(&source.join("table-1"), 0o644);
    let home = scratch.dir("home");
    let check = || {
        let mut command = mover::isolated(run::as_user("nobody", &binary), &home);
        Outcome::of(command.args(["check", "--json", "--source", &dir_url(&source)]))
    };
    let readable = |summary: &serde_json::Value| {
        let items = summary["items"].as_array().expect("items");
        let found = items.iter().find(|item| item["name"] == "readable");
        found.expect("the source is looked at").clone()
    };
    let outcome = check().expect(exit::CHECK_FAILED);
    let item = readable(&outcome.lines()[0]);
    assert_eq!(item["status"], "fail", "{item}");
    let detail = item["detail"].as_str().expect("detail");
    assert!(
        detail.starts_with("4 of 5 files")
            && detail.contains("table-0")
            && !detail.contains("table-1"),
        "{item}"
    );
    assert!(
        item["hint"]
            .as_str()
            .is_some_and(|hint| hint.contains("CAP_DAC_READ_SEARCH")),
        "{item}"
    );

    (0..5).for_each(|table| mode(&source.join(format!("table-{table}")), 0o644));
    let item = readable(&check().expect(exit::OK).document());
    assert_eq!(item["status"], "ok", "{item}");
    assert!(
        item["detail"]
            .as_str()
            .is_some_and(|detail| detail.contains("5 of them opened")),
        "{item}"
    );
}

#[test]
fn plans_say_what_a_backup_then_reads() {
    let scratch = Scratch::new("plan");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let source = scratch.dir("source");
    let mut random = Random::new(4);
    plant::file(&source.join("dense"), &mut random, 3 << 20);
    plant::file(&source.join("small"), &mut random, 8192);
    let piece = random.bytes(1 << 20);
    plant::holes(&source.join("sparse"), 64 << 20, &[(8 << 20, &piece)]);
    let dry_run = |args: &[&str]| {
        let mut command = repo.command("backup");
        command
            .args(["--source", &dir_url(&source), "--dry-run"])
            .args(args);
        Outcome::of(&mut command).expect(exit::OK)
    };
    let (source_bytes, data_bytes): (u64, u64) = ((67 << 20) + 8192, (4 << 20) + 8192);
    let expect = |plan: &serde_json::Value| {
        assert_eq!(plan["dry_run"], true, "{plan}");
        assert_eq!(plan["files"], 3, "{plan}");
        assert_eq!(plan["source_bytes"], source_bytes, "{plan}");
        assert_eq!(plan["data_bytes"], data_bytes, "{plan}");
    };
    let plan = dry_run(&["--json"]).summary();
    expect(&plan);
    assert_eq!(plan["parent"], serde_json::Value::Null, "{plan}");
    assert_eq!(plan["estimates_are_upper_bounds"], false, "{plan}");
    // Random bytes do not shrink, and holes are not taken for data that does.
    let stored = plan["estimated_stored_bytes"]
        .as_u64()
        .expect("an estimate");
    assert!(
        (data_bytes..data_bytes * 11 / 10).contains(&stored),
        "{plan}"
    );
    let text = dry_run(&[]).stdout;
    assert!(
        text.contains("about") && !text.contains("at most"),
        "{text}"
    );
    assert!(repo.ids().is_empty(), "a plan stores nothing");

    let made = repo.backup(&source).summary();
    assert_eq!(made["bytes_read"], data_bytes, "{made}");

    // The same again: what it would store is not known without reading all of it, and that is said.
    let plan = dry_run(&["--json"]).summary();
    expect(&plan);
    assert_eq!(plan["parent"], made["backup_id"], "{plan}");
    assert_eq!(plan["estimates_are_upper_bounds"], true, "{plan}");
    let text = dry_run(&[]).stdout;
    assert!(
        text.contains("at most about")
            && text.contains("what the parent holds is not stored again"),
        "{text}"
    );
    let again = repo.backup(&source).summary();
    assert_eq!(again["bytes_read"], data_bytes, "{again}");
    assert_eq!(repo.ids().len(), 2);
}
