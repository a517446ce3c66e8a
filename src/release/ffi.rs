//! Calls `llama_model_quantize`, with arguments already checked by [`super::quantize`].
#![allow(unsafe_code)]

use std::ffi::CString;
use std::path::Path;
use std::ptr;

use llama_cpp_sys_2 as sys;

use crate::llama::ffi::{init_backend, take_errors};

/// Parameters of the quantization.
pub(super) struct How<'a> {
    /// Target type, as `llama_ftype`.
    pub ftype: u32,
    /// Whether to accept Q8_0 matrices as input.
    pub requantize: bool,
    /// Number of threads, at least one.
    pub threads: usize,
    /// Importance per input, `[n_mat][n_in]`, by tensor name; may be empty.
    pub importance: &'a [(String, Vec<f32>)],
}

/// Quantizes `from` to `to`. For unsupported input, llama.cpp throws an exception that it catches itself. A broken
/// header would abort the process; the caller has ruled this out.
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
    // A row with a null name terminates the list.
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
