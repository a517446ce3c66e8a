//! Calls that only a conversation needs.
#![allow(unsafe_code)]

use llama_cpp_sys_2 as sys;

use crate::llama::ffi::{Context, Model, Token};

/// Whether `token`, which came from this vocabulary, steers instead of spelling text.
pub(in crate::llama) fn is_control(model: &Model, token: Token) -> bool {
    let known = usize::try_from(token).is_ok_and(|t| t < model.n_vocab());
    // SAFETY: the vocabulary is alive, and `token` is one of its ids.
    known && unsafe { sys::llama_vocab_is_control(model.vocab(), token) }
}

/// Forgets the cells of sequence 0 from position `from`; `false` where the memory cannot forget a part.
pub(in crate::llama) fn forget_from(context: &mut Context, from: usize) -> bool {
    let Ok(from) = i32::try_from(from) else { return true };
    // SAFETY: the context is alive; every position may be asked for.
    unsafe { sys::llama_memory_seq_rm(sys::llama_get_memory(context.ptr.as_ptr()), 0, from, -1) }
}
