//! The picture of the README: throughput of the mover and its peers, under the hardware's roofline.
//!
//! Invariants: the same figures as the tables, all to one scale; drawn on a card of its own colour, so that it reads on light
//! and on dark pages; no fonts or scripts from elsewhere.

use std::fmt::Write;

use crate::data::Dataset;
use crate::report::{Row, rooflines, rows, runs};
use crate::results::{Part, ResultFile, day};
use crate::tools::{Step, Tool};

const WIDTH: f64 = 860.0;
const MARGIN: f64 = 28.0;
/// Where bars begin; labels stand left of it.
const BARS_LEFT: f64 = 180.0;
/// Where the longest bar ends; values stand right of it.
const BARS_RIGHT: f64 = 740.0;
const BAR_HEIGHT: f64 = 22.0;
const BAR_PITCH: f64 = 30.0;

const INK: &str = "#1f2933";
const MUTED: &str = "#5b6773";
const MOVER: &str = "#0b7a75";
const PEER: &str = "#a9b4bf";
const LIMIT: &str = "#b4441a";

/// One group of bars: a step on a data set.
struct Group {
    title: &'static str,
    bars: Vec<Row>,
    limit: Option<f64>,
}

/// What a bar leaves out, for whoever sees the picture alone.
const WITHOUT_SYNC: &str = "All bars to one scale. Restores by restic and borg are timed without a sync to the disk, the others with it.";

/// The groups of a data set that have something to compare.
fn groups(files: &[ResultFile], dataset: Dataset) -> Vec<Group> {
    let all = rows(runs(files, dataset));
    let limits = rooflines(files, dataset);
    [
        (
            Step::Backup,
            "backup",
            limits.map(|l| l.backup_bytes_per_second),
        ),
        (
            Step::Restore,
            "restore",
            limits.map(|l| l.restore_bytes_per_second),
        ),
    ]
    .into_iter()
    .map(|(step, title, limit)| Group {
        title,
        bars: all.iter().filter(|row| row.step == step).cloned().collect(),
        limit,
    })
    .filter(|group| !group.bars.is_empty())
    .collect()
}

/// Writing to a string cannot fail; this says so once.
macro_rules! draw {
    ($out:expr, $($arg:tt)*) => { let _ = writeln!($out, $($arg)*); };
}

fn text(out: &mut String, x: f64, y: f64, style: &str, words: &str) {
    draw!(out, r#"<text x="{x:.1}" y="{y:.1}" {style}>{words}</text>"#);
}

fn draw_group(out: &mut String, top: f64, group: &Group, scale: f64) -> f64 {
    let mut y = top + 16.0;
    text(
        out,
        MARGIN,
        y,
        &format!(r#"font-size="14" font-weight="600" fill="{INK}""#),
        group.title,
    );
    let bars_top = y + 12.0;
    y = bars_top;
    for row in &group.bars {
        let own = row.tool == Tool::Mover;
        let length = row.bytes_per_second.median * scale;
        let (weight, colour) = if own { ("600", MOVER) } else { ("400", PEER) };
        let middle = y + BAR_HEIGHT * 0.7;
        let label =
            format!(r#"font-size="14" font-weight="{weight}" fill="{INK}" text-anchor="end""#);
        text(out, BARS_LEFT - 10.0, middle, &label, row.tool.title());
        draw!(
            out,
            r#"<rect x="{BARS_LEFT}" y="{y:.1}" width="{length:.1}" height="{BAR_HEIGHT}" rx="3" fill="{colour}"/>"#
        );
        let value = format!("{:.0} MB/s", row.bytes_per_second.median / 1e6);
        // A value beside a bar that nearly reaches the roofline would cross its line, so it stands inside, or behind the line.
        let limit = group.limit.map_or(0.0, |limit| limit * scale);
        let near = (limit - length).abs() < 90.0;
        let (x, anchor, ink) =
            match (near || length > BARS_RIGHT - BARS_LEFT - 80.0) && length > 110.0 {
                true => (
                    BARS_LEFT + length - 8.0,
                    "end",
                    if own { "#ffffff" } else { INK },
                ),
                false if near => (BARS_LEFT + length.max(limit) + 8.0, "start", INK),
                false => (BARS_LEFT + length + 8.0, "start", INK),
            };
        let style =
            format!(r#"font-size="13" font-weight="{weight}" fill="{ink}" text-anchor="{anchor}""#);
        text(out, x, middle, &style, &value);
        y += BAR_PITCH;
    }
    if let Some(limit) = group.limit {
        let x = BARS_LEFT + limit * scale;
        draw!(
            out,
            r#"<line x1="{x:.1}" y1="{:.1}" x2="{x:.1}" y2="{:.1}" stroke="{LIMIT}" stroke-width="2" stroke-dasharray="5 4"/>"#,
            bars_top - 6.0,
            y - BAR_PITCH + BAR_HEIGHT + 6.0
        );
        let words = format!("roofline {:.0} MB/s", limit / 1e6);
        let style = format!(r#"font-size="12" fill="{LIMIT}" text-anchor="end""#);
        text(
            out,
            (x + 4.0).min(WIDTH - MARGIN),
            bars_top - 10.0,
            &style,
            &words,
        );
    }
    y + 8.0
}

/// The lines above the bars; returns where they end.
fn draw_head(out: &mut String, files: &[ResultFile]) -> Option<f64> {
    let mut y = MARGIN + 16.0;
    let title = format!(r#"font-size="18" font-weight="700" fill="{INK}""#);
    text(
        out,
        MARGIN,
        y,
        &title,
        "Backup and restore, encrypted, zstd 3, cold caches",
    );
    let first = files.first()?;
    let mut days: Vec<String> = files.iter().map(|file| day(file.started)).collect();
    days.sort_unstable();
    days.dedup();
    let when = match &days[..] {
        [first, .., last] => format!("{first} to {last}"),
        _ => days.concat(),
    };
    let machine = format!(
        "{}, {} cores, one disk; {when}. Dashed: the slower of disk alone and CPU stages alone.",
        first.machine.cpu, first.machine.cores
    );
    let sub = format!(r#"font-size="13" fill="{MUTED}""#);
    for words in [machine.as_str(), WITHOUT_SYNC] {
        y += 22.0;
        text(out, MARGIN, y, &sub, &escape(words));
    }
    Some(y)
}

/// The picture as SVG; None if the mover was not measured beside anything.
pub fn svg(files: &[ResultFile]) -> Option<String> {
    let all = Dataset::COMPARED.map(|dataset| groups(files, dataset));
    let highest = all
        .iter()
        .flatten()
        .flat_map(|group| {
            let rates = group.bars.iter().map(|row| row.bytes_per_second.median);
            rates.chain(group.limit)
        })
        .fold(0.0, f64::max);
    if highest <= 0.0 {
        return None;
    }
    // A bar twice as long is twice as fast, of whatever data.
    let scale = (BARS_RIGHT - BARS_LEFT) / highest;
    let drawn: Vec<ResultFile> = files
        .iter()
        .filter(|file| matches!(file.part, Part::Rooflines | Part::Mover | Part::Peers))
        .cloned()
        .collect();
    let mut body = String::new();
    let mut y = draw_head(&mut body, &drawn)?;
    for (dataset, groups) in Dataset::COMPARED.into_iter().zip(&all) {
        if groups.is_empty() {
            continue;
        }
        y += 34.0;
        let bytes = files
            .iter()
            .find(|file| file.dataset == dataset)
            .map_or(0, |file| file.dataset_bytes);
        let words = match dataset {
            Dataset::Pg => format!(
                "PostgreSQL 15 cluster after pgbench, {:.1} GB",
                bytes as f64 / 1e9
            ),
            Dataset::Nano => format!(
                "HeliosDB Nano database filled by SQL, {:.1} GB",
                bytes as f64 / 1e9
            ),
            Dataset::Rows | Dataset::Rows10g => format!(
                "Rows of customers, orders and events, {:.1} GB",
                bytes as f64 / 1e9
            ),
            // Never backed up by the programs that the picture shows.
            Dataset::Packs => continue,
        };
        text(
            &mut body,
            MARGIN,
            y,
            &format!(r#"font-size="15" font-weight="700" fill="{INK}""#),
            &words,
        );
        y += 10.0;
        for group in groups {
            y = draw_group(&mut body, y + 6.0, group, scale);
        }
    }
    let height = y + MARGIN - 8.0;
    Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" height=\"{height:.0}\" \
             role=\"img\" aria-label=\"Throughput of helios-mover and its peers\" \
             font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif\">\n\
             <rect x=\"0.5\" y=\"0.5\" width=\"{:.0}\" height=\"{:.0}\" rx=\"10\" fill=\"#fbfcfd\" stroke=\"#d5dbe1\"/>\n{body}</svg>\n",
        WIDTH - 1.0,
        height - 1.0
    ))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The length of the bar whose value is written as `words`.
    fn length(svg: &str, words: &str) -> f64 {
        let lines: Vec<&str> = svg.lines().collect();
        let value = lines
            .iter()
            .position(|line| line.ends_with(&format!(">{words}</text>")));
        let bar = lines[value.unwrap() - 1];
        let (_, rest) = bar.split_once(r#" width=""#).unwrap();
        rest.split('"').next().unwrap().parse().unwrap()
    }

    #[test]
    fn all_bars_have_one_scale_and_the_picture_says_what_they_leave_out() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
        let files = ResultFile::read_all(&dir, "2026-11-24-xeon").unwrap();
        let svg = svg(&files).unwrap();
        assert!(svg.contains(WITHOUT_SYNC), "{svg}");
        // The day, and not the name of the files.
        assert!(svg.contains("one disk; 2026-11-24. Dashed"), "{svg}");
        // Of a PostgreSQL cluster and of rows.
        let (pg, rows) = (length(&svg, "2152 MB/s"), length(&svg, "1230 MB/s"));
        assert!((pg / rows - 2152.0 / 1230.0).abs() < 0.01, "{pg} {rows}");
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        assert_eq!(svg(&[]), None);
    }
}
