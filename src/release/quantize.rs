//! Quantizes full-precision models with llama.cpp, giving the same files as `llama-quantize`.

use std::path::Path;

use super::ReleaseError;
use super::ffi::{self, How};
use crate::gguf::{GgmlType, Gguf};
use crate::imatrix::Imatrix;

/// A quantization type of a file, selected by name.
#[derive(Debug, PartialEq, Eq)]
pub struct QuantType {
    /// Name, as in `llama-quantize` and file names.
    pub name: &'static str,
    /// Value of `llama_ftype` and of the key `general.file_type`.
    pub ftype: u32,
    /// Whether llama.cpp requires an importance matrix for it.
    pub needs_imatrix: bool,
}

const fn of(name: &'static str, ftype: u32, needs_imatrix: bool) -> QuantType {
    QuantType { name, ftype, needs_imatrix }
}

/// All supported types, from `enum llama_ftype`.
pub const TYPES: [QuantType; 29] = [
    of("F16", 1, false),
    of("BF16", 32, false),
    of("Q8_0", 7, false),
    of("Q6_K", 18, false),
    of("Q5_K_M", 17, false),
    of("Q5_K_S", 16, false),
    of("Q5_1", 9, false),
    of("Q5_0", 8, false),
    of("Q4_K_M", 15, false),
    of("Q4_K_S", 14, false),
    of("Q4_1", 3, false),
    of("Q4_0", 2, false),
    of("IQ4_NL", 25, false),
    of("IQ4_XS", 30, false),
    of("Q3_K_L", 13, false),
    of("Q3_K_M", 12, false),
    of("Q3_K_S", 11, false),
    of("IQ3_M", 27, false),
    of("IQ3_S", 26, false),
    of("IQ3_XS", 22, true),
    of("IQ3_XXS", 23, true),
    of("Q2_K", 10, false),
    of("Q2_K_S", 21, true),
    of("IQ2_M", 29, true),
    of("IQ2_S", 28, true),
    of("IQ2_XS", 20, true),
    of("IQ2_XXS", 19, true),
    of("IQ1_M", 31, true),
    of("IQ1_S", 24, true),
];

impl QuantType {
    /// Returns the type with this name, ignoring case.
    pub fn parse(name: &str) -> Option<&'static Self> {
        TYPES.iter().find(|t| t.name.eq_ignore_ascii_case(name))
    }

    /// Returns the type of a file, from `general.file_type`.
    pub fn of_file(gguf: &Gguf) -> Option<&'static Self> {
        let ftype = gguf.u64("general.file_type")?;
        TYPES.iter().find(|t| u64::from(t.ftype) == ftype)
    }
}

/// Returns whether every matrix of `gguf` has a type precise enough to quantize from.
pub fn is_full_precision(gguf: &Gguf) -> bool {
    let wide = [GgmlType::F32, GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0];
    gguf.tensors.iter().all(|t| t.n_dims < 2 || wide.contains(&t.ggml_type))
}

/// Quantizes `source` to the file `to`, overwriting it.
///
/// # Errors
/// Returns [`ReleaseError::Plan`] if llama.cpp would fail or write a broken file, [`ReleaseError::Quantize`] if it
/// fails for another reason.
pub fn quantize(
    source: &Gguf,
    to: &Path,
    quant: &QuantType,
    imatrix: Option<&Imatrix>,
    threads: usize,
) -> Result<(), ReleaseError> {
    check(source, quant, imatrix.is_some())?;
    let fail = |reason| ReleaseError::Quantize { from: source.path.clone(), to: quant.name.into(), reason };
    let importance = imatrix.map(|i| i.importance(source)).transpose().map_err(|e| fail(e.to_string()))?;
    let requantize = source.tensors.iter().any(|t| t.ggml_type == GgmlType::Q8_0);
    let importance = importance.unwrap_or_default();
    let how = How { ftype: quant.ftype, requantize, threads, importance: &importance };
    ffi::quantize(&source.path, to, &how).map_err(fail)
}

/// Checks in advance whether `source` can be quantized to `quant`.
///
/// # Errors
/// Returns [`ReleaseError::Plan`] if an importance matrix is missing, the source is not full precision, or its
/// alignment is not 32.
pub fn check(source: &Gguf, quant: &QuantType, imatrix: bool) -> Result<(), ReleaseError> {
    let refuse = |problem: String, hint| Err(ReleaseError::Plan { problem, hint });
    if quant.needs_imatrix && !imatrix {
        let problem = format!("{} needs an importance matrix to give usable text", quant.name);
        return refuse(problem, "create one with llama-imatrix and pass it with --imatrix");
    }
    if !is_full_precision(source) {
        let problem = format!("{} is quantized, expected F32, F16, BF16 or Q8_0", source.path.display());
        return refuse(problem, "pass the full-precision file, or omit --types to edit this file as is");
    }
    // llama.cpp pads data to 32 bytes regardless of the header, so readers would find the data at wrong offsets.
    if source.files().any(|file| file.alignment != 32) {
        let problem = format!("expected {} to have alignment 32", source.path.display());
        return refuse(problem, "reconvert the model with the default alignment");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgufBuilder;

    fn source(alignment: Option<u32>) -> Gguf {
        let mut file = GgufBuilder::new().string("general.architecture", "llama");
        if let Some(alignment) = alignment {
            file = file.alignment(alignment);
        }
        let mut bytes = Vec::new();
        file.f32_tensor("t", &[32, 2], &[0.0; 64]).write_to(&mut bytes).unwrap();
        Gguf::parse(std::io::Cursor::new(&bytes), bytes.len() as u64).unwrap()
    }

    #[test]
    fn names_are_known_in_any_case_and_once() {
        assert_eq!(QuantType::parse("q4_k_m").map(|t| t.ftype), Some(15));
        assert_eq!(QuantType::parse("Q9"), None);
        for (i, t) in TYPES.iter().enumerate() {
            assert!(TYPES[..i].iter().all(|o| o.name != t.name && o.ftype != t.ftype), "{}", t.name);
        }
    }

    #[test]
    fn what_would_break_is_refused_before_the_call() {
        let quant = |name| QuantType::parse(name).unwrap();
        check(&source(None), quant("Q4_K_M"), false).unwrap();
        let error = check(&source(None), quant("IQ2_XS"), false).unwrap_err();
        assert!(error.to_string().contains("needs an importance matrix"), "{error}");
        check(&source(None), quant("IQ2_XS"), true).unwrap();
        let error = check(&source(Some(64)), quant("Q8_0"), false).unwrap_err();
        assert!(error.to_string().contains("alignment"), "{error}");
    }
}
