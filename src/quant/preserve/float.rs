//! Floating-point types, where every value has its own grid.

use super::Stripe;

/// A floating-point type; the grid consists of its representable values.
pub(super) trait Float {
    const BYTES: usize;
    fn read(bytes: &[u8]) -> f32;
    fn write(value: f32, bytes: &mut [u8]);
    /// Returns the nearest representable value.
    fn round(value: f32) -> f32;
    /// Returns the next representable value above or below a representable value.
    fn next(value: f32, up: bool) -> f32;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct BF16;

impl Float for F32 {
    const BYTES: usize = 4;
    fn read(b: &[u8]) -> f32 {
        f32::from_le_bytes([b[0], b[1], b[2], b[3]])
    }
    fn write(value: f32, bytes: &mut [u8]) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    fn round(value: f32) -> f32 {
        value
    }
    fn next(value: f32, _: bool) -> f32 {
        value
    }
}

macro_rules! half_float {
    ($name:ident, $half:ty) => {
        impl Float for $name {
            const BYTES: usize = 2;
            fn read(b: &[u8]) -> f32 {
                <$half>::from_le_bytes([b[0], b[1]]).to_f32()
            }
            fn write(value: f32, bytes: &mut [u8]) {
                bytes.copy_from_slice(&<$half>::from_f32(value).to_le_bytes());
            }
            fn round(value: f32) -> f32 {
                <$half>::from_f32(value).to_f32()
            }
            fn next(value: f32, up: bool) -> f32 {
                // Within one sign, bit patterns are ordered like magnitudes. Zero stays zero: the step to
                // the next value is negligible.
                let bits = <$half>::from_f32(value).to_bits();
                match (value == 0.0, (value > 0.0) == up) {
                    (true, _) => value,
                    (_, true) => <$half>::from_bits(bits + 1).to_f32(),
                    (_, false) => <$half>::from_bits(bits - 1).to_f32(),
                }
            }
        }
    };
}

half_float!(F16, half::f16);
half_float!(BF16, half::bf16);

/// Rounds `W_ij + l_i r_j` up or down, whichever makes the carry of the column smaller. A value stays
/// unchanged if the result would not be finite or would increase the carry.
pub(super) fn walk_floats<F: Float>(rows: &mut [&mut [u8]], stripe: &Stripe<'_>) {
    let mut carry = vec![0.0f32; stripe.right.len()];
    for &i in stripe.order {
        let (left, along) = (stripe.left[i], stripe.along[i]);
        let columns = carry.iter_mut().zip(stripe.right);
        for (bytes, (carry, &right)) in rows[i].chunks_exact_mut(F::BYTES).zip(columns) {
            let (old, wanted) = (F::read(bytes), left * right);
            *carry -= along * wanted;
            let plain = F::round(old + wanted);
            let other = F::next(plain, plain < old + wanted);
            let after = |new: f32| *carry + along * (new - old);
            let new = if after(other).abs() < after(plain).abs() { other } else { plain };
            // Compare values, not bytes: −0 plus 0 is +0.
            if new != old && new.is_finite() && after(new).abs() <= carry.abs() {
                *carry = after(new);
                F::write(new, bytes);
            }
        }
    }
}
