//! The largest values of a slice.

/// Returns the indices of the at most `limit` largest values, the largest first; equal ones in their order.
pub fn largest(values: &[f32], limit: usize) -> Vec<usize> {
    let order = |a: &usize, b: &usize| values[*b].total_cmp(&values[*a]).then(a.cmp(b));
    let mut all: Vec<usize> = (0..values.len()).collect();
    if all.len() > limit {
        all.select_nth_unstable_by(limit, order);
        all.truncate(limit);
    }
    all.sort_unstable_by(order);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_come_first_and_equal_ones_in_their_order() {
        let values = [0.5, -1.0, f32::INFINITY, 0.5, f32::NEG_INFINITY, 2.0];
        assert_eq!(largest(&values, 4), [2, 5, 0, 3]);
        assert_eq!(largest(&values, 3), [2, 5, 0]);
        assert_eq!(largest(&values, 9), [2, 5, 0, 3, 1, 4]);
        assert!(largest(&values, 0).is_empty() && largest(&[], 3).is_empty());
    }
}
