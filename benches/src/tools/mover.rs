//! Helios Mover at its defaults, but for the histograms of its latencies, which it tells only when it is asked.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mover_base::Result;
use serde_json::Value;

use super::{PASSPHRASE, Round, Step, cannot_make};
use crate::command::Program;

/// In the scratch directory.
const PASSPHRASE_FILE: &str = "passphrase";
/// Has the mover put the whole histogram beside the quantiles of each shard's latencies.
const HISTOGRAMS_VARIABLE: &str = "HELIOS_MOVER_HISTOGRAMS";
/// The field that it puts it in. Its base64 has slashes, as a path has.
const HISTOGRAM: &str = "histogram";

/// Writes the passphrase that [`on`] opens a repository with.
///
/// # Errors
/// Where it cannot be written.
pub fn write_passphrase(scratch: &Path) -> Result<()> {
    let secret = scratch.join(PASSPHRASE_FILE);
    std::fs::write(&secret, PASSPHRASE)
        .and_then(|()| std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)))
        .map_err(|e| cannot_make(&secret, e))
}

/// `verb` on the repository at `url`, with the passphrase in `scratch`.
pub fn on(binary: &Path, verb: &str, url: &str, scratch: &Path) -> Program {
    Program::new(binary)
        .args([verb, "--json", "--repo", url, "--passphrase-file"])
        .path(&scratch.join(PASSPHRASE_FILE))
        // The user's own configuration must not change what is measured.
        .env("XDG_CONFIG_HOME", scratch.display().to_string())
        .env(HISTOGRAMS_VARIABLE, "true")
}

/// The program for one step on the repository at `url`.
///
/// # Errors
/// Where the passphrase's file cannot be written.
pub fn program(step: Step, url: &str, round: &Round<'_>) -> Result<Program> {
    if step == Step::Init {
        write_passphrase(&round.scratch)?;
    }
    let verb = match step {
        Step::Init => "init",
        Step::Backup | Step::BackupUnchanged => "backup",
        Step::Restore => "restore",
        Step::Verify => "verify",
    };
    let program = on(round.mover, verb, url, &round.scratch);
    Ok(match step {
        Step::Init => program,
        Step::Backup | Step::BackupUnchanged => program.args(["--source"]).path(round.source),
        Step::Restore => program
            .args(["--set", "latest", "--to"])
            .path(&round.target),
        Step::Verify => program,
    })
}

/// The summary line of its JSON output, without what names directories.
pub fn detail(printed: &str) -> Option<Value> {
    let parsed = |line| serde_json::from_str::<Value>(line).ok();
    let mut documents = printed.lines().rev().filter_map(parsed);
    let mut summary = documents.find(|document| document["message_type"] == "summary")?;
    drop_paths(&mut summary);
    Some(summary)
}

/// Directories of the machine are of no use to a reader of the results.
fn drop_paths(value: &mut Value) {
    let names_path = |value: &Value| value.as_str().is_some_and(|text| text.contains('/'));
    match value {
        Value::Object(fields) => {
            fields.retain(|name, field| name == HISTOGRAM || !names_path(field));
            fields.values_mut().for_each(drop_paths);
        }
        Value::Array(items) => {
            items.retain(|item| !names_path(item));
            items.iter_mut().for_each(drop_paths);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;
    use serde_json::json;

    use super::*;
    use crate::latency::Latencies;

    #[test]
    fn the_last_summary_is_kept_without_paths() {
        let printed = "{\"message_type\":\"status\"}\nnoise\n\
            {\"message_type\":\"summary\",\"repo\":\"file:///a/b\",\"engine\":{\"seconds\":1.5,\"at\":\"/x\"}}\n";
        let detail = detail(printed).unwrap();
        assert_eq!(detail["engine"]["seconds"], 1.5);
        assert!(detail.get("repo").is_none() && detail["engine"].get("at").is_none());
        assert!(super::detail("nothing").is_none());
    }

    #[test]
    fn histograms_of_latencies_are_kept_whole() {
        // So many that the text of some has a slash in it.
        let mut with_slash = 0;
        for slowest in 1..200_u64 {
            let mut times = Histogram::<u64>::new_with_bounds(1, 120_000_000, 2).unwrap();
            for time in 1..=slowest {
                times.record(time * time).unwrap();
            }
            let told = Latencies::of(&times).unwrap();
            with_slash += usize::from(told.histogram.contains('/'));
            let summary = json!({
                "message_type": "summary",
                "engine": {"shards": [{"reads": slowest, "read_latency": told, "of": "/a"}]},
            });
            let detail = detail(&summary.to_string()).unwrap();
            let shard = &detail["engine"]["shards"][0];
            let kept: Latencies = serde_json::from_value(shard["read_latency"].clone()).unwrap();
            assert_eq!(kept, told);
            assert_eq!(kept.histogram().unwrap().unwrap(), times);
            assert!(shard.get("of").is_none());
        }
        assert!(with_slash > 0);
    }
}
