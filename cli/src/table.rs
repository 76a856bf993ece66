//! Aligned columns.

use crate::output::{Colour, Output};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Cell {
    text: String,
    colour: Option<Colour>,
}

impl Cell {
    pub(crate) fn coloured(text: impl Into<String>, colour: Option<Colour>) -> Self {
        Self { text: text.into(), colour }
    }

    /// A status word in its colour.
    pub(crate) fn status(text: &str) -> Self {
        Self::coloured(text, Colour::of_status(text))
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), colour: None }
    }
}

#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A heading that begins with `>` is of a column of numbers.
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        let column = |heading: &&'static str| match heading.strip_prefix('>') {
            Some(rest) => (rest, Align::Right),
            None => (*heading, Align::Left),
        };
        Self { columns: headings.iter().map(column).collect(), rows: Vec::new() }
    }

    pub(crate) fn row<C: Into<Cell>>(&mut self, cells: impl IntoIterator<Item = C>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    pub(crate) fn render(&self, out: Output) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(Cell::width);
            cells.chain([self.columns[column].0.chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let headings: Vec<Cell> =
            self.columns.iter().map(|(heading, _)| Cell::coloured(*heading, Some(Colour::Bold))).collect();
        let mut text = String::new();
        for row in std::iter::once(&headings).chain(&self.rows) {
            let mut line = String::new();
            for (index, ((_, align), cell)) in self.columns.iter().zip(row).enumerate() {
                let padding = " ".repeat(widths[index].saturating_sub(cell.width()));
                let painted = out.paint(cell.colour, &cell.text);
                if index > 0 {
                    line.push_str("  ");
                }
                match align {
                    Align::Left => line.push_str(&format!("{painted}{padding}")),
                    Align::Right => line.push_str(&format!("{padding}{painted}")),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    pub(crate) fn print(&self, out: Output) {
        out.bytes(self.render(out).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_numbers_stand_right() {
        let mut table = Table::new(&["NAME", ">N"]);
        table.row(["a", "1"]);
        table.row(["longer", "1000"]);
        let text = table.render(Output::new(false));
        assert_eq!(text, "NAME       N\na          1\nlonger  1000\n");
    }

    #[test]
    fn characters_are_counted_and_not_bytes() {
        let mut table = Table::new(&["NAME", "X"]);
        table.row(["äöü", "1"]);
        assert_eq!(table.render(Output::new(false)), "NAME  X\näöü   1\n");
    }
}
