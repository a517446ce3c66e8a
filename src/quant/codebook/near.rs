//! Which codewords lie near which: the lists that a group's replacement is chosen from.

use super::layout::Signs;

/// Replacements per codeword that keep its signs.
pub(super) const PLAIN: usize = 24;
/// Replacements per codeword that turn signs over, of the types that store signs.
pub(super) const FLIPPED: usize = 16;

/// One replacement, relative to the codeword that it replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Near {
    /// Its index in the codebook.
    pub(super) index: u16,
    /// Signs that turn over.
    pub(super) flips: u8,
}

/// A point of the codebook in whole units.
pub(super) type Point = [i32; 8];

/// Length of each codeword's list.
pub(super) fn list_len(signs: Signs) -> usize {
    if signs == Signs::None { PLAIN } else { PLAIN + FLIPPED }
}

/// For every codeword its [`list_len`] replacements, nearest first: the [`PLAIN`] nearest other
/// codewords under the same signs and the [`FLIPPED`] nearest (codeword, signs) under others.
/// Equal distances go by index, then by flips.
///
/// The distance does not depend on the signs that are there already: with v, w ≥ 0 and signs s,
/// ‖s∘v − s∘f∘w‖² = ‖v − w‖² + 4 Σ_{f_j = −1} v_j w_j.
pub(super) fn lists(points: &[Point], dim: usize, signs: Signs) -> Vec<Near> {
    let masks: Vec<u8> = match signs {
        Signs::None => vec![],
        Signs::Free => (1..=u8::MAX >> (8 - dim)).collect(),
        Signs::Even => (1..=u8::MAX >> (8 - dim)).filter(|m| m.count_ones() % 2 == 0).collect(),
    };
    let mut all = Vec::with_capacity(points.len() * list_len(signs));
    let (mut plain, mut flipped) = (Vec::new(), Vec::new());
    for (index, point) in points.iter().enumerate() {
        plain.clear();
        plain
            .extend(points.iter().enumerate().filter(|(i, _)| *i != index).map(|(i, p)| key(point, p, i, 0)));
        keep_smallest(&mut plain, PLAIN);
        flipped.clear();
        if !masks.is_empty() {
            flips_of(&mut flipped, &masks, points, index);
        }
        plain.append(&mut flipped);
        plain.sort_unstable();
        all.extend(plain.iter().map(|key| Near { index: (key >> 8) as u16, flips: *key as u8 }));
    }
    all
}

/// The [`FLIPPED`] nearest under other signs.
fn flips_of(nearest: &mut Vec<u64>, masks: &[u8], points: &[Point], index: usize) {
    let point = &points[index];
    // The codeword itself comes first: its flips bound what the others need to be tried for.
    nearest.extend(masks.iter().map(|&mask| key(point, point, index, mask)));
    let mut bound = keep_smallest(nearest, FLIPPED);
    for (i, other) in points.iter().enumerate().filter(|(i, _)| *i != index) {
        if key(point, other, i, 0) >= bound {
            continue;
        }
        nearest.extend(masks.iter().map(|&mask| key(point, other, i, mask)).filter(|key| *key < bound));
        if nearest.len() > 4 * FLIPPED {
            bound = keep_smallest(nearest, FLIPPED);
        }
    }
    keep_smallest(nearest, FLIPPED);
}

/// Squared distance, index and flips in one number that sorts by them.
fn key(from: &Point, to: &Point, index: usize, flips: u8) -> u64 {
    let turned = |j: usize| if flips >> j & 1 == 1 { -to[j] } else { to[j] };
    let distance: i32 = (0..8).map(|j| (from[j] - turned(j)).pow(2)).sum();
    (distance as u64) << 24 | (index as u64) << 8 | u64::from(flips)
}

/// Shortens to the `n` smallest, in order, and returns what a further one must stay below.
fn keep_smallest(keys: &mut Vec<u64>, n: usize) -> u64 {
    if keys.len() > n {
        keys.select_nth_unstable(n - 1);
        keys.truncate(n);
    }
    keys.sort_unstable();
    keys.get(n - 1).copied().unwrap_or(u64::MAX)
}
