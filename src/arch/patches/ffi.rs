//! Lists the architectures that the linked llama.cpp knows. For tests only: the function is not part of its public API.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int};

/// Upper bound on the number of architectures in this version of llama.cpp.
const MAX_ARCHITECTURES: c_int = 1000;

/// Name of the last value of `enum llm_arch`.
const LAST: &str = "(unknown)";

unsafe extern "C" {
    /// `const char * llm_arch_name(llm_arch)` in src/llama-arch.h, by its mangled name in the Itanium C++ ABI.
    #[link_name = "_Z13llm_arch_name8llm_arch"]
    fn llm_arch_name(architecture: c_int) -> *const c_char;
}

/// Returns every value of `general.architecture` that the linked llama.cpp knows.
pub(super) fn architectures() -> Vec<String> {
    let names = (0..MAX_ARCHITECTURES).map(|architecture| {
        // SAFETY: the function looks up its argument in a table and returns a string literal, `(unknown)` if the table
        // has no entry.
        unsafe { CStr::from_ptr(llm_arch_name(architecture)) }.to_string_lossy().into_owned()
    });
    names.take_while(|name| name != LAST).collect()
}
