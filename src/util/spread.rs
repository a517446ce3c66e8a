//! A few of many, evenly spread.

use ndarray::{Array2, Axis};

/// At most `limit` of `all`, evenly spread, so that a limit keeps the spread of topics.
pub fn spread<T: Clone>(all: &[T], limit: usize) -> Vec<T> {
    let n = all.len().min(limit);
    (0..n).map(|i| all[i * all.len() / n].clone()).collect()
}

/// The same of the rows of a matrix.
pub fn spread_rows<T: Clone>(x: &Array2<T>, limit: usize) -> Array2<T> {
    let all: Vec<usize> = (0..x.nrows()).collect();
    x.select(Axis(0), &spread(&all, limit))
}
