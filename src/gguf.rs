//! Reading and rewriting GGUF files without disturbing what is not edited.
//!
//! A GGUF file, versions 2 and 3, little-endian:
//!
//! ```text
//! "GGUF"  u32 version  u64 n_tensors  u64 n_kv
//! n_kv ×       string key, u32 value type, value
//! n_tensors ×  string name, u32 n_dims, n_dims × u64 ne, u32 ggml_type, u64 offset
//! padding to `general.alignment` (32 unless given; none when there are no tensors)
//! tensor data, each tensor padded to the alignment; offsets are from here
//!
//! string = u64 length, bytes       array = u32 item type, u64 length, items
//! ```
//!
//! [`Gguf::open`] reads the header only, trusts no number in it, and refuses what llama.cpp
//! refuses. [`Rewrite`] copies a file byte for byte except for the tensors it is told to replace
//! and the keys it is told to add. [`GgufBuilder`] writes a new file. [`AtomicFile`] makes sure
//! that nothing half-written bears the final name; [`in_place`] changes a file so that it can be put back.
//!
//! A split model is files `NAME-00001-of-0000N.gguf`, each a GGUF file with an alignment and offsets of
//! its own and with `split.no` (from 0) and `split.count`; the first has all other keys and may have no
//! tensors. [`Gguf::open`] takes any of them for the whole, and [`AtomicModel`] writes all or none.

mod atomic;
mod atomic_model;
mod builder;
mod cursor;
mod digest;
mod encode;
mod error;
mod ffi;
mod ggml_type;
mod header;
pub mod in_place;
mod lock;
mod metadata;
mod reader;
mod shards;
mod siblings;
mod stale;
mod tensor_info;
mod writer;

#[cfg(test)]
mod tests;

pub use atomic::AtomicFile;
pub use atomic_model::AtomicModel;
pub use builder::GgufBuilder;
pub use digest::{sha256_file, sha256_files, sha256_hex};
pub use error::{GgufError, Malformed, NonModel};
pub use ggml_type::GgmlType;
pub use header::{Gguf, Split};
pub use lock::{LockError, LockFile};
pub use metadata::{ArrayInfo, KeyValue, Value, ValueType};
pub use shards::{ShardName, suffixed};
pub use stale::{recover, sweep};
pub use tensor_info::TensorInfo;
pub use writer::Rewrite;

/// Told bytes done and bytes in all; an error from it stops the work.
pub type Progress<'a> = dyn FnMut(u64, u64) -> std::io::Result<()> + 'a;
