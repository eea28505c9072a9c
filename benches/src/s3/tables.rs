//! The readable tables of the S3 measurements.
//!
//! Invariants: medians are shown with the smallest and largest repetition, latencies are those of the one in the middle; a
//! limit that was set is shown beside what held; figures with Garage say which build of it they are of.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::backups::{BackupRun, RepoPlace};
use super::figures::Moved;
use super::link_runs::LinkRun;
use super::peers::{Client, Direction};
use super::servers::GARAGE_BUILD;
use super::transfers::{S3Transfers, SETUPS, TransferRun};
use crate::data::Dataset;
use crate::machine::Machine;
use crate::report::{line, mb, spread};
use crate::stats::{Spread, middle};
use crate::tools::Step;

fn mib(bytes: f64) -> String {
    format!("{:.0}", bytes / f64::from(1 << 20))
}

fn of<T>(runs: &[&T], figure: impl Fn(&T) -> f64) -> Spread {
    Spread::of(runs.iter().map(|run| figure(run))).unwrap_or_default()
}

/// Which build of Garage was measured.
fn garage(out: &mut String, machine: &Machine) {
    let is_named = machine.versions.iter().any(|name| name == GARAGE_BUILD);
    let build = match is_named {
        true => GARAGE_BUILD,
        false => {
            "Garage 2.5.0 as the tests have it, at opt-level 1 and without link-time optimisation"
        }
    };
    line!(out, "The real store is {build}.\n");
}

/// Transfers by server and placement.
pub(crate) fn transfers(out: &mut String, all: &S3Transfers, machine: &Machine) {
    line!(out, "## Files to S3 and back\n");
    let bytes = all.runs.first().map_or(0, |run| run.bytes);
    line!(
        out,
        "{:.2} GB of random bytes in files of about 10 MB, all in memory. CPU is the client's alone; what the server used is \
         beside it. Rates are from the start of the program to its exit.\n",
        bytes as f64 / 1e9
    );
    garage(out, machine);
    for (server, placement) in SETUPS {
        let is_of = |run: &&TransferRun| run.server == server && run.placement == placement;
        let runs: Vec<&TransferRun> = all.runs.iter().filter(is_of).collect();
        if runs.is_empty() {
            continue;
        }
        line!(out, "### {}, {}\n", server.title(), placement.title());
        line!(
            out,
            "| direction | client | MB/s | CPU s/GB | of it user / kernel | peak memory MiB | server's CPU s/GB | request p50 / p99 / p99.9 / max ms |\n|---|---|---|---|---|---|---|---|"
        );
        let mut groups: BTreeMap<(Direction, Client), Vec<&TransferRun>> = BTreeMap::new();
        for run in runs {
            groups
                .entry((run.direction, run.client))
                .or_default()
                .push(run);
        }
        for ((direction, client), runs) in groups {
            transfer_row(out, direction, client, &runs);
        }
        line!(out, "");
    }
    let is_measured = |client: &Client| all.runs.iter().any(|run| run.client == *client);
    for client in Client::ALL.into_iter().filter(is_measured) {
        line!(out, "- {}: {}.", client.title(), client.settings());
    }
    line!(out, "");
    if all.runs.iter().any(|run| run.server.is_tls()) {
        line!(
            out,
            "Over TLS (1.3, TLS_AES_128_GCM_SHA256 for all, the server's certificate verified by all) they differ in this:\n"
        );
        for client in Client::ALL.into_iter().filter(is_measured) {
            line!(out, "- {}: {}.", client.title(), client.tls_settings());
        }
        line!(out, "");
    }
    first_bytes(out, all);
}

fn transfer_row(out: &mut String, direction: Direction, client: Client, runs: &[&TransferRun]) {
    let gb = |run: &TransferRun| run.bytes as f64 / 1e9;
    let latency = middle(runs.iter(), |run| run.bytes_per_second());
    let latency = latency.and_then(|run| run.own.as_ref());
    let latency = latency.map_or("not measurable".to_owned(), |own| {
        let of = &own.latency;
        [of.p50_us, of.p99_us, of.p999_us, of.max_us]
            .map(|us| format!("{:.1}", us as f64 / 1000.0))
            .join(" / ")
    });
    line!(
        out,
        "| {} | {} | {} | {} | {:.2} / {:.2} | {} | {:.2} | {latency} |",
        match direction {
            Direction::Upload => "upload",
            Direction::Download => "download",
        },
        client.title(),
        spread(of(runs, TransferRun::bytes_per_second), mb),
        spread(of(runs, TransferRun::cpu_seconds_per_gb), |s| format!(
            "{s:.2}"
        )),
        of(runs, |run| run.usage.user_seconds / gb(run)).median,
        of(runs, |run| run.usage.system_seconds / gb(run)).median,
        mib(of(runs, |run| run.usage.rss_bytes as f64).max),
        of(runs, TransferRun::server_cpu_seconds_per_gb).median,
    );
}

fn first_bytes(out: &mut String, all: &S3Transfers) {
    if all.first_bytes.is_empty() {
        return;
    }
    line!(
        out,
        "Time to the first byte: reads of one byte, one at a time, from sending the request to having the byte; the middle \
         repetition. What happens inside of the other programs cannot be seen.\n"
    );
    line!(
        out,
        "| server | client | requests | p50 us | p99 us | p99.9 us | max us |\n|---|---|---|---|---|---|---|"
    );
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for run in &all.first_bytes {
        groups
            .entry((run.server, run.client))
            .or_default()
            .push(&run.times);
    }
    for ((server, client), times) in groups {
        let rate = |times: &&Moved| -(times.latency.p50_us as f64);
        let Some(middle) = middle(times, rate) else {
            continue;
        };
        let of = &middle.latency;
        line!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} |",
            server.title(),
            client.title(),
            middle.requests,
            of.p50_us,
            of.p99_us,
            of.p999_us,
            of.max_us
        );
    }
    line!(out, "");
}

/// Backups and restores by place of the repository.
pub(crate) fn backups(out: &mut String, all: &[BackupRun], dataset: Dataset, machine: &Machine) {
    line!(
        out,
        "## Repository on the disk and in S3 ({})\n",
        dataset.title()
    );
    line!(
        out,
        "Extra CPU is the mover's beyond that with a local repository, per GB (10^9 bytes) sent or received. The server \
         shares the two cores; its CPU seconds stand beside.\n"
    );
    garage(out, machine);
    line!(
        out,
        "| step | repository | wall s | MB/s of source | of the local rate | GB moved | CPU s | extra CPU s per GB moved | peak memory MiB | server's CPU s |\n|---|---|---|---|---|---|---|---|---|---|"
    );
    let mut groups: BTreeMap<(Step, RepoPlace), Vec<&BackupRun>> = BTreeMap::new();
    for run in all {
        groups.entry((run.step, run.place)).or_default().push(run);
    }
    for ((step, place), runs) in &groups {
        let cpu = of(runs, |run| run.usage.cpu_seconds());
        let rate = of(runs, BackupRun::bytes_per_second);
        let moved = of(runs, |run| run.moved_bytes as f64).median / 1e9;
        let local = groups
            .get(&(*step, RepoPlace::Local))
            .filter(|_| *place != RepoPlace::Local);
        let (share, extra) = local.map_or((String::new(), String::new()), |local| {
            let (local_cpu, local_rate) = (
                of(local, |run| run.usage.cpu_seconds()).median,
                of(local, BackupRun::bytes_per_second).median,
            );
            (
                format!("{:.0} %", 100.0 * rate.median / local_rate),
                format!("{:.2}", (cpu.median - local_cpu) / moved),
            )
        });
        let server = of(runs, |run| run.server_cpu_seconds.unwrap_or(0.0)).median;
        line!(
            out,
            "| {} | {} | {} | {} | {share} | {moved:.2} | {} | {extra} | {} | {server:.2} |",
            crate::report::step_title(*step),
            place.title(),
            spread(of(runs, |run| run.usage.wall_seconds), |s| format!(
                "{s:.2}"
            )),
            spread(rate, mb),
            spread(cpu, |s| format!("{s:.2}")),
            mib(of(runs, |run| run.usage.rss_bytes as f64).max),
        );
    }
    line!(out, "");
}

/// Runs over limited links.
pub(crate) fn link(out: &mut String, runs: &[LinkRun]) {
    line!(out, "## Over a limited link\n");
    line!(
        out,
        "The cheap server behind a pair of virtual interfaces with a token bucket (tbf) in each direction. The bucket counts \
         frames, so of 1,514 bytes 1,448 are payload: 1 Gbit/s carries 119.6 MB/s. \"Of the link\" is payload per second, from the \
         program's start to its exit, against that; \"while data flows\" leaves the first and the last hundredth of the bytes out.\n"
    );
    line!(
        out,
        "| link Mbit/s | step | client | data | connections | GB moved | wall s | bytes / bandwidth s | of the link | while data flows | MB/s of source | CPU s | peak memory MiB |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    );
    for run in runs.iter().filter(|run| run.link_bits_per_second.is_some()) {
        let percent =
            |share: Option<f64>| share.map_or(String::new(), |s| format!("{:.1} %", 100.0 * s));
        line!(
            out,
            "| {} | {} | {} | {} | {} | {:.2} | {:.2} | {:.2} | {} | {} | {} | {:.2} | {} |",
            run.link_bits_per_second.unwrap_or(0) / 1_000_000,
            crate::report::step_title(run.step),
            run.title(),
            run.dataset.name(),
            or_default(run.connections),
            run.moved_bytes as f64 / 1e9,
            run.usage.wall_seconds,
            run.ideal_seconds().unwrap_or(0.0),
            percent(run.share_of_link()),
            percent(run.flowing_share()),
            mb(run.source_bytes as f64 / run.usage.wall_seconds),
            run.usage.cpu_seconds(),
            mib(run.usage.rss_bytes as f64),
        );
    }
    line!(out, "");
    windows(out, runs);
}

fn or_default(count: Option<u32>) -> String {
    count.map_or("default".to_owned(), |count| count.to_string())
}

fn windows(out: &mut String, runs: &[LinkRun]) {
    let limited = runs
        .iter()
        .filter_map(|run| Some((run, run.own_limit_bytes_per_second?)));
    line!(
        out,
        "The mover's own limits on an unlimited link: payload of TCP at the near end of the link, sampled every 100 ms, in all \
         windows of 5 s.\n"
    );
    line!(
        out,
        "| step | data | shards | limit MiB/s | windows | of them outside 3 % | lowest MiB/s (begins at s) | highest MiB/s (begins at s) | worst deviation | 99 % moved at s | GB moved | wall s |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
    );
    for (run, limit) in limited {
        let Some(windows) = run.windows else {
            // Too short for one, as a run is whose limit does nothing.
            line!(
                out,
                "| {} | {} | {} | {} | **none fits** | | | | | | {:.2} | {:.2} |",
                crate::report::step_title(run.step),
                run.dataset.name(),
                or_default(run.shards),
                limit >> 20,
                run.moved_bytes as f64 / 1e9,
                run.usage.wall_seconds,
            );
            continue;
        };
        let mib = |rate: f64| rate / f64::from(1 << 20);
        let in_brackets = |at: Option<f64>| at.map_or(String::new(), |at| format!(" ({at:.1})"));
        line!(
            out,
            "| {} | {} | {} | {} | {} | {} | {:.2}{} | {:.2}{} | {:.2} % | {} | {:.2} | {:.2} |",
            crate::report::step_title(run.step),
            run.dataset.name(),
            or_default(run.shards),
            limit >> 20,
            windows.count,
            windows
                .outside_count
                .map_or("not counted".to_owned(), |count| count.to_string()),
            mib(windows.min_bytes_per_second),
            in_brackets(windows.min_at_seconds),
            mib(windows.max_bytes_per_second),
            in_brackets(windows.max_at_seconds),
            100.0 * windows.worst_deviation(limit as f64),
            windows
                .end_seconds
                .map_or("not taken".to_owned(), |at| format!("{at:.1}")),
            run.moved_bytes as f64 / 1e9,
            run.usage.wall_seconds,
        );
    }
    line!(out, "");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Usage;

    #[test]
    fn a_limited_run_that_was_over_before_a_window_has_its_line() {
        let run = LinkRun {
            client: Client::Mover,
            dataset: Dataset::Packs,
            step: Step::Backup,
            repetition: 1,
            link_bits_per_second: None,
            own_limit_bytes_per_second: Some(40 << 20),
            connections: None,
            shards: None,
            usage: Usage::default(),
            source_bytes: 0,
            moved_bytes: 1_500_000_000,
            wire_bytes: None,
            flowing_bytes_per_second: None,
            windows: None,
        };
        let mut out = String::new();
        windows(&mut out, &[run]);
        let told = "| backup | packs | default | 40 | **none fits** | | | | | | 1.50 | 0.00 |";
        assert!(out.contains(told), "{out}");
    }
}
