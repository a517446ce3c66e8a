//! ggml's callback before `abort()`.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};
use std::panic::catch_unwind;

use llama_cpp_sys_2 as sys;

use crate::llama::ffi::take_errors;

/// Runs on whichever thread gave up.
unsafe extern "C" fn on_abort(message: *const c_char) {
    let message = if message.is_null() {
        String::new()
    } else {
        // SAFETY: ggml passes a NUL-terminated string that lives for this call.
        unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
    };
    // Unwinding into C is undefined; after a panic ggml aborts, as it would have.
    if let Ok(status) = catch_unwind(|| super::take_leave(&message, &take_errors())) {
        // SAFETY: ends the process at once: destructors of C++ would wait for threads that wait for this one.
        unsafe { libc::_exit(status) }
    }
}

/// From now on the process ends by [`super::take_leave`] where llama.cpp gives up.
pub(in crate::llama) fn install() {
    // SAFETY: the callback is 'static.
    unsafe { sys::ggml_set_abort_callback(Some(on_abort)) };
}
