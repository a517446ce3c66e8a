//! Everything that people see: stderr is for them, stdout is data. Nothing that is printed here steers the terminal,
//! whoever wrote it.

mod printable;
mod progress;
mod shell;
mod table;
mod text;

pub use printable::{escape_json, one_line, printable, steers};
pub use progress::{Bar, Printer, Stage, tell};
pub use shell::shell;
pub use table::Table;
pub use text::{bar, sparkline, wrap};

/// `4.0 %`.
pub fn percent(value: f64) -> String {
    format!("{:.1} %", value * 100.0)
}
