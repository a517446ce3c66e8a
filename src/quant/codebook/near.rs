//! Nearest neighbors of each codeword, from which the replacement for a group is chosen.

use super::layout::Signs;

/// Number of replacements per codeword that keep its signs.
pub(super) const PLAIN: usize = 24;
/// Number of replacements per codeword with flipped signs, for types that store signs.
pub(super) const FLIPPED: usize = 16;

/// A replacement, relative to the codeword it replaces.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Near {
    /// Squared distance in codebook units.
    pub(super) distance: f32,
    /// Index in the codebook.
    pub(super) index: u16,
    /// Bit mask of flipped signs.
    pub(super) flips: u8,
}

/// A codeword in integer codebook units.
pub(super) type Point = [i32; 8];

/// Returns the length of the list of each codeword.
pub(super) fn list_len(signs: Signs) -> usize {
    if signs == Signs::None { PLAIN } else { PLAIN + FLIPPED }
}

/// Returns for each codeword its [`list_len`] replacements, nearest first: the [`PLAIN`] nearest other
/// codewords with the same signs, and the [`FLIPPED`] nearest (including itself) with one or two signs
/// flipped; always two if the number of negative signs must stay even.
///
/// The distance does not depend on the current signs: with v, w ≥ 0, signs s, and flips f,
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

/// Finds the [`FLIPPED`] nearest replacements with flipped signs.
fn flips_of(nearest: &mut Vec<u64>, masks: &[u8], points: &[Point], index: usize) {
    // The flips of the codeword itself come first: they bound the distance of useful candidates.
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

/// Bit position of the squared distance in a key.
const DISTANCE_SHIFT: u32 = 40;

/// Packs squared distance, a hash as tie-breaker, index, and flips into a number that sorts in this order.
/// Ties are common, and breaking them by index would exclude some coordinates from ever changing.
fn key(points: &[Point], from: usize, to: usize, flips: u8) -> u64 {
    let distance = distance(&points[from], &points[to], flips);
    let tail = (to as u64) << 8 | u64::from(flips);
    // Multiplying by 2⁶⁴/φ spreads differences in the low bits to the high bits.
    let lot = ((from as u64) << 24 | tail).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48;
    distance << DISTANCE_SHIFT | lot << 24 | tail
}

fn distance(from: &Point, to: &Point, flips: u8) -> u64 {
    let turned = |j: usize| if flips >> j & 1 == 1 { -to[j] } else { to[j] };
    (0..8).map(|j| (from[j] - turned(j)).pow(2)).sum::<i32>() as u64
}

/// Keeps the `n` smallest keys, sorted, and returns the bound that a further key must be below.
fn keep_smallest(keys: &mut Vec<u64>, n: usize) -> u64 {
    if keys.len() > n {
        keys.select_nth_unstable(n - 1);
        keys.truncate(n);
    }
    keys.sort_unstable();
    keys.get(n - 1).copied().unwrap_or(u64::MAX)
}
