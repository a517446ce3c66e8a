//! Ollama: finds models by the name that `ollama list` shows, and registers edited ones.
//!
//! A store is a folder of manifests and blobs (`OLLAMA_MODELS`, or Ollama's default folder):
//!
//! ```text
//! manifests-v2/ollama.com/library/llama3.2/1b         HOST/NAMESPACE/MODEL/TAG, JSON; newer servers
//! manifests/registry.ollama.ai/library/llama3.2/1b    same; older servers
//! blobs/sha256-<64 hexadecimal digits>                contents of the layers in a manifest
//! ```
//!
//! A layer of type `application/vnd.ollama.image.model` is a GGUF file; the other layers hold the settings of a
//! Modelfile. [`store`] finds a model, [`companions`] reads its settings, [`modelfile`] writes them to a Modelfile, and
//! [`api`] sends the model to a running server.

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
