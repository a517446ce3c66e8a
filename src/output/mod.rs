//! Everything that people see: stderr is for them, stdout is data.

mod progress;
mod table;

pub use progress::{Bar, Printer};
pub use table::Table;

/// `41/64 (.64, .52-.75)`, the way every share is shown.
pub fn share(p: crate::evaluate::stats::Proportion) -> String {
    p.to_string()
}

/// `4.0 %`.
pub fn percent(value: f64) -> String {
    format!("{:.1} %", value * 100.0)
}
