//! What keeps an operator's slip from becoming a loss, or from passing unseen: a target that is another directory or another source, or
//! has no room; a source spelled in another way, a host whose name changes, a key that nobody has, a repository that is somebody
//! else's, damaged or without backups.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use mover_tests::clock;
use mover_tests::disk::SmallDisk;
use mover_tests::mover::{self, Outcome, Protection, Repo, dir_url, exit};
use mover_tests::plant::{self, MIB};
use mover_tests::random::Random;
use mover_tests::run;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;
use serde_json::Value;

/// Seed of what is planted here.
const SEED: u64 = 0x736c_6970;

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

/// A source with one table that does not shrink.
fn source_of(scratch: &Scratch, name: &str, bytes: u64) -> std::path::PathBuf {
    let source = scratch.dir(name);
    let table = source.join("table");
    plant::file(&table, &mut Random::new(SEED), bytes as usize);
    source
}

fn id_of(made: &Value) -> &str {
    made["backup_id"].as_str().expect("an id")
}

/// Whether one of the warnings of a job says so.
fn warns(summary: &Value, said: &str) -> bool {
    summary["warnings"].to_string().contains(said)
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

/// A plan changes nothing, so it cannot look into a directory whose mode keeps its owner out. The restore can.
#[test]
fn a_plan_says_what_it_could_not_count_and_the_restore_removes_that_too() {
    let scratch = Scratch::new("closed");
    let binary = scratch.join("helios-mover");
    let set_mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
    };
    // By a process of its own: one that another thread starts meanwhile would inherit what is being written.
    run::run("cp", [mover::binary().as_os_str(), binary.as_os_str()]);
    set_mode(&binary, 0o755);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    repo.backup(&small_source(&scratch, "source")).summary();
    let (home, target) = (scratch.dir("home"), scratch.dir("target"));
    let closed = target.join("base");
    fs::create_dir(&closed).expect("directory");
    for dir in [&target, &closed] {
        fs::write(dir.join("extra"), "extra").expect("file");
    }
    for dir in [&repo.dir, &home, &target] {
        let owner = ["-R".as_ref(), "nobody:nogroup".as_ref(), dir.as_os_str()];
        run::run("chown", owner);
    }
    set_mode(&closed, 0o300);
    let restore = |args: &[&str]| {
        let mut command = mover::isolated(run::as_user("nobody", &binary), &home);
        command.args([
            "restore",
            "--set",
            "latest",
            "--delta",
            "--repo",
            repo.url(),
        ]);
        Outcome::of(command.arg("--to").arg(&target).args(args))
    };
    let said = "from looking into base; the restore gives its owner that right";
    let plan = restore(&["--dry-run", "--json"]).summary();
    assert_eq!(plan["removes"], 1, "{plan}");
    assert_eq!(plan["uncounted_dirs"], 1, "{plan}");
    assert!(plan["warnings"].to_string().contains(said), "{plan}");
    let plan = restore(&["--dry-run"]).expect(exit::OK);
    assert!(
        plan.stdout.contains("at least 1 name, not in the backup") && plan.stderr.contains(said),
        "{plan}"
    );
    let mode = fs::metadata(&closed).expect("metadata").permissions();
    assert_eq!(mode.mode() & 0o7777, 0o300, "a plan changes nothing");
    let done = restore(&["--json"]).summary();
    assert_eq!(done["removed"], 2, "{done}");
    assert_eq!(fs::read(closed.join("rows")).expect("restored"), b"rows");
    assert!(!closed.join("extra").exists() && !target.join("extra").exists());
}

#[test]
fn an_encrypted_repository_without_a_slot_is_told_from_one_without_encryption() {
    let scratch = Scratch::new("locked-out");
    let source = small_source(&scratch, "source");
    let repo = Repo::create(&scratch, "repo", Protection::Passphrase);
    repo.backup(&source).summary();
    let without_key = repo.opened_with(&[]);
    let run = |verb: &str, args: &[&str]| Outcome::of(without_key.command(verb).args(args));
    let whole = run("key list", &["--json"]).expect(exit::OK).document();
    assert_eq!(whole["encrypted"], true, "{whole}");
    run("check", &[]).expect(exit::OK);
    let backup = || without_key.backup(&source).summary();
    assert!(!backup()["warnings"].to_string().contains("no key slot"));

    fs::remove_dir_all(repo.dir.join("keys")).expect("the slots go");
    let listed = run("key list", &[]).expect(exit::OK);
    assert!(
        listed.stdout.contains("encrypted, and no slot is left")
            && listed.stderr.contains("nobody can read"),
        "{listed}"
    );
    let listed = run("key list", &["--json"]).expect(exit::OK).document();
    assert_eq!(listed["encrypted"], true, "{listed}");
    assert!(listed["warnings"].to_string().contains("nobody can read"));
    let checked = run("check", &["--json"]).expect(exit::CHECK_FAILED);
    let items = checked.lines().remove(0)["items"].clone();
    let items = items.as_array().expect("items");
    let item = items.iter().find(|item| item["name"] == "key slots");
    assert_eq!(item.expect("the slots are looked at")["status"], "fail");
    // It goes on, and says that what it stores is lost.
    assert!(backup()["warnings"].to_string().contains("nobody can read"));

    let open = Repo::create(&scratch, "open", Protection::None);
    let listed = Outcome::of(&mut open.command("key list")).expect(exit::OK);
    assert!(listed.stdout.contains("is not encrypted"), "{listed}");
    let listed = Outcome::of(open.command("key list").arg("--json")).document();
    assert_eq!(listed["encrypted"], false, "{listed}");
}

/// The items of a check, by their names.
fn items(outcome: &Outcome) -> std::collections::BTreeMap<String, serde_json::Value> {
    let summary = outcome.lines().remove(0);
    let items = summary["items"].as_array().expect("items").clone();
    let named = |item: serde_json::Value| (item["name"].as_str().expect("name").to_owned(), item);
    items.into_iter().map(named).collect()
}

#[test]
fn check_looks_at_what_the_configured_backup_would_do() {
    let scratch = Scratch::new("check-config");
    let source = small_source(&scratch, "source");
    let repo = Repo::create_at(&scratch, &source.join("backups"), Protection::None);
    let check = |text: &str, args: &[&str]| {
        let file = scratch.join("config.toml");
        fs::write(&file, text).expect("file");
        let mut command = repo.command("check");
        command.args(["--json", "--config"]).arg(file).args(args);
        Outcome::of(&mut command)
    };
    let backup = format!("[backup]\nsource = \"{}\"\n", source.display());
    let overlaps = check(&backup, &[]).expect(exit::CHECK_FAILED);
    let found = items(&overlaps);
    assert_eq!(found["repository in it"]["status"], "fail", "{found:?}");
    let left_out = format!("{backup}exclude = [\"backups\"]\n");
    let found = items(&check(&left_out, &[]).expect(exit::OK));
    assert!(found["readable"]["detail"].to_string().contains("1 file"));
    // What is said of the check itself wins, in any layer.
    let absent = scratch.join("absent").display().to_string();
    let own = format!("{left_out}[check]\nsource = \"{absent}\"\n");
    check(&own, &[]).expect(exit::CHECK_FAILED);
    check(&left_out, &["--source", &absent]).expect(exit::CHECK_FAILED);
    check(&left_out, &["--exclude", "nothing"]).expect(exit::CHECK_FAILED);

    let with_key = check("", &["--passphrase-file", &absent]).expect(exit::CHECK_FAILED);
    let found = items(&with_key);
    assert_eq!(found["key file"]["status"], "fail", "{found:?}");
    assert!(found["key file"]["detail"].to_string().contains(&absent));
    tool(&scratch, &["check", "--repo", "s3:/bucket"]).expect(exit::USAGE);
}

#[test]
fn a_source_is_the_same_one_however_its_path_is_spelled() {
    let scratch = Scratch::new("spelled");
    let source = small_source(&scratch, "source");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let path = source.display().to_string();
    let (parent, name) = path.rsplit_once('/').expect("a path");
    let spellings = [
        format!("dir://{path}"),
        format!("dir://{path}/"),
        format!("dir://{parent}//{name}"),
        format!("dir://{parent}/./{name}"),
        format!("{name}/"),
    ];
    let mut known = None;
    for spelling in &spellings {
        let mut backup = repo.command("backup");
        backup
            .args(["--json", "--source", spelling])
            .current_dir(parent);
        let made = Outcome::of(&mut backup).summary();
        assert_eq!(made["parent"].as_str(), known.as_deref(), "{spelling}");
        known = made["backup_id"].as_str().map(str::to_owned);
    }
    for spelling in &spellings {
        let mut list = repo.command("list");
        list.args(["--json", "--source", spelling])
            .current_dir(parent);
        let listed = Outcome::of(&mut list).document();
        let backups = listed["backups"].as_array().expect("backups");
        assert_eq!(backups.len(), spellings.len(), "{spelling}");
    }
    let mut expire = repo.command("expire");
    let plan = Outcome::of(expire.args(["--keep-last", "1", "--json"])).summary();
    assert_eq!(plan["kept"], 1, "they are of one source: {plan}");
}

#[test]
fn verify_of_a_repository_without_backups_proves_nothing_and_says_so() {
    let scratch = Scratch::new("nothing");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let outcome = repo.verify().expect(exit::NOT_FOUND);
    assert_eq!(
        outcome.lines().remove(outcome.lines().len() - 2)["ok"],
        false
    );
    outcome.told(exit::NOT_FOUND, repo.url());
    // A backup that is lost without its packs, as by a directory that was not copied along.
    let source = small_source(&scratch, "source");
    repo.backup(&source).summary();
    repo.verify().expect(exit::OK);
    fs::remove_dir_all(repo.dir.join("backups")).expect("the manifests go");
    let error = repo.verify().told(exit::NOT_FOUND, repo.url());
    assert!(error["hint"].to_string().contains("pack"), "{error}");
    let text = Outcome::of(&mut repo.command("verify")).expect(exit::NOT_FOUND);
    assert!(text.stdout.contains("nothing to verify"), "{text}");
}

#[test]
fn a_backup_is_of_the_host_that_is_named() {
    let scratch = Scratch::new("host");
    let source = small_source(&scratch, "source");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let backup = |host: &str| {
        let mut command = repo.backup_command(&source);
        command.env("HELIOS_MOVER_BACKUP_HOST", host);
        Outcome::of(&mut command).summary()
    };
    let first = backup("db7");
    let second = backup("db7");
    assert_eq!(second["parent"], first["backup_id"], "{second}");
    let of = |host: &str| {
        let mut list = repo.command("list");
        let listed = Outcome::of(list.args(["--json", "--host", host])).document();
        listed["backups"].as_array().expect("backups").len()
    };
    assert_eq!((of("db7"), of("db8")), (2, 0));
    // Without it the machine's own name stands, and both are kept for what they are.
    let own = repo.backup(&source).summary();
    let mut show = repo.command("show");
    let id = own["backup_id"].as_str().expect("id");
    let shown = Outcome::of(show.args([id, "--json"])).document();
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    assert!(
        shown.to_string().contains(&format!("\"host\":\"{name}\"")),
        "{shown}"
    );
    let mut expire = repo.command("expire");
    let plan = Outcome::of(expire.args(["--keep-last", "1", "--json"])).summary();
    assert_eq!(plan["kept"], 2, "{plan}");
    let mut wrong = repo.backup_command(&source);
    Outcome::of(wrong.args(["--host", "db 7"])).expect(exit::USAGE);
}

#[test]
fn a_rate_without_a_unit_is_refused_wherever_it_stands() {
    let scratch = Scratch::new("rate");
    let error = tool(&scratch, &["list", "--json", "--limit-read", "5000"])
        .expect(exit::USAGE)
        .error();
    assert!(error.to_string().contains("5000KiB/s"), "{error}");
    let file = scratch.join("config.toml");
    fs::write(&file, "limit-write = 5000\n").expect("file");
    let path = file.to_str().expect("path");
    let error = tool(&scratch, &["list", "--json", "--config", path])
        .expect(exit::USAGE)
        .error();
    assert!(error["object"].to_string().contains("`limit-write`"));
    assert!(error.to_string().contains("5000KiB/s"), "{error}");
}

#[test]
fn what_is_warned_of_before_a_job_stands_in_its_summary() {
    let scratch = Scratch::new("early");
    let source = small_source(&scratch, "source");
    let repo = Repo::create(&scratch, "repo", Protection::Passphrase);
    let key = Path::new(&repo.key_args()[1]);
    fs::set_permissions(key, fs::Permissions::from_mode(0o644)).expect("mode");
    let warned = |verb: &str, args: &[&str]| {
        let mut command = repo.command(verb);
        let summary = Outcome::of(command.arg("--json").args(args)).summary();
        let warnings = summary["warnings"].as_array().expect("warnings").clone();
        let is_it = |text: &&serde_json::Value| text.to_string().contains("mode 0644");
        assert_eq!(
            warnings.iter().filter(is_it).count(),
            1,
            "{verb}: {summary}"
        );
    };
    let path = source.to_str().expect("path");
    warned("backup", &["--source", path, "--dry-run"]);
    warned("backup", &["--source", path]);
    let target = scratch.join("target");
    let target = target.to_str().expect("path");
    warned("restore", &["--to", target, "--dry-run"]);
    warned("restore", &["--to", target]);
    warned("verify", &[]);
    warned("expire", &["--keep-last", "1"]);
    warned("expire", &["--keep-last", "1", "--confirm"]);
    warned("list", &[]);
}

#[test]
fn a_key_file_that_cannot_be_written_is_not_left_in_the_way() {
    let scratch = Scratch::new("no-room");
    let disk = SmallDisk::new(&scratch, "disk", 1 << 20);
    // The name still finds its place in the directory; the content none.
    let fill = vec![1; disk.free_bytes() as usize];
    fs::write(disk.path().join("fill"), &fill).expect("the disk is filled");
    let path = disk.path().join("identity");
    let path = path.to_str().expect("path");
    let generate = || tool(&scratch, &["key", "generate", "--json", "--output", path]);
    generate().told(exit::TARGET, path);
    assert!(!Path::new(path).exists(), "something was left");
    fs::remove_file(disk.path().join("fill")).expect("room is made");
    generate().expect(exit::OK);
    let text = fs::read_to_string(path).expect("identity");
    assert!(text.contains("AGE-SECRET-KEY-1"));
}

#[test]
fn small_slips_are_told() {
    let scratch = Scratch::new("small");
    let source = small_source(&scratch, "source");
    let repo = Repo::create(&scratch, "repo", Protection::Passphrase);
    let run = |verb: &str, args: &[&str]| Outcome::of(repo.command(verb).args(args));
    let made = repo.backup(&source).summary();
    repo.backup(&source).summary();
    let id = made["backup_id"].as_str().expect("id");

    let error = run("show", &["20", "--json"]).told(exit::USAGE, "20");
    assert!(error["message"].to_string().contains(id), "{error}");
    let error = run("restore", &[id, "--json"]).expect(exit::USAGE).error();
    assert!(error["hint"].to_string().contains(&format!("--set {id}")));
    let text = run("verify", &[id]).expect(exit::USAGE).stderr;
    assert!(text.contains(&format!("--set {id}")), "{text}");

    let gone = run("annotate", &[id, "a=1", "--remove", "nosuch", "--json"]).document();
    assert_eq!(gone["absent"][0], "nosuch", "{gone}");
    let gone = run("annotate", &[id, "--remove", "a", "--json"]).document();
    assert_eq!(gone["absent"], serde_json::json!([]), "{gone}");

    let limited = run("list", &["--limit-upload", "1MiB/s"]).expect(exit::OK);
    assert!(limited.stderr.contains("--limit-upload limits nothing"));
    let listed = Outcome::of(&mut repo.opened_with(&[]).command("list")).expect(exit::OK);
    assert_eq!(listed.stderr.matches("this needs a key").count(), 1);
    assert!(!listed.stdout.contains("this needs a key"), "{listed}");

    let url = format!("file://{}", scratch.join("other").display());
    let init = [
        "init",
        "--json",
        "--no-encryption",
        "--label",
        "x",
        "--repo",
        &url,
    ];
    let error = tool(&scratch, &init).expect(exit::USAGE).error();
    assert!(error["hint"].is_string() && !scratch.join("other").exists());

    let mut backup = repo.backup_command(&source);
    let backup = backup.env("HELIOS_MOVER_BACKUP_EXCLUDE", "a[");
    Outcome::of(backup).told(exit::USAGE, "HELIOS_MOVER_BACKUP_EXCLUDE");
}

#[test]
fn what_other_tools_take_is_answered_with_what_this_one_takes() {
    let scratch = Scratch::new("habits");
    for (args, tip) in [
        (&["backup", "/srv/db"][..], "--source /srv/db"),
        (
            &["expire", "--keep-last", "1", "--dry-run"],
            "only plans unless --confirm",
        ),
    ] {
        let text = tool(&scratch, args).expect(exit::USAGE).stderr;
        assert!(text.contains("tip:") && text.contains(tip), "{text}");
    }
}

/// `--repo "$UNSET"` must not read as if the data were gone.
#[test]
fn a_variable_that_is_unset_is_told_as_nothing_given() {
    let scratch = Scratch::new("unset");
    let list = ["list", "--json", "--repo", ""];
    let backup = ["backup", "--json", "--source", "", "--repo", "/r"];
    for args in [&list[..], &backup] {
        let error = tool(&scratch, args).expect(exit::USAGE).error();
        let message = error["message"].as_str().expect("message");
        assert!(message.contains("is given: its text is empty"), "{error}");
        assert!(error["object"].is_null(), "{error}");
        assert!(error["hint"].to_string().contains("unset"), "{error}");
    }
}

#[test]
fn who_lists_under_a_wrong_name_learns_that_there_are_others() {
    let scratch = Scratch::new("others");
    let source = small_source(&scratch, "source");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let list = |args: &[&str]| Outcome::of(repo.command("list").args(args)).expect(exit::OK);
    let typo = ["--source", "/srv/typo", "--host", "nobody"];
    let empty = list(&typo);
    assert!(empty.stderr.is_empty(), "there is none at all: {empty}");
    repo.backup(&source).summary();
    let said = "no backups of this source and host; the repository holds 1 of others";
    assert!(list(&typo).stderr.contains(said));
    let document = list(&[&typo[..], &["--json"]].concat()).document();
    assert_eq!(document["warnings"][0], said, "{document}");
    let found = list(&["--source", source.to_str().expect("path")]);
    assert!(found.stderr.is_empty(), "{found}");
}

#[test]
fn names_that_are_typed_cannot_drive_the_terminal() {
    let scratch = Scratch::new("control");
    let name = scratch.join("e\u{1b}[31mred").display().to_string();
    let identity = format!("{name}.identity");
    for args in [
        &["init", "--no-encryption", "--repo", &name][..],
        &["key", "generate", "--output", &identity],
    ] {
        let text = tool(&scratch, args).expect(exit::OK).stdout;
        assert!(text.contains("e\\u{1b}[31mred"), "{text:?}");
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
}

/// The parser of the command line repeats what it does not know.
#[test]
fn arguments_that_are_refused_cannot_drive_the_terminal() {
    let scratch = Scratch::new("refused-control");
    let wild = "--x\u{1b}[31mred\u{7}\r\nnext";
    for verb in ["list", "show", "restore"] {
        let args = [verb, "--color", "always", wild];
        let text = tool(&scratch, &args).expect(exit::USAGE).stderr;
        let shown = "'\u{1b}[33m--x\\u{1b}[31mred\\u{7}\\r\\nnext\u{1b}[0m'";
        assert!(text.contains(shown), "{text:?}");
        for part in ["\u{1b}[31mred", "\u{7}", "\r", "\nnext"] {
            assert!(!text.contains(part), "{part:?} in {text:?}");
        }
        let error = tool(&scratch, &[verb, wild, "--json"]).expect(exit::USAGE);
        let error = error.error();
        let message = "unexpected argument '--x\\u{1b}[31mred\\u{7}\\r\\nnext' found";
        assert_eq!(error["message"], message, "{error}");
    }
}

/// Runs `command` with a standard output that takes nothing.
fn into_a_full_disk(command: &mut Command) -> Outcome {
    let full = fs::File::options().write(true).open("/dev/full");
    command
        .stdin(Stdio::null())
        .stdout(full.expect("a full device"))
        .stderr(Stdio::piped());
    let output = command.spawn().and_then(Child::wait_with_output);
    Outcome::new(mover::shown(command), &output.expect("it runs"))
}

#[test]
fn help_that_nobody_gets_is_an_error() {
    let scratch = Scratch::new("full");
    for flag in ["--help", "--version"] {
        let mut command = mover::command(&scratch.dir("home"));
        into_a_full_disk(command.arg(flag)).expect(exit::TARGET);
    }
}

#[test]
fn work_whose_output_is_lost_is_told_as_done() {
    let scratch = Scratch::new("lost-output");
    let source = small_source(&scratch, "source");
    let repo = Repo::create(&scratch, "repo", Protection::Passphrase);
    repo.backup(&source).summary();
    repo.backup(&source).summary();
    let (_, recipient) = mover::identity(&scratch, "second");
    let target = scratch.join("target");
    let to = target.to_str().expect("path");
    let tells = |command: &mut Command, said: &str| {
        let outcome = into_a_full_disk(command).expect(exit::TARGET);
        let text = &outcome.stderr;
        assert!(
            text.contains("error: standard output cannot be written")
                && text.contains("\nhint: ")
                && text.contains(said),
            "not told: {said}\n{outcome}"
        );
    };
    let done: [(&str, &[&str], &str); 10] = [
        ("list", &[], "only this output is lost"),
        ("verify", &[], "verified 2 backups"),
        ("verify", &["--json"], "verified 2 backups"),
        ("restore", &["--to", to], "was restored to "),
        ("annotate", &["latest", "a=1"], "the notes of backup "),
        (
            "hold add",
            &["latest", "--reason", "x"],
            " is held by hold ",
        ),
        (
            "key add",
            &["--recipient", &recipient, "--label", "second"],
            "x25519 (second) was added",
        ),
        ("expire", &["--keep-last", "1"], "only this output is lost"),
        (
            "expire",
            &["--keep-last", "1", "--confirm"],
            "deleted 1 backup",
        ),
        ("tune", &[], "only this output is lost"),
    ];
    for (verb, args, said) in done {
        tells(repo.command(verb).args(args), said);
    }
    // And so it is.
    Tree::read(&source).assert_same(&Tree::read(&target), "restored");
    let listed = repo.list().document();
    let backups = listed["backups"].as_array().expect("backups");
    assert_eq!(backups.len(), 1, "{listed}");
    assert_eq!(backups[0]["holds"], 1, "{listed}");
    assert_eq!(backups[0]["metadata"]["annotations"]["a"], "1", "{listed}");
    let slots = Outcome::of(repo.command("key list").arg("--json")).document();
    assert_eq!(slots["slots"].as_array().map(Vec::len), Some(2), "{slots}");

    let url = scratch.join("other").display().to_string();
    let file = scratch.join("identity").display().to_string();
    for (args, said) in [
        (
            &["init", "--no-encryption", "--repo", &url][..],
            " was created",
        ),
        (
            &["key", "generate", "--output", &file],
            "its recipient is age1",
        ),
    ] {
        tells(mover::command(&scratch.dir("home")).args(args), said);
    }
}

#[test]
fn a_backup_without_a_parent_is_whole_whatever_is_damaged_before_it() {
    let scratch = Scratch::new("no-parent");
    let source = source_of(&scratch, "source", MIB);
    let repo = Repo::create(&scratch, "repo", Protection::Passphrase);
    let first = repo.backup(&source).summary();
    let packs = repo.objects().into_iter();
    let packs = packs.filter(|(path, _)| path.starts_with("packs"));
    let (pack, mut bytes) = packs
        .max_by_key(|(_, bytes)| bytes.len())
        .expect("a pack with the table");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(repo.dir.join(&pack), &bytes).expect("pack");
    let error = repo.verify().told(exit::VERIFY_FAILED, "packs/");
    assert!(error["hint"].to_string().contains("--no-parent"), "{error}");

    let verify = |made: &Value| {
        let set = ["--json", "--set", id_of(made)];
        Outcome::of(repo.command("verify").args(set))
    };
    let on_it = repo.backup(&source).summary();
    assert_eq!(on_it["parent"], first["backup_id"], "{on_it}");
    verify(&on_it).expect(exit::VERIFY_FAILED);
    let anew = Outcome::of(repo.backup_command(&source).arg("--no-parent")).summary();
    assert!(anew["parent"].is_null(), "{anew}");
    assert_eq!(anew["bytes_new"], MIB, "{anew}");
    verify(&anew).expect(exit::OK);
    let target = scratch.join("target");
    repo.restore(id_of(&anew), &target).summary();
    Tree::read(&source).assert_same(&Tree::read(&target), "stored anew");
    let next = repo.backup(&source).summary();
    assert_eq!(next["parent"], anew["backup_id"], "{next}");
    verify(&next).expect(exit::OK);

    // Left in the environment it would have every backup store all anew.
    let mut by_variable = repo.backup_command(&source);
    by_variable.env("HELIOS_MOVER_BACKUP_NO_PARENT", "true");
    let made = Outcome::of(&mut by_variable).summary();
    assert_eq!(made["parent"], next["backup_id"], "{made}");
    let url = dir_url(&source);
    for backup_type in ["incr", "diff"] {
        let mut command = repo.command("backup");
        command.args(["--json", "--source", &url, "--type", backup_type]);
        Outcome::of(command.arg("--no-parent")).told(exit::USAGE, &url);
    }
}

/// As containers have them.
#[test]
fn a_host_whose_name_changes_stores_nothing_twice_and_is_told_how_to_keep_its_name() {
    let scratch = Scratch::new("names");
    let source = source_of(&scratch, "source", MIB);
    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    let backup = |source: &Path, host: &str| {
        let mut command = repo.backup_command(source);
        Outcome::of(command.args(["--host", host])).summary()
    };
    let said = "if it is the same database, give --host ";
    let mut before = backup(&source, "c1");
    assert!(!warns(&before, said), "{before}");
    for (host, known) in [("c2", "c1"), ("c3", "c2"), ("c4", "c3")] {
        let made = backup(&source, host);
        assert_eq!(made["parent"], before["backup_id"], "{made}");
        assert_eq!(made["bytes_new"], 0, "{made}");
        assert!(warns(&made, &format!("{said}{known};")), "{made}");
        before = made;
    }
    let again = backup(&source, "c4");
    assert!(!warns(&again, said), "{again}");
    // It goes before another source of the same host.
    backup(&small_source(&scratch, "other"), "c5");
    let made = backup(&source, "c5");
    assert_eq!(made["parent"], again["backup_id"], "{made}");
    let other = source_of(&scratch, "copy", MIB);
    let made = backup(&other, "c5");
    assert_eq!(made["parent_source"], dir_url(&source), "{made}");
    assert!(!warns(&made, said), "{made}");
}

#[test]
fn a_restore_in_place_that_has_no_room_does_not_begin() {
    let scratch = Scratch::new("no-room-in-place");
    let source = source_of(&scratch, "source", 24 * MIB);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    repo.backup(&source).summary();
    let restore = |target: &Path, args: &[&str]| {
        let mut command = repo.restore_command("latest", target);
        Outcome::of(command.arg("--delta").args(args))
    };
    let small = SmallDisk::new(&scratch, "small", 16 * MIB);
    let target = small.path().join("target");
    fs::create_dir(&target).expect("directory");
    for (name, bytes) in [("table", MIB), ("extra", 1)] {
        let mut random = Random::new(SEED + 1);
        plant::file(&target.join(name), &mut random, bytes as usize);
    }
    let before = Tree::read(&target);
    let said = "the target file system has no room for the backup";
    let plan = restore(&target, &["--dry-run"]).summary();
    assert!(warns(&plan, said), "{plan}");
    let error = restore(&target, &[]).told(exit::TARGET, target.to_str().expect("path"));
    assert!(error["message"].to_string().contains(said), "{error}");
    before.assert_same(&Tree::read(&target), "a target without room");
    let listed = repo.list().document();
    assert_eq!(listed["backups"][0]["holds"], 0, "{listed}");

    // What is there is room, too.
    let large = SmallDisk::new(&scratch, "large", 44 * MIB);
    let target = large.path().join("target");
    repo.restore("latest", &target).summary();
    assert!(large.free_bytes() < 24 * MIB, "it fits twice");
    fs::write(target.join("table"), "cut off").expect("file");
    plant::file(&target.join("extra"), &mut Random::new(SEED), 20 << 20);
    let plan = restore(&target, &["--dry-run"]).summary();
    assert!(!warns(&plan, said), "{plan}");
    restore(&target, &[]).summary();
    Tree::read(&source).assert_same(&Tree::read(&target), "in the room of what was there");
}

#[test]
fn a_source_is_not_restored_over_by_another_one_without_a_confirmation() {
    let scratch = Scratch::new("other-source");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let (first, second) = (
        small_source(&scratch, "first"),
        small_source(&scratch, "second"),
    );
    fs::write(second.join("base/rows"), "others").expect("file");
    let of_first = repo.backup(&first).summary();
    let of_second = repo.backup(&second).summary();
    let restore = |made: &Value, target: &Path, args: &[&str]| {
        let mut command = repo.restore_command(id_of(made), target);
        Outcome::of(command.arg("--delta").args(args))
    };
    let before = Tree::read(&first);
    let error = restore(&of_second, &first, &[]).told(exit::TARGET, first.to_str().expect("path"));
    let (message, hint) = (error["message"].to_string(), error["hint"].to_string());
    assert!(message.contains(&dir_url(&first)), "{error}");
    assert!(message.contains(&dir_url(&second)), "{error}");
    assert!(hint.contains("--confirm"), "{error}");
    let plan = restore(&of_second, &first, &["--dry-run"]).summary();
    let known = plan["replaces_source"].as_str().expect("a source");
    assert!(known.starts_with(&dir_url(&first)), "{plan}");
    before.assert_same(&Tree::read(&first), "a source of its own");

    // Its own backup, and the place of nobody.
    let own = restore(&of_first, &first, &["--dry-run"]).summary();
    assert!(own["replaces_source"].is_null(), "{own}");
    restore(&of_first, &first, &[]).summary();
    restore(&of_second, &small_source(&scratch, "third"), &[]).summary();
    restore(&of_second, &first, &["--confirm"]).summary();
    Tree::read(&second).assert_same(&Tree::read(&first), "confirmed");
}

#[test]
fn a_backup_of_a_clock_that_was_ahead_is_told_where_it_is_the_latest() {
    let scratch = Scratch::new("ahead");
    let source = small_source(&scratch, "source");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let check = || items(&Outcome::of(repo.command("check").arg("--json")).expect(exit::OK));
    let list = || {
        Outcome::of(&mut repo.command("list"))
            .expect(exit::OK)
            .stdout
    };
    repo.backup(&source).summary();
    assert!(!check().contains_key("clock"));
    let mut ahead = repo.backup_command(&source);
    clock::off_by(&mut ahead, "+2d");
    let ahead = Outcome::of(&mut ahead).summary();
    assert_eq!(check()["clock"]["status"], "warn");
    let mut plan = repo.restore_command("latest", &scratch.join("target"));
    let plan = Outcome::of(plan.arg("--dry-run")).summary();
    assert_eq!(plan["backup_id"], ahead["backup_id"], "{plan}");
    assert!(warns(&plan, "is in the future"), "{plan}");
    assert!(!list().contains("began "), "it began when its id says");
    // It is named behind the one before it, and began today.
    repo.backup(&source).summary();
    let listed = list();
    assert_eq!(listed.matches("began 2").count(), 1, "{listed}");
}

#[test]
fn root_is_told_whose_a_repository_is_and_so_is_who_is_locked_out_by_root() {
    let scratch = Scratch::new("owner");
    let binary = scratch.join("helios-mover");
    mover::copy_binary(&binary);
    let source = small_source(&scratch, "source");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let home = scratch.dir("home");
    let own = |dir: &Path| {
        let owner = ["-R".as_ref(), "daemon:daemon".as_ref(), dir.as_os_str()];
        run::run("chown", owner);
    };
    own(&repo.dir);
    own(&home);
    let checked = Outcome::of(repo.command("check").arg("--json")).expect(exit::OK);
    assert_eq!(items(&checked)["owner"]["status"], "warn");
    let made = repo.backup(&source).summary();
    let said = "the repository belongs to the user with id 1,";
    assert!(warns(&made, said), "{made}");

    let backup = || {
        let mut command = mover::isolated(run::as_user("daemon", &binary), &home);
        command.args(["backup", "--json", "--repo", repo.url()]);
        Outcome::of(command.args(["--source", &dir_url(&source)]))
    };
    let error = backup().told(exit::STORAGE, "backups");
    let hint = error["hint"].to_string();
    assert!(hint.contains("run as the user with id 0,"), "{error}");
    own(&repo.dir);
    let made = backup().summary();
    assert!(!warns(&made, "belongs to the user"), "{made}");
}

#[test]
fn urls_and_verbs_of_other_tools_are_answered_with_those_of_this_one() {
    let scratch = Scratch::new("others-words");
    let told = |args: &[&str]| {
        let error = tool(&scratch, args).expect(exit::USAGE).error();
        error["hint"].as_str().expect("a hint").to_owned()
    };
    let hint = told(&["list", "--json", "--repo", "sftp:x@y:/z"]);
    assert!(hint.contains("file:// or s3://"), "{hint}");
    assert!(!hint.contains("sftp://"), "{hint}");
    let hint = told(&["list", "--json", "--repo", "s3:/bucket"]);
    assert!(hint.contains("write s3://... for a URL"), "{hint}");
    for (verb, here) in [
        ("forget", "expire"),
        ("prune", "expire"),
        ("snapshots", "list"),
    ] {
        let hint = told(&[verb, "--json"]);
        assert!(hint.contains(&format!("`helios-mover {here}`")), "{hint}");
        let text = tool(&scratch, &[verb]).expect(exit::USAGE).stderr;
        assert!(text.contains(&format!("`helios-mover {here}`")), "{text}");
    }
    let hint = told(&["restore", "--json", "--time", "18:00"]);
    assert!(hint.contains("--set 20261122-18"), "{hint}");
    let source = small_source(&scratch, "source").display().to_string();
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let backup = [
        "backup",
        "--json",
        "--repo",
        repo.url(),
        "--source",
        &source,
    ];
    let hint = told(&[&backup[..], &["--type", "full", "--base", "latest"]].concat());
    assert!(hint.starts_with("leave out --base"), "{hint}");
    let hint = told(&[&backup[..], &["--type", "incr"]].concat());
    assert!(hint.starts_with("use --type full"), "{hint}");
}

#[test]
fn a_passphrase_that_others_can_read_is_told_and_one_that_systemd_gives_is_not() {
    let scratch = Scratch::new("readable");
    let init = |credentials: &Path, mode: u32| {
        let length = credentials.as_os_str().len();
        let place = scratch.join(format!("repo-{mode:o}-{length}"));
        let file = scratch.join("passphrase");
        fs::write(&file, "long enough to be one").expect("passphrase");
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("mode");
        let mut command = mover::command(&scratch.dir("home"));
        command
            .arg("init")
            .arg("--json")
            .arg("--passphrase-file")
            .arg(&file);
        command
            .arg("--repo")
            .arg(place)
            .env("CREDENTIALS_DIRECTORY", credentials);
        let done = Outcome::of(&mut command).expect(exit::OK);
        done.stdout + &done.stderr
    };
    let can_be_read = |said: &str| said.contains("can be read by others");
    let named = |mode: u32| format!("can be read by others (mode {mode:04o}): chmod 600");
    let (elsewhere, here) = (scratch.dir("elsewhere"), scratch.path().to_owned());
    assert!(!can_be_read(&init(&here, 0o600)));
    assert!(init(&elsewhere, 0o440).contains(&named(0o440)));
    assert!(init(Path::new(""), 0o440).contains(&named(0o440)));
    // The mode shows the mask of an ACL as the group's rights.
    assert!(!can_be_read(&init(&here, 0o440)));
    assert!(init(&here, 0o444).contains(&named(0o444)));
}
