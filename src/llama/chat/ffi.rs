//! Calls to llama.cpp that only conversations need.
#![allow(unsafe_code)]

use llama_cpp_sys_2 as sys;

use crate::llama::ffi::Context;

/// Removes the cells of sequence 0 from position `from` on; returns false if the memory cannot forget a part.
pub(in crate::llama) fn forget_from(context: &mut Context, from: usize) -> bool {
    let Ok(from) = i32::try_from(from) else { return true };
    // SAFETY: the context is alive; every position is allowed.
    unsafe { sys::llama_memory_seq_rm(sys::llama_get_memory(context.ptr.as_ptr()), 0, from, -1) }
}
