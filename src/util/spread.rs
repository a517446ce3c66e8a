//! Evenly spread samples.

use ndarray::{Array2, Axis};

/// Returns at most `limit` items of `all`, evenly spread so that the sample keeps the mix of topics.
pub fn spread<T: Clone>(all: &[T], limit: usize) -> Vec<T> {
    let n = all.len().min(limit);
    (0..n).map(|i| all[i * all.len() / n].clone()).collect()
}

/// Returns at most `limit` rows of a matrix, evenly spread.
pub fn spread_rows<T: Clone>(x: &Array2<T>, limit: usize) -> Array2<T> {
    let all: Vec<usize> = (0..x.nrows()).collect();
    x.select(Axis(0), &spread(&all, limit))
}
