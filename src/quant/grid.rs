//! Scalar quantization grids: where the value `W_j = offset + h·level(q_j)` stands in a block, and
//! which other values the block's own scale lets it take.
//!
//! Layouts are those of `ggml-common.h` and `dequantize_row_*` in `ggml-quants.c`; a test holds every
//! one against ggml's decoder.

mod kquant;
mod legacy;
mod table;
mod ternary;

pub(super) use kquant::{Q2K, Q3K, Q4K, Q5K, Q6K};
pub(super) use legacy::{Q1_0, Q2_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
pub(super) use table::{IQ4NL, IQ4XS, MXFP4, NVFP4};
pub(super) use ternary::{TQ1_0, TQ2_0};

use crate::gguf::GgmlType;

/// Most sub-blocks that a block has.
pub(super) const MAX_SUBS: usize = 16;
/// Most values that share a step.
pub(super) const MAX_SUB: usize = 32;

/// The codes that a value may have, and what each is worth in units of the step.
#[derive(Debug, Clone, Copy)]
pub(super) enum Levels {
    /// Code q is worth q, from the first to the second, both included.
    Integers(i32, i32),
    /// Code q is worth the q-th entry.
    Table(&'static [f32; 16]),
}

impl Levels {
    /// Smallest distance between two levels: a value that is to move by less than half of it stays.
    pub(super) fn gap(self) -> f32 {
        match self {
            Self::Integers(..) => 1.0,
            Self::Table(values) => {
                let mut sorted = *values;
                sorted.sort_by(f32::total_cmp);
                let gaps = sorted.windows(2).map(|w| w[1] - w[0]).filter(|&gap| gap > 0.0);
                gaps.fold(f32::INFINITY, f32::min)
            }
        }
    }

    /// The code nearest to `q` moved by `by` levels, and how many levels that really is; the move is
    /// towards `by` and of at most `most` levels.
    #[inline(always)]
    pub(super) fn moved(self, q: i32, by: f32, most: f32) -> (i32, f32) {
        match self {
            Self::Integers(first, last) => {
                // A code outside the range (a damaged file) stays as it is.
                if q < first || q > last {
                    return (q, 0.0);
                }
                let steps = by.round().abs().min(most.floor()).copysign(by);
                let to = (q as f32 + steps).clamp(first as f32, last as f32) as i32;
                (to, (to - q) as f32)
            }
            Self::Table(values) => {
                let here = values[q as usize & 15];
                let mut best = (q, 0.0f32);
                for (code, &value) in values.iter().enumerate() {
                    let step = value - here;
                    let allowed = step * by > 0.0 && step.abs() <= most;
                    if allowed && (step - by).abs() < (best.1 - by).abs() {
                        best = (code as i32, step);
                    }
                }
                best
            }
        }
    }
}

/// One scalar type. `block` always has [`Grid::BYTES`] bytes and `j < Grid::LEN`.
pub(super) trait Grid {
    /// Values per block.
    const LEN: usize;
    /// Values that share a step, at most [`MAX_SUB`].
    const SUB: usize;
    /// Bytes per block.
    const BYTES: usize;
    /// Codes and their worth.
    const LEVELS: Levels;

    /// The step h of each sub-block, `[LEN/SUB]`; may be negative, zero, or not finite.
    fn steps(block: &[u8], steps: &mut [f32; MAX_SUBS]);
    /// The code of value `j`.
    fn get(block: &[u8], j: usize) -> i32;
    /// Replaces the code of value `j`; nothing else in the block changes.
    fn set(block: &mut [u8], j: usize, q: i32);
}

/// Something to be done with the grid of a type.
pub(super) trait WithGrid {
    /// What comes of it.
    type Output;
    /// Does it.
    fn with<G: Grid>(self) -> Self::Output;
}

/// Calls `work` with the grid of `ggml_type`; `None` for floats and codebooks.
pub(super) fn with_grid<W: WithGrid>(ggml_type: GgmlType, work: W) -> Option<W::Output> {
    use GgmlType as T;
    Some(match ggml_type {
        T::Q4_0 => work.with::<Q4_0>(),
        T::Q4_1 => work.with::<Q4_1>(),
        T::Q5_0 => work.with::<Q5_0>(),
        T::Q5_1 => work.with::<Q5_1>(),
        T::Q8_0 => work.with::<Q8_0>(),
        T::Q1_0 => work.with::<Q1_0>(),
        T::Q2_0 => work.with::<Q2_0>(),
        T::Q2_K => work.with::<Q2K>(),
        T::Q3_K => work.with::<Q3K>(),
        T::Q4_K => work.with::<Q4K>(),
        T::Q5_K => work.with::<Q5K>(),
        T::Q6_K => work.with::<Q6K>(),
        T::IQ4_NL => work.with::<IQ4NL>(),
        T::IQ4_XS => work.with::<IQ4XS>(),
        T::MXFP4 => work.with::<MXFP4>(),
        T::NVFP4 => work.with::<NVFP4>(),
        T::TQ1_0 => work.with::<TQ1_0>(),
        T::TQ2_0 => work.with::<TQ2_0>(),
        _ => return None,
    })
}

/// The F16 at byte `at`.
fn f16(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Bits `shift..shift + n` of a byte.
fn bits(byte: u8, shift: usize, n: u32) -> i32 {
    i32::from((byte >> shift) & ((1u16 << n) - 1) as u8)
}

/// Sets bits `shift..shift + n` of a byte.
fn set_bits(byte: &mut u8, shift: usize, n: u32, value: i32) {
    let mask = (((1u16 << n) - 1) << shift) as u8;
    *byte = (*byte & !mask) | (((value as u8) << shift) & mask);
}

#[cfg(test)]
mod tests;
