//! Reading and rewriting GGUF files, preserving all unedited bytes.
//!
//! Layout of a GGUF file (versions 2 and 3, little-endian):
//!
//! ```text
//! "GGUF"  u32 version  u64 n_tensors  u64 n_kv
//! n_kv ×       string key, u32 value type, value
//! n_tensors ×  string name, u32 n_dims, n_dims × u64 ne, u32 ggml_type, u64 offset
//! padding to `general.alignment` (default 32; no padding if there are no tensors)
//! tensor data, each tensor padded to the alignment; offsets are relative to its start
//!
//! string = u64 length, bytes       array = u32 item type, u64 length, items
//! ```
//!
//! [`Gguf::open`] reads only the header, validates every number in it, and rejects what llama.cpp
//! rejects. [`Rewrite`] copies a file byte for byte except for the tensors to replace and the keys to
//! add. [`GgufBuilder`] writes a new file. [`AtomicFile`] ensures that a partially written file never
//! has the final name; [`in_place`] changes a file reversibly.
//!
//! A split model consists of files named `NAME-00001-of-0000N.gguf`. Each is a GGUF file with its own
//! alignment, offsets, `split.no` (from 0), and `split.count`; the first holds all other keys and may
//! have no tensors. [`Gguf::open`] accepts any of them and opens the whole model; [`AtomicModel`]
//! writes all files or none.

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

/// Progress callback, called with the bytes done and the total; returning an error stops the work.
pub type Progress<'a> = dyn FnMut(u64, u64) -> std::io::Result<()> + 'a;
