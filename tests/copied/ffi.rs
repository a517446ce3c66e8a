//! Copies a model as `llama-quantize FROM TO COPY` does.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::path::Path;

use llama_cpp_sys_2 as sys;

/// Copies a model through llama.cpp; each tensor keeps its type.
pub fn copy(from: &Path, to: &Path) {
    let [from, to] = [from, to].map(|path| CString::new(path.to_str().unwrap()).unwrap());
    // SAFETY: the default parameters are plain data; the paths outlive the calls, which only read them.
    let rc = unsafe {
        sys::llama_backend_init();
        let mut params = sys::llama_model_quantize_default_params();
        params.only_copy = true;
        sys::llama_model_quantize(from.as_ptr(), to.as_ptr(), &raw const params)
    };
    assert_eq!(rc, 0, "llama.cpp failed to write {to:?}");
}
