//! Which codewords lie near which: the lists that a group's replacement is chosen from.

use super::layout::Signs;

/// Replacements per codeword that keep its signs.
pub(super) const PLAIN: usize = 24;
/// Replacements per codeword that turn signs over, of the types that store signs.
pub(super) const FLIPPED: usize = 16;

/// One replacement, relative to the codeword that it replaces.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Near {
    /// Squared distance in units.
    pub(super) distance: f32,
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
/// codewords under the same signs, and the [`FLIPPED`] nearest (itself included) with one or two
/// signs turned over, always two where their number must stay even.
///
/// The distance does not depend on the signs that are there already: with v, w ≥ 0 and signs s,
/// ‖s∘v − s∘f∘w‖² = ‖v − w‖² + 4 Σ_{f_j = −1} v_j w_j.
pub(super) fn lists(points: &[Point], dim: usize, signs: Signs) -> Vec<Near> {
    let masks: Vec<u8> = (1..=u8::MAX >> (8 - dim))
        .filter(|mask| match signs {
            Signs::None => false,
            Signs::Free => mask.count_ones() <= 2,
            Signs::Even => mask.count_ones() == 2,
        })
        .collect();
    let mut all = Vec::with_capacity(points.len() * list_len(signs));
    let (mut plain, mut flipped) = (Vec::new(), Vec::new());
    for index in 0..points.len() {
        plain.clear();
        plain.extend(
            (0..points.len()).filter(|other| *other != index).map(|other| key(points, index, other, 0)),
        );
        keep_smallest(&mut plain, PLAIN);
        flipped.clear();
        if !masks.is_empty() {
            flips_of(&mut flipped, &masks, points, index);
        }
        plain.append(&mut flipped);
        plain.sort_unstable();
        all.extend(plain.iter().map(|key| Near {
            distance: (key >> DISTANCE_SHIFT) as f32,
            index: (key >> 8) as u16,
            flips: *key as u8,
        }));
    }
    all
}

/// The [`FLIPPED`] nearest under other signs.
fn flips_of(nearest: &mut Vec<u64>, masks: &[u8], points: &[Point], index: usize) {
    // The codeword itself comes first: its flips bound what the others need to be tried for.
    nearest.extend(masks.iter().map(|&mask| key(points, index, index, mask)));
    let mut bound = keep_smallest(nearest, FLIPPED);
    for other in (0..points.len()).filter(|other| *other != index) {
        if distance(&points[index], &points[other], 0) >= bound >> DISTANCE_SHIFT {
            continue;
        }
        let keys = masks.iter().map(|&mask| key(points, index, other, mask));
        nearest.extend(keys.filter(|key| *key < bound));
        if nearest.len() > 4 * FLIPPED {
            bound = keep_smallest(nearest, FLIPPED);
        }
    }
    keep_smallest(nearest, FLIPPED);
}

/// Where a key holds its squared distance.
const DISTANCE_SHIFT: u32 = 40;

/// Squared distance, lot, index and flips in one number that sorts by them. Equal distances are the
/// rule, and a list that cut them off by index would never move some of the coordinates.
fn key(points: &[Point], from: usize, to: usize, flips: u8) -> u64 {
    let distance = distance(&points[from], &points[to], flips);
    let tail = (to as u64) << 8 | u64::from(flips);
    // Multiplying by 2⁶⁴/φ spreads what differs in low bits over the high ones.
    let lot = ((from as u64) << 24 | tail).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48;
    distance << DISTANCE_SHIFT | lot << 24 | tail
}

fn distance(from: &Point, to: &Point, flips: u8) -> u64 {
    let turned = |j: usize| if flips >> j & 1 == 1 { -to[j] } else { to[j] };
    (0..8).map(|j| (from[j] - turned(j)).pow(2)).sum::<i32>() as u64
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
