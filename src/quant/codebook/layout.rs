//! Where each type stores the codewords, signs, and scales of its blocks of 256 values
//! (`block_iq*` in `ggml-common.h`, `dequantize_row_iq*` in `ggml-quants.c`). Little-endian.

use crate::gguf::GgmlType;

/// Magnitude of the offset that the IQ1 types add to every value of a codeword (`IQ1S_DELTA`).
const IQ1_DELTA: f32 = 0.125;

/// How a type stores the signs of a codeword.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signs {
    /// No stored signs; the codebook itself is signed.
    None,
    /// One bit per value.
    Free,
    /// Seven bits per 8 values; the eighth makes the number of negative signs even.
    Even,
}

/// The types that have a codebook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    Iq1S,
    Iq1M,
    Iq2Xxs,
    Iq2Xs,
    Iq2S,
    Iq3Xxs,
    Iq3S,
}

impl Layout {
    /// Number of layouts.
    pub(super) const COUNT: usize = 7;

    pub(super) fn of(ggml_type: GgmlType) -> Option<Self> {
        Some(match ggml_type {
            GgmlType::IQ1_S => Self::Iq1S,
            GgmlType::IQ1_M => Self::Iq1M,
            GgmlType::IQ2_XXS => Self::Iq2Xxs,
            GgmlType::IQ2_XS => Self::Iq2Xs,
            GgmlType::IQ2_S => Self::Iq2S,
            GgmlType::IQ3_XXS => Self::Iq3Xxs,
            GgmlType::IQ3_S => Self::Iq3S,
            _ => return None,
        })
    }

    /// Values per codeword.
    pub(super) fn dim(self) -> usize {
        if matches!(self, Self::Iq3Xxs | Self::Iq3S) { 4 } else { 8 }
    }

    /// Number of codewords, a power of two: every index that fits its bits is valid.
    pub(super) fn len(self) -> usize {
        match self {
            Self::Iq2Xxs | Self::Iq3Xxs => 256,
            Self::Iq2Xs | Self::Iq3S => 512,
            Self::Iq2S => 1024,
            Self::Iq1S | Self::Iq1M => 2048,
        }
    }

    pub(super) fn signs(self) -> Signs {
        match self {
            Self::Iq1S | Self::Iq1M => Signs::None,
            Self::Iq2S | Self::Iq3S => Signs::Free,
            Self::Iq2Xxs | Self::Iq2Xs | Self::Iq3Xxs => Signs::Even,
        }
    }

    /// Returns the index and signs of group `g`; bit j of the signs is set if value j is negative.
    #[inline]
    pub(super) fn read(self, block: &[u8], g: usize) -> (u16, u8) {
        match self {
            Self::Iq1S => (low_high(block[2 + g], word16(block, 34 + g / 4 * 2) >> (g % 4 * 3), 7), 0),
            Self::Iq1M => (low_high(block[g], u16::from(block[32 + g / 2] >> (g % 2 * 4)), 7), 0),
            Self::Iq2Xxs => {
                let word = word32(block, 6 + g / 4 * 8);
                (block[2 + g / 4 * 8 + g % 4].into(), with_parity(word >> (g % 4 * 7)))
            }
            Self::Iq2Xs => {
                let word = word16(block, 2 + g * 2);
                (word & 511, with_parity((word >> 9).into()))
            }
            Self::Iq2S => {
                (low_high(block[2 + g], (block[66 + g / 4] >> (g % 4 * 2)).into(), 3), block[34 + g])
            }
            Self::Iq3Xxs => {
                let eight = with_parity(word32(block, 66 + g / 8 * 4) >> (g % 8 / 2 * 7));
                (block[2 + g].into(), eight >> (g % 2 * 4) & 15)
            }
            Self::Iq3S => {
                let index = low_high(block[2 + g], (block[66 + g / 8] >> (g % 8)).into(), 1);
                (index, block[74 + g / 2] >> (g % 2 * 4) & 15)
            }
        }
    }

    /// Writes the bits that [`Layout::read`] reads, and no others.
    #[inline]
    pub(super) fn write(self, block: &mut [u8], g: usize, index: u16, signs: u8) {
        let (low, high) = (index as u8, index >> 8);
        match self {
            Self::Iq1S => {
                block[2 + g] = low;
                let at = 34 + g / 4 * 2;
                put16(block, at, 7 << (g % 4 * 3), high << (g % 4 * 3));
            }
            Self::Iq1M => {
                block[g] = low;
                put8(&mut block[32 + g / 2], 7 << (g % 2 * 4), (high as u8) << (g % 2 * 4));
            }
            Self::Iq2Xxs => {
                block[2 + g / 4 * 8 + g % 4] = low;
                put32(block, 6 + g / 4 * 8, 127 << (g % 4 * 7), u32::from(signs) << (g % 4 * 7));
            }
            Self::Iq2Xs => put16(block, 2 + g * 2, u16::MAX, index | u16::from(signs & 127) << 9),
            Self::Iq2S => {
                block[2 + g] = low;
                block[34 + g] = signs;
                put8(&mut block[66 + g / 4], 3 << (g % 4 * 2), (high as u8) << (g % 4 * 2));
            }
            Self::Iq3Xxs => {
                block[2 + g] = low;
                // The eighth sign is not stored: it follows from the parity of the other three signs of its
                // group and of the neighboring group, which does not change.
                let mask = if g.is_multiple_of(2) { 15 } else { 7 };
                let shift = g % 8 / 2 * 7 + g % 2 * 4;
                put32(block, 66 + g / 8 * 4, mask << shift, u32::from(signs) << shift);
            }
            Self::Iq3S => {
                block[2 + g] = low;
                put8(&mut block[66 + g / 8], 1 << (g % 8), (high as u8) << (g % 8));
                put8(&mut block[74 + g / 2], 15 << (g % 2 * 4), signs << (g % 2 * 4));
            }
        }
    }

    /// Returns the factor and offset of group `g`: a value is factor × (codeword + offset). Uses ggml's order
    /// of operations to get the same rounding.
    #[inline]
    pub(super) fn scale(self, block: &[u8], g: usize) -> (f32, f32) {
        let d = match self {
            Self::Iq1M => half((0..4).fold(0, |bits, i| bits | (word16(block, 48 + i * 2) >> 12) << (i * 4))),
            _ => half(word16(block, 0)),
        };
        let halves = |steps: u32, of: f32| (d * (0.5 + steps as f32) * of, 0.0);
        match self {
            Self::Iq1S => {
                let word = word16(block, 34 + g / 4 * 2);
                (d * f32::from((word >> 12 & 7) * 2 + 1), delta(word & 0x8000 != 0))
            }
            Self::Iq1M => {
                let steps = word16(block, 48 + g / 8 * 2) >> (g / 2 % 4 * 3) & 7;
                (d * f32::from(steps * 2 + 1), delta(block[32 + g / 2] >> (g % 2 * 4) & 8 != 0))
            }
            Self::Iq2Xxs => halves(word32(block, 6 + g / 4 * 8) >> 28, 0.25),
            Self::Iq2Xs => halves((block[66 + g / 4] >> (g % 4 / 2 * 4) & 15).into(), 0.25),
            Self::Iq2S => halves((block[74 + g / 4] >> (g % 4 / 2 * 4) & 15).into(), 0.25),
            Self::Iq3Xxs => halves(word32(block, 66 + g / 8 * 4) >> 28, 0.5),
            Self::Iq3S => {
                let steps = block[106 + g / 16] >> (g / 8 % 2 * 4) & 15;
                (d * f32::from(steps * 2 + 1), 0.0)
            }
        }
    }

    /// Sets the block scale of a zeroed block to 1.
    pub(super) fn set_unit_scale(self, block: &mut [u8]) {
        match self {
            // The four words of scales hold four bits each of the F16 0x3c00.
            Self::Iq1M => (block[53], block[55]) = (0xc0, 0x30),
            _ => (block[0], block[1]) = (0x00, 0x3c),
        }
    }
}

fn delta(negative: bool) -> f32 {
    if negative { -IQ1_DELTA } else { IQ1_DELTA }
}

fn low_high(low: u8, high: u16, mask: u16) -> u16 {
    u16::from(low) | (high & mask) << 8
}

fn word16(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

fn word32(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

fn put8(byte: &mut u8, mask: u8, bits: u8) {
    *byte = *byte & !mask | bits & mask;
}

fn put16(block: &mut [u8], at: usize, mask: u16, bits: u16) {
    let word = word16(block, at) & !mask | bits & mask;
    block[at..at + 2].copy_from_slice(&word.to_le_bytes());
}

fn put32(block: &mut [u8], at: usize, mask: u32, bits: u32) {
    let word = word32(block, at) & !mask | bits & mask;
    block[at..at + 4].copy_from_slice(&word.to_le_bytes());
}

/// Returns the low seven bits with an eighth that makes the number of set bits even.
fn with_parity(bits: u32) -> u8 {
    let seven = (bits & 127) as u8;
    seven | ((seven.count_ones() as u8) & 1) << 7
}

/// Converts the bits of an IEEE half-precision number to f32, exactly.
pub(super) fn half(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (u32::from(bits >> 15) << 31, bits >> 10 & 31, u32::from(bits & 1023));
    let magnitude = match exponent {
        0 => (fraction as f32 / (1 << 24) as f32).to_bits(),
        31 => 255 << 23 | fraction << 13,
        _ => (u32::from(exponent) + 112) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}
