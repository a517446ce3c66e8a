//! Options of `eval`.

use std::path::{Path, PathBuf};

use super::search::read_text;
use super::{RunOptions, ThinkingOptions, option};
use crate::cli::EvalArgs;
use crate::eval::perplexity::ChunkOptions;
use crate::eval::prompts::safety_system_prompt;
use crate::llama::Sampling;
use crate::pipeline::error::Error;
use crate::sources::{ModelArg, Source};

/// Maximum tokens of a judged answer: with the longest prompt it still fits the KV cache.
const MAX_TOKENS: usize = 512;
/// Temperatures: what lies outside is greedy or noise.
const TEMPERATURE: std::ops::RangeInclusive<f64> = 0.01..=5.0;
/// Tokens per chunk of text: at least four, so that its second half has something to score; at most one batch.
const CTX_SIZE: std::ops::RangeInclusive<usize> = 4..=1024;

/// Options of `eval`.
#[derive(Debug, Clone)]
pub struct EvalOptions {
    /// The models to measure.
    pub models: Vec<Source>,
    /// The model that they are compared with.
    pub base: Option<Source>,
    /// The user's prompt files; if empty, the bundled report split is used.
    pub sets: Vec<PathBuf>,
    /// The system prompt that every model is asked under, if any.
    pub system_prompt: Option<String>,
    /// The model that judges answers.
    pub judge: Option<Source>,
    /// Token limit per answer.
    pub tokens: usize,
    /// How answers are sampled; greedy if `None`.
    pub sampling: Option<Sampling>,
    /// The text file for perplexity.
    pub perplexity: Option<PathBuf>,
    /// How that text is divided into chunks.
    pub chunks: ChunkOptions,
    /// The file of multiple-choice questions.
    pub choice: Option<PathBuf>,
    /// Whether harmful prompts are also asked wrapped in jailbreaks.
    pub jailbreak: bool,
    /// Whether models think before they answer, and for how long.
    pub thinking: ThinkingOptions,
    /// Path of the JSON report.
    pub report: Option<PathBuf>,
    /// Whether to print the JSON report to stdout.
    pub json: bool,
    /// Whether to overwrite the report.
    pub overwrite: bool,
    /// How to run the models.
    pub run: RunOptions,
}

impl EvalOptions {
    /// Validates the flags; `find` resolves a model argument.
    ///
    /// # Errors
    /// Returns [`Error::Option`] naming the invalid flag, [`Error::Io`] if the system prompt cannot be read, or the
    /// error of `find`.
    pub fn new(
        args: EvalArgs,
        find: &mut dyn FnMut(&ModelArg) -> Result<Source, Error>,
    ) -> Result<Self, Error> {
        if !(1..=MAX_TOKENS).contains(&args.tokens) {
            let problem = format!("expected 1 to {MAX_TOKENS}, found {}", args.tokens);
            return Err(option("--tokens", problem, None));
        }
        if !CTX_SIZE.contains(&args.ctx_size) {
            let problem =
                format!("expected {} to {}, found {}", CTX_SIZE.start(), CTX_SIZE.end(), args.ctx_size);
            return Err(option("--ctx-size", problem, None));
        }
        let chunks = if args.chunks == 0 { usize::MAX } else { args.chunks };
        Ok(Self {
            models: args.models.iter().map(&mut *find).collect::<Result<_, _>>()?,
            base: args.base.as_ref().map(&mut *find).transpose()?,
            sets: args.sets,
            system_prompt: args.system_prompt.as_deref().map(system_prompt).transpose()?,
            judge: args.judge.as_ref().map(&mut *find).transpose()?,
            tokens: args.tokens,
            sampling: args.temperature.map(sampling).transpose()?,
            perplexity: args.perplexity,
            chunks: ChunkOptions { n_ctx: args.ctx_size, chunks },
            choice: args.choice,
            jailbreak: args.jailbreak,
            thinking: args.thinking.into(),
            report: args.report,
            json: args.json,
            overwrite: args.overwrite,
            run: RunOptions::new(args.run)?,
        })
    }

    /// Returns the name that the user gave for the model at `path`.
    pub fn display_name(&self, path: &Path) -> String {
        let mut all = self.models.iter().chain(&self.base).chain(&self.judge);
        let found = all.find(|source| source.path == path);
        found.map_or_else(|| path.display().to_string(), |source| source.display_name.clone())
    }
}

fn sampling(temperature: f64) -> Result<Sampling, Error> {
    if TEMPERATURE.contains(&temperature) {
        return Ok(Sampling { temperature });
    }
    let problem = format!("expected {} to {}, found {temperature}", TEMPERATURE.start(), TEMPERATURE.end());
    Err(option("--temperature", problem, Some("without the option, answers are greedy".into())))
}

fn system_prompt(text: &str) -> Result<String, Error> {
    match text {
        "safety" => Ok(safety_system_prompt().to_owned()),
        path => read_text(Path::new(path)),
    }
}
