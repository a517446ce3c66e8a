//! Four-bit types whose codes are indices into a fixed table.

use super::legacy::nibble;
use super::{Grid, Levels, MAX_SUBS, bits, f16, set_bits};

/// Levels of IQ4_NL and IQ4_XS (`kvalues_iq4nl` in `ggml-common.h`).
const NON_LINEAR: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];
/// Twice the values of E2M1 (OCP Microscaling Formats 1.0, table 5).
const E2M1: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// `d·table[q]`
pub struct IQ4NL;
/// `d·(sc − 32)·table[q]`, 8 sub-blocks
pub struct IQ4XS;
/// `2^(e − 128)·table[q]`
pub struct MXFP4;
/// `d/2·table[q]`, 4 sub-blocks with UE4M3 scales
pub struct NVFP4;

impl Grid for IQ4NL {
    const LEN: usize = 32;
    const SUB: usize = 32;
    const BYTES: usize = 18;
    const LEVELS: Levels = Levels::Table(&NON_LINEAR);

    fn steps(block: &[u8], steps: &mut [f32; MAX_SUBS]) {
        steps[0] = f16(block, 0);
    }

    fn get(block: &[u8], j: usize) -> i32 {
        let (byte, shift) = nibble(j);
        bits(block[2 + byte], shift, 4)
    }

    fn set(block: &mut [u8], j: usize, q: i32) {
        let (byte, shift) = nibble(j);
        set_bits(&mut block[2 + byte], shift, 4, q);
    }
}

impl Grid for IQ4XS {
    const LEN: usize = 256;
    const SUB: usize = 32;
    const BYTES: usize = 136;
    const LEVELS: Levels = Levels::Table(&NON_LINEAR);

    fn steps(block: &[u8], steps: &mut [f32; MAX_SUBS]) {
        let d = f16(block, 0);
        for (i, step) in steps[..8].iter_mut().enumerate() {
            let low = bits(block[4 + i / 2], i % 2 * 4, 4);
            let high = bits(block[2 + i / 4], i % 4 * 2, 2);
            *step = d * (low + 16 * high - 32) as f32;
        }
    }

    fn get(block: &[u8], j: usize) -> i32 {
        let (byte, shift) = nibble(j % 32);
        bits(block[8 + j / 32 * 16 + byte], shift, 4)
    }

    fn set(block: &mut [u8], j: usize, q: i32) {
        let (byte, shift) = nibble(j % 32);
        set_bits(&mut block[8 + j / 32 * 16 + byte], shift, 4, q);
    }
}

impl Grid for MXFP4 {
    const LEN: usize = 32;
    const SUB: usize = 32;
    const BYTES: usize = 17;
    const LEVELS: Levels = Levels::Table(&E2M1);

    fn steps(block: &[u8], steps: &mut [f32; MAX_SUBS]) {
        // 2^(e − 128), because the table is doubled. Powers below 2^-126 are subnormal: one mantissa bit is set.
        steps[0] = f32::from_bits(match block[0] {
            e @ 0..2 => 0x0020_0000 << e,
            e => (u32::from(e) - 1) << 23,
        });
    }

    fn get(block: &[u8], j: usize) -> i32 {
        let (byte, shift) = nibble(j);
        bits(block[1 + byte], shift, 4)
    }

    fn set(block: &mut [u8], j: usize, q: i32) {
        let (byte, shift) = nibble(j);
        set_bits(&mut block[1 + byte], shift, 4, q);
    }
}

/// Returns half the value of a UE4M3 number, because the table is doubled; 0x7F is NaN in the format and 0 in ggml.
fn half_of_ue4m3(x: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(x >> 3 & 15), f32::from(x & 7));
    match x {
        0x7F => 0.0,
        _ if exponent == 0 => mantissa * 2f32.powi(-10),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 8),
    }
}

impl Grid for NVFP4 {
    const LEN: usize = 64;
    const SUB: usize = 16;
    const BYTES: usize = 36;
    const LEVELS: Levels = Levels::Table(&E2M1);

    fn steps(block: &[u8], steps: &mut [f32; MAX_SUBS]) {
        for (step, &d) in steps.iter_mut().zip(&block[..4]) {
            *step = half_of_ue4m3(d);
        }
    }

    fn get(block: &[u8], j: usize) -> i32 {
        bits(block[4 + j / 16 * 8 + j % 8], j % 16 / 8 * 4, 4)
    }

    fn set(block: &mut [u8], j: usize, q: i32) {
        set_bits(&mut block[4 + j / 16 * 8 + j % 8], j % 16 / 8 * 4, 4, q);
    }
}
