//! The validated options of `inject`.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::error::Error;
use crate::gguf::sha256_hex;
use crate::llama::Offload;
use crate::method::edit::Method;
use crate::method::requant::Requant;
use crate::method::search::{DirectionSource, SearchOptions};
use crate::sources::Source;
use crate::sources::ollama::Name;

/// Whether a reasoning model thinks before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ThinkingMode {
    /// Answers without thinking; `inject` also reports answers given after thinking.
    #[default]
    Auto,
    /// Thinks first; an error if the model cannot think.
    On,
    /// Answers without thinking.
    Off,
}

impl ThinkingMode {
    /// Returns the name of the mode, as the user gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// Checks that the user waives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Allow {
    /// Whether to edit a model that is already injected.
    pub injected: bool,
    /// Whether to search even if the model refuses hardly any harmful prompts.
    pub no_refusal: bool,
    /// Whether to accept an edit beyond the limits if none within them helps.
    pub over_limits: bool,
}

/// The system prompt for extracting the direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SystemPrompt {
    /// The bundled safety prompt, only if the model refuses little without it.
    Auto,
    /// No system prompt.
    Off,
    /// This text, always.
    Text(String),
}

impl SystemPrompt {
    /// Returns `auto`, `off`, or the SHA-256 of the text.
    pub fn identity(&self) -> String {
        match self {
            Self::Auto => "auto".into(),
            Self::Off => "off".into(),
            Self::Text(text) => sha256_hex(text.as_bytes()),
        }
    }
}

/// Whether and how long a reasoning model thinks before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThinkingOptions {
    /// The requested mode.
    pub asked: ThinkingMode,
    /// Maximum tokens of a thought about one prompt.
    pub budget: usize,
}

impl ThinkingOptions {
    /// Returns the maximum tokens of the thoughts that `inject` trains on and reports; `None` if thinking is off.
    pub fn beside_answers(&self) -> Option<usize> {
        (self.asked != ThinkingMode::Off).then_some(self.budget)
    }

    /// Returns the maximum tokens of the thought before every answer; `None` if answers begin at once.
    pub fn before_answers(&self) -> Option<usize> {
        (self.asked == ThinkingMode::On).then_some(self.budget)
    }
}

/// Options for running a model.
#[derive(Debug, Clone, PartialEq)]
pub struct RunOptions {
    /// CPU threads.
    pub threads: usize,
    /// Which parts run on GPUs or RPC workers.
    pub offload: Offload,
    /// Directory with additional patches.
    pub patches: Option<PathBuf>,
}

/// What the direction and the gates are learned from.
#[derive(Debug, Clone)]
pub struct LearnOptions {
    /// The user's prompt files.
    pub prompts: Vec<PathBuf>,
    /// Whether these are used without the bundled prompts.
    pub no_bundled_prompts: bool,
    /// System prompt for extracting the direction.
    pub system_prompt: SystemPrompt,
    /// System prompts that the model will be deployed with.
    pub contexts: Vec<String>,
    /// Thinking before answers.
    pub thinking: ThinkingOptions,
    /// The only direction source to use, if set by the user.
    pub direction_source: Option<DirectionSource>,
    /// Maximum bytes of writers' inputs to keep.
    pub memory: u64,
}

impl LearnOptions {
    /// Returns the SHA-256 of the deployment's system prompts.
    pub fn contexts_sha256(&self) -> String {
        sha256_hex(self.contexts.join("\n\n").as_bytes())
    }
}

/// How and where the edited model is written.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Output path; for in-place edits, the model itself.
    pub output: PathBuf,
    /// Whether to change the model file itself.
    pub in_place: bool,
    /// Whether to overwrite existing output files.
    pub overwrite: bool,
    /// How to quantize edited tensors.
    pub requant: Requant,
    /// Importance matrix of the model.
    pub imatrix: Option<PathBuf>,
    /// Output path of the adapter.
    pub save_adapter: Option<PathBuf>,
    /// Name to create the model under in Ollama.
    pub ollama_create: Option<Name>,
}

/// What is measured for the report, and where it goes.
#[derive(Debug, Clone)]
pub struct ReportOptions {
    /// Output path of the JSON report.
    pub path: Option<PathBuf>,
    /// Output path of the HTML report.
    pub html: Option<PathBuf>,
    /// Whether to print the JSON report to stdout.
    pub json: bool,
    /// Whether to run the controls.
    pub controls: bool,
    /// The model that judges the answers to the report split.
    pub judge: Option<Source>,
    /// Whether to keep whole answers in the report.
    pub full_answers: bool,
    /// Seed of the random control.
    pub seed: u64,
}

/// Options of `inject` and `search`; `search` stops after the search.
#[derive(Debug, Clone)]
pub struct InjectOptions {
    /// The input model.
    pub source: Source,
    /// The method, if set by the user.
    pub asked_method: Option<Method>,
    /// The method to use: the user's or, once the model is known, one that the model supports.
    pub method: Method,
    /// What the edit is learned from.
    pub learn: LearnOptions,
    /// Layer, strength and budgets of the search.
    pub search: SearchOptions,
    /// Whether to continue an interrupted search.
    pub resume: bool,
    /// Stored edit to apply instead of searching.
    pub edit: Option<PathBuf>,
    /// Whether to apply a stored edit to a model with other weights.
    pub allow_other_weights: bool,
    /// How and where the model is written.
    pub write: WriteOptions,
    /// What is measured and reported.
    pub report: ReportOptions,
    /// Checks that the user waives.
    pub allow: Allow,
    /// Whether to only print what would be done.
    pub dry_run: bool,
    /// Options for running the model.
    pub run: RunOptions,
}

impl InjectOptions {
    /// Returns the paths of the outputs other than the model.
    pub fn side_files(&self) -> impl Iterator<Item = &Path> {
        let all = [&self.report.path, &self.report.html, &self.write.save_adapter];
        all.into_iter().flatten().map(PathBuf::as_path)
    }

    /// Returns these options with another method and its defaults.
    ///
    /// # Errors
    /// Returns [`Error::Option`] if the method does not accept the strength or κ.
    pub fn with_method(&self, method: Method) -> Result<Self, Error> {
        check_strength(self.search.strength, method)?;
        check_contrast(self.search.contrast, method)?;
        // The published edit adds false refusals at every strength (docs/notebook/linear-gates.md), so it has no limit
        // unless the user sets one.
        let max_false_refusal =
            self.search.max_false_refusal.or((method == Method::Published).then_some(1.0));
        let search = SearchOptions { max_false_refusal, ..self.search };
        Ok(Self { method, search, ..self.clone() })
    }
}

fn option(flag: &'static str, problem: String, hint: &str) -> Error {
    Error::Option { flag, problem, hint: Some(hint.to_owned()) }
}

/// Hint: the meaning of strengths.
pub const STRENGTHS: &str = "for detectors, the push in lengths of the direction (6 to 12); for other \
                             methods, the relative change of the edited weights (0.04 is 4 %)";

/// Rejects a strength above the method's maximum.
fn check_strength(strength: Option<f64>, method: Method) -> Result<(), Error> {
    let most = method.max_strength();
    match strength {
        Some(strength) if strength > most => {
            let problem = format!("expected up to {most} with --method {}, found {strength}", method.name());
            Err(option("--strength", problem, STRENGTHS))
        }
        _ => Ok(()),
    }
}

/// Rejects a κ for a method without gates.
fn check_contrast(contrast: Option<f64>, method: Method) -> Result<(), Error> {
    match contrast {
        Some(_) if method == Method::Published => {
            let problem = "expected --method detector or contrast, found published".to_owned();
            Err(option("--contrast", problem, "the published edit has no gates"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strength_and_contrast_are_those_of_the_method() {
        assert!(check_contrast(Some(0.5), Method::Contrast).is_ok());
        assert!(check_contrast(Some(0.5), Method::Published).is_err());
        assert!(check_strength(Some(5.0), Method::Detector).is_ok());
        let error = check_strength(Some(5.0), Method::Contrast).unwrap_err().to_string();
        assert!(error.contains("expected up to 1 with --method contrast, found 5"), "{error}");
    }
}
