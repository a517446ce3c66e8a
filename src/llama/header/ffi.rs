//! What ggml says of its types.
#![allow(unsafe_code)]

use llama_cpp_sys_2 as sys;

use crate::gguf::GgmlType;

/// Whether a matrix of this type can be multiplied on the CPU, which takes over what a device cannot.
pub(super) fn has_product(ggml_type: GgmlType) -> bool {
    // SAFETY: ggml answers every id of its table with a static record, and `GgmlType` has no other ids.
    unsafe { sys::ggml_get_type_traits_cpu(ggml_type.id()).as_ref() }.is_some_and(|t| t.vec_dot.is_some())
}
