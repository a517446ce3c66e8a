//! What the parts of the page have in common: charts, a legend, tables, and how numbers are written.

use serde::Serialize;

use super::chart::{Chart, Class};

/// One part of the page.
#[derive(Debug, Clone, Serialize)]
pub struct Section {
    /// Its anchor.
    pub id: &'static str,
    /// Its title.
    pub title: &'static str,
    /// How to read it.
    pub text: String,
    /// Marks and what they stand for.
    pub legend: Vec<(Class, &'static str)>,
    /// The charts.
    pub charts: Vec<Chart>,
    /// The numbers behind them.
    pub tables: Vec<Table>,
}

/// One table; the first cell of a row is its head.
#[derive(Debug, Clone, Serialize)]
pub struct Table {
    /// Its anchor.
    pub id: &'static str,
    /// What it shows.
    pub caption: &'static str,
    /// Whether it is shown without a click.
    pub open: bool,
    /// The heads of the columns.
    pub head: Vec<&'static str>,
    /// The rows.
    pub rows: Vec<Vec<String>>,
}

/// With so many digits after the point.
pub fn fixed(value: f64, digits: usize) -> String {
    match value {
        v if v.is_nan() => "–".into(),
        v if v.is_infinite() => if v > 0.0 { "∞" } else { "−∞" }.into(),
        // Beyond this, digits are no help, and there may be hundreds of them.
        v if v.abs() >= 1e9 => format!("{v:.2e}"),
        v => format!("{v:.digits$}"),
    }
}

/// `4.00 %` of 0.04.
pub fn percent(value: f64) -> String {
    match value.is_finite() {
        true => format!("{} %", fixed(100.0 * value, 2)),
        false => fixed(value, 0),
    }
}
