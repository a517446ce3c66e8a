//! Plain-text tables.

use std::fmt;

use super::one_line;

/// A table whose first column is left-aligned and whose other columns are right-aligned.
#[derive(Debug, Clone, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Creates a table with a header row.
    pub fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(ToString::to_string).collect()] }
    }

    /// Adds a row. Control characters and line feeds in cells are escaped, so that columns stay aligned.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| one_line(cell).into_owned()).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |c: usize| {
            self.rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..n).map(width).collect();
        for (i, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (c, cell) in row.iter().enumerate() {
                let pad = " ".repeat(widths[c] - cell.chars().count());
                line += &if c == 0 { format!("{cell}{pad}") } else { format!("  {pad}{cell}") };
            }
            writeln!(f, "{}", line.trim_end())?;
            if i == 0 {
                writeln!(f, "{}", "-".repeat(widths.iter().sum::<usize>() + 2 * n.saturating_sub(1)))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_stays_in_its_column() {
        let mut table = Table::new(&["name", "n"]);
        table.row(vec!["a\u{1b}[2J\nb".into(), "1".into()]);
        assert_eq!(table.to_string().lines().last(), Some(r"a\u{1b}[2J\u{a}b  1"));
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["model", "refused"]);
        table.row(vec!["base".into(), "3/4".into()]);
        table.row(vec!["written file".into(), "4/4".into()]);
        insta::assert_snapshot!(table.to_string(), @r"
        model         refused
        ---------------------
        base              3/4
        written file      4/4
        ");
    }
}
