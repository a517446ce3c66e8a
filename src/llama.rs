//! Interface to llama.cpp through `llama-cpp-sys-2`: model loading, chat templates, batched decoding,
//! capture of hidden states through the eval callback, and previews of edits as low-rank LoRA adapters.

mod abort;
pub mod activations;
pub mod adapter;
pub mod batch;
pub mod capture;
pub mod chat;
mod context_memory;
pub mod control_vector;
pub mod devices;
pub mod engine;
pub mod ffi;
pub mod follow;
pub mod header;
pub mod hook;
pub mod length;
pub mod matmul;
pub mod offload;
pub mod sampling;
pub mod sidecar;
#[cfg(test)]
pub mod stand_in;
pub mod template;
pub mod thinking;
mod vocabulary;

use std::path::PathBuf;

pub use adapter::LowRank;
pub use capture::Capture;
pub use context_memory::ContextMemory;
pub use control_vector::ControlVector;
pub use engine::{Chat, Engine, EngineOptions, LlamaEngine, Message};
pub use ffi::{Token, llama_version};
pub use follow::{Lanes, TextModel};
pub use length::Length;
pub use matmul::Arithmetic;
pub use offload::Offload;
pub use sampling::Sampling;
pub use template::{ChatTemplate, Prompt};
pub use thinking::Thinking;

use crate::util::hint::Hint;
use crate::util::interrupt::Interrupted;

/// Errors from loading or running a model with llama.cpp.
#[derive(Debug, thiserror::Error)]
pub enum LlamaError {
    /// The model failed to load.
    #[error("llama.cpp could not load {}: {reason}", path.display())]
    Load {
        /// Path of the model.
        path: PathBuf,
        /// Reason, usually from llama.cpp's log.
        reason: String,
    },
    /// A requested device does not exist.
    #[error(
        "no device named {name}; available: {}",
        if available.is_empty() { "none".into() } else { available.join(", ") }
    )]
    NoDevice {
        /// Requested name.
        name: String,
        /// Names of the available devices.
        available: Vec<String>,
    },
    /// A flag refers to more devices than are available.
    #[error("{flag} needs at least {asked} devices, found {n_devices}")]
    TooManyDevices {
        /// Name of the flag.
        flag: &'static str,
        /// Number of devices that its value requires.
        asked: usize,
        /// Number of available devices.
        n_devices: usize,
    },
    /// The build lacks the RPC backend.
    #[error("this program was built without llama.cpp's RPC backend")]
    NoRpc,
    /// An RPC worker cannot be used or started.
    #[error("RPC worker {endpoint}: {reason}")]
    Worker {
        /// Address of the worker, `HOST:PORT`.
        endpoint: String,
        /// Why it failed.
        reason: String,
    },
    /// llama.cpp could not create a context, usually for lack of memory.
    #[error("llama.cpp could not create a context: {reason}")]
    Context {
        /// Reason from llama.cpp's log.
        reason: String,
    },
    /// A LoRA adapter does not fit the model, or llama.cpp rejected it.
    #[error("cannot apply the LoRA adapter: {reason}")]
    Adapter {
        /// Why it was rejected.
        reason: String,
    },
    /// A control vector cannot be built, read, or applied.
    #[error("control vector: {reason}")]
    ControlVector {
        /// Why it failed.
        reason: String,
    },
    /// A factor of an edit does not fit the edited tensor.
    #[error("edit of {tensor}: expected {expected} values in the {what}, found {found}")]
    EditShape {
        /// Name of the edited tensor.
        tensor: String,
        /// `left factor` or `right factor`.
        what: &'static str,
        /// Expected number of values.
        expected: u64,
        /// Found number of values.
        found: u64,
    },
    /// The vocabulary could not tokenize a text.
    #[error("the model's vocabulary could not tokenize a text of {bytes} bytes")]
    Tokenize {
        /// Length of the text, in bytes.
        bytes: usize,
    },
    /// A rendered prompt has no tokens.
    #[error("the rendered prompt contains no tokens")]
    EmptyPrompt,
    /// A prompt exceeds what the model or the available memory allows.
    #[error(
        "expected a prompt of at most {limit} tokens, the limit of this model and memory, found {tokens}: \
         {start:?}"
    )]
    PromptTooLong {
        /// Number of tokens of the rendered prompt.
        tokens: usize,
        /// Maximum number of tokens.
        limit: usize,
        /// Beginning of the prompt.
        start: String,
    },
    /// A batch is empty or exceeds the sizes of its context.
    #[error(
        "expected a batch of 1 to {n_batch} tokens in at most {n_seq} sequences, \
         found {tokens} tokens and {outputs} outputs"
    )]
    BatchTooLarge {
        /// Number of tokens in the batch.
        tokens: usize,
        /// Number of tokens whose logits are requested.
        outputs: usize,
        /// Maximum number of tokens.
        n_batch: usize,
        /// Maximum number of sequences and of outputs.
        n_seq: usize,
    },
    /// A token lies beyond the positions that the model has learned.
    #[error("expected a token position below {n_positions}, the number of learned positions, found {found}")]
    Position {
        /// Largest position in the batch, counted from 0.
        found: usize,
        /// Number of learned positions.
        n_positions: usize,
    },
    /// llama.cpp cannot run the file.
    #[error(transparent)]
    Header(#[from] header::HeaderError),
    /// llama.cpp failed to decode a batch.
    #[error("llama.cpp could not decode a batch (code {code}): {reason}")]
    Decode {
        /// Return code of `llama_decode`.
        code: i32,
        /// Reason from llama.cpp's log.
        reason: String,
    },
    /// A message contains control tokens that would let it forge another turn.
    #[error(
        "the message contains control tokens, which begin or end a turn, and they cannot be distinguished \
         from those of the chat template; the message was not sent"
    )]
    ControlTokens,
    /// Thinking was requested from a model that does not think.
    #[error(
        "--thinking on: the model does not think before it answers, judging by its chat template and the \
         beginnings of its answers"
    )]
    NoThoughts,
    /// Logits are missing or not finite.
    #[error("prompt {prompt}: expected finite logits, found {found}")]
    Logits {
        /// Index of the prompt in the batch.
        prompt: usize,
        /// What was found in their place.
        found: &'static str,
    },
    /// The graph did not compute a node that the capture needs.
    #[error("the model's graph did not compute {name} for {count} prompts")]
    NotCaptured {
        /// Name of the missing node.
        name: String,
        /// Number of prompts without it.
        count: usize,
    },
    /// A captured node has an unexpected shape or type.
    #[error("graph node {name}: expected F32 rows of {expected} values, found shape {found:?}")]
    NodeShape {
        /// Name of the node.
        name: String,
        /// Expected row length, in values.
        expected: usize,
        /// Found shape, `ne[0]` fastest.
        found: [i64; 4],
    },
    /// The eval callback panicked: an internal error, caught before it could unwind into C.
    #[error("the eval callback panicked")]
    Callback,
    /// The chat template cannot be used.
    #[error("chat template: {0}")]
    Template(#[from] template::TemplateError),
    /// The user stopped the run with Ctrl-C or SIGTERM.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl Hint for LlamaError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Load { .. } => Some(
                "run with -vvv to see llama.cpp's log; if a device is short of memory, put fewer layers on \
                 it with -ngl"
                    .into(),
            ),
            Self::Context { .. } => {
                Some("free some memory, or put fewer layers on the GPU with -ngl (-ngl 0 for none)".into())
            }
            Self::NoDevice { .. } => Some(
                "list devices with `rosi-gguf devices`; GPUs need a build with --features cuda, metal, rocm \
                 or vulkan, and devices of other machines need --rpc"
                    .into(),
            ),
            Self::NoRpc => Some("rebuild with GGML_RPC=ON in the environment".into()),
            Self::Worker { .. } => {
                Some("start a worker at that address with `rosi-gguf rpc-server` (docs/backends.md)".into())
            }
            Self::ControlVector { .. } => Some("use --lora: a LoRA adapter holds the exact edit".into()),
            Self::ControlTokens => {
                Some("remove text that looks like a control token, such as <|im_end|>".into())
            }
            Self::NoThoughts => Some("omit --thinking".into()),
            Self::Position { .. } => Some("use shorter texts".into()),
            Self::Header(error) => error.hint(),
            Self::PromptTooLong { .. } => Some("use shorter prompts".into()),
            Self::Logits { .. } => {
                Some("a weight or key of the file is damaged; download or convert it again".into())
            }
            Self::NotCaptured { .. } => {
                Some("the patches file may name a residual node that this llama.cpp does not compute".into())
            }
            Self::Template(error) => error.hint(),
            _ => None,
        }
    }
}
