//! Models by name on the Hugging Face hub, in the format of llama.cpp's `-hf`:
//! `OWNER/REPO[@REVISION][:QUANTIZATION or FILE.gguf]`.
//!
//! `name` parses the name, [`select`] chooses the files, and [`fetch`] downloads them through the crate `hf-hub`, into
//! the cache that is shared with other programs of the hub.

mod check;
mod error;
pub mod fetch;
mod local;
mod name;
mod places;
pub mod select;

pub use error::HubError;
pub use fetch::{Fetched, Hub};
pub use name::HubName;
