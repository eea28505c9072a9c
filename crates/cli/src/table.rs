//! Aligned text: tables with a header, and blocks of name and value.
//!
//! Invariants: pure text in, pure text out; no line ends in spaces; a cell from outside cannot move the
//! cursor, since control characters are escaped; colour is added after the widths are known.

use anstyle::Style;

/// On which side of its column a cell stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Figures.
    Right,
}

/// Text with an optional style.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    text: String,
    style: Option<Style>,
}

impl Cell {
    /// A cell with a style, which is used when colours are on.
    pub fn styled(text: impl AsRef<str>, style: Style) -> Self {
        Cell {
            text: clean(text.as_ref()),
            style: Some(style),
        }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell {
            text: clean(text.as_ref()),
            style: None,
        }
    }
}

/// Rows of cells under aligned columns.
#[derive(Debug, Clone)]
pub struct Table {
    header: Vec<&'static str>,
    aligns: Vec<Align>,
    rows: Vec<Vec<Cell>>,
    indent: usize,
}

/// Spaces between two columns.
const GAP: usize = 2;

impl Table {
    /// A table with a header line.
    pub fn with_header(columns: &[(&'static str, Align)]) -> Self {
        Table {
            header: columns.iter().map(|(title, _)| *title).collect(),
            aligns: columns.iter().map(|(_, align)| *align).collect(),
            rows: Vec::new(),
            indent: 0,
        }
    }

    /// A table without a header line.
    pub fn plain(aligns: &[Align]) -> Self {
        Table {
            header: Vec::new(),
            aligns: aligns.to_vec(),
            rows: Vec::new(),
            indent: 0,
        }
    }

    /// A table of names and values, for [`Table::pair`].
    pub fn pairs() -> Self {
        Table::plain(&[Align::Left, Align::Left])
    }

    /// Puts `spaces` before each line.
    pub fn indent(mut self, spaces: usize) -> Self {
        self.indent = spaces;
        self
    }

    /// Adds a row; missing cells are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) -> &mut Self {
        self.rows.push(cells.into_iter().collect());
        self
    }

    /// Adds a row of a name and a value.
    pub fn pair(&mut self, name: &str, value: impl Into<Cell>) -> &mut Self {
        self.row([Cell::from(name), value.into()])
    }

    /// All lines in one text.
    pub fn render(&self, colours: bool) -> String {
        self.lines()
            .iter()
            .map(|line| line.render(colours) + "\n")
            .collect()
    }

    /// The lines, the header first, all to the same widths.
    pub fn lines(&self) -> Vec<TableLine> {
        let header: Vec<Cell> = self
            .header
            .iter()
            .map(|title| Cell::styled(title, Style::new().bold()))
            .collect();
        let rows: Vec<&Vec<Cell>> = (!header.is_empty())
            .then_some(&header)
            .into_iter()
            .chain(&self.rows)
            .collect();
        let width = |column: usize| {
            let widths = rows.iter().filter_map(|row| row.get(column));
            widths
                .map(|cell| cell.text.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.aligns.len()).map(width).collect();
        rows.iter().map(|row| self.line(row, &widths)).collect()
    }

    fn line(&self, row: &[Cell], widths: &[usize]) -> TableLine {
        let mut pending = self.indent;
        let mut parts = Vec::new();
        for ((cell, align), width) in row.iter().zip(&self.aligns).zip(widths) {
            let missing = width - cell.text.chars().count();
            if *align == Align::Right {
                pending += missing;
            }
            if !cell.text.is_empty() {
                // Spaces are written only before text, so that no line ends in them.
                parts.push((std::mem::take(&mut pending), cell.clone()));
            }
            if *align == Align::Left {
                pending += missing;
            }
            pending += GAP;
        }
        TableLine(parts)
    }
}

/// One line of a table: cells, each after a number of spaces.
#[derive(Debug, Clone)]
pub struct TableLine(Vec<(usize, Cell)>);

impl TableLine {
    /// The line, without its newline.
    pub fn render(&self, colours: bool) -> String {
        let mut out = String::new();
        for (spaces, cell) in &self.0 {
            out.extend(std::iter::repeat_n(' ', *spaces));
            out.push_str(&paint(&cell.text, cell.style.filter(|_| colours)));
        }
        out
    }
}

/// `text` in `style`, or as it is.
pub fn paint(text: &str, style: Option<Style>) -> String {
    match style {
        Some(style) => format!("{style}{text}{style:#}"),
        None => text.to_owned(),
    }
}

/// `text` without characters that could drive a terminal.
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::with_header(&[
            ("NAME", Align::Left),
            ("SIZE", Align::Right),
            ("NOTE", Align::Left),
        ]);
        table.row(["a".into(), "1".into(), "x".into()]);
        table.row(["longer".into(), "12345".into(), "".into()]);
        table
    }

    #[test]
    fn columns_line_up_and_no_line_ends_in_spaces() {
        assert_eq!(
            sample().render(false),
            "NAME     SIZE  NOTE\n\
             a           1  x\n\
             longer  12345\n"
        );
    }

    #[test]
    fn colour_does_not_change_the_widths() {
        let mut table = sample();
        table.row([
            Cell::styled("red", Style::new().bold()),
            "7".into(),
            "y".into(),
        ]);
        let stripped = anstyle_free(&table.render(true));
        assert_eq!(stripped, table.render(false));
    }

    fn anstyle_free(text: &str) -> String {
        let mut out = String::new();
        let mut inside = false;
        for c in text.chars() {
            match c {
                '\u{1b}' => inside = true,
                'm' if inside => inside = false,
                _ if inside => {}
                _ => out.push(c),
            }
        }
        out
    }

    #[test]
    fn short_rows_and_indent() {
        let mut table = Table::pairs().indent(2);
        table.pair("stored", "1 GiB");
        table.row(["x".into()]);
        assert_eq!(table.render(false), "  stored  1 GiB\n  x\n");
    }

    #[test]
    fn cells_cannot_drive_the_terminal() {
        let mut table = Table::plain(&[Align::Left]);
        table.row(["a\u{1b}[2J\n".into()]);
        assert_eq!(table.render(true), "a\\u{1b}[2J\\n\n");
    }
}
