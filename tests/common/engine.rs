//! Models loaded on the CPU.

use std::path::Path;

use rosi_gguf::gguf::Gguf;
use rosi_gguf::llama::{EngineOptions, LlamaEngine, Offload};

/// Loads the model at `path`. `template` is the source of its chat template; without one, prompts are plain text.
pub fn on_cpu(path: &Path, threads: usize, template: Option<&str>) -> LlamaEngine {
    let options = EngineOptions { path: path.into(), threads, offload: Offload::none() };
    LlamaEngine::load(&options, template, &mut |_| ()).unwrap()
}

/// Loads a model on two threads, without a chat template.
pub fn plain(path: &Path) -> LlamaEngine {
    on_cpu(path, 2, None)
}

/// Loads a model on two threads, with the chat template in its file.
pub fn chatting(path: &Path) -> LlamaEngine {
    on_cpu(path, 2, Gguf::open(path).unwrap().str("tokenizer.chat_template"))
}
