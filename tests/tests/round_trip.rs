//! What was backed up comes back equal in everything: every kind of protection with every shape of tree, and
//! the promises around it (deduplication, delta restore, dry runs).
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use mover_tests::mover::{Outcome, Protection, Repo, dir_url, exit};
use mover_tests::plant::{self, MIB, SHAPES};
use mover_tests::random::Random;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;
use serde_json::Value;

/// Seed of everything that is planted here.
const SEED: u64 = 0x6865_6c69_6f73;

/// What the tool may use at its defaults.
const RSS_MAX: u64 = 256 * MIB;

fn every_shape_comes_back(protection: Protection) {
    for (name, planter) in SHAPES {
        let scratch = Scratch::new(name);
        let source = scratch.dir("source");
        planter(&source, &mut Random::new(SEED));
        let truth = Tree::read(&source);

        let repo = Repo::create(&scratch, "repo", protection);
        let summary = repo.backup(&source).summary();
        assert_eq!(
            summary["bytes_source"].as_u64(),
            Some(truth_bytes(&truth)),
            "{name}: {summary}"
        );
        truth.assert_same(
            &Tree::read(&source),
            &format!("{name}: the source itself after the backup"),
        );

        let target = scratch.join("target");
        repo.restore("latest", &target).summary();
        truth.assert_same(&Tree::read(&target), &format!("{name}, {protection:?}"));
        repo.verify().expect(exit::OK);
    }
}

/// Sum of the sizes of the files, where the names of one file count once.
fn truth_bytes(tree: &Tree) -> u64 {
    let first = |path: &Vec<u8>, linked: &Option<Vec<u8>>| {
        linked.as_ref().is_none_or(|first| first == path)
    };
    let kept = tree
        .0
        .iter()
        .filter(|(path, node)| first(path, &node.linked));
    Tree(
        kept.map(|(path, node)| (path.clone(), node.clone()))
            .collect(),
    )
    .bytes()
}

#[test]
fn every_shape_comes_back_without_encryption() {
    every_shape_comes_back(Protection::None);
}

#[test]
fn every_shape_comes_back_with_a_passphrase() {
    every_shape_comes_back(Protection::Passphrase);
}

#[test]
fn every_shape_comes_back_with_an_identity() {
    every_shape_comes_back(Protection::Identity);
}

#[test]
fn every_engine_setting_gives_the_same_bytes() {
    let scratch = Scratch::new("engine");
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(SEED), 20 << 20);
    let truth = Tree::read(&source);
    for (i, flags) in [
        &["--shards", "1"][..],
        &["--shards", "5", "--pin", "false"],
        &["--rung", "coop-taskrun"],
        &["--rung", "plain-ring"],
        &["--rung", "threads"],
        &["--no-direct"],
        &["--rung", "threads", "--no-direct", "--shards", "3"],
        &["--limit-read", "200MiB/s", "--limit-write", "20MiB/s"],
    ]
    .into_iter()
    .enumerate()
    {
        let repo = Repo::create(&scratch, &format!("repo-{i}"), Protection::Identity);
        let summary = Outcome::of(repo.backup_command(&source).args(flags)).summary();
        let rungs = rungs(&summary);
        assert!(
            !rungs.is_empty(),
            "the report names the rung in use: {summary}"
        );
        if let Some(at) = flags.iter().position(|flag| *flag == "--rung") {
            let rung = flags[at + 1].replace('-', "_");
            assert!(rungs.iter().all(|used| *used == rung), "{rung}: {rungs:?}");
        }
        let gentle = flags.contains(&"--limit-read");
        assert!(
            shards(&summary).all(|shard| shard["gentle"] == gentle),
            "a job whose disks are limited is gentle: {summary}"
        );
        let target = scratch.join(format!("target-{i}"));
        let restored = Outcome::of(repo.restore_command("latest", &target).args(flags)).summary();
        truth.assert_same(&Tree::read(&target), &format!("{flags:?}"));
        stages_add_up(&summary, "compress");
        stages_add_up(&restored, "decode");
        assert!(summary["engine"]["link"].is_null(), "{summary}");
    }
}

/// Each stage of a job is the sum of its shards', and no shard spent more than its time; in this one some time was spent.
fn stages_add_up(summary: &Value, spent: &str) {
    let seconds = |value: &Value| value.as_f64().expect("seconds");
    let stages = summary["engine"]["stages"].as_object().expect("stages");
    for (stage, whole) in stages {
        let of_shards: f64 = shards(summary)
            .map(|shard| seconds(&shard["stages"][stage]))
            .sum();
        let apart = (of_shards - seconds(whole)).abs();
        assert!(apart < 1e-6, "{stage}: {summary}");
    }
    assert!(seconds(&stages[spent]) > 0.0, "{spent}: {summary}");
    for shard in shards(summary) {
        let stages = shard["stages"].as_object().expect("stages of a shard");
        let spent: f64 = stages.values().map(seconds).sum();
        assert!(spent <= seconds(&shard["wall_seconds"]), "{summary}");
    }
}

fn shards(summary: &Value) -> impl Iterator<Item = &Value> {
    summary["engine"]["shards"].as_array().into_iter().flatten()
}

fn rungs(summary: &Value) -> Vec<String> {
    shards(summary)
        .filter_map(|shard| shard["rung"].as_str().map(str::to_string))
        .collect()
}

#[test]
fn unchanged_data_is_not_stored_again() {
    let scratch = Scratch::new("dedup");
    let source = scratch.dir("source");
    let mut random = Random::new(SEED);
    for i in 0..4 {
        plant::file(&source.join(format!("table-{i}")), &mut random, 32 << 20);
        fs::write(source.join(format!("rows-{i}")), random.rows(20 << 20)).expect("file");
    }
    let truth = Tree::read(&source);
    assert!(
        truth.bytes() >= 200 * MIB,
        "the promise is about 200 MiB and more"
    );

    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    let summary = repo.backup(&source).summary();
    let peak = summary["engine"]["peak_rss_bytes"]
        .as_u64()
        .expect("peak_rss_bytes");
    assert!(peak < RSS_MAX, "a backup used {peak} bytes of memory");
    let first = repo.stored_bytes();
    let summary = repo.backup(&source).summary();
    let grown = repo.stored_bytes() - first;
    assert!(
        grown * 1000 < truth.bytes(),
        "the second backup took {grown} bytes for {} of source",
        truth.bytes()
    );
    assert_eq!(summary["bytes_new"].as_u64(), Some(0), "{summary}");

    // A host that holds the same bytes under other names stores nothing again either.
    fs::rename(source.join("table-0"), source.join("moved")).expect("rename");
    repo.backup(&source).summary();
    let grown = repo.stored_bytes() - first - grown;
    assert!(
        grown * 1000 < truth.bytes(),
        "a renamed file took {grown} bytes"
    );

    let ids = repo.ids();
    assert_eq!(ids.len(), 3);
    let summary = repo.restore(&ids[1], &scratch.join("second")).summary();
    let peak = summary["engine"]["peak_rss_bytes"]
        .as_u64()
        .expect("peak_rss_bytes");
    assert!(peak < RSS_MAX, "a restore used {peak} bytes of memory");
    truth.assert_same(&Tree::read(&scratch.join("second")), "second backup");
    repo.restore(&ids[2], &scratch.join("third")).summary();
    Tree::read(&source).assert_same(&Tree::read(&scratch.join("third")), "third backup");
    repo.verify().expect(exit::OK);
}

/// Damages a restored tree in every way that a delta restore must put right.
fn damage(root: &Path, random: &mut Random) {
    let at = |name: &str| root.join(name);
    let table = OpenOptions::new()
        .read(true)
        .write(true)
        .open(at("base/1/table"))
        .expect("table");
    let bytes = table.metadata().expect("metadata").len();
    for _ in 0..20 {
        let offset = random.below(bytes);
        let mut byte = [0];
        table.read_exact_at(&mut byte, offset).expect("byte");
        table.write_all_at(&[byte[0] ^ 0x20], offset).expect("byte");
    }
    table
        .write_all_at(&random.bytes(5000), bytes - 17)
        .expect("extended");
    File::options()
        .write(true)
        .open(at("base/1/index"))
        .expect("index")
        .set_len(4097)
        .expect("truncated");
    fs::write(at("extra"), "should go").expect("extra");
    fs::create_dir_all(at("extra-dir/deep")).expect("extra");
    fs::write(at("extra-dir/deep/file"), "should go").expect("extra");
    symlink("/etc", at("extra-link")).expect("extra");
    fs::remove_file(at("one-byte")).expect("missing");
    fs::remove_file(at("link")).expect("link");
    symlink("/etc/passwd", at("link")).expect("link elsewhere");
    fs::remove_file(at("empty")).expect("empty");
    fs::create_dir_all(at("empty/now a directory")).expect("directory instead of a file");
    fs::set_permissions(at("base"), fs::Permissions::from_mode(0o700)).expect("mode");
    File::options()
        .write(true)
        .open(at("sparse"))
        .expect("sparse")
        .write_all_at(b"no hole", 12_288)
        .expect("hole filled");
}

#[test]
fn delta_restore_repairs_any_difference_and_writes_no_more() {
    let scratch = Scratch::new("delta");
    let source = scratch.dir("source");
    let mut random = Random::new(SEED);
    plant::mixed(&source, &mut random, 24 << 20);
    // A file with several names is always written anew: its other names could lie outside of the target.
    fs::remove_file(source.join("again")).expect("second name");
    let truth = Tree::read(&source);
    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    repo.backup(&source).summary();

    let target = scratch.join("target");
    let delta = |target: &Path| {
        Outcome::of(repo.restore_command("latest", target).arg("--delta")).summary()
    };
    Outcome::of(repo.restore_command("latest", &target).arg("--delta"))
        .expect(exit::TARGET)
        .error();
    assert!(
        !target.exists(),
        "a delta restore over nothing made something"
    );
    repo.restore("latest", &target).summary();

    let summary = delta(&target);
    assert_eq!(
        summary["bytes_written"].as_u64(),
        Some(0),
        "over an exact target: {summary}"
    );
    truth.assert_same(&Tree::read(&target), "delta over an exact target");

    damage(&target, &mut random);
    // A name of a file that lies elsewhere: that file must not be written through it.
    let outside = scratch.join("outside");
    fs::write(&outside, "outside").expect("file");
    fs::remove_file(target.join("base/1/index")).expect("index");
    fs::hard_link(&outside, target.join("base/1/index")).expect("hard link");
    fs::remove_file(target.join("link")).expect("link");
    symlink(&outside, target.join("link")).expect("symbolic link");
    let summary = delta(&target);
    truth.assert_same(&Tree::read(&target), "delta over a damaged target");
    let written = summary["bytes_written"].as_u64().expect("bytes_written");
    assert!(
        written * 2 < truth.bytes(),
        "a delta restore wrote {written} of {} bytes",
        truth.bytes()
    );
    assert_eq!(
        fs::read(&outside).expect("file"),
        b"outside",
        "a file outside of the target was written"
    );

    let summary = delta(&target);
    assert_eq!(
        summary["bytes_written"].as_u64(),
        Some(0),
        "repaired for good: {summary}"
    );
}

#[test]
fn every_shape_survives_a_delta_restore_over_another() {
    let scratch = Scratch::new("delta-shapes");
    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    let target = scratch.dir("target");
    for (name, planter) in SHAPES {
        let source = scratch.dir(format!("source-{name}"));
        planter(&source, &mut Random::new(SEED));
        let made = repo.backup(&source).summary();
        let id = made["backup_id"].as_str().expect("id");
        // The target holds the shape before this one, of which it may have no name.
        let mut restore = repo.restore_command(id, &target);
        Outcome::of(restore.args(["--delta", "--confirm"])).summary();
        Tree::read(&source).assert_same(&Tree::read(&target), name);
    }
}

#[test]
fn latest_is_the_backup_made_last() {
    let scratch = Scratch::new("latest");
    let source = scratch.dir("source");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let mut made = Vec::new();
    // Several of them within one second.
    for round in 0..12 {
        fs::write(source.join("round"), [round]).expect("file");
        let summary = repo.backup(&source).summary();
        made.push(summary["backup_id"].as_str().expect("id").to_string());
        let shown = Outcome::of(repo.command("show").args(["--set", "latest", "--json"]))
            .expect(exit::OK)
            .stdout;
        assert!(
            shown.contains(&made[made.len() - 1]),
            "{made:?}, but latest is {shown}"
        );
    }
    assert_eq!(
        repo.ids(),
        made,
        "backups are listed in the order in which they were made"
    );
}

/// Everything that a summary promises, with values that can be right.
#[test]
fn a_summary_holds_every_figure() {
    let scratch = Scratch::new("figures");
    let source = scratch.dir("source");
    let bytes = 8 << 20;
    plant::file(&source.join("table"), &mut Random::new(SEED), bytes);
    fs::copy(source.join("table"), source.join("copy")).expect("a copy");
    let repo = Repo::create(&scratch, "repo", Protection::Passphrase);
    let outcome = Outcome::of(repo.backup_command(&source).args([
        "--limit-read",
        "8MiB/s",
        "--gentle",
        "false",
    ]));
    let made = outcome.summary();
    let (bytes, number) = (bytes as u64, |field: &str| made[field].as_u64());
    assert_eq!(number("bytes_source"), Some(2 * bytes), "{made}");
    assert_eq!(number("bytes_read"), Some(2 * bytes), "{made}");
    assert_eq!(number("bytes_new"), Some(bytes), "{made}");
    let stored = number("bytes_stored").expect("bytes_stored");
    assert!(
        stored > number("bytes_compressed").expect("bytes_compressed"),
        "{made}"
    );
    assert_eq!(made["deduplicated_share"], 0.5, "{made}");
    let ratio = made["compression_ratio"].as_f64().expect("a ratio");
    let compressed = number("bytes_compressed").expect("bytes_compressed") as f64;
    assert!((ratio - bytes as f64 / compressed).abs() < 0.01, "{made}");
    let restored = repo.restore("latest", &scratch.join("target")).summary();
    for summary in [&made, &restored] {
        let engine = &summary["engine"];
        let seconds = engine["seconds"].as_f64().expect("seconds");
        assert!(
            seconds > 0.0 && engine["cpu_seconds"].as_f64() > Some(0.0),
            "{summary}"
        );
        assert!(
            engine["peak_rss_bytes"].as_u64() > Some(1 << 20),
            "{summary}"
        );
        let shards = engine["shards"].as_array().expect("shards");
        assert!(!shards.is_empty(), "{summary}");
        for shard in shards {
            let busy = shard["busy_share"].as_f64().expect("busy_share");
            assert!((0.0..=1.0).contains(&busy), "{summary}");
            assert!(shard["rung"].is_string(), "{summary}");
        }
        for stage in [
            "hash",
            "dedup",
            "compress",
            "compare",
            "seal",
            "decode",
            "read_wait",
            "write_wait",
        ] {
            let of = |part: &Value| part["stages"][stage].as_f64().expect("seconds of a stage");
            let sum: f64 = shards.iter().map(of).sum();
            assert!((sum - of(engine)).abs() < 1e-6, "{stage}: {summary}");
            assert!(sum <= seconds * shards.len() as f64, "{stage}: {summary}");
        }
    }
    // Two seconds of copying, of which some are told.
    let lines = outcome.lines();
    let told = lines
        .iter()
        .filter(|line| line["phase"] == "copy" && line["bytes_done"] != 0);
    let rate = told.filter_map(|line| line["bytes_per_second"].as_f64());
    let rates: Vec<f64> = rate.collect();
    assert!(rates.iter().any(|rate| *rate > 0.0), "{outcome}");
    assert!(
        lines
            .iter()
            .any(|line| line["eta_seconds"].as_f64() > Some(0.0)),
        "{outcome}"
    );
}

/// What benchmarks keep, read by the library that others would read it with.
#[test]
fn a_summary_holds_histograms_of_all_its_requests_only_where_it_is_asked_for_them() {
    const VARIABLE: &str = "HELIOS_MOVER_HISTOGRAMS";
    let scratch = Scratch::new("histograms");
    let source = scratch.dir("source");
    plant::file(&source.join("file"), &mut Random::new(SEED), 8 << 20);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let target = scratch.join("target");
    let jobs = || {
        let mut verify = repo.command("verify");
        verify.arg("--json");
        let _ = fs::remove_dir_all(&target);
        let restore = repo.restore_command("latest", &target);
        [repo.backup_command(&source), restore, verify]
    };
    let summaries = |set: &dyn Fn(&mut Command)| {
        jobs().map(|mut job| {
            set(&mut job);
            let outcome = Outcome::of(&mut job);
            let told = [&outcome.stdout, &outcome.stderr];
            assert!(
                !told.iter().any(|text| text.contains(VARIABLE)),
                "{outcome}"
            );
            outcome.summary()
        })
    };
    let usual = |_: &mut Command| {};
    let switched_off = |job: &mut Command| {
        job.env(VARIABLE, "false");
    };
    let unasked: [&dyn Fn(&mut Command); 2] = [&usual, &switched_off];
    for set in unasked {
        for summary in summaries(set) {
            assert!(shards(&summary).count() > 0, "{summary}");
            let text = summary.to_string();
            assert!(!text.contains("\"histogram\""), "{text}");
        }
    }
    let asked = summaries(&|job: &mut Command| {
        job.env(VARIABLE, "true");
    });
    for summary in &asked {
        let mut requests = 0;
        for shard in shards(summary) {
            for (count, latency) in [("reads", "read_latency"), ("writes", "write_latency")] {
                let latency = &shard[latency];
                let histogram = histogram_of(latency);
                assert_eq!(shard[count], histogram.len(), "{count}: {summary}");
                let quantile = |quantile| histogram.value_at_quantile(quantile);
                assert_eq!(latency["p50_us"], quantile(0.5), "{count}: {summary}");
                assert_eq!(latency["p999_us"], quantile(0.999), "{count}: {summary}");
                assert_eq!(latency["max_us"], histogram.max(), "{count}: {summary}");
                requests += histogram.len();
            }
        }
        assert!(requests > 0, "{summary}");
    }
    let [mut backup, ..] = jobs();
    Outcome::of(backup.env(VARIABLE, "perhaps")).told(exit::USAGE, VARIABLE);
}

fn histogram_of(latency: &Value) -> Histogram<u64> {
    let text = latency["histogram"].as_str().expect("a histogram");
    let bytes = STANDARD.decode(text).expect("base64");
    let histogram = Deserializer::new().deserialize(&mut bytes.as_slice());
    histogram.expect("a histogram of HdrHistogram")
}

#[test]
fn a_dry_run_changes_nothing() {
    let scratch = Scratch::new("dry-run");
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(SEED), 2 << 20);
    let repo = Repo::create(&scratch, "repo", Protection::Passphrase);
    let made = repo.backup(&source).summary();
    fs::write(source.join("new"), "not stored yet").expect("file");

    let before = (Tree::read(&repo.dir), Tree::read(&source));
    Outcome::of(repo.backup_command(&source).arg("--dry-run")).summary();
    before
        .0
        .assert_same(&Tree::read(&repo.dir), "repository after a dry backup");

    let target = scratch.join("target");
    let plan = Outcome::of(repo.restore_command("latest", &target).arg("--dry-run")).summary();
    assert!(!target.exists(), "a dry restore made its target");
    assert_eq!(plan["bytes"], made["bytes_source"], "{plan}");
    let pack_bytes = plan["pack_bytes"].as_u64();
    assert!(
        pack_bytes > Some(0) && pack_bytes < made["bytes_stored"].as_u64(),
        "{plan}"
    );
    assert!(plan["estimated_seconds"].as_f64() > Some(0.0), "{plan}");
    assert!(plan["sampled_bytes"].as_u64() > Some(0), "{plan}");
    // No estimate is faster than a limit.
    let mut limited = repo.restore_command("latest", &target);
    let limited = Outcome::of(limited.args(["--dry-run", "--limit-write", "1KiB/s"])).summary();
    let least = plan["data_bytes"]
        .as_u64()
        .map(|bytes| bytes as f64 / 1024.0);
    assert!(limited["estimated_seconds"].as_f64() >= least, "{limited}");
    // A limit that leaves no time for a sample leaves it open how much would be read.
    let mut limited = repo.restore_command("latest", &target);
    let limited = Outcome::of(limited.args(["--dry-run", "--limit-read", "1KiB/s"])).summary();
    assert_eq!(limited["sampled_bytes"], 0, "{limited}");
    assert!(limited["estimated_seconds"].is_null(), "{limited}");
    let mut limited = repo.backup_command(&source);
    let limited = Outcome::of(limited.args(["--dry-run", "--limit-write", "1KiB/s"])).summary();
    let stored = limited["estimated_stored_bytes"].as_u64();
    let least = stored.map(|bytes| bytes as f64 / 1024.0);
    assert!(limited["estimated_seconds"].as_f64() >= least, "{limited}");
    assert!(
        limited["repository_free_bytes"].as_u64() > Some(0),
        "{limited}"
    );
    let existing = scratch.dir("existing");
    fs::write(existing.join("kept"), "kept").expect("file");
    fs::create_dir_all(existing.join("more/of/it")).expect("directories");
    fs::write(existing.join("more/of/file"), "more").expect("file");
    let kept = Tree::read(&existing);
    let plan = Outcome::of(
        repo.restore_command("latest", &existing)
            .args(["--dry-run", "--delta"]),
    )
    .summary();
    assert_eq!(plan["removes"], 5, "{plan}");
    kept.assert_same(&Tree::read(&existing), "target after a dry delta restore");
    before
        .0
        .assert_same(&Tree::read(&repo.dir), "repository after dry restores");
    let mut delta = repo.restore_command("latest", &existing);
    let delta = Outcome::of(delta.args(["--delta", "--confirm"])).summary();
    assert_eq!(delta["removed"], 5, "{delta}");

    before
        .1
        .assert_same(&Tree::read(&source), "source after dry runs");
}

/// What was to stay out of a repository is not to be found there because of how its path was spelled.
#[test]
fn an_exclude_is_heeded_however_it_is_spelled_or_said_to_do_nothing() {
    let scratch = Scratch::new("exclude");
    let source = scratch.dir("source");
    for name in ["kept", "secret"] {
        plant::file(&source.join(name), &mut Random::new(SEED), 10_000);
    }
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let backup_without = |pattern: &str| {
        let mut backup = repo.backup_command(&source);
        Outcome::of(backup.args(["--exclude", pattern]))
    };
    for pattern in ["secret", "./secret", "/secret", "secret/"] {
        let made = backup_without(pattern).summary();
        assert_eq!(made["files"], 1, "{pattern}: {made}");
        assert_eq!(made["warnings"], serde_json::json!([]), "{pattern}: {made}");
    }
    let absolute = source.join("secret").display().to_string();
    let error = backup_without(&absolute).told(exit::USAGE, &absolute);
    let hint = error["hint"].as_str().expect("a hint");
    assert!(hint.contains("`secret`"), "{error}");
    let made = backup_without("source/secret").summary();
    assert_eq!(made["files"], 2, "{made}");
    let told = ["the exclude pattern source/secret matched nothing"];
    assert_eq!(made["warnings"], serde_json::json!(told), "{made}");
}

#[test]
fn list_and_show_tell_what_was_kept() {
    let scratch = Scratch::new("show");
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(SEED), 1 << 20);
    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    assert!(repo.ids().is_empty());
    let made = Outcome::of(
        repo.backup_command(&source)
            .args(["--annotation", "ticket=4711"]),
    )
    .summary();
    let id = made["backup_id"].as_str().expect("id").to_string();
    assert_eq!(repo.ids(), [id.as_str()]);

    for words in [
        &[][..],
        &["latest"],
        &[&id],
        &[&id[..18]],
        &["--set", "latest"],
        &["--set", &id],
    ] {
        let shown = Outcome::of(repo.command("show").args(words).arg("--json"))
            .expect(exit::OK)
            .document();
        let metadata = if shown["metadata"].is_object() {
            &shown["metadata"]
        } else {
            &shown
        };
        assert_eq!(metadata["backup_id"].as_str(), Some(id.as_str()), "{shown}");
        assert_eq!(metadata["backup_type"], "full", "{shown}");
        assert_eq!(metadata["annotations"]["ticket"], "4711", "{shown}");
        let kept = metadata["size_info"]["original_bytes"].as_u64();
        assert_eq!(kept, Some(truth_bytes(&Tree::read(&source))), "{shown}");
    }
    for (words, code) in [
        (&["20200101-000000-00000000"][..], exit::NOT_FOUND),
        (&["latest", "--set", "latest"], exit::USAGE),
    ] {
        Outcome::of(repo.command("show").args(words)).expect(code);
    }
}

#[test]
fn a_backup_that_builds_on_another_sources_says_so_in_one_line() {
    let scratch = Scratch::new("other-source");
    let (one, two) = (scratch.dir("one"), scratch.dir("two"));
    plant::mixed(&one, &mut Random::new(SEED), 1 << 20);
    plant::mixed(&two, &mut Random::new(SEED), 1 << 20);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let first = repo.backup(&one).summary();
    assert!(
        first["parent"].is_null() && first["parent_source"].is_null(),
        "{first}"
    );
    let first = first["backup_id"].as_str().expect("id");
    let url = dir_url(&one);
    let human = |source: &Path, words: &[&str]| {
        let mut command = repo.command("backup");
        command.args(["--source", &dir_url(source)]).args(words);
        let told = Outcome::of(&mut command).expect(exit::OK).stdout;
        let lines = told.lines().map(str::trim);
        let lines = lines.filter(|line| line.starts_with("parent"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let wanted = format!("{first}, of another source: {url}");
    for words in [&["--dry-run"][..], &[]] {
        let lines = human(&two, words);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].ends_with(&wanted), "{lines:?}");
    }
    // Now it has one of its own.
    assert!(human(&two, &[]).is_empty());
    let again = repo.backup(&two).summary();
    assert!(
        again["parent"].is_string() && again["parent_source"].is_null(),
        "{again}"
    );
    let three = scratch.dir("three");
    fs::write(three.join("a"), "a").expect("file");
    let other = repo.backup(&three).summary();
    assert_eq!(other["parent_source"], dir_url(&two), "{other}");
}

/// The databases of a PostgreSQL cluster have equal small files, whose blocks lie in more frames than a reader of packs needs
/// for anything else. A frame that was not kept would be read and decoded again for each database, as is one that a file needs
/// all of. No file does here: each has 170 blocks, and the frames have 256, the last 248.
#[test]
fn frames_that_small_files_share_are_kept() {
    let scratch = Scratch::new("shared-frames");
    let source = scratch.dir("source");
    let mut random = Random::new(SEED);
    let files: Vec<Vec<u8>> = (0..12).map(|_| random.bytes(680 << 10)).collect();
    for database in 0..20 {
        let dir = source.join(format!("database-{database}"));
        fs::create_dir(&dir).expect("directory");
        for (at, bytes) in files.iter().enumerate() {
            fs::write(dir.join(format!("table-{at}")), bytes).expect("file");
        }
    }
    let truth = Tree::read(&source);
    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    let mut backup = repo.backup_command(&source);
    Outcome::of(backup.args(["--shards", "1"])).summary();
    let stored = repo.stored_bytes();
    let target = scratch.join("target");
    let mut restore = repo.restore_command("latest", &target);
    let summary = Outcome::of(restore.args(["--shards", "1"])).summary();
    let read = summary["bytes_read"].as_u64().expect("bytes_read");
    assert!(
        read <= stored + stored / 4,
        "{read} bytes were read of {stored} in all: {summary}"
    );
    truth.assert_same(&Tree::read(&target), "shared frames");
}

#[test]
fn a_target_whose_name_is_no_text_is_restored_to_and_told() {
    use std::os::unix::ffi::OsStrExt;
    let scratch = Scratch::new("no-text");
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(SEED), 1 << 20);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    repo.backup(&source).summary();
    let target = scratch
        .path()
        .join(std::ffi::OsStr::from_bytes(b"target-\xff"));
    let restored = repo.restore("latest", &target).summary();
    let told = restored["target"].as_str().expect("the target");
    assert!(told.ends_with("target-\u{fffd}"), "{told}");
    Tree::read(&source).assert_same(&Tree::read(&target), "restored");
}

/// Whoever knows the public key and may write can make a backup that names any source, of packs that do not hold what they say.
#[test]
fn what_was_made_without_the_key_is_told_and_nothing_is_built_on_it() {
    let scratch = Scratch::new("unvouched");
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(SEED), 4 << 20);
    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    let vouched = repo.backup(&source).summary();
    let open = repo.opened_with(&[]).backup(&source).summary();
    let again = repo.backup(&source).summary();
    assert_eq!(again["parent"], vouched["backup_id"], "{again}");
    assert_eq!(again["bytes_new"], 0, "{again}");
    let warnings = again["warnings"].to_string();
    let id = open["backup_id"].as_str().expect("id");
    assert!(
        warnings.contains(id) && warnings.contains("nobody vouches"),
        "{warnings}"
    );

    let verified = repo.verify().summary();
    let backups = verified["backups"].as_array().expect("backups");
    let told: Vec<&str> = backups
        .iter()
        .filter_map(|backup| backup["authenticity"].as_str())
        .collect();
    assert_eq!(
        told,
        ["master_key", "recipient_only", "master_key"],
        "{verified}"
    );
    let warnings = verified["warnings"].to_string();
    assert!(
        warnings.contains(id) && warnings.contains("written without"),
        "{warnings}"
    );

    let truth = Tree::read(&source);
    for (made, is_told) in [(&open, true), (&again, false)] {
        let id = made["backup_id"].as_str().expect("id");
        let target = scratch.join(format!("restored-{is_told}"));
        let restored = repo.restore(id, &target).summary();
        let warnings = restored["warnings"].to_string();
        assert_eq!(
            warnings.contains("without the repository's key"),
            is_told,
            "{warnings}"
        );
        truth.assert_same(&Tree::read(&target), "restored");
    }
}
