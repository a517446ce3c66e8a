//! Models by their name on the Hugging Face hub, in the form of llama.cpp's `-hf`:
//! `OWNER/REPO[@REVISION][:QUANTIZATION or FILE.gguf]`.
//!
//! `name` reads the name, [`select`] chooses the file, [`fetch`] gets it through the crate `hf-hub`, into
//! the cache that the hub's other programs use.

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
