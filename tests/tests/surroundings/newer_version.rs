//! A repository of a newer version is refused by every verb, with the same reason, and none of them changes a byte of it.

use sha2::Digest;

use super::*;

/// What every verb says.
const MESSAGE: &str = "config: format 2 is unknown";
const HINT: &str = "a newer helios-mover may read this repository";

/// The header of a repository, made that of version 2.
fn newer(config: &str) -> String {
    let line = config.lines().next().expect("a line");
    let newer = line.replacen("\"format\":1", "\"format\":2", 1);
    assert_ne!(line, newer);
    let digest: String = sha2::Sha256::digest(newer.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{newer}\nsha256 {digest}\n")
}

#[test]
fn every_verb_refuses_a_repository_of_a_newer_version_and_changes_nothing() {
    for protection in [Protection::None, Protection::Identity] {
        let scratch = Scratch::new("newer-version");
        let repo = Repo::create(&scratch, "repo", protection);
        let source = small_source(&scratch);
        repo.backup(&source).summary();
        repo.backup(&source).summary();
        let mut hold = repo.command("hold add");
        let hold = Outcome::of(hold.args(["latest", "--reason", "x", "--json"])).summary();
        let hold = hold["hold"]["hold_id"].as_str().expect("an id").to_owned();
        let (_, recipient) = mover::identity(&scratch, "second");
        let source_url = mover::dir_url(&source);
        let target = scratch.join("target");
        let to = target.to_str().expect("UTF-8");
        let lines: [&[&str]; 16] = [
            &["list"],
            &["show", "latest"],
            &["verify", "--level", "checksum"],
            &["expire", "--keep-last", "1"],
            &["expire", "--keep-last", "1", "--confirm"],
            &["hold add", "latest", "--reason", "y"],
            &["hold list"],
            &["hold remove", &hold],
            &["annotate", "latest", "a=b"],
            &["key list"],
            &["key add", "--recipient", &recipient],
            &["key remove", "0123", "--confirm"],
            &["backup", "--source", &source_url],
            &["backup", "--source", &source_url, "--dry-run"],
            &["restore", "--to", to],
            &["restore", "--to", to, "--delta"],
        ];
        let run = |line: &[&str]| {
            let mut command = repo.command(line[0]);
            Outcome::of(command.args(&line[1..]).arg("--json"))
        };

        let config = repo.dir.join("config");
        let known = fs::read_to_string(&config).expect("config is text");
        fs::write(&config, newer(&known)).expect("config");
        let before = Tree::read(&repo.dir);
        for line in lines {
            let error = run(line).told(exit::CORRUPT, "config");
            assert_eq!(error["message"], MESSAGE, "{line:?}: {error}");
            assert_eq!(error["hint"], HINT, "{line:?}: {error}");
            before.assert_same(&Tree::read(&repo.dir), &format!("after {line:?}"));
            assert!(!target.exists(), "{line:?} made a target");
        }
        let found = format!("repository, header and key: {MESSAGE}");
        let error = run(&["check"]).told(exit::CHECK_FAILED, &found);
        assert_eq!(error["hint"], HINT, "{error}");
        let mut init = mover::command(&scratch.dir("home"));
        init.args(["init", "--no-encryption", "--json", "--repo", repo.url()]);
        let init = Outcome::of(&mut init).told(exit::CONFLICT, repo.url());
        assert_eq!(init["message"], "a repository exists already", "{init}");
        before.assert_same(&Tree::read(&repo.dir), "after check and init");

        // It was the version alone.
        fs::write(&config, known).expect("config");
        for line in [
            &["list"][..],
            &["hold remove", &hold],
            &["restore", "--to", to],
        ] {
            run(line).summary();
        }
        assert_eq!(repo.ids().len(), 2);
    }
}
