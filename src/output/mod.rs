//! Everything that people see: stderr is for them, stdout is data.

mod progress;
mod table;
mod text;

pub use progress::{Bar, Printer, Stage};
pub use table::Table;
pub use text::{bar, sparkline, wrap};

/// `4.0 %`.
pub fn percent(value: f64) -> String {
    format!("{:.1} %", value * 100.0)
}
