//! The call of `llama_model_quantize`, whose arguments were checked by the parent's [`super::quantize`].
#![allow(unsafe_code)]

use std::ffi::CString;
use std::path::Path;
use std::ptr;

use llama_cpp_sys_2 as sys;

use crate::llama::ffi::{init_backend, take_errors};

/// How the file is written.
pub(super) struct How<'a> {
    /// `llama_ftype`.
    pub ftype: u32,
    /// Whether matrices of Q8_0 are taken too.
    pub requantize: bool,
    /// At least one.
    pub threads: usize,
    /// Importance per weight, `[n_mat][n_in]`; may be empty.
    pub importance: &'a [(String, Vec<f32>)],
}

/// Quantizes `from` to `to`. llama.cpp answers what it refuses with an exception, which it catches, and a
/// broken header, which the caller has ruled out, with the end of the process.
pub(super) fn quantize(from: &Path, to: &Path, how: &How<'_>) -> Result<(), String> {
    init_backend();
    let c_path = |path: &Path| {
        let text = path.to_str().ok_or_else(|| format!("{} is not UTF-8", path.display()))?;
        CString::new(text).map_err(|_| "the path holds a NUL byte".to_owned())
    };
    let (from, to) = (c_path(from)?, c_path(to)?);
    let names: Vec<CString> = how
        .importance
        .iter()
        .map(|(name, _)| CString::new(name.as_str()).map_err(|_| "a name holds a NUL byte".to_owned()))
        .collect::<Result<_, _>>()?;
    let rows = names.iter().zip(how.importance);
    let mut rows: Vec<sys::llama_model_imatrix_data> = rows
        .map(|(name, (_, data))| sys::llama_model_imatrix_data {
            name: name.as_ptr(),
            data: data.as_ptr(),
            size: data.len(),
        })
        .collect();
    // The list ends with a row without a name.
    rows.push(sys::llama_model_imatrix_data { name: ptr::null(), data: ptr::null(), size: 0 });
    take_errors();
    // SAFETY: default params are plain data; paths, names and values outlive the call, which only reads
    // them; the list ends with a NULL name.
    let rc = unsafe {
        let mut params = sys::llama_model_quantize_default_params();
        params.ftype = how.ftype;
        params.allow_requantize = how.requantize;
        params.nthread = i32::try_from(how.threads.max(1)).unwrap_or(1);
        if !how.importance.is_empty() {
            params.imatrix = rows.as_ptr();
        }
        sys::llama_model_quantize(from.as_ptr(), to.as_ptr(), &raw const params)
    };
    if rc == 0 { Ok(()) } else { Err(take_errors()) }
}
