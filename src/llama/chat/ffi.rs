//! Calls that only a conversation needs.
#![allow(unsafe_code)]

use llama_cpp_sys_2 as sys;

use crate::llama::ffi::Context;

/// Forgets the cells of sequence 0 from position `from`; `false` where the memory cannot forget a part.
pub(in crate::llama) fn forget_from(context: &mut Context, from: usize) -> bool {
    let Ok(from) = i32::try_from(from) else { return true };
    // SAFETY: the context is alive; every position may be asked for.
    unsafe { sys::llama_memory_seq_rm(sys::llama_get_memory(context.ptr.as_ptr()), 0, from, -1) }
}
