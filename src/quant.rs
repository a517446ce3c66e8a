//! Conversion of rows between ggml types and f32. Uses ggml's own code, and validates the arguments on which it
//! would abort the process.

pub mod codebook;
mod ffi;
mod grid;
pub mod neuron;
pub mod preserve;

use crate::gguf::GgmlType;
use crate::util::hint::Hint;

/// Error of converting rows.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum QuantError {
    /// There is no conversion for this type in this direction.
    #[error("there is no conversion {direction} f32 for type {ggml_type}")]
    Unsupported {
        /// The type.
        ggml_type: GgmlType,
        /// Direction of the conversion: "to" or "from" f32.
        direction: &'static str,
    },
    /// The number of bytes does not match the number of values.
    #[error("{ggml_type} rows of {n_per_row}: expected {expected} bytes, found {found}")]
    Size {
        /// The type.
        ggml_type: GgmlType,
        /// Values per row.
        n_per_row: usize,
        /// Bytes that the values require; 0 if they are not whole blocks or rows.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// A value is not finite or out of range for the type.
    #[error("value {value} at index {index} does not fit {ggml_type}")]
    NotFinite {
        /// The type.
        ggml_type: GgmlType,
        /// Index of the value.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The number of importances is not the number of values per row.
    #[error("expected {n_per_row} importances, one per value of a row, found {found}")]
    ImportanceSize {
        /// Values per row.
        n_per_row: usize,
        /// Importances given.
        found: usize,
    },
    /// The number of row weights is not the number of rows.
    #[error("expected {expected} row weights, one per row of the left factor, found {found}")]
    AlongSize {
        /// Number of rows.
        expected: usize,
        /// Weights given.
        found: usize,
    },
    /// An importance is not a positive number.
    #[error("importance {value} at index {index} is not a positive number")]
    Importance {
        /// Index of the importance.
        index: usize,
        /// The importance.
        value: f32,
    },
    /// ggml rejects the encoded bytes.
    #[error("{ggml_type} rows contain a scale or value that is not finite")]
    Invalid {
        /// The type.
        ggml_type: GgmlType,
    },
}

impl Hint for QuantError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Unsupported { .. } => {
                Some("start from another quantization of the model, for example Q4_K_M or Q8_0".into())
            }
            Self::NotFinite { .. } => Some("a smaller --strength keeps the weights in range".into()),
            Self::Invalid { .. } => {
                Some("the file is damaged or was converted incorrectly; download it again".into())
            }
            Self::Size { .. }
            | Self::AlongSize { .. }
            | Self::ImportanceSize { .. }
            | Self::Importance { .. } => None,
        }
    }
}

/// Largest finite F16; also the limit for block types, most of which store F16 scales.
const F16_MAX: f32 = 65504.0;

fn check_size(ggml_type: GgmlType, n_per_row: usize, n: usize, bytes: usize) -> Result<(), QuantError> {
    let row = ggml_type.row_bytes(n_per_row as u64).map(|b| b as usize);
    let expected = row.filter(|_| n_per_row > 0 && n.is_multiple_of(n_per_row)).map(|b| b * (n / n_per_row));
    if expected == Some(bytes) {
        return Ok(());
    }
    Err(QuantError::Size { ggml_type, n_per_row, expected: expected.unwrap_or(0), found: bytes })
}

/// Decodes whole rows of `n_per_row` values. F32 is copied; other types are decoded by ggml.
///
/// # Errors
/// Returns [`QuantError`] if the sizes do not match or ggml has no decoder for the type.
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

/// Checks rows as llama.cpp's `--check-tensors` does: no scale or float may be infinite or NaN.
///
/// # Errors
/// Returns [`QuantError`] if `bytes` are not whole blocks, or a block contains a non-finite scale or value.
pub fn validate(ggml_type: GgmlType, bytes: &[u8]) -> Result<(), QuantError> {
    let n = bytes.len() / ggml_type.block_bytes() as usize * ggml_type.block_len() as usize;
    if n > 0 {
        check_size(ggml_type, n, n, bytes.len())?;
    } else if !bytes.is_empty() {
        return Err(QuantError::Size { ggml_type, n_per_row: 0, expected: 0, found: bytes.len() });
    }
    if ffi::validate(ggml_type, bytes) { Ok(()) } else { Err(QuantError::Invalid { ggml_type }) }
}

/// Encodes whole rows of `n_per_row` values, rounding to nearest as `llama-quantize` does.
///
/// # Errors
/// Returns [`QuantError`] if the sizes do not match, ggml cannot write the type (or requires an importance
/// matrix for it), or a value is not finite or exceeds the range of F16 (except for F32 and BF16).
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
    check_values(ggml_type, values)?;
    ffi::quantize_rows(ggml_type, n_per_row, values, None, out);
    Ok(())
}

fn check_values(ggml_type: GgmlType, values: &[f32]) -> Result<(), QuantError> {
    let limit = if matches!(ggml_type, GgmlType::F32 | GgmlType::BF16) { f32::MAX } else { F16_MAX };
    match values.iter().position(|v| !v.is_finite() || v.abs() > limit) {
        Some(index) => Err(QuantError::NotFinite { ggml_type, index, value: values[index] }),
        None => Ok(()),
    }
}

/// Encodes whole rows as [`quantize`] does, minimizing `Σ importance_j (value_ij − decoded_ij)²`
/// as `llama-quantize --imatrix` does. `importance` `[n_per_row]` applies to every row, and only its
/// proportions matter. This is the only way to write IQ1_S, IQ2_XXS, and IQ2_XS.
///
/// # Errors
/// Returns [`QuantError`] as [`quantize`] does, and if `importance` has the wrong length or contains a value
/// that is not positive and finite.
pub fn quantize_weighted(
    ggml_type: GgmlType,
    n_per_row: usize,
    values: &[f32],
    importance: &[f32],
    out: &mut [u8],
) -> Result<(), QuantError> {
    check_size(ggml_type, n_per_row, values.len(), out.len())?;
    if !ggml_type.can_quantize() {
        return Err(QuantError::Unsupported { ggml_type, direction: "from" });
    }
    check_values(ggml_type, values)?;
    let importance = proportions(n_per_row, importance)?;
    ffi::quantize_rows(ggml_type, n_per_row, values, Some(&importance), out);
    Ok(())
}

/// Divides the importances by a power of two near the largest, because ggml squares sums of them and
/// asserts that nothing overflows. Scaling by a power of two leaves ggml's result bit-identical.
fn proportions(n_per_row: usize, importance: &[f32]) -> Result<Vec<f32>, QuantError> {
    if importance.len() != n_per_row {
        return Err(QuantError::ImportanceSize { n_per_row, found: importance.len() });
    }
    if let Some(index) = importance.iter().position(|v| !v.is_finite() || *v <= 0.0) {
        return Err(QuantError::Importance { index, value: importance[index] });
    }
    let largest = importance.iter().fold(0.0, |max: f32, v| max.max(*v));
    let unit = f64::from(largest).log2().floor().exp2();
    Ok(importance.iter().map(|v| (f64::from(*v) / unit) as f32).collect())
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

    fn row_bytes(ggml_type: GgmlType, n: usize) -> Vec<u8> {
        vec![0; ggml_type.row_bytes(n as u64).unwrap() as usize]
    }

    #[test]
    fn every_writable_type_round_trips_under_uniform_importance() {
        for ggml_type in GgmlType::all().filter(|t| t.can_quantize()) {
            let n = 512;
            let values = ramp(2 * n);
            let mut bytes = row_bytes(ggml_type, 2 * n);
            quantize_weighted(ggml_type, n, &values, &vec![1.0; n], &mut bytes).unwrap();
            let mut back = vec![0.0; 2 * n];
            dequantize(ggml_type, n, &bytes, &mut back).unwrap();
            let error: f32 = values.iter().zip(&back).map(|(a, b)| (a - b).powi(2)).sum();
            let norm: f32 = values.iter().map(|v| v * v).sum();
            assert!((error / norm).sqrt() < 0.75, "{ggml_type}: {}", (error / norm).sqrt());
        }
    }

    #[test]
    fn only_the_proportions_of_importances_matter() {
        let n = 256;
        let uneven: Vec<f32> = (0..n).map(|i| 0.01 + (i * 53 % 97) as f32).collect();
        for ggml_type in GgmlType::all().filter(|t| t.can_quantize()) {
            let mut plain = row_bytes(ggml_type, n);
            ffi::quantize_rows(ggml_type, n, &ramp(n), Some(&uneven), &mut plain);
            for factor in [1.0, 2.0_f32.powi(100), 2.0_f32.powi(-100)] {
                let importance: Vec<f32> = uneven.iter().map(|v| v * factor).collect();
                let mut scaled = row_bytes(ggml_type, n);
                quantize_weighted(ggml_type, n, &ramp(n), &importance, &mut scaled).unwrap();
                assert_eq!(scaled, plain, "{ggml_type} at {factor:e}");
            }
        }
    }

    #[test]
    fn no_importance_makes_ggml_abort() {
        let n = 256;
        let sizes = [1e-30, 1e-14, 1e-6, 1.0, 65504.0];
        let importances = [f32::from_bits(1), 1e-30, 1.0, 1e30, f32::MAX];
        for ggml_type in GgmlType::all().filter(|t| t.can_quantize()) {
            for (k, size) in sizes.iter().enumerate() {
                let values: Vec<f32> = ramp(n).iter().map(|v| v * size).collect();
                let mixed: Vec<f32> = (0..n).map(|i| importances[(i * (k + 3) / 7) % 5]).collect();
                for importance in importances.map(|v| vec![v; n]).into_iter().chain([mixed]) {
                    let mut bytes = row_bytes(ggml_type, n);
                    quantize_weighted(ggml_type, n, &values, &importance, &mut bytes).unwrap();
                }
            }
        }
    }

    #[test]
    fn a_wrong_importance_is_an_error() {
        let mut out = [0; 66];
        let mut check = |importance: &[f32]| {
            quantize_weighted(GgmlType::IQ2_XXS, 256, &ramp(256), importance, &mut out).unwrap_err()
        };
        assert_eq!(check(&[1.0; 255]), QuantError::ImportanceSize { n_per_row: 256, found: 255 });
        for value in [0.0, -1.0, f32::INFINITY] {
            let mut importance = [1.0; 256];
            importance[7] = value;
            assert_eq!(check(&importance), QuantError::Importance { index: 7, value });
        }
        assert!(matches!(check(&[f32::NAN; 256]), QuantError::Importance { index: 0, .. }));
        let mut out = row_bytes(GgmlType::Q8_K, 256);
        assert!(matches!(
            quantize_weighted(GgmlType::Q8_K, 256, &ramp(256), &[1.0; 256], &mut out),
            Err(QuantError::Unsupported { .. })
        ));
    }
}
