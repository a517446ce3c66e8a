//! Dequantization of types that ggml decodes one value at a time, in loops that the compiler can vectorize. The values
//! are those of ggml, bit for bit.

use half::f16;

use crate::gguf::GgmlType;

/// Function that dequantizes a row of whole blocks.
type Decoder = fn(&[u8], &mut [f32]);

/// Returns the decoder of a type; `None` if ggml's own is fast.
pub(super) fn decoder(ggml_type: GgmlType) -> Option<Decoder> {
    match ggml_type {
        GgmlType::Q5_0 => Some(q5_0),
        GgmlType::Q5_1 => Some(q5_1),
        GgmlType::Q6_K => Some(q6_k),
        _ => None,
    }
}

/// Decodes Q5_0, blocks of `d` (2 bytes), 32 fifth bits and 32 nibbles: `d·(q − 16)`.
fn q5_0(row: &[u8], out: &mut [f32]) {
    for (block, out) in row.chunks_exact(22).zip(out.chunks_exact_mut(32)) {
        let d = float([block[0], block[1]]);
        for (out, code) in out.iter_mut().zip(five_bits(&block[2..])) {
            *out = (code - 16) as f32 * d;
        }
    }
}

/// Decodes Q5_1, blocks of `d` and `m` (2 bytes each), 32 fifth bits and 32 nibbles: `d·q + m`.
fn q5_1(row: &[u8], out: &mut [f32]) {
    for (block, out) in row.chunks_exact(24).zip(out.chunks_exact_mut(32)) {
        let (d, m) = (float([block[0], block[1]]), float([block[2], block[3]]));
        for (out, code) in out.iter_mut().zip(five_bits(&block[4..])) {
            *out = code as f32 * d + m;
        }
    }
}

/// Returns the 32 codes stored in 4 bytes of fifth bits followed by 16 bytes of nibbles.
#[inline(always)]
fn five_bits(bytes: &[u8]) -> [i32; 32] {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let mut codes = [0; 32];
    for (j, &nibbles) in bytes[4..20].iter().enumerate() {
        let [low, up] = [nibbles & 15, nibbles >> 4].map(u32::from);
        codes[j] = (low | (high >> j & 1) << 4) as i32;
        codes[j + 16] = (up | (high >> (j + 16) & 1) << 4) as i32;
    }
    codes
}

/// Decodes Q6_K, blocks of two halves with 64 bytes of nibbles, 32 bytes of upper bits and 8 scales each (all nibbles
/// first, then all upper bits, then all scales), followed by `d`: `d·scale·(q − 32)`.
fn q6_k(row: &[u8], out: &mut [f32]) {
    for (block, out) in row.chunks_exact(210).zip(out.chunks_exact_mut(256)) {
        let d = float([block[208], block[209]]);
        for (half, out) in out.chunks_exact_mut(128).enumerate() {
            let low = &block[64 * half..][..64];
            let high = &block[128 + 32 * half..][..32];
            let scales = &block[192 + 8 * half..][..8];
            // Sixteen values share a scale.
            for (sub, (out, &scale)) in out.chunks_exact_mut(16).zip(scales).enumerate() {
                let (quarter, start) = (sub / 2, sub % 2 * 16);
                let step = d * f32::from(scale.cast_signed());
                let low = &low[quarter % 2 * 32 + start..][..16];
                let (low_shift, high_shift) = (quarter / 2 * 4, 2 * quarter);
                for ((out, &l), &h) in out.iter_mut().zip(low).zip(&high[start..][..16]) {
                    let code = (l >> low_shift & 15) | (h >> high_shift & 3) << 4;
                    *out = step * (i32::from(code) - 32) as f32;
                }
            }
        }
    }
}

fn float(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant;

    #[test]
    fn rows_are_those_of_ggml() {
        let mut decoded = 0;
        for ggml_type in GgmlType::all() {
            let Some(decode) = decoder(ggml_type) else { continue };
            let n = 512;
            let mut bytes: Vec<u8> =
                (0..ggml_type.row_bytes(n).unwrap()).map(|i| (i * i * 31 + i / 7) as u8).collect();
            // Clears bits of the scales so that they are finite.
            let block_bytes = ggml_type.block_bytes() as usize;
            for block in bytes.chunks_mut(block_bytes) {
                let scales: &[usize] = if ggml_type == GgmlType::Q6_K { &[209] } else { &[1, 3] };
                scales.iter().for_each(|&at| block[at] &= 0x3f);
            }
            let (mut ours, mut ggml) = (vec![0f32; n as usize], vec![0f32; n as usize]);
            decode(&bytes, &mut ours);
            quant::dequantize(ggml_type, n as usize, &bytes, &mut ggml).unwrap();
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&ours), bits(&ggml), "{ggml_type}");
            decoded += 1;
        }
        assert_eq!(decoded, 3);
    }
}
