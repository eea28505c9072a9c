//! Expires at a store whose listings leave out what is there, and say nothing: whatever tells of a backup that is not listed ends
//! the run before anything is deleted. A verification takes no backup for deleted because of such a listing.

use mover_test_servers::Listed;

use super::*;

/// Hides these keys in listings below `prefix`.
fn hide(prefix: &str, keys: &[&str]) -> Fault {
    let keys = keys.iter().map(|key| (*key).to_owned()).collect();
    let query = format!("prefix=expire%2F{}", prefix.replace('/', "%2F"));
    Fault::new(Action::Hide(keys)).method("GET").query(&query)
}

/// A history in a store in this process.
struct Store {
    server: FilesystemS3,
    history: History,
    scratch: Scratch,
}

/// What came of an expire that was shown incomplete listings.
struct Tried {
    outcome: Outcome,
    proxy: FaultProxy,
    hits: u64,
}

impl Store {
    fn new(name: &str, backups: usize) -> Self {
        let scratch = Scratch::new(name);
        let server = FilesystemS3::start(&scratch.dir("server"));
        let repo = repo_in(server.access(), &scratch, "expire", Protection::Identity);
        let history = History::new(repo, &scratch, backups);
        Store {
            server,
            history,
            scratch,
        }
    }

    fn client(&self) -> Client {
        self.server.access().client()
    }

    fn objects(&self) -> Vec<Listed> {
        let (objects, _) = self.client().list("expire/", 1000).expect("a listing");
        objects
    }

    fn keys(&self, prefix: &str) -> Vec<String> {
        keys_below(&self.client(), prefix)
    }

    /// The same repository by way of a proxy with these faults.
    fn through(&self, faults: &[Fault]) -> (FaultProxy, Vec<FaultId>, AnyRepo) {
        let access = self.server.access();
        let proxy = FaultProxy::start(&access.endpoint);
        let hits = faults.iter().map(|fault| proxy.inject(fault.clone()));
        let hits = hits.collect();
        let through = access.at(&proxy.endpoint());
        let url = through.url("expire");
        let repo = self.history.repo.at(&url, &variables(&access.key));
        (proxy, hits, repo)
    }

    fn expire_through(&self, faults: &[Fault], arguments: &[&str]) -> Tried {
        let (proxy, ids, repo) = self.through(faults);
        let mut command = repo.command("expire");
        let outcome = Outcome::of(command.args(arguments).arg("--json"));
        let hits = ids.last().map_or(0, |id| proxy.hits(*id));
        Tried {
            outcome,
            proxy,
            hits,
        }
    }

    /// An expire that keeps one backup ends with the one error that names `hidden`, and nothing has changed.
    #[track_caller]
    fn nothing_goes(&self, what: &str, faults: &[Fault], hidden: &str) -> serde_json::Value {
        let before = self.objects();
        let tried = self.expire_through(faults, &["--keep-last", "1", "--confirm"]);
        assert_eq!(
            tried.outcome.code,
            Some(exit::STORAGE),
            "{what}: {}",
            tried.outcome
        );
        let error = tried.outcome.error();
        assert_eq!(error["object"], hidden, "{what}: {error}");
        assert!(
            error["message"]
                .to_string()
                .contains("leaves out an object that exists"),
            "{what}: {error}"
        );
        assert!(
            error["hint"].to_string().contains("check it"),
            "{what}: {error}"
        );
        assert!(tried.hits > 0, "{what}: {:?}", tried.proxy.seen());
        // A backup at work may have stored more.
        let mut after = self.objects();
        after.retain(|object| before.contains(object) || !object.key.contains("/packs/"));
        assert_eq!(after, before, "{what}");
        error
    }

    /// In which of its looks an expire is not shown the manifest of `id`: while it plans, while it executes, or both.
    fn looks(&self, id: &str) -> [(&'static str, Vec<Fault>); 3] {
        // A look lists, and looks behind the end; whoever finds something looks twice.
        let shown = Fault::new(Action::Delay(Duration::ZERO)).query("prefix=expire%2Fbackups");
        let hidden = || hide("backups/", &[id]);
        [
            ("in the plan", vec![hidden().times(4)]),
            ("in the execution", vec![shown.times(2), hidden()]),
            ("always", vec![hidden()]),
        ]
    }

    /// Backs the source up without a change: what is stored is the manifest alone.
    fn backup_unchanged(&mut self) -> String {
        let summary = self.history.repo.backup(&self.history.source).summary();
        assert_eq!(summary["packs"], 0, "{summary}");
        let truth = Tree::read(&self.history.source);
        let id = summary["backup_id"].as_str().expect("id").to_owned();
        self.history.made.push((id.clone(), truth));
        id
    }

    /// Backs the source up by a job that is not shown `hidden`, and so does not build on it.
    fn backup_beside(&mut self, hidden: &str) {
        let (_proxy, _, repo) = self.through(&[hide("backups/", &[hidden])]);
        let summary = repo.backup(&self.history.source).summary();
        assert_ne!(summary["parent"], hidden, "{summary}");
        let truth = Tree::read(&self.history.source);
        let id = summary["backup_id"].as_str().expect("id").to_owned();
        self.history.made.push((id, truth));
    }

    fn change(&mut self) {
        change(&self.history.source, &mut self.history.random);
    }

    #[track_caller]
    fn holds_all(&self) {
        let all: Vec<usize> = (0..self.history.made.len()).collect();
        self.history.holds_exactly(&all, &self.scratch);
    }
}

#[test]
fn the_newest_backup_that_nothing_names_is_found_by_its_packs() {
    let store = Store::new("hidden-newest", 3);
    let newest = store.history.id(2).to_owned();
    let object = format!("backups/{newest}");
    for (when, faults) in store.looks(&newest) {
        store.nothing_goes(when, &faults, &object);
    }
    // Of two that are hidden either may be told.
    let both = [store.history.id(1), store.history.id(2)];
    let keep = ["--keep-last", "1", "--confirm"];
    let tried = store.expire_through(&[hide("backups/", &both)], &keep);
    let error = tried.outcome.expect(exit::STORAGE).error();
    let is_told = |id: &&str| error["object"] == format!("backups/{id}");
    assert!(both.iter().any(is_told), "{error}");
    // A plan alone says so too.
    let tried = store.expire_through(&[hide("backups/", &[&newest])], &keep[..2]);
    let error = tried.outcome.expect(exit::STORAGE).error();
    assert_eq!(error["object"], object, "{error}");
    store.holds_all();

    // What a listing shows a moment later counts, as if it had been made meanwhile.
    let lagging = hide("backups/", &[&newest]).times(2);
    let tried = store.expire_through(&[lagging], &keep);
    assert_eq!(tried.hits, 2);
    let done = tried.outcome.summary();
    assert_eq!(done["deleted"].as_array().map(Vec::len), Some(2), "{done}");
    store.history.holds_exactly(&[2], &store.scratch);
    store.history.nothing_is_left_over();
}

#[test]
fn a_backup_made_since_the_plan_is_found_by_its_packs() {
    let mut store = Store::new("hidden-since", 2);
    let held_up = Fault::new(Action::Hold).method("PUT").path("/expired/");
    let (proxy, ids, repo) = store.through(&[held_up.times(1)]);
    let mut command = repo.command("expire");
    command.args(["--keep-last", "1", "--confirm", "--json"]);
    let job = Job::start(&mut command);
    wait_until(|| proxy.hits(ids[0]) > 0);
    store.history.backup();
    let made = store.history.id(2).to_owned();
    let hidden = proxy.inject(hide("backups/", &[&made]));
    proxy.release();
    let error = job.outcome().expect(exit::STORAGE).error();
    assert_eq!(error["object"], format!("backups/{made}"), "{error}");
    assert!(
        error["hint"].to_string().contains("packs that it wrote"),
        "{error}"
    );
    assert!(proxy.hits(hidden) > 0);
    for prefix in ["sessions/", "expired/"] {
        assert_eq!(store.keys(prefix), [""; 0]);
    }
    store.holds_all();
}

#[test]
fn a_backup_without_packs_of_its_own_is_found_by_what_names_it() {
    // It takes over all of the first; the third does not build on it and needs less.
    let mut store = Store::new("hidden-named", 1);
    let hidden = store.backup_unchanged();
    let object = format!("backups/{hidden}");
    store.change();
    store.backup_beside(&hidden);
    let run = |verb: &str, arguments: &[&str]| {
        let mut command = store.history.repo.command(verb);
        Outcome::of(command.args(arguments).arg("--json")).expect(exit::OK);
    };
    let session = "00112233445566778899aabbccddeeff";
    let mark = format!("expire/expired/{hidden}/{session}");
    let put = || {
        drop(
            store
                .client()
                .put(&mark, b"only the name counts")
                .expect("a reply"),
        )
    };
    type Naming<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let named: [Naming<'_>; 3] = [
        (
            "holds/",
            Box::new(|| run("hold add", &[&hidden, "--reason", "audit"])),
        ),
        (
            "annotations/",
            Box::new(|| run("annotate", &[&hidden, "a=b"])),
        ),
        ("expired/", Box::new(put)),
    ];
    for (prefix, name) in named {
        name();
        for (when, faults) in store.looks(&hidden) {
            let error = store.nothing_goes(&format!("{prefix} {when}"), &faults, &object);
            let tells = format!("{prefix}{hidden}/");
            let is_told = error["hint"].to_string().contains(&tells);
            assert_eq!(is_told, when != "in the execution", "{error}");
        }
        for key in store.keys(prefix) {
            delete(&store.client(), &key);
        }
    }
    store.holds_all();
}

#[test]
fn a_backup_that_another_builds_on_is_found_by_its_manifest() {
    let mut store = Store::new("hidden-base", 1);
    let hidden = store.backup_unchanged();
    let object = format!("backups/{hidden}");
    store.history.backup();
    let child = format!("backups/{}", store.history.id(2));
    for (when, faults) in store.looks(&hidden) {
        let error = store.nothing_goes(when, &faults, &object);
        let is_told = error["hint"].to_string().contains(&child);
        assert_eq!(is_told, when != "in the execution", "{error}");
    }
    store.holds_all();
    // It is no trace of what was deleted.
    let done = store
        .history
        .expire(&["--keep-last", "1", "--confirm"])
        .summary();
    assert_eq!(done["deleted"].as_array().map(Vec::len), Some(2), "{done}");
    store
        .history
        .expire(&["--keep-last", "1", "--confirm"])
        .summary();
    store.history.holds_exactly(&[2], &store.scratch);
    store.history.nothing_is_left_over();
}

#[test]
fn what_a_running_backup_needs_stays_when_a_listing_leaves_out_its_session_or_its_parent() {
    let mut store = Store::new("hidden-running", 1);
    let parent = store.backup_unchanged();
    let much = store.history.source.join("much");
    plant::file(&much, &mut store.history.random, 4 * MIB as usize);
    // First its packs are held up on their way, then its manifest: each by a proxy of its own, which lets it go by itself.
    let access = store.server.access().clone();
    let of_manifest = FaultProxy::start(&access.endpoint);
    let manifest = of_manifest.inject(held_up("/backups/"));
    let of_packs = FaultProxy::start(&of_manifest.endpoint());
    let packs = of_packs.inject(held_up("/packs/"));
    let repo = patiently(&store.history.repo, &of_packs, &access);
    let known = store.keys("packs/").len();
    let job = Job::start(&mut repo.backup_command(&store.history.source));
    wait_until(|| of_packs.hits(packs) > 0);
    // Another one of the same source, which does not build on that parent: the policy has it go.
    store.backup_beside(&parent);
    let running = store.keys("sessions/").remove(0);
    let running = running.strip_prefix("expire/").expect("prefix").to_owned();
    let id = running.strip_prefix("sessions/").expect("prefix");
    let shown = Fault::new(Action::Delay(Duration::ZERO)).query("prefix=expire%2Fsessions");
    let later = [shown.times(1), hide("sessions/", &[id])];
    store.nothing_goes("its session, later", &later, &running);

    wait_until(|| {
        of_packs.release();
        of_manifest.hits(manifest) > 0
    });
    assert!(store.keys("packs/").len() > known);
    store.nothing_goes("its session, with packs", &later, &running);
    store.nothing_goes("its session", &later[1..], &running);
    let object = format!("backups/{parent}");
    store.nothing_goes("its parent", &[hide("backups/", &[&parent])], &object);
    let done = let_go(&of_manifest, job).summary();
    assert_eq!(done["parent"], parent, "{done}");
    let id = done["backup_id"].as_str().expect("id").to_owned();
    let truth = Tree::read(&store.history.source);
    let made = &mut store.history.made;
    made.insert(made.partition_point(|(made, _)| *made < id), (id, truth));
    store.holds_all();
}

#[test]
fn a_hold_that_a_later_listing_leaves_out_ends_the_run() {
    let store = Store::new("hidden-hold", 2);
    let mut command = store.history.repo.command("hold add");
    Outcome::of(command.args([store.history.id(0), "--reason", "audit"])).expect(exit::OK);
    let hold = store.keys("holds/").remove(0);
    let hold = hold.strip_prefix("expire/").expect("prefix");
    let shown = Fault::new(Action::Delay(Duration::ZERO)).query("prefix=expire%2Fholds");
    let faults = [shown.times(1), hide("holds/", &[store.history.id(0)])];
    store.nothing_goes("a hold", &faults, hold);
    store.holds_all();
}

/// A repository of two sources, of which the second has one backup left, without packs of its own and without its parent.
#[test]
fn a_listing_that_ends_early_is_looked_behind() {
    let mut store = Store::new("hidden-end", 0);
    let other = store.scratch.dir("other");
    plant::mixed(&other, &mut store.history.random, 1 << 20);
    let first = store.history.repo.backup(&other).summary();
    let first = first["backup_id"].as_str().expect("id").to_owned();
    store.history.made.push((first, Tree::read(&other)));
    store.history.backup();
    let last = store.backup_unchanged();
    let done = store
        .history
        .expire(&["--keep-last", "1", "--confirm"])
        .summary();
    assert_eq!(done["deleted"].as_array().map(Vec::len), Some(1), "{done}");
    // Where it goes on is shown to whoever asks for that.
    let cut = hide("backups/", &[&last]).query("max-keys=1000");
    store.nothing_goes("cut off", &[cut], &format!("backups/{last}"));
    store.history.holds_exactly(&[0, 2], &store.scratch);
}

/// A backup that is shown to the second look only is one that has begun or ended since the first.
#[test]
fn a_plan_lists_the_packs_once_whoever_comes_in_between() {
    let store = Store::new("hidden-between", 3);
    let newest = store.history.id(2).to_owned();
    let lagging = hide("backups/", &[&newest]).times(2);
    let tried = store.expire_through(&[lagging], &["--keep-last", "1"]);
    assert_eq!(tried.hits, 2);
    let plan = tried.outcome.summary();
    assert_eq!(plan["leftovers"]["packs"], 0, "{plan}");
    assert_eq!(plan["leftovers"]["owned_packs"], 0, "{plan}");
    let seen = tried.proxy.seen();
    let of_packs = |seen: &&String| seen.contains("prefix=expire%2Fpacks");
    assert_eq!(seen.iter().filter(of_packs).count(), 1, "{seen:?}");
}

#[test]
fn damage_to_a_backup_that_a_later_listing_leaves_out_is_told() {
    let mut store = Store::new("hidden-damage", 1);
    let before = store.keys("packs/");
    store.history.backup();
    let newest = store.history.id(1).to_owned();
    let mut own = store.keys("packs/");
    own.retain(|pack| !before.contains(pack));
    delete(&store.client(), &own[0]);
    let shown = Fault::new(Action::Delay(Duration::ZERO)).query("prefix=expire%2Fbackups");
    let (_proxy, _, repo) = store.through(&[shown.times(1), hide("backups/", &[&newest])]);
    let verified = repo.verify().expect(exit::VERIFY_FAILED).bad_summary();
    let findings = verified["findings"].as_array().expect("findings");
    assert!(!findings.is_empty());
    for finding in findings {
        assert_eq!(
            finding["backups"],
            serde_json::json!([newest]),
            "{verified}"
        );
    }
    let is_named = |finding: &&serde_json::Value| {
        finding["object"]
            .as_str()
            .is_some_and(|name| own[0].ends_with(name))
    };
    assert!(
        findings.iter().any(|finding| is_named(&finding)),
        "{verified}"
    );
}

/// Requests of this kind that a proxy has seen.
fn requests(proxy: &FaultProxy, kind: &str) -> usize {
    let seen = proxy.seen();
    seen.iter().filter(|seen| seen.starts_with(kind)).count()
}

#[test]
fn an_expire_looks_up_little_more_than_it_deletes() {
    let mut store = Store::new("hidden-cost", 6);
    let expire = |store: &Store, keep: &str| {
        let tried = store.expire_through(&[], &["--keep-last", keep, "--confirm"]);
        let done = tried.outcome.summary();
        (done, tried.proxy)
    };
    let of_backups = "HEAD /mover/expire/backups/";
    let of_sessions = "HEAD /mover/expire/sessions/";
    let of_packs = "GET /mover/expire/packs/";

    // Everything that is named is listed.
    let (done, proxy) = expire(&store, "3");
    assert_eq!(done["deleted"].as_array().map(Vec::len), Some(3), "{done}");
    // Each is looked for as it is deleted; the session before each of them, and before the packs and at its own end.
    assert!(requests(&proxy, of_backups) <= 3, "{:?}", proxy.seen());
    assert!(requests(&proxy, of_sessions) <= 3 + 2, "{:?}", proxy.seen());
    assert_eq!(requests(&proxy, of_packs), 0, "{:?}", proxy.seen());
    // Tombstones, notes, sessions, holds, manifests and behind these, packs, when planned and when executed; keys; uploads.
    let lists = requests(&proxy, "GET /mover?");
    assert!(lists <= 2 * 7 + 2, "{lists}: {:?}", proxy.seen());

    // The parent of the oldest is gone: it is looked up once.
    let (done, proxy) = expire(&store, "3");
    assert_eq!(done["packs"], 0, "{done}");
    assert_eq!(requests(&proxy, of_backups), 1, "{:?}", proxy.seen());
    assert_eq!(requests(&proxy, of_packs), 0, "{:?}", proxy.seen());

    // Packs that are left over are asked once for their sessions, more of them than at a time, and of each session is looked up
    // whether it made a backup.
    const GIVEN_UP: usize = 9;
    let known = store.keys("packs/").len();
    for _ in 0..GIVEN_UP {
        store.history.backup();
    }
    let client = store.client();
    for (id, _) in store.history.made.drain(6..) {
        delete(&client, &format!("expire/backups/{id}"));
    }
    let left = store.keys("packs/").len() - known;
    assert!(left > 16, "{left}");
    let (done, proxy) = expire(&store, "3");
    assert_eq!(done["leftover_packs"], left, "{done}");
    assert_eq!(requests(&proxy, of_packs), left, "{:?}", proxy.seen());
    // The three ids that each backup may have, and the parent of the oldest that is kept.
    let asked = requests(&proxy, of_backups);
    assert!(asked <= 3 * GIVEN_UP + 1, "{asked}: {:?}", proxy.seen());
    let asked = requests(&proxy, of_sessions);
    assert!(asked <= GIVEN_UP + 2, "{asked}: {:?}", proxy.seen());
    store.history.holds_exactly(&[3, 4, 5], &store.scratch);
    store.history.nothing_is_left_over();
}

/// An expire was killed between its look and its first deletion, or so it seems: it may be at work elsewhere.
#[test]
fn an_expire_that_a_listing_leaves_out_is_found_by_its_tombstone() {
    let store = Store::new("hidden-expire", 3);
    let stuck = Fault::new(Action::Delay(Duration::from_secs(600))).method("DELETE");
    let (proxy, ids, repo) = store.through(&[stuck.path("/backups/")]);
    let mut command = repo.command("expire");
    let mut job = Job::start(command.args(["--keep-last", "1", "--confirm"]));
    wait_until(|| proxy.hits(ids[0]) > 0);
    job.signal(Signal::KILL);
    job.status();
    drop(proxy);
    let session = store.keys("sessions/").remove(0);
    let session = session.strip_prefix("expire/").expect("prefix");
    let hidden = || hide("sessions/", &[session.rsplit('/').next().expect("a name")]);

    let (_proxy, _, repo) = store.through(&[hidden()]);
    let mut command = repo.command("hold add");
    let held = Outcome::of(command.args([store.history.id(0), "--reason", "audit", "--json"]));
    let error = held.expect(exit::CONFLICT).error();
    assert!(error.to_string().contains("about to delete"), "{error}");
    assert!(store.keys("holds/").is_empty());

    store.nothing_goes("an expire", &[hidden()], session);
    store.holds_all();
}
