//! Calls into ggml's type table, with types and sizes checked by the parent module, and dispatch to code
//! compiled for wider vector instructions.
#![allow(unsafe_code)]

use llama_cpp_sys_2 as sys;

use super::QuantError;
use crate::gguf::GgmlType;

/// Decodes `out.len()` values; `bytes` must encode exactly that many.
pub(super) fn to_float(ggml_type: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    // SAFETY: every ID of `GgmlType` is within ggml's table, which is static.
    let to_float = unsafe { sys::ggml_get_type_traits(ggml_type.id()).as_ref() }.and_then(|t| t.to_float);
    let to_float = to_float.ok_or(QuantError::Unsupported { ggml_type, direction: "to" })?;
    // SAFETY: the caller checked that `bytes` encodes `out.len()` values of this type.
    unsafe { to_float(bytes.as_ptr().cast(), out.as_mut_ptr(), out.len() as i64) };
    Ok(())
}

/// Encodes rows. `out` must have exactly their size, the type must be writable, and `importance` must have one
/// entry per value of a row if the type requires it.
pub(super) fn quantize_rows(
    ggml_type: GgmlType,
    n_per_row: usize,
    values: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    let rows = (values.len() / n_per_row) as i64;
    // SAFETY: the caller checked type, sizes, and finiteness, which ggml asserts; ggml guards the tables of
    // the IQ types with its own lock.
    unsafe {
        sys::ggml_quantize_chunk(
            ggml_type.id(),
            values.as_ptr(),
            out.as_mut_ptr().cast(),
            0,
            rows,
            n_per_row as i64,
            importance.map_or(std::ptr::null(), <[f32]>::as_ptr),
        );
    }
}

/// Returns whether every scale and float in whole blocks is finite, according to ggml.
pub(super) fn validate(ggml_type: GgmlType, bytes: &[u8]) -> bool {
    // SAFETY: reads exactly `bytes.len()` bytes, and the caller checked that they are whole blocks.
    unsafe { sys::ggml_validate_row_data(ggml_type.id(), bytes.as_ptr().cast(), bytes.len()) }
}

/// Computation that benefits from wider vector instructions.
pub(super) trait Work {
    /// Runs the computation. Must be `#[inline(always)]`, as must the hot code it calls; otherwise it is not
    /// recompiled for the wider vectors.
    fn run(self);
}

/// Runs `work`, compiled for AVX2 if the processor supports it. This only affects speed: the operations, their
/// order, and their rounding are the same, so the results are bit-identical.
pub(super) fn vectorized(work: impl Work) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { with_avx2(work) };
    }
    work.run();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2(work: impl Work) {
    work.run();
}
