//! The linked llama.cpp, asked which architectures it knows. For tests: the function is no public API.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int};

/// More than llama.cpp will have in this version.
const MAX_ARCHITECTURES: c_int = 1000;

/// Name of the last value of `enum llm_arch`.
const LAST: &str = "(unknown)";

unsafe extern "C" {
    /// `const char * llm_arch_name(llm_arch)` of src/llama-arch.h, by its name in the Itanium C++ ABI.
    #[link_name = "_Z13llm_arch_name8llm_arch"]
    fn llm_arch_name(architecture: c_int) -> *const c_char;
}

/// Every value of `general.architecture` that the linked llama.cpp knows.
pub(super) fn architectures() -> Vec<String> {
    let names = (0..MAX_ARCHITECTURES).map(|architecture| {
        // SAFETY: the function looks its argument up in a table and returns a literal, `unknown` for
        // what the table lacks.
        unsafe { CStr::from_ptr(llm_arch_name(architecture)) }.to_string_lossy().into_owned()
    });
    names.take_while(|name| name != LAST).collect()
}
