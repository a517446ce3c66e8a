//! K-quants: blocks of 256 values whose sub-blocks have quantized scales.

use super::{Grid, Levels, MAX_SUBS, bits, f16, set_bits};

/// `d·sc·q − dmin·m`, 16 sub-blocks
pub struct Q2K;
/// `d·sc·(q − 4)`, 16 sub-blocks
pub struct Q3K;
/// `d·sc·q − dmin·m`, 8 sub-blocks
pub struct Q4K;
/// `d·sc·q − dmin·m`, 8 sub-blocks; the fifth bits are stored separately
pub struct Q5K;
/// `d·sc·(q − 32)`, 16 sub-blocks
pub struct Q6K;

/// Returns the byte and shift of the two bits of value `j` in 64 bytes.
fn pair(j: usize) -> (usize, usize) {
    (j / 128 * 32 + j % 32, j % 128 / 32 * 2)
}

/// Returns the byte and shift of the nibble of value `j` in the 128 bytes of Q4_K and Q5_K.
fn nibble(j: usize) -> (usize, usize) {
    (j / 64 * 32 + j % 32, j % 64 / 32 * 4)
}

/// Returns the 6-bit scale of sub-block `i` from the 12 scale bytes of Q4_K and Q5_K.
fn scale6(packed: &[u8], i: usize) -> i32 {
    match i {
        0..4 => bits(packed[i], 0, 6),
        _ => bits(packed[i + 4], 0, 4) | (bits(packed[i - 4], 6, 2) << 4),
    }
}

impl Grid for Q2K {
    const LEN: usize = 256;
    const SUB: usize = 16;
    const BYTES: usize = 84;
    const LEVELS: Levels = Levels::Integers(0, 3);

    fn steps(block: &[u8], steps: &mut [f32; MAX_SUBS]) {
        let d = f16(block, 80);
        for (step, &scale) in steps.iter_mut().zip(&block[..16]) {
            *step = d * bits(scale, 0, 4) as f32;
        }
    }

    fn get(block: &[u8], j: usize) -> i32 {
        let (byte, shift) = pair(j);
        bits(block[16 + byte], shift, 2)
    }

    fn set(block: &mut [u8], j: usize, q: i32) {
        let (byte, shift) = pair(j);
        set_bits(&mut block[16 + byte], shift, 2, q);
    }
}

impl Grid for Q3K {
    const LEN: usize = 256;
    const SUB: usize = 16;
    const BYTES: usize = 110;
    const LEVELS: Levels = Levels::Integers(0, 7);

    fn steps(block: &[u8], steps: &mut [f32; MAX_SUBS]) {
        let (d, packed) = (f16(block, 108), &block[96..108]);
        for (i, step) in steps.iter_mut().enumerate() {
            let low = bits(packed[i % 8], i / 8 * 4, 4);
            let high = bits(packed[8 + i % 4], i / 4 * 2, 2);
            *step = d * (low + 16 * high - 32) as f32;
        }
    }

    fn get(block: &[u8], j: usize) -> i32 {
        let (byte, shift) = pair(j);
        bits(block[32 + byte], shift, 2) + 4 * bits(block[j % 32], j / 32, 1)
    }

    fn set(block: &mut [u8], j: usize, q: i32) {
        let (byte, shift) = pair(j);
        set_bits(&mut block[32 + byte], shift, 2, q & 3);
        set_bits(&mut block[j % 32], j / 32, 1, q >> 2);
    }
}

impl Grid for Q4K {
    const LEN: usize = 256;
    const SUB: usize = 32;
    const BYTES: usize = 144;
    const LEVELS: Levels = Levels::Integers(0, 15);

    fn steps(block: &[u8], steps: &mut [f32; MAX_SUBS]) {
        let d = f16(block, 0);
        for (i, step) in steps[..8].iter_mut().enumerate() {
            *step = d * scale6(&block[4..16], i) as f32;
        }
    }

    fn get(block: &[u8], j: usize) -> i32 {
        let (byte, shift) = nibble(j);
        bits(block[16 + byte], shift, 4)
    }

    fn set(block: &mut [u8], j: usize, q: i32) {
        let (byte, shift) = nibble(j);
        set_bits(&mut block[16 + byte], shift, 4, q);
    }
}

impl Grid for Q5K {
    const LEN: usize = 256;
    const SUB: usize = 32;
    const BYTES: usize = 176;
    const LEVELS: Levels = Levels::Integers(0, 31);

    fn steps(block: &[u8], steps: &mut [f32; MAX_SUBS]) {
        Q4K::steps(block, steps);
    }

    fn get(block: &[u8], j: usize) -> i32 {
        let (byte, shift) = nibble(j);
        bits(block[48 + byte], shift, 4) | (bits(block[16 + j % 32], j / 32, 1) << 4)
    }

    fn set(block: &mut [u8], j: usize, q: i32) {
        let (byte, shift) = nibble(j);
        set_bits(&mut block[48 + byte], shift, 4, q & 15);
        set_bits(&mut block[16 + j % 32], j / 32, 1, q >> 4);
    }
}

impl Q6K {
    /// Returns the byte and shift of the low four bits of value `j`, and those of its high two bits.
    fn place(j: usize) -> ((usize, usize), (usize, usize)) {
        let (half, quarter, l) = (j / 128, j % 128 / 32, j % 32);
        ((half * 64 + quarter % 2 * 32 + l, quarter / 2 * 4), (128 + half * 32 + l, quarter * 2))
    }
}

impl Grid for Q6K {
    const LEN: usize = 256;
    const SUB: usize = 16;
    const BYTES: usize = 210;
    const LEVELS: Levels = Levels::Integers(0, 63);

    fn steps(block: &[u8], steps: &mut [f32; MAX_SUBS]) {
        let d = f16(block, 208);
        for (step, &scale) in steps.iter_mut().zip(&block[192..208]) {
            *step = d * f32::from(scale as i8);
        }
    }

    fn get(block: &[u8], j: usize) -> i32 {
        let (low, high) = Self::place(j);
        bits(block[low.0], low.1, 4) | (bits(block[high.0], high.1, 2) << 4)
    }

    fn set(block: &mut [u8], j: usize, q: i32) {
        let (low, high) = Self::place(j);
        set_bits(&mut block[low.0], low.1, 4, q & 15);
        set_bits(&mut block[high.0], high.1, 2, q >> 4);
    }
}
