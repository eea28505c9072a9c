//! Holds `docs/exit-codes.md`, the one documented table, to the codes of the program.

use mover_base::Kind;

#[test]
fn the_documented_table_is_the_program_s() {
    let doc = include_str!("../../../docs/exit-codes.md");
    let mut rows = Vec::new();
    for line in doc.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if let Ok(code) = cells[0].parse::<u8>() {
            assert_eq!(cells.len(), 4, "{line}");
            rows.push((code, cells[1].trim_matches('`').to_owned()));
        }
    }
    let mut wanted = vec![(0, String::new())];
    wanted.extend(
        Kind::ALL
            .iter()
            .map(|kind| (kind.exit_code(), kind.name().to_owned())),
    );
    assert_eq!(rows, wanted);
    // Every other code is met by its number in the end-to-end tests; this one is no job's.
    assert_eq!(Kind::Internal.exit_code(), 1);
}
