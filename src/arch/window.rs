//! Ranges of layers that do not depend on the number of layers.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A range of layers, as shares of the depth from 0 to 1: layer i of n is inside if `from ≤ (i + ½)/n < until`. In JSON
/// `[from, until]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(from = "[f64; 2]", into = "[f64; 2]")]
pub struct Window {
    /// Start, inclusive.
    pub from: f64,
    /// End, exclusive.
    pub until: f64,
}

impl Window {
    /// All layers.
    pub const WHOLE: Self = Self { from: 0.0, until: 1.0 };

    /// Returns whether `layer` of `n_layer` is inside.
    pub fn contains(self, layer: usize, n_layer: usize) -> bool {
        (self.from..self.until).contains(&((layer as f64 + 0.5) / n_layer as f64))
    }
}

impl From<[f64; 2]> for Window {
    fn from([from, until]: [f64; 2]) -> Self {
        Self { from, until }
    }
}

impl From<Window> for [f64; 2] {
    fn from(window: Window) -> Self {
        [window.from, window.until]
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} to {:.2} of the depth", self.from, self.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_windows_share_no_layer_and_miss_none() {
        let (first, second) = (Window { from: 0.0, until: 0.5 }, Window { from: 0.5, until: 1.0 });
        for n in 1..9 {
            for layer in 0..n {
                assert_ne!(first.contains(layer, n), second.contains(layer, n), "{layer} of {n}");
                assert!(Window::WHOLE.contains(layer, n));
            }
        }
        let json = serde_json::to_string(&first).unwrap();
        assert_eq!(json, "[0.0,0.5]");
        assert_eq!(serde_json::from_str::<Window>(&json).unwrap(), first);
    }
}
