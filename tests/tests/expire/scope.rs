//! An `expire` that is about some of the backups: of one source or host, named ones, or none.

use super::*;

/// A repository with two backups by this host and two of the same source by another.
fn two_hosts(scratch: &Scratch) -> History {
    let repo = Repo::create(scratch, "repo", Protection::Passphrase);
    let mut history = History::new((*repo).clone(), scratch, 2);
    for _ in 0..2 {
        change(&history.source, &mut history.random);
        let truth = Tree::read(&history.source);
        let mut command = history.repo.backup_command(&history.source);
        let summary = Outcome::of(command.args(["--host", "elsewhere"])).summary();
        let id = summary["backup_id"].as_str().expect("id").to_owned();
        history.made.push((id, truth));
    }
    history
}

#[test]
fn rules_for_one_host_or_source_leave_all_others_alone() {
    let scratch = Scratch::new("expire-host");
    let history = two_hosts(&scratch);
    let rule = ["--keep-last", "1", "--host", "elsewhere"];
    let plan = history.expire(&rule).summary();
    assert_eq!(plan["host"], "elsewhere", "{plan}");
    assert_eq!((&plan["kept"], &plan["expired"]), (&3.into(), &1.into()));
    let reasons = |at: usize| plan["backups"][at]["reasons"].to_string();
    assert_eq!(reasons(0), r#"["not_asked"]"#);
    assert_eq!(reasons(2), "[]");
    assert_eq!(reasons(3), r#"["last"]"#);
    let human = Outcome::of(history.repo.command("expire").args(rule)).expect(exit::OK);
    assert!(!human.stdout.contains(history.id(0)), "{human}");
    assert!(human.stdout.contains(history.id(2)), "{human}");
    let none = history.expire(&["--keep-last", "1", "--source", "/nowhere", "--confirm"]);
    let none = none.summary();
    assert_eq!(none["deleted"], serde_json::json!([]));
    let warnings = none["warnings"].to_string();
    assert!(
        warnings.contains("source dir:///nowhere, host any"),
        "{none}"
    );
    history.holds_exactly(&[0, 1, 2, 3], &scratch);

    let source = history.source.to_str().expect("UTF-8").to_owned();
    let of_both = [&rule[..], &["--source", &source, "--confirm"]].concat();
    let done = history.expire(&of_both).summary();
    assert_eq!(done["deleted"], serde_json::json!([history.id(2)]));
    history.holds_exactly(&[0, 1, 3], &scratch);
    history.nothing_is_left_over();
}

#[test]
fn a_backup_that_is_named_goes_and_no_other_even_the_last_of_its_host() {
    let scratch = Scratch::new("expire-named");
    let history = two_hosts(&scratch);
    // What is typed wins over the rules of the file.
    let file = scratch.join("config.toml");
    fs::write(&file, "[expire]\nkeep-last = 1\nhost = 'elsewhere'\n").expect("file");
    let file = file.to_str().expect("UTF-8").to_owned();
    let named = |more: &[&str]| {
        let ids = ["--set", history.id(2), "--set", history.id(3)];
        history.expire(&[&ids[..], &["--config", &file], more].concat())
    };
    let plan = named(&[]).summary();
    let ids = serde_json::json!([history.id(2), history.id(3)]);
    assert_eq!(plan["named"], ids, "{plan}");
    assert_eq!((&plan["kept"], &plan["expired"]), (&2.into(), &2.into()));
    for wrong in [
        &["--set", "latest"][..],
        &["--set", history.id(0), "--keep-last", "1"],
        &["--set", history.id(0), "--host", "elsewhere"],
        &["--set", history.id(0), "--leftovers"],
    ] {
        history.expire(wrong).expect(exit::USAGE);
    }
    let missing = ["--set", "20200101-000000-00000000", "--confirm"];
    history.expire(&missing).expect(exit::NOT_FOUND);

    let mut hold = history.repo.command("hold");
    hold.args(["add", history.id(2), "--reason", "audit", "--json"]);
    let held = Outcome::of(&mut hold).summary();
    let error = named(&["--confirm"]).expect(exit::CONFLICT).error();
    assert_eq!(error["object"], history.id(2), "{error}");
    assert!(error["hint"].to_string().contains("hold list"), "{error}");
    history.holds_exactly(&[0, 1, 2, 3], &scratch);
    let hold = held["hold"]["hold_id"].as_str().expect("id").to_owned();
    let mut remove = history.repo.command("hold");
    Outcome::of(remove.args(["remove", &hold])).expect(exit::OK);

    let done = named(&["--confirm"]).summary();
    assert_eq!(done["deleted"], ids, "{done}");
    history.holds_exactly(&[0, 1], &scratch);
    history.nothing_is_left_over();
    // All of a repository can go, and it can be used again.
    let rest = ["--set", history.id(0), "--set", history.id(1), "--confirm"];
    history.expire(&rest).summary();
    assert_eq!(history.repo.ids(), [""; 0]);
    let mut history = history;
    history.backup();
    history.holds_exactly(&[4], &scratch);
    history.nothing_is_left_over();
}

#[test]
fn what_was_left_over_goes_without_a_rule() {
    let scratch = Scratch::new("expire-leftovers");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let history = History::new((*repo).clone(), &scratch, 3);
    // As if a backup had not ended: its packs are there, and no manifest.
    let gone = repo.dir.join("backups").join(history.id(2));
    fs::remove_file(gone).expect("a manifest");
    let plan = history.expire(&["--leftovers"]).summary();
    assert_eq!(plan["named"], serde_json::json!([]), "{plan}");
    assert_eq!((&plan["kept"], &plan["expired"]), (&2.into(), &0.into()));
    assert!(plan["leftovers"]["packs"].as_u64() > Some(0), "{plan}");
    let done = history.expire(&["--leftovers", "--confirm"]).summary();
    assert_eq!(done["deleted"], serde_json::json!([]), "{done}");
    assert_eq!(done["leftover_packs"], plan["leftovers"]["packs"]);
    history.holds_exactly(&[0, 1], &scratch);
    history.nothing_is_left_over();
}

#[test]
fn a_named_backup_that_a_dead_one_builds_on_goes_when_that_is_cleared() {
    let scratch = Scratch::new("expire-dead");
    let repo = Repo::create(&scratch, "repo", Protection::Passphrase);
    let history = History::new((*repo).clone(), &scratch, 1);
    let throttle = Throttle::new(&scratch, "limits.toml", NO_READS);
    let mut command = history.repo.backup_command(&history.source);
    throttle.put_on(&mut command);
    let mut job = Job::start(&mut command);
    wait_until(|| names(&repo, "sessions/").len() == 1);
    let named = ["--set", history.id(0), "--confirm"];
    let error = history.expire(&named).expect(exit::CONFLICT).error();
    assert_eq!(error["hint"], "run this again when it has ended", "{error}");
    job.signal(Signal::KILL);
    assert_eq!(job.status().code(), None);
    let error = history.expire(&named).expect(exit::CONFLICT).error();
    assert!(error["hint"].to_string().contains("--leftovers"), "{error}");
    history.expire(&["--leftovers", "--confirm"]).summary();
    let done = history.expire(&named).summary();
    assert_eq!(done["deleted"], serde_json::json!([history.id(0)]));
    assert_eq!(history.repo.ids(), [""; 0]);
}
