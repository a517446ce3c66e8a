//! Types with one scale, and for some one offset, per block.

use super::{Grid, Levels, MAX_SUBS, bits, f16, set_bits};

/// Returns the byte and shift of value `j` of 32 in 16 bytes of nibbles.
pub(super) fn nibble(j: usize) -> (usize, usize) {
    (j % 16, j / 16 * 4)
}

/// `(q − 8)·d`
pub struct Q4_0;
/// `q·d + m`
pub struct Q4_1;
/// `(q − 16)·d`; the fifth bits are stored separately
pub struct Q5_0;
/// `q·d + m`; the fifth bits are stored separately
pub struct Q5_1;
/// `q·d`
pub struct Q8_0;
/// `±d`
pub struct Q1_0;
/// `(q − 1)·d`
pub struct Q2_0;

macro_rules! nibbles {
    ($name:ident, $bytes:literal, $codes:literal) => {
        impl Grid for $name {
            const LEN: usize = 32;
            const SUB: usize = 32;
            const BYTES: usize = $bytes;
            const LEVELS: Levels = Levels::Integers(0, 15);

            fn steps(block: &[u8], steps: &mut [f32; MAX_SUBS]) {
                steps[0] = f16(block, 0);
            }

            fn get(block: &[u8], j: usize) -> i32 {
                let (byte, shift) = nibble(j);
                bits(block[$codes + byte], shift, 4)
            }

            fn set(block: &mut [u8], j: usize, q: i32) {
                let (byte, shift) = nibble(j);
                set_bits(&mut block[$codes + byte], shift, 4, q);
            }
        }
    };
}

macro_rules! five_bits {
    ($name:ident, $bytes:literal, $high:literal) => {
        impl Grid for $name {
            const LEN: usize = 32;
            const SUB: usize = 32;
            const BYTES: usize = $bytes;
            const LEVELS: Levels = Levels::Integers(0, 31);

            fn steps(block: &[u8], steps: &mut [f32; MAX_SUBS]) {
                steps[0] = f16(block, 0);
            }

            fn get(block: &[u8], j: usize) -> i32 {
                let (byte, shift) = nibble(j);
                bits(block[$high + 4 + byte], shift, 4) | (bits(block[$high + j / 8], j % 8, 1) << 4)
            }

            fn set(block: &mut [u8], j: usize, q: i32) {
                let (byte, shift) = nibble(j);
                set_bits(&mut block[$high + 4 + byte], shift, 4, q & 15);
                set_bits(&mut block[$high + j / 8], j % 8, 1, q >> 4);
            }
        }
    };
}

nibbles!(Q4_0, 18, 2);
nibbles!(Q4_1, 20, 4);
five_bits!(Q5_0, 22, 2);
five_bits!(Q5_1, 24, 4);

impl Grid for Q8_0 {
    const LEN: usize = 32;
    const SUB: usize = 32;
    const BYTES: usize = 34;
    // ggml never writes −128, although it fits, and some kernels compute |q| in eight bits.
    const LEVELS: Levels = Levels::Integers(-127, 127);

    fn steps(block: &[u8], steps: &mut [f32; MAX_SUBS]) {
        steps[0] = f16(block, 0);
    }

    fn get(block: &[u8], j: usize) -> i32 {
        i32::from(block[2 + j] as i8)
    }

    fn set(block: &mut [u8], j: usize, q: i32) {
        block[2 + j] = q as i8 as u8;
    }
}

impl Grid for Q1_0 {
    const LEN: usize = 128;
    const SUB: usize = 32;
    const BYTES: usize = 18;
    const LEVELS: Levels = Levels::Integers(0, 1);

    fn steps(block: &[u8], steps: &mut [f32; MAX_SUBS]) {
        steps[..4].fill(2.0 * f16(block, 0));
    }

    fn get(block: &[u8], j: usize) -> i32 {
        bits(block[2 + j / 8], j % 8, 1)
    }

    fn set(block: &mut [u8], j: usize, q: i32) {
        set_bits(&mut block[2 + j / 8], j % 8, 1, q);
    }
}

impl Grid for Q2_0 {
    const LEN: usize = 64;
    const SUB: usize = 32;
    const BYTES: usize = 18;
    const LEVELS: Levels = Levels::Integers(0, 3);

    fn steps(block: &[u8], steps: &mut [f32; MAX_SUBS]) {
        steps[..2].fill(f16(block, 0));
    }

    fn get(block: &[u8], j: usize) -> i32 {
        bits(block[2 + j / 4], j % 4 * 2, 2)
    }

    fn set(block: &mut [u8], j: usize, q: i32) {
        set_bits(&mut block[2 + j / 4], j % 4 * 2, 2, q);
    }
}
