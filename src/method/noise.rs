//! Random numbers for tests.

use crate::method::direction::random;

/// Returns `n` standard normal values scaled to a root mean square of 1; a seed always gives the same values.
pub fn normal(n: usize, seed: u64) -> Vec<f32> {
    let root = (n as f32).sqrt();
    random(0, n.max(1), seed).unwrap().unit().iter().map(|v| v * root).collect()
}
