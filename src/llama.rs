//! llama.cpp through `llama-cpp-sys-2`: loading, chat templates, batched greedy answers, capture of
//! hidden states through the eval callback, and edits previewed as rank-one LoRA adapters.

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
pub mod sidecar;
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
pub use template::{ChatTemplate, Prompt};
pub use thinking::Thinking;

use crate::util::hint::Hint;
use crate::util::interrupt::Interrupted;

/// What can go wrong between us and llama.cpp.
#[derive(Debug, thiserror::Error)]
pub enum LlamaError {
    /// The model did not load.
    #[error("llama.cpp could not load {}: {reason}", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// What llama.cpp said.
        reason: String,
    },
    /// A device that was named is not there.
    #[error("there is no device {name}; there are: {}", if available.is_empty() { "none".into() } else { available.join(", ") })]
    NoDevice {
        /// What was named.
        name: String,
        /// Those that are there.
        available: Vec<String>,
    },
    /// A number that counts devices is larger than there are.
    #[error("{flag} is for {asked} devices or more, and there are {n_devices}")]
    TooManyDevices {
        /// The flag.
        flag: &'static str,
        /// Devices that it takes.
        asked: usize,
        /// Devices there are.
        n_devices: usize,
    },
    /// The build lacks the RPC backend.
    #[error("this program was built without llama.cpp's RPC backend")]
    NoRpc,
    /// An RPC worker cannot be used, or be one.
    #[error("RPC worker {endpoint}: {reason}")]
    Worker {
        /// HOST:PORT.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// No context could be made.
    #[error("llama.cpp could not create a context: {reason}")]
    Context {
        /// What llama.cpp said.
        reason: String,
    },
    /// An adapter was refused.
    #[error("llama.cpp refused the rank-one adapter: {reason}")]
    Adapter {
        /// What llama.cpp said.
        reason: String,
    },
    /// A control vector cannot be made or was refused.
    #[error("control vector: {reason}")]
    ControlVector {
        /// Why.
        reason: String,
    },
    /// An edit does not fit the tensor it names.
    #[error("edit of {tensor}: {what} has {found} values, expected {expected}")]
    EditShape {
        /// The tensor.
        tensor: String,
        /// Which factor.
        what: &'static str,
        /// Expected number of values.
        expected: u64,
        /// Found number of values.
        found: u64,
    },
    /// The vocabulary could not split a text.
    #[error("the model's vocabulary could not tokenize a text of {bytes} bytes")]
    Tokenize {
        /// Length of the text.
        bytes: usize,
    },
    /// A prompt of which the template and the vocabulary leave nothing.
    #[error("a prompt without any token cannot be answered")]
    EmptyPrompt,
    /// A prompt is longer than the model, or memory, has room for.
    #[error(
        "prompt of {tokens} tokens is longer than the {limit} that this model and memory have room for: {start:?}"
    )]
    PromptTooLong {
        /// Tokens of the rendered prompt.
        tokens: usize,
        /// Tokens that fit.
        limit: usize,
        /// Its beginning.
        start: String,
    },
    /// A batch breaks the context's sizes.
    #[error(
        "batch of {tokens} tokens and {outputs} outputs does not fit {n_batch} tokens and {n_seq} sequences"
    )]
    BatchTooLarge {
        /// Tokens of the batch.
        tokens: usize,
        /// Outputs of the batch.
        outputs: usize,
        /// Tokens that fit.
        n_batch: usize,
        /// Sequences that fit.
        n_seq: usize,
    },
    /// A text is longer than the model has positions.
    #[error("a token stands at position {found}, and the model has learned {n_positions} of them, from 0")]
    Position {
        /// Where it stands.
        found: usize,
        /// How many there are.
        n_positions: usize,
    },
    /// llama.cpp cannot run the file.
    #[error(transparent)]
    Header(#[from] header::HeaderError),
    /// A decode failed.
    #[error("llama.cpp could not decode a batch (code {code}): {reason}")]
    Decode {
        /// llama.cpp's return code.
        code: i32,
        /// What llama.cpp said.
        reason: String,
    },
    /// A message would speak for somebody else.
    #[error(
        "the message spells control tokens of this model, which end a turn or begin one, and they cannot be told from \
         those of its chat template: it was not sent"
    )]
    ControlTokens,
    /// Thoughts are asked of a model that has none.
    #[error(
        "--thinking on: the model does not think before it answers, as far as its chat template and the beginnings of its \
         answers show"
    )]
    NoThoughts,
    /// Logits that should be there are not, or are not finite.
    #[error("prompt {prompt}: expected finite logits, found {found}")]
    Logits {
        /// Which prompt of the batch.
        prompt: usize,
        /// What was found.
        found: &'static str,
    },
    /// The graph did not show what the capture waits for.
    #[error("the graph of this model never computed {name} for {count} prompts")]
    NotCaptured {
        /// Node or weight that was expected.
        name: String,
        /// How many prompts miss it.
        count: usize,
    },
    /// A captured node has another shape or type than expected.
    #[error("{name} in the graph has shape {found:?}, expected F32 rows of {expected}")]
    NodeShape {
        /// The node.
        name: String,
        /// Expected row length.
        expected: usize,
        /// Found shape.
        found: [i64; 4],
    },
    /// The eval callback panicked (our bug; the panic was kept out of C).
    #[error("the eval callback panicked")]
    Callback,
    /// The chat template cannot be used.
    #[error("chat template: {0}")]
    Template(#[from] template::TemplateError),
    /// Ctrl-C.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl Hint for LlamaError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Load { .. } => Some(
                "run with -vvv to see llama.cpp's log; where the memory of a device is short, give it fewer layers \
                 with -ngl"
                    .into(),
            ),
            Self::Context { .. } => Some("is there enough memory? fewer layers on the GPU: -ngl 0".into()),
            Self::NoDevice { .. } => Some(
                "`rosi-gguf devices` lists them; GPUs need a build with --features cuda, metal, rocm or vulkan, \
                 devices of other machines --rpc"
                    .into(),
            ),
            Self::NoRpc => Some("build it with GGML_RPC=ON in the environment".into()),
            Self::Worker { .. } => Some("start one there with `rosi-gguf rpc-server` (docs/backends.md)".into()),
            Self::ControlVector { .. } => Some("an adapter holds the exact edit: use --lora".into()),
            Self::ControlTokens => Some("leave out what looks like <|im_end|>".into()),
            Self::NoThoughts => Some("leave out --thinking, and it answers as it does".into()),
            Self::Position { .. } => Some("use shorter texts".into()),
            Self::Header(error) => error.hint(),
            Self::PromptTooLong { .. } => Some("use shorter prompts".into()),
            Self::Logits { .. } => Some("a weight or a key of the file is damaged: download or convert it again".into()),
            Self::NotCaptured { .. } => {
                Some("the patches file may name another residual than this llama.cpp computes".into())
            }
            Self::Template(error) => error.hint(),
            _ => None,
        }
    }
}
