//! Aligned columns for a terminal: widths are counted in characters, and colours take none.

use crate::telemetry::line::Palette;

/// Which end of its column a text touches.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "each is what its name says")]
pub enum Align {
    Left,
    Right,
}

/// One text.
#[derive(Debug)]
pub struct Cell {
    text: String,
    colour: &'static str,
}

impl Cell {
    /// A text as it is.
    pub fn plain(text: String) -> Self {
        Self { text, colour: "" }
    }

    /// A text in a colour of the palette.
    pub fn coloured(text: String, colour: &'static str) -> Self {
        Self { text, colour }
    }
}

/// Rows under one heading; columns as wide as their widest cell, the last one as long as it likes.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Align>,
    rows: Vec<Row>,
    palette: Palette,
}

#[derive(Debug)]
enum Row {
    Cells(Vec<Cell>),
    /// Explains the row above.
    Note(Cell),
}

impl Table {
    /// A table of its heading.
    pub fn new(columns: &[(&str, Align)], palette: Palette) -> Self {
        let heading =
            columns.iter().map(|(name, _)| Cell::coloured((*name).to_owned(), palette.faint)).collect();
        Self {
            columns: columns.iter().map(|(_, align)| *align).collect(),
            rows: vec![Row::Cells(heading)],
            palette,
        }
    }

    /// Adds a row: a cell for each column.
    pub fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(Row::Cells(cells));
    }

    /// Adds an explanation of the row above.
    pub fn note(&mut self, text: String, colour: &'static str) {
        self.rows.push(Row::Note(Cell::coloured(text, colour)));
    }

    /// The whole table.
    pub fn print(&self) -> String {
        let widths: Vec<_> = (0..self.columns.len()).map(|column| self.width(column)).collect();
        let mut out = String::new();
        for row in &self.rows {
            match row {
                Row::Cells(cells) => self.print_row(cells, &widths, &mut out),
                Row::Note(cell) => out.push_str(&format!("    ! {}", self.paint(cell))),
            }
            out.truncate(out.trim_end_matches(' ').len());
            out.push('\n');
        }
        out
    }

    fn print_row(&self, cells: &[Cell], widths: &[usize], out: &mut String) {
        for (index, ((cell, align), width)) in cells.iter().zip(&self.columns).zip(widths).enumerate() {
            let last = index + 1 == cells.len();
            let padding = if last { 0 } else { width - cell.text.chars().count() };
            match align {
                Align::Left => out.push_str(&format!("{}{:padding$}", self.paint(cell), "")),
                Align::Right => out.push_str(&format!("{:padding$}{}", "", self.paint(cell))),
            }
            if !last {
                out.push_str("  ");
            }
        }
    }

    fn width(&self, column: usize) -> usize {
        let widths = self.rows.iter().map(|row| match row {
            Row::Cells(cells) => cells.get(column).map_or(0, |cell| cell.text.chars().count()),
            Row::Note(_) => 0,
        });
        widths.max().unwrap_or(0)
    }

    fn paint(&self, cell: &Cell) -> String {
        if cell.colour.is_empty() || cell.text.is_empty() {
            cell.text.clone()
        } else {
            format!("{}{}{}", cell.colour, cell.text, self.palette.reset)
        }
    }
}
