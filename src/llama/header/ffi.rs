//! Properties of ggml's types.
#![allow(unsafe_code)]

use llama_cpp_sys_2 as sys;

use crate::gguf::GgmlType;

/// Returns whether the CPU, which takes over what a device does not support, can multiply by matrices of this type.
pub(super) fn has_product(ggml_type: GgmlType) -> bool {
    // SAFETY: ggml returns a static record for every id in its table, and `GgmlType` has no other ids.
    unsafe { sys::ggml_get_type_traits_cpu(ggml_type.id()).as_ref() }.is_some_and(|t| t.vec_dot.is_some())
}
