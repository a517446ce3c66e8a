//! The common structure of the page's sections: charts, legend, tables, and the format of numbers.

use serde::Serialize;

use super::chart::{Chart, Class};

/// One section of the page.
#[derive(Debug, Clone, Serialize)]
pub struct Section {
    /// HTML id.
    pub id: &'static str,
    /// Heading.
    pub title: &'static str,
    /// Explanation of the charts and tables.
    pub text: String,
    /// Marks and their meanings.
    pub legend: Vec<(Class, &'static str)>,
    /// Charts, in order.
    pub charts: Vec<Chart>,
    /// Tables with the numbers of the charts.
    pub tables: Vec<Table>,
}

/// One table; the first cell of each row is its header.
#[derive(Debug, Clone, Serialize)]
pub struct Table {
    /// HTML id.
    pub id: &'static str,
    /// Caption.
    pub caption: &'static str,
    /// Whether the table starts expanded.
    pub open: bool,
    /// Column headers.
    pub head: Vec<&'static str>,
    /// Cells of each row.
    pub rows: Vec<Vec<String>>,
}

/// Formats `value` with `digits` decimals; NaN as a dash, huge values in scientific notation.
pub fn fixed(value: f64, digits: usize) -> String {
    match value {
        v if v.is_nan() => "–".into(),
        v if v.is_infinite() => if v > 0.0 { "∞" } else { "−∞" }.into(),
        // Larger values could have hundreds of useless digits.
        v if v.abs() >= 1e9 => format!("{v:.2e}"),
        v => format!("{v:.digits$}"),
    }
}

/// Formats a share as a percentage, e.g. 0.04 as `4.00 %`.
pub fn percent(value: f64) -> String {
    match value.is_finite() {
        true => format!("{} %", fixed(100.0 * value, 2)),
        false => fixed(value, 0),
    }
}
