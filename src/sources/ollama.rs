//! Ollama: models by the name that `ollama list` shows, and back into it.
//!
//! A store is a folder of manifests and blobs (`OLLAMA_MODELS`, or where Ollama puts it):
//!
//! ```text
//! manifests-v2/ollama.com/library/llama3.2/1b         HOST/NAMESPACE/MODEL/TAG, JSON; newer servers
//! manifests/registry.ollama.ai/library/llama3.2/1b    the same of older ones
//! blobs/sha256-<64 hexadecimal digits>                what the layers of a manifest name
//! ```
//!
//! A layer of type `application/vnd.ollama.image.model` is a GGUF file; the others are what a Modelfile
//! says. [`store`] finds a model, [`companions`] reads what stands beside its weights, [`modelfile`]
//! writes that down again, [`api`] gives it to a running server.

pub mod api;
pub mod companions;
mod error;
mod host;
mod manifest;
pub mod modelfile;
mod name;
pub mod store;

pub use companions::Companions;
pub use error::OllamaError;
pub use manifest::Blob;
pub use name::Name;
pub use store::{Model, Store};
