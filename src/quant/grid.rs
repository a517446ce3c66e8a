//! Scalar quantization grids: where a block stores the value `W_j = offset + h·level(q_j)`, and which other
//! values it can take with the scale of the block.
//!
//! Layouts follow `ggml-common.h` and `dequantize_row_*` in `ggml-quants.c`; a test compares each with
//! ggml's decoder.

mod kquant;
mod legacy;
mod table;
mod ternary;

pub(super) use kquant::{Q2K, Q3K, Q4K, Q5K, Q6K};
pub(super) use legacy::{Q1_0, Q2_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
pub(super) use table::{IQ4NL, IQ4XS, MXFP4, NVFP4};
pub(super) use ternary::{TQ1_0, TQ2_0};

use crate::gguf::GgmlType;

/// Maximum number of sub-blocks per block.
pub(super) const MAX_SUBS: usize = 16;
/// Maximum number of values that share a step.
pub(super) const MAX_SUB: usize = 32;

/// The codes of a value and their levels, in units of the step.
#[derive(Debug, Clone, Copy)]
pub(super) enum Levels {
    /// Code q has level q; the first and last code, both included.
    Integers(i32, i32),
    /// Code q has the level in entry q.
    Table(&'static [f32; 16]),
}

impl Levels {
    /// Returns the smallest distance between two levels; a move by less than half of it has no effect.
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

    /// Returns the code nearest to `q` moved by `by`, and the actual move, in units of the step. The move has
    /// the sign of `by` and a magnitude of at most `most`.
    #[inline(always)]
    pub(super) fn moved(self, q: i32, by: f32, most: f32) -> (i32, f32) {
        match self {
            Self::Integers(first, last) => {
                // Leave a code outside the range unchanged (damaged file).
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

/// A scalar quantization type. `block` always has [`Grid::BYTES`] bytes, and `j < Grid::LEN`.
pub(super) trait Grid {
    /// Values per block.
    const LEN: usize;
    /// Values that share a step, at most [`MAX_SUB`].
    const SUB: usize;
    /// Bytes per block.
    const BYTES: usize;
    /// Codes and their levels.
    const LEVELS: Levels;

    /// Writes the step h of each sub-block, `[LEN/SUB]`; may be negative, zero, or not finite.
    fn steps(block: &[u8], steps: &mut [f32; MAX_SUBS]);
    /// Returns the code of value `j`.
    fn get(block: &[u8], j: usize) -> i32;
    /// Replaces the code of value `j`; nothing else in the block changes.
    fn set(block: &mut [u8], j: usize, q: i32);
}

/// A computation that is generic over the grid of a type.
pub(super) trait WithGrid {
    /// Result of the computation.
    type Output;
    /// Runs the computation with grid `G`.
    fn with<G: Grid>(self) -> Self::Output;
}

/// Runs `work` with the grid of `ggml_type`. Returns `None` for float and codebook types.
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

/// Reads the F16 at byte `at`.
fn f16(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Returns bits `shift..shift + n` of a byte.
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
