//! Layering: each option in each layer, and what is said when a layer is wrong.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use clap::{ArgAction, Command, CommandFactory};

use super::layers::{
    Environment, FLAG_ONLY, Layer, Layered, NOT_IN_FILE, OTHER_VARIABLES, OptionName, layer,
    options,
};
use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    environment: Environment,
}

impl Fixture {
    fn new() -> Self {
        Fixture {
            dir: tempfile::tempdir().unwrap(),
            environment: Environment::default(),
        }
    }

    fn file(mut self, text: &str) -> Self {
        let path = self.dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        self.environment.files = vec![path];
        self
    }

    fn var(mut self, name: &str, value: &str) -> Self {
        self.environment.variables.insert(name.into(), value.into());
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn layered(&self, line: &str) -> Result<Layered> {
        let argv = argv(line);
        let first = RawArgs::command().try_get_matches_from(&argv).unwrap();
        layer(RawArgs::command(), &argv, &first, &self.environment)
    }

    fn call(&self, line: &str) -> Call {
        match resolve(&argv(line), &self.environment) {
            Ok(call) => call,
            Err(refusal) => panic!("{refusal:?}"),
        }
    }

    fn error(&self, line: &str) -> Error {
        match resolve(&argv(line), &self.environment) {
            Err(Refusal::Wrong(error)) => error,
            other => panic!("{other:?}"),
        }
    }
}

fn argv(line: &str) -> Vec<OsString> {
    std::iter::once("helios-mover")
        .chain(line.split_whitespace())
        .map(OsString::from)
        .collect()
}

/// A value that the option takes and that is not its default.
fn sample(command: &Command, option: &OptionName) -> String {
    let arg = find(command, &option.key);
    match arg.get_action() {
        ArgAction::SetTrue => return "true".into(),
        ArgAction::Count => return "2".into(),
        _ => {}
    }
    if let Some(possible) = arg.get_possible_values().last() {
        return possible.get_name().to_owned();
    }
    match arg.get_long().unwrap() {
        "shards" | "level" | "seed" => "7",
        "arena" | "index" | "names" => "64MiB",
        "limit-requests" => "50",
        "limit-read" | "limit-write" | "limit-upload" | "limit-download" => "5MiB/s",
        "annotation" => "key=value",
        "keep-last" | "keep-daily" | "keep-weekly" | "keep-monthly" => "3",
        "keep-within" => "14d",
        _ => "sample",
    }
    .to_owned()
}

fn find(command: &Command, key: &str) -> clap::Arg {
    match key.split_once('.') {
        Some((verb, rest)) => find(command.find_subcommand(verb).unwrap(), rest),
        None => command
            .get_arguments()
            .find(|arg| arg.get_long() == Some(key))
            .unwrap()
            .clone(),
    }
}

/// The verb that has the option, so that a command line can be made; `list` for global options.
fn verb_of(option: &OptionName) -> String {
    let verbs: Vec<&str> = option.key.split('.').collect();
    match verbs[..verbs.len() - 1].join(" ").as_str() {
        "" => "list".into(),
        "key remove" => "key remove 3f".into(),
        "hold add" => "hold add latest".into(),
        "annotate" => "annotate latest".into(),
        verb => verb.to_owned(),
    }
}

fn value_in(layered: &Layered, key: &str) -> Option<String> {
    let mut at = &layered.matches;
    let id = key.rsplit('.').next().unwrap().replace('-', "_");
    let id = if key == "backup.type" {
        "backup_type".to_owned()
    } else {
        id
    };
    while let Some((_, next)) = at.subcommand() {
        at = next;
    }
    let raw = at.get_raw(&id)?;
    Some(
        raw.map(|value| value.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join(","),
    )
}

#[test]
fn clap_finds_no_fault_in_the_command_line() {
    RawArgs::command().debug_assert();
}

#[test]
fn every_option_is_in_all_three_layers() {
    let command = RawArgs::command();
    let all = options(&command);
    assert!(all.len() > 30, "{}", all.len());
    for option in &all {
        if FLAG_ONLY.contains(&option.key.as_str()) {
            continue;
        }
        let (verb, value) = (verb_of(option), sample(&command, option));
        if option.key != "config" {
            let layered = Fixture::new()
                .var(&option.variable, &value)
                .layered(&verb)
                .unwrap();
            assert_eq!(
                value_in(&layered, &option.key).as_deref(),
                Some(value.as_str()),
                "{}",
                option.variable
            );
            assert_eq!(layered.layers.of(&option.key), Layer::Environment);
            assert!(layered.warnings.is_empty(), "{:?}", layered.warnings);
        }
        if !NOT_IN_FILE.contains(&option.key.as_str()) {
            let layered = Fixture::new()
                .file(&toml_line(&option.key, &value))
                .layered(&verb)
                .unwrap();
            assert_eq!(
                value_in(&layered, &option.key).as_deref(),
                Some(value.as_str()),
                "{} in the file",
                option.key
            );
            assert_eq!(layered.layers.of(&option.key), Layer::File);
        }
    }
}

fn toml_line(key: &str, value: &str) -> String {
    let value = if value.parse::<i64>().is_ok() || value == "true" {
        value.to_owned()
    } else {
        format!("{value:?}")
    };
    match key.rsplit_once('.') {
        Some((table, name)) => format!("[{table}]\n{name} = {value}\n"),
        None => format!("{key} = {value}\n"),
    }
}

#[test]
fn variables_and_keys_are_distinct_and_documented() {
    let doc = include_str!("../../../../docs/configuration.md");
    let all = options(&RawArgs::command());
    let variables: BTreeSet<&str> = all.iter().map(|option| option.variable.as_str()).collect();
    assert_eq!(variables.len(), all.len());
    for option in &all {
        let row =
            |line: &&str| line.starts_with("| ") && line.contains(&format!("`{}`", option.key));
        let Some(line) = doc.lines().find(row) else {
            panic!("`{}` is not in docs/configuration.md", option.key)
        };
        assert!(
            FLAG_ONLY.contains(&option.key.as_str())
                || line.contains(&format!("`{}`", option.variable)),
            "{line}"
        );
    }
    // The others have no row: a sentence below the table says what they are for.
    for variable in OTHER_VARIABLES {
        assert!(!variables.contains(variable), "{variable} is an option");
        let said = doc
            .lines()
            .any(|line| line.starts_with(&format!("`{variable}")) && line.contains("is no option"));
        assert!(said, "{variable} is not in docs/configuration.md");
    }
}

#[test]
fn flags_win_over_the_environment_and_the_environment_over_the_file() {
    let all = || {
        Fixture::new()
            .file("repo = 'file:///file'\n[backup]\nlevel = 5")
            .var("HELIOS_MOVER_REPO", "file:///variable")
    };
    assert_eq!(
        all()
            .call("list --repo file:///flag")
            .settings
            .repo
            .unwrap(),
        "file:///flag"
    );
    assert_eq!(
        all()
            .call("--repo file:///flag list")
            .settings
            .repo
            .unwrap(),
        "file:///flag"
    );
    assert_eq!(
        all().call("list").settings.repo.unwrap(),
        "file:///variable"
    );
    let file = Fixture::new().file("repo = 'file:///file'\n[backup]\nlevel = 5");
    assert_eq!(file.call("list").settings.repo.unwrap(), "file:///file");
    assert_eq!(Fixture::new().call("list").settings.repo, None);

    let level = |fixture: &Fixture, line: &str| match fixture.call(line).verb {
        Verb::Backup(args) => args.level,
        other => panic!("{other:?}"),
    };
    assert_eq!(level(&file, "backup"), Some(5));
    assert_eq!(level(&file, "backup --level 9"), Some(9));
}

#[test]
fn show_takes_its_backup_bare_or_from_any_layer() {
    let set = |fixture: Fixture, line: &str| match fixture.call(line).verb {
        Verb::Show(args) => args.set().to_owned(),
        other => panic!("{other:?}"),
    };
    let lower = || Fixture::new().var("HELIOS_MOVER_SHOW_SET", "lower");
    assert_eq!(set(Fixture::new(), "show"), "latest");
    assert_eq!(set(Fixture::new(), "show 2026"), "2026");
    assert_eq!(set(Fixture::new(), "show --set 2026"), "2026");
    assert_eq!(set(lower(), "show"), "lower");
    assert_eq!(set(lower(), "show 2026"), "2026");
    assert_eq!(set(lower(), "show --set 2026"), "2026");
    let both = resolve(&argv("show 2026 --set 2026"), &Environment::default());
    assert!(matches!(both, Err(Refusal::Clap(_))));
}

#[test]
fn rules_typed_beside_a_session_to_forget_are_refused_and_those_of_the_file_are_not() {
    let line = "expire --forget-session 5f0c --confirm";
    let file = Fixture::new().file("[expire]\nkeep-last = 3");
    assert!(matches!(file.call(line).verb, Verb::Expire(_)));
    let both = resolve(
        &argv(&format!("{line} --keep-last 3")),
        &Environment::default(),
    );
    assert!(matches!(both, Err(Refusal::Clap(_))));
}

#[test]
fn the_environment_can_switch_off_what_the_file_switches_on() {
    let fixture = Fixture::new().file("json = true\nno-direct = true");
    let settings = fixture.call("list").settings;
    assert!(settings.json && !settings.engine.direct);
    let settings = fixture
        .var("HELIOS_MOVER_JSON", "false")
        .call("list")
        .settings;
    assert!(!settings.json && !settings.engine.direct);
}

#[test]
fn lists_come_from_commas_arrays_and_tables_and_are_replaced_as_a_whole() {
    let annotations = |fixture: &Fixture, line: &str| match fixture.call(line).verb {
        Verb::Backup(args) => args
            .annotation
            .iter()
            .map(|note| format!("{}={}", note.key, note.value))
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let table = Fixture::new().file("[backup.annotation]\nteam = 'db'\nticket = 42");
    assert_eq!(annotations(&table, "backup"), ["team=db", "ticket=42"]);
    assert_eq!(annotations(&table, "backup --annotation a=b"), ["a=b"]);
    let array = Fixture::new().file("[backup]\nannotation = ['team=db', 'x=1,2']");
    assert_eq!(annotations(&array, "backup"), ["team=db", "x=1,2"]);
    let variable = array.var("HELIOS_MOVER_BACKUP_ANNOTATION", "a=1, b=2");
    assert_eq!(annotations(&variable, "backup"), ["a=1", "b=2"]);
}

#[test]
fn an_unknown_key_names_key_file_and_alternatives() {
    let fixture = Fixture::new().file("[backup]\nlevle = 3");
    let error = fixture.error("list");
    assert_eq!(error.kind(), Kind::Usage);
    let object = error.object_name().unwrap();
    assert!(
        object.contains("`backup.levle`") && object.contains("config.toml"),
        "{object}"
    );
    assert!(error.hint_text().unwrap().contains("perhaps level was"));
    for (text, meant) in [
        ("rep = 'x'", "perhaps repo was"),
        ("repoo = 'x'", "perhaps repo was"),
        ("ripo = 'x'", "perhaps repo was"),
        ("limit_read = '1MiB'", "perhaps limit-read was"),
        ("[backup]\nexcludes = ['x']", "perhaps exclude was"),
        ("[backups]\nlevel = 1", "perhaps backup was"),
    ] {
        let error = Fixture::new().file(text).error("list");
        assert!(error.hint_text().unwrap().contains(meant), "{error:?}");
    }
    let error = Fixture::new().file("nothing-like-it = 1").error("list");
    assert!(!error.hint_text().unwrap().contains("perhaps"), "{error:?}");
    let error = Fixture::new().file("[key.list]\nall = true").error("list");
    assert!(
        error.hint_text().unwrap().contains("remove the key"),
        "{error}"
    );
    let error = Fixture::new().file("[restore]\ndelta = true").error("list");
    assert!(error.hint_text().unwrap().contains("flag"), "{error}");
    for text in [
        "backup = 3",
        "config = 'x'",
        "passphrase = 'x'",
        "[key.remove]\nconfirm = true",
        "[no-verb]\na = 1",
    ] {
        assert_eq!(
            Fixture::new().file(text).error("list").message(),
            "unknown key in the configuration file",
            "{text}"
        );
    }
}

#[test]
fn a_bad_value_names_the_variable_or_the_key() {
    let error = Fixture::new()
        .var("HELIOS_MOVER_ARENA", "much")
        .error("list");
    assert_eq!(error.object_name(), Some("HELIOS_MOVER_ARENA"));
    assert!(error.message().contains("`much`"));

    let error = Fixture::new().file("rung = 'fastest'").error("list");
    assert!(error.object_name().unwrap().starts_with("`rung` in "));
    assert!(error.hint_text().unwrap().contains("defer-taskrun"));

    for text in [
        "repo = 5",
        "passphrase-file = true",
        "[init]\nrecipient = [5]",
        "shards = [1]",
        "repo = { a = 1 }",
        "[backup]\nexclude = [[1]]",
        "shards = 99999",
        "json = 'perhaps'",
    ] {
        assert_eq!(
            Fixture::new().file(text).error("list").kind(),
            Kind::Usage,
            "{text}"
        );
    }
}

#[test]
fn a_broken_file_names_its_line() {
    let error = Fixture::new()
        .file("repo = 'x'\n\nshards = = 3\n")
        .error("list");
    assert!(error.message().contains("line 3"), "{error}");
}

#[test]
fn a_file_that_was_named_must_exist_and_others_need_not() {
    let mut fixture = Fixture::new();
    fixture.environment.files = vec![fixture.path("absent.toml")];
    assert_eq!(fixture.call("list").settings.layers.file, None);
    let absent = fixture.path("named.toml").display().to_string();
    // What named it is what to correct.
    let refused = |fixture: &Fixture, line: &str, named_by: &str| {
        let error = fixture.error(line);
        assert_eq!(error.kind(), Kind::Usage, "{line}");
        let hint = error.hint_text().unwrap();
        let begin = format!("correct {named_by}");
        assert!(hint.starts_with(&begin), "{hint}");
    };
    let lines = ["list --config ", "--config "].map(|begin| format!("{begin}{absent}"));
    refused(&fixture, &lines[0], "--config");
    refused(&fixture, &format!("{} list", lines[1]), "--config");
    let fixture = fixture.var("HELIOS_MOVER_CONFIG", &absent);
    refused(&fixture, "list", "HELIOS_MOVER_CONFIG");
    refused(&fixture, &lines[0], "--config");
    let directory = fixture.dir.path().display();
    refused(&fixture, &format!("list --config {directory}"), "--config");
}

#[test]
fn a_usual_file_that_cannot_be_looked_at_is_not_passed_over() {
    let mut fixture = Fixture::new();
    let round = fixture.path("round");
    std::os::unix::fs::symlink(&round, &round).unwrap();
    fixture.environment.files = vec![round.clone()];
    let error = fixture.error("list");
    assert_eq!(error.object_name(), round.to_str());
    assert!(error.hint_text().unwrap().contains("set HOME"), "{error:?}");
    // Nothing can lie below a file.
    std::fs::write(fixture.path("file"), "").unwrap();
    fixture.environment.files = vec![fixture.path("file/config.toml")];
    assert_eq!(fixture.call("list").settings.layers.file, None);
}

#[test]
fn no_file_at_all_can_be_named() {
    let fixture = Fixture::new().file("repo = 'file:///usual'");
    let settings = fixture.call("list --config /dev/null").settings;
    assert_eq!((settings.repo, settings.layers.file), (None, None));
}

#[test]
fn a_named_file_replaces_the_usual_ones() {
    let fixture = Fixture::new().file("repo = 'file:///usual'");
    let named = fixture.path("named.toml");
    std::fs::write(&named, "shards = 3").unwrap();
    let settings = fixture
        .call(&format!("list --config {}", named.display()))
        .settings;
    assert_eq!((settings.repo, settings.engine.shards), (None, 3));
}

#[test]
fn a_bad_variable_of_another_verb_does_not_pass_unseen() {
    let error = Fixture::new()
        .var("HELIOS_MOVER_BACKUP_LEVEL", "20")
        .error("list");
    assert_eq!(error.object_name(), Some("HELIOS_MOVER_BACKUP_LEVEL"));
}

#[test]
fn unknown_variables_are_told_and_secrets_in_them_are_never_read() {
    let fixture = Fixture::new()
        .var("HELIOS_MOVER_REPOO", "x")
        .var("HELIOS_MOVER_PASSPHRASE", "hunter2");
    let warnings = fixture.call("list").warnings.join("\n");
    assert!(
        warnings.contains("HELIOS_MOVER_REPOO")
            && warnings.contains("HELIOS_MOVER_PASSPHRASE_FILE"),
        "{warnings}"
    );
    assert!(!warnings.contains("hunter2"));
    assert!(
        Fixture::new()
            .var("HELIOS_MOVER_LOG", "debug")
            .call("list")
            .warnings
            .is_empty()
    );
    let confirm = Fixture::new()
        .var("HELIOS_MOVER_KEY_REMOVE_CONFIRM", "true")
        .call("key remove 3f");
    assert_eq!(confirm.warnings.len(), 1);
    assert!(
        matches!(confirm.verb, Verb::Key(args) if matches!(&args.verb, crate::args::KeyVerb::Remove(args) if !args.confirm))
    );
}

#[test]
fn the_key_file_of_the_stronger_layer_is_used() {
    let fixture = Fixture::new().file("passphrase-file = '/p'");
    assert_eq!(
        fixture.call("list").settings.key_file,
        KeyFile::Passphrase("/p".into())
    );
    assert_eq!(
        fixture.call("list --identity-file /i").settings.key_file,
        KeyFile::Identity("/i".into())
    );
    assert_eq!(
        fixture
            .error("list --identity-file /i --passphrase-file /p")
            .kind(),
        Kind::Usage
    );
    assert_eq!(
        Fixture::new()
            .file("passphrase-file = '/p'\nidentity-file = '/i'")
            .error("list")
            .kind(),
        Kind::Usage
    );
}

#[test]
fn engine_options_reach_the_engine() {
    let line = "list --shards 3 --pin false --rung threads --no-direct --arena 64MiB --index 8MiB --names 9MiB \
                --limit-read 1MiB/s --limit-write none --limit-upload 3MiB --limit-requests 90";
    let settings = Fixture::new()
        .file("limit-write = '5MiB'\nlimit-download = '7MiB/s'")
        .call(line)
        .settings;
    let link = settings.link;
    assert_eq!(
        (link.upload.get(), link.download.get(), link.requests.get()),
        (Some(3 << 20), Some(7 << 20), Some(90))
    );
    let engine = settings.engine;
    assert_eq!(
        (engine.shards, engine.pin, engine.direct),
        (3, false, false)
    );
    assert!(matches!(engine.top_rung, Rung::Threads));
    assert_eq!(
        (engine.arena_bytes, engine.index_bytes, engine.names_bytes),
        (64 << 20, 8 << 20, 9 << 20)
    );
    assert_eq!(
        (engine.limits.read.get(), engine.limits.write.get()),
        (Some(1 << 20), None)
    );
}

#[test]
fn a_job_whose_disks_are_limited_is_gentle_unless_it_is_told_otherwise() {
    let gentle =
        |file: &str, line: &str| Fixture::new().file(file).call(line).settings.engine.gentle;
    assert!(!gentle("", "list"));
    assert!(!gentle("", "list --limit-read none --limit-upload 1MiB"));
    assert!(gentle("", "list --limit-read 1MiB"));
    assert!(gentle("limit-write = '1MiB'", "list"));
    assert!(!gentle("limit-write = '1MiB'", "list --limit-write none"));
    assert!(!gentle("gentle = false", "list --limit-read 1MiB"));
    assert!(gentle("gentle = false", "list --gentle true"));
}

#[test]
fn the_defaults_told_are_those_used() {
    let engine = Engine::default();
    let doc = include_str!("../../../../docs/configuration.md");
    let command = RawArgs::command();
    for (key, bytes) in [
        ("arena", engine.arena_bytes),
        ("index", engine.index_bytes),
        ("names", engine.names_bytes),
    ] {
        let told = format!("{}MiB", bytes >> 20);
        let row = doc
            .lines()
            .find(|line| line.starts_with(&format!("| `{key}` |")))
            .unwrap();
        assert!(row.ends_with(&format!("| {told} |")), "{row}");
        let help = find(&command, key).get_help().unwrap().to_string();
        assert!(help.ends_with(&format!("[default: {told}]")), "{help}");
    }
    let level = doc
        .lines()
        .find(|line| line.starts_with("| `backup.level` |"))
        .unwrap();
    assert!(
        level.ends_with(&format!("| {} |", mover_jobs::COMPRESSION_LEVEL_DEFAULT)),
        "{level}"
    );
    assert!(engine.pin && engine.direct && engine.shards == 0);
    assert!(matches!(engine.top_rung, Rung::DeferTaskrun));
    assert!(engine.limits.read.is_unlimited() && engine.limits.write.is_unlimited());
}

#[test]
fn paths_become_urls() {
    assert_eq!(
        absolute("source", "dir://", "/srv/db/").unwrap(),
        "dir:///srv/db"
    );
    assert_eq!(absolute("source", "dir://", "/").unwrap(), "dir:///");
    assert_eq!(
        absolute("source", "dir://", "dir:///srv").unwrap(),
        "dir:///srv"
    );
    for one in [
        "dir:///srv/db/",
        "dir:///srv//db",
        "dir:////srv/./db/.",
        "/srv/db/.",
        "//srv/db",
    ] {
        assert_eq!(absolute("source", "dir://", one).unwrap(), "dir:///srv/db");
    }
    for (typed, url) in [
        ("pages:///srv/./db/", "pages:///srv/db"),
        ("dir:///", "dir:///"),
        // Where a symbolic link lies before it, `..` leads elsewhere than its text says.
        ("dir:///srv/../db", "dir:///srv/../db"),
        ("dir://srv//db/", "dir://srv//db/"),
        ("s3://bucket//prefix/", "s3://bucket//prefix/"),
    ] {
        assert_eq!(absolute("source", "dir://", typed).unwrap(), url);
    }
    let here = std::env::current_dir().unwrap();
    assert_eq!(
        absolute("source", "dir://", "db").unwrap(),
        format!("dir://{}/db", here.display())
    );
}

/// `--repo "$UNSET"` must not read as if what is in a repository were gone.
#[test]
fn an_empty_text_is_told_as_nothing_given() {
    for what in ["source", "repository"] {
        let error = absolute(what, "dir://", "").unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        let told = format!("no {what} is given: its text is empty");
        assert_eq!(error.to_string(), told, "without an object");
        assert!(error.hint_text().unwrap().contains("unset"), "{error:?}");
    }
}

#[test]
fn a_url_with_a_slip_in_it_is_no_path() {
    for text in ["s3:/bucket/x", "file:/backup", "s3:bucket", "c+d.e-9:x"] {
        let error = absolute("repository", "file://", text).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{text}");
        let hint = error.hint_text().unwrap();
        assert!(hint.contains(&format!("./{text}")), "{hint}");
    }
    for text in [
        "./s3:/bucket",
        "/srv/a:b",
        "A:b",
        "9:b",
        ":b",
        "a_b:c",
        "plain",
    ] {
        let url = absolute("repository", "file://", text).unwrap();
        assert!(url.starts_with("file:///"), "{url}");
    }
}

#[test]
fn a_target_takes_no_scheme() {
    for text in ["file:///srv/a", "dir:/srv/a"] {
        let error = target(text.into()).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{text}");
        assert!(error.hint_text().unwrap().contains(" /srv/a,"), "{error}");
    }
    for text in ["/srv/a:b", "./a:b", "plain"] {
        assert_eq!(target(text.into()).unwrap(), PathBuf::from(text));
    }
}

fn secret_file(bytes: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    (dir, path)
}

fn typed(path: &Path) -> SecretFile<'_> {
    SecretFile { path, place: None }
}

#[test]
fn a_key_file_that_nobody_typed_is_named_with_where_it_comes_from() {
    let object = |fixture: Fixture, line: &str| {
        let settings = fixture.call(line).settings;
        let error = settings.repo_access(&mut |_| {}).unwrap_err();
        assert!(error.hint_text().is_some(), "{error}");
        error.object_name().unwrap().to_owned()
    };
    let line = "list --repo /r";
    let variable = Fixture::new().var("HELIOS_MOVER_PASSPHRASE_FILE", "/none/p");
    assert_eq!(
        object(variable, line),
        "/none/p (from HELIOS_MOVER_PASSPHRASE_FILE)"
    );
    let file = Fixture::new().file("identity-file = '/none/i'");
    let place = format!("`identity-file` in {}", file.path("config.toml").display());
    assert_eq!(object(file, line), format!("/none/i (from {place})"));
    let flag = format!("{line} --passphrase-file /none/p");
    assert_eq!(object(Fixture::new(), &flag), "/none/p");
}

#[test]
fn a_passphrase_loses_one_newline_and_nothing_else() {
    for (bytes, wanted) in [
        (&b"secret"[..], "secret"),
        (b"secret\n", "secret"),
        (b"secret\r\n", "secret"),
        (b" secret \n", " secret "),
    ] {
        let (_dir, path) = secret_file(bytes, 0o600);
        let mut warnings = Vec::new();
        let secret =
            secrets::read_passphrase(&typed(&path), &mut |warning| warnings.push(warning)).unwrap();
        assert_eq!((secret.expose(), warnings.len()), (wanted, 0));
    }
    for bytes in [
        &b""[..],
        b"\n",
        b"\r\n",
        b"a\nb\n",
        b"secret\n\n",
        b"\xff\xfe",
        &[b'a'; 65_537],
    ] {
        let (_dir, path) = secret_file(bytes, 0o600);
        let error = secrets::read_passphrase(&typed(&path), &mut |_| {}).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{error}");
        assert!(!error.to_string().contains("secret\n"), "{error}");
    }
}

#[test]
fn the_wrong_kind_of_key_file_is_told() {
    let (_dir, path) = secret_file(b"# public key: age1x\nAGE-SECRET-KEY-1X\n", 0o600);
    let error = secrets::read_passphrase(&typed(&path), &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), Kind::Key);
    assert!(error.hint_text().unwrap().contains("--identity-file"));
    assert!(!error.to_string().contains("AGE-SECRET-KEY"));
}

#[test]
fn a_secret_that_others_can_read_is_told() {
    for (mode, told) in [(0o600, 0), (0o400, 0), (0o640, 1), (0o604, 1), (0o644, 1)] {
        let (_dir, path) = secret_file(b"secret\n", mode);
        let mut warnings = Vec::new();
        secrets::read_passphrase(&typed(&path), &mut |warning| warnings.push(warning)).unwrap();
        assert_eq!(warnings.len(), told, "{mode:o}");
    }
}

#[test]
fn an_identity_file_holds_exactly_one_identity() {
    let (_dir, path) = secret_file(
        b"# created\n# public key: age1x\n\nAGE-SECRET-KEY-1ABC\n",
        0o600,
    );
    assert_eq!(
        secrets::read_identity(&typed(&path), &mut |_| {})
            .unwrap()
            .expose(),
        "AGE-SECRET-KEY-1ABC"
    );
    for bytes in [
        &b""[..],
        b"# nothing\n",
        b"age1x\n",
        b"AGE-SECRET-KEY-1A\nAGE-SECRET-KEY-1B\n",
    ] {
        let (_dir, path) = secret_file(bytes, 0o600);
        assert_eq!(
            secrets::read_identity(&typed(&path), &mut |_| {})
                .unwrap_err()
                .kind(),
            Kind::Usage
        );
    }
    let (_dir, path) = secret_file(b"", 0o600);
    let error = secrets::read_identity(&typed(&path.join("absent")), &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), Kind::Key);
}

#[test]
fn new_limits_of_the_file_reach_a_job_that_runs() {
    let line = "backup --source /s --limit-download 5MiB";
    let fixture = Fixture::new().file("limit-upload = '1MiB'\nlimit-download = '1MiB'");
    let running = fixture.call(line).settings;
    let engine = running.engine.clone();
    let fixture = fixture.file("limit-upload = '2MiB'\nlimit-read = '3MiB'\nlimit-requests = 7");
    let told = running
        .take_new_limits(&argv(line), &fixture.environment)
        .unwrap();
    assert_eq!(running.link.upload.get(), Some(2 << 20));
    assert_eq!(engine.limits.read.get(), Some(3 << 20), "the job's own");
    assert_eq!(running.link.requests.get(), Some(7));
    assert_eq!(
        running.link.download.get(),
        Some(5 << 20),
        "a flag wins still"
    );
    assert_eq!(
        told,
        "read 3.00 MiB/s, write none, upload 2.00 MiB/s, download 5.00 MiB/s, requests 7/s"
    );
    let fixture = fixture.file("limit-upload = 'fast'");
    let error = running
        .take_new_limits(&argv(line), &fixture.environment)
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert_eq!(
        running.link.upload.get(),
        Some(2 << 20),
        "an error changes nothing"
    );
}
