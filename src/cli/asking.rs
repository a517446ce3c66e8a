//! Flags of the commands that ask models and change nothing.

use std::path::PathBuf;

use clap::Args;

use super::{RunArgs, ThinkingArgs};
use crate::sources::ModelArg;

/// Flags of `ask`.
#[derive(Debug, Args)]
pub struct AskArgs {
    /// The model: a file, `ollama:NAME`, or `hf:OWNER/REPO[:QUANTIZATION]`.
    pub model: ModelArg,
    /// What to ask; may be repeated.
    #[arg(long, required = true)]
    pub prompt: Vec<String>,
    /// Token limit of an answer.
    #[arg(long, default_value_t = 64)]
    pub tokens: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Thoughts before answers.
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
    /// An adapter (`export --lora`): the model answers without it, then with it.
    #[arg(long, value_name = "LORA.gguf", conflicts_with = "beside")]
    pub lora: Option<PathBuf>,
    /// Another model that answers after this one.
    #[arg(long, value_name = "OTHER")]
    pub beside: Option<ModelArg>,
    /// System prompt.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Token limit of an answer.
    #[arg(long, default_value_t = 256)]
    pub tokens: usize,
    /// Tokens of the whole conversation, as llama.cpp's -c.
    #[arg(short, long, default_value_t = 4096, value_name = "N")]
    pub ctx_size: usize,
    /// Thoughts before answers.
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
    /// The model to compare with: paired tests of refusals, KL divergence.
    #[arg(long, value_name = "BASE")]
    pub base: Option<ModelArg>,
    /// Ask the prompts of this file instead of the bundled report split; may be repeated.
    #[arg(long = "set", value_name = "FILE")]
    pub sets: Vec<PathBuf>,
    /// Ask under a system prompt: that of a file, or ours for safety, which `inject` also uses.
    #[arg(long, value_name = "safety|FILE")]
    pub system_prompt: Option<String>,
    /// A second model that judges whether each answer refuses.
    #[arg(long, value_name = "JUDGE.gguf")]
    pub judge: Option<ModelArg>,
    /// Token limit of an answer; one that is undecided by then goes on, up to 64.
    #[arg(long, default_value_t = crate::eval::N_PREDICT, value_name = "N")]
    pub tokens: usize,
    /// Also measure the perplexity on this text.
    #[arg(long, value_name = "TEXTFILE")]
    pub perplexity: Option<PathBuf>,
    /// Tokens of a chunk of that text, as llama-perplexity's -c.
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub ctx_size: usize,
    /// Number of chunks of that text to read; 0 = all.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub chunks: usize,
    /// Also ask these multiple-choice questions (MMLU, ARC or HellaSwag as JSONL).
    #[arg(long, value_name = "FILE.jsonl")]
    pub choice: Option<PathBuf>,
    /// Also wrap the harmful prompts in known jailbreaks.
    #[arg(long)]
    pub jailbreak: bool,
    /// Print the whole report on stdout, as JSON.
    #[arg(long)]
    pub json: bool,
    /// Write the whole report here, as JSON.
    #[arg(long, value_name = "FILE.json")]
    pub report: Option<PathBuf>,
    /// Overwrite the report.
    #[arg(long)]
    pub overwrite: bool,
    /// Thoughts before answers.
    #[command(flatten)]
    pub thinking: ThinkingArgs,
    /// How to run the models.
    #[command(flatten)]
    pub run: RunArgs,
}
