//! Ternary types: `(q − 1)·d`, q = 0, 1, 2.

use super::{Grid, Levels, MAX_SUBS, bits, f16, set_bits};

/// Five base-3 digits per byte
pub struct TQ1_0;
/// Two bits per value
pub struct TQ2_0;

/// Base-3 digits per byte. A byte stores `ceil(v·256/243)`, where v is the number whose base-3 digits are the
/// five values, most significant first; repeated multiplication by 3 then carries out one digit at a time.
const DIGITS: usize = 5;

fn unpack(byte: u8) -> [u8; DIGITS] {
    let mut rest = byte;
    std::array::from_fn(|_| {
        let product = u16::from(rest) * 3;
        rest = product as u8;
        (product >> 8) as u8
    })
}

fn pack(digits: [u8; DIGITS]) -> u8 {
    let number = digits.iter().fold(0u16, |v, &d| v * 3 + u16::from(d));
    ((number * 256).div_ceil(243)) as u8
}

impl TQ1_0 {
    /// Returns the byte and digit of value `j`: 32 bytes hold 160 values, 16 hold 80, and 4 hold 16.
    fn place(j: usize) -> (usize, usize) {
        match j {
            0..160 => (j % 32, j / 32),
            160..240 => (32 + (j - 160) % 16, (j - 160) / 16),
            _ => (48 + (j - 240) % 4, (j - 240) / 4),
        }
    }
}

impl Grid for TQ1_0 {
    const LEN: usize = 256;
    const SUB: usize = 32;
    const BYTES: usize = 54;
    const LEVELS: Levels = Levels::Integers(0, 2);

    fn steps(block: &[u8], steps: &mut [f32; MAX_SUBS]) {
        steps[..8].fill(f16(block, 52));
    }

    fn get(block: &[u8], j: usize) -> i32 {
        let (byte, digit) = Self::place(j);
        i32::from(unpack(block[byte])[digit])
    }

    fn set(block: &mut [u8], j: usize, q: i32) {
        let (byte, digit) = Self::place(j);
        let mut digits = unpack(block[byte]);
        digits[digit] = q as u8;
        block[byte] = pack(digits);
    }
}

impl Grid for TQ2_0 {
    const LEN: usize = 256;
    const SUB: usize = 32;
    const BYTES: usize = 66;
    const LEVELS: Levels = Levels::Integers(0, 2);

    fn steps(block: &[u8], steps: &mut [f32; MAX_SUBS]) {
        steps[..8].fill(f16(block, 64));
    }

    fn get(block: &[u8], j: usize) -> i32 {
        bits(block[j / 128 * 32 + j % 32], j % 128 / 32 * 2, 2)
    }

    fn set(block: &mut [u8], j: usize, q: i32) {
        set_bits(&mut block[j / 128 * 32 + j % 32], j % 128 / 32 * 2, 2, q);
    }
}
