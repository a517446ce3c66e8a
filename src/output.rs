//! Everything that people see: stderr is for them, stdout is data. Nothing that is printed here steers the terminal,
//! whoever wrote it.

mod printable;
mod progress;
mod shell;
mod table;
mod text;

pub use printable::{escape_json, one_line, printable, steers};
pub use progress::{Bar, Printer, Stage};
pub use shell::shell;
pub use table::Table;
pub use text::{bar, sparkline, wrap};

/// Longest line for people, in characters.
const MAX_LINE: usize = 4000;

/// A line for people, on stderr. Where nobody reads it any more it is lost, and the work goes on: `eprintln!` would panic.
pub fn tell(line: impl std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{}", printable(&shortened(line.to_string())));
}

/// Without its middle where it is longer than anybody reads: files may have names of any length.
fn shortened(line: String) -> String {
    let n = line.chars().count();
    if n <= MAX_LINE {
        return line;
    }
    let part = |from: usize, n: usize| line.chars().skip(from).take(n).collect::<String>();
    format!("{} … {}", part(0, MAX_LINE / 2), part(n - MAX_LINE / 2, MAX_LINE / 2))
}

/// `4.0 %`.
pub fn percent(value: f64) -> String {
    format!("{:.1} %", value * 100.0)
}
