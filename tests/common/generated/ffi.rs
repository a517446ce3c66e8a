//! Asks llama.cpp which tensors a model with given keys has. llama.cpp creates all of them, including optional ones.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::ptr;
use std::sync::Mutex;

use llama_cpp_sys_2 as sys;

/// A tensor that llama.cpp expects in the file.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub name: String,
    pub ne: Vec<u64>,
    pub ggml_type: u32,
}

static LOG: Mutex<String> = Mutex::new(String::new());

unsafe extern "C" fn keep_errors(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if level != sys::GGML_LOG_LEVEL_ERROR || text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives for this call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    if let Ok(mut log) = LOG.lock() {
        log.push_str(&text);
    }
}

unsafe extern "C" fn note_tensor(tensor: *mut sys::ggml_tensor, user: *mut c_void) {
    // SAFETY: `user` is the `Vec` that `wanted_tensors` keeps alive, `tensor` a live tensor.
    let (list, tensor) = unsafe { (&mut *user.cast::<Vec<Wanted>>(), &*tensor) };
    // SAFETY: ggml keeps the name NUL-terminated.
    let name = unsafe { CStr::from_ptr(tensor.name.as_ptr()) }.to_string_lossy().into_owned();
    let n_dims = tensor.ne.iter().rposition(|&n| n != 1).map_or(1, |last| last + 1);
    let ne = tensor.ne[..n_dims].iter().map(|&n| n as u64).collect();
    if list.iter().all(|known| known.name != name) {
        list.push(Wanted { name, ne, ggml_type: tensor.type_ });
    }
}

/// Returns the tensors of a model with the keys of the GGUF file at `header`.
///
/// # Errors
///
/// Returns llama.cpp's error messages if it rejects the keys.
pub fn wanted_tensors(header: &Path) -> Result<Vec<Wanted>, String> {
    let path = CString::new(header.to_str().unwrap()).unwrap();
    let mut list: Vec<Wanted> = Vec::new();
    LOG.lock().unwrap().clear();
    // SAFETY: the parameters are plain data; the context lives until it is freed below; `list` outlives the load;
    // nothing else in this process uses llama.cpp during the call.
    let loaded = unsafe {
        sys::llama_log_set(Some(keep_errors), ptr::null_mut());
        sys::llama_backend_init();
        let keys = sys::gguf_init_from_file(
            path.as_ptr(),
            sys::gguf_init_params { no_alloc: true, ctx: ptr::null_mut() },
        );
        assert!(!keys.is_null(), "the header written by this test is not a GGUF file");
        let mut params = sys::llama_model_default_params();
        params.n_gpu_layers = 0;
        let model = sys::llama_model_init_from_user(keys, Some(note_tensor), (&raw mut list).cast(), params);
        sys::gguf_free(keys);
        let loaded = !model.is_null();
        if loaded {
            sys::llama_model_free(model);
        }
        loaded
    };
    if loaded { Ok(list) } else { Err(LOG.lock().unwrap().trim().replace('\n', "; ")) }
}
