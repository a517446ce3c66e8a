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

/// A line for people, on stderr. Where nobody reads it any more it is lost, and the work goes on: `eprintln!` would panic.
pub fn tell(line: impl std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{}", printable(&line.to_string()));
}

/// `4.0 %`.
pub fn percent(value: f64) -> String {
    format!("{:.1} %", value * 100.0)
}
