//! Rows of every ggml type ↔ f32, by ggml's own code, checked before it can abort the process.

mod ffi;
mod grid;
pub mod preserve;

use crate::gguf::GgmlType;

/// Why rows could not be converted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum QuantError {
    /// ggml has no conversion for this type.
    #[error("ggml cannot convert {ggml_type} {direction} f32")]
    Unsupported {
        /// The type.
        ggml_type: GgmlType,
        /// "to" or "from".
        direction: &'static str,
    },
    /// Sizes do not agree.
    #[error("{ggml_type} rows of {n_per_row}: expected {expected} bytes, found {found}")]
    Size {
        /// The type.
        ggml_type: GgmlType,
        /// Values per row.
        n_per_row: usize,
        /// Bytes that the values take.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// A value cannot be represented.
    #[error("value {value} at index {index} does not fit {ggml_type}")]
    NotFinite {
        /// The type.
        ggml_type: GgmlType,
        /// Where.
        index: usize,
        /// What.
        value: f32,
    },
}

impl QuantError {
    /// A next step for the user.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unsupported { .. } => {
                Some("start from another quantization of the model, for example Q4_K_M or Q8_0".into())
            }
            Self::NotFinite { .. } => Some("a smaller --strength keeps the weights in range".into()),
            Self::Size { .. } => None,
        }
    }
}

/// Largest magnitude that an F16 (or an F16 block scale of a whole-row constant) can hold.
const F16_MAX: f32 = 65504.0;

fn check_size(ggml_type: GgmlType, n_per_row: usize, n: usize, bytes: usize) -> Result<(), QuantError> {
    let row = ggml_type.row_bytes(n_per_row as u64).map(|b| b as usize);
    let expected = row.filter(|_| n_per_row > 0 && n.is_multiple_of(n_per_row)).map(|b| b * (n / n_per_row));
    if expected == Some(bytes) {
        return Ok(());
    }
    Err(QuantError::Size { ggml_type, n_per_row, expected: expected.unwrap_or(0), found: bytes })
}

/// Decodes whole rows of `n_per_row` values. F32 is copied; all else goes through ggml.
///
/// # Errors
/// [`QuantError`] when sizes disagree or ggml has no decoder.
pub fn dequantize(
    ggml_type: GgmlType,
    n_per_row: usize,
    bytes: &[u8],
    out: &mut [f32],
) -> Result<(), QuantError> {
    check_size(ggml_type, n_per_row, out.len(), bytes.len())?;
    if ggml_type == GgmlType::F32 {
        for (value, raw) in out.iter_mut().zip(bytes.chunks_exact(4)) {
            *value = f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
        }
        return Ok(());
    }
    ffi::to_float(ggml_type, bytes, out)
}

/// Encodes whole rows of `n_per_row` values, rounding to nearest as `llama-quantize` does.
///
/// # Errors
/// [`QuantError`] when sizes disagree, ggml cannot write the type (or wants an importance matrix
/// for it), or a value is not finite or beyond F16.
pub fn quantize(
    ggml_type: GgmlType,
    n_per_row: usize,
    values: &[f32],
    out: &mut [u8],
) -> Result<(), QuantError> {
    check_size(ggml_type, n_per_row, values.len(), out.len())?;
    if !ggml_type.can_quantize() || ggml_type.needs_imatrix() {
        return Err(QuantError::Unsupported { ggml_type, direction: "from" });
    }
    let limit = if matches!(ggml_type, GgmlType::F32 | GgmlType::BF16) { f32::MAX } else { F16_MAX };
    if let Some(index) = values.iter().position(|v| !v.is_finite() || v.abs() > limit) {
        return Err(QuantError::NotFinite { ggml_type, index, value: values[index] });
    }
    ffi::quantize_rows(ggml_type, n_per_row, values, out);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect()
    }

    #[test]
    fn every_writable_type_round_trips_within_its_step() {
        for ggml_type in GgmlType::all().filter(|t| t.can_quantize() && !t.needs_imatrix()) {
            let n = 512;
            let values = ramp(n);
            let mut bytes = vec![0; ggml_type.row_bytes(n as u64).unwrap() as usize];
            quantize(ggml_type, n, &values, &mut bytes).unwrap();
            let mut back = vec![0.0; n];
            dequantize(ggml_type, n, &bytes, &mut back).unwrap();
            let error: f32 = values.iter().zip(&back).map(|(a, b)| (a - b).powi(2)).sum();
            let norm: f32 = values.iter().map(|v| v * v).sum();
            assert!((error / norm).sqrt() < 0.75, "{ggml_type}: {}", (error / norm).sqrt());
            if ggml_type.is_float() {
                assert!((error / norm).sqrt() < 0.01, "{ggml_type}");
            }
        }
    }

    #[test]
    fn what_ggml_would_abort_on_is_an_error() {
        let mut out = vec![0; 292];
        assert!(matches!(
            quantize(GgmlType::Q8_K, 256, &ramp(256), &mut out),
            Err(QuantError::Unsupported { .. })
        ));
        let mut out = vec![0; 66];
        assert!(matches!(
            quantize(GgmlType::IQ2_XXS, 256, &ramp(256), &mut out),
            Err(QuantError::Unsupported { .. })
        ));
        assert!(matches!(
            quantize(GgmlType::Q4_0, 32, &ramp(32), &mut [0; 17]),
            Err(QuantError::Size { .. })
        ));
        assert!(matches!(quantize(GgmlType::Q4_0, 0, &[], &mut []), Err(QuantError::Size { .. })));
        let mut bad = ramp(32);
        bad[3] = f32::NAN;
        assert!(matches!(
            quantize(GgmlType::Q4_0, 32, &bad, &mut [0; 18]),
            Err(QuantError::NotFinite { index: 3, .. })
        ));
        bad[3] = 1e6;
        assert!(quantize(GgmlType::F16, 32, &bad, &mut [0; 64]).is_err());
    }
}
