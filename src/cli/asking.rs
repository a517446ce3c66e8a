//! Flags of the commands that query models without changing them.

use std::path::PathBuf;

use clap::Args;

use super::{RunArgs, ThinkingArgs};
use crate::sources::ModelArg;

/// Flags of `ask`.
#[derive(Debug, Args)]
pub struct AskArgs {
    /// The model: a file, `ollama:NAME`, or `hf:OWNER/REPO[:QUANTIZATION]`.
    pub model: ModelArg,
    /// Prompt to answer; may be repeated.
    #[arg(long, required = true)]
    pub prompt: Vec<String>,
    /// Token limit per answer.
    #[arg(long, default_value_t = 64)]
    pub tokens: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Flags for models that think before they answer.
    #[command(flatten)]
    pub thinking: ThinkingArgs,
    /// How to run the model.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Flags of `chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// The model: a file, `ollama:NAME`, or `hf:OWNER/REPO[:QUANTIZATION]`.
    pub model: ModelArg,
    /// LoRA adapter (from `export --lora`): the model answers without it, then with it.
    #[arg(long, value_name = "LORA.gguf", conflicts_with = "beside")]
    pub lora: Option<PathBuf>,
    /// Second model, which answers each message after MODEL.
    #[arg(long, value_name = "OTHER")]
    pub beside: Option<ModelArg>,
    /// System prompt.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Token limit per answer.
    #[arg(long, default_value_t = 256)]
    pub tokens: usize,
    /// Token limit of the whole conversation, like llama.cpp's -c.
    #[arg(short, long, default_value_t = 4096, value_name = "N")]
    pub ctx_size: usize,
    /// Flags for models that think before they answer.
    #[command(flatten)]
    pub thinking: ThinkingArgs,
    /// How to run the model.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Flags of `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// The models: files, `ollama:NAME`, or `hf:OWNER/REPO[:QUANTIZATION]`.
    #[arg(required = true, value_name = "MODEL")]
    pub models: Vec<ModelArg>,
    /// Model to compare with: paired tests of refusals, KL divergence.
    #[arg(long, value_name = "BASE")]
    pub base: Option<ModelArg>,
    /// Ask the prompts of this file instead of the bundled report split; may be repeated. The kind goes before the file
    /// (harmful:FILE) if the file does not state it.
    #[arg(long = "set", value_name = "[KIND:]FILE")]
    pub sets: Vec<PathBuf>,
    /// Ask under a system prompt: the contents of FILE, or `safety` for the bundled one that `inject` also uses.
    #[arg(long, value_name = "safety|FILE")]
    pub system_prompt: Option<String>,
    /// A second model that judges whether each answer refuses.
    #[arg(long, value_name = "JUDGE.gguf")]
    pub judge: Option<ModelArg>,
    /// Token limit per answer; an answer that is still undecided continues to at most 64.
    #[arg(long, default_value_t = crate::eval::N_PREDICT, value_name = "N")]
    pub tokens: usize,
    /// Sample answers at this temperature, with Ollama's default top_k and top_p, instead of taking the most likely
    /// tokens.
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Also measure the perplexity on this text.
    #[arg(long, value_name = "TEXTFILE")]
    pub perplexity: Option<PathBuf>,
    /// Tokens per chunk of the perplexity text, like llama-perplexity's -c.
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub ctx_size: usize,
    /// Number of chunks of the perplexity text to read; 0 = all.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub chunks: usize,
    /// Also answer these multiple-choice questions (MMLU, ARC or HellaSwag as JSONL).
    #[arg(long, value_name = "FILE.jsonl")]
    pub choice: Option<PathBuf>,
    /// Also ask the harmful prompts wrapped in known jailbreaks.
    #[arg(long)]
    pub jailbreak: bool,
    /// Print the full report to stdout, as JSON.
    #[arg(long)]
    pub json: bool,
    /// Write the full report to this file, as JSON.
    #[arg(long, value_name = "FILE.json")]
    pub report: Option<PathBuf>,
    /// Overwrite the report.
    #[arg(long)]
    pub overwrite: bool,
    /// Flags for models that think before they answer.
    #[command(flatten)]
    pub thinking: ThinkingArgs,
    /// How to run the models.
    #[command(flatten)]
    pub run: RunArgs,
}
