//! What `inject` is asked for, checked.

use std::path::PathBuf;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::error::Error;
use crate::llama::Offload;
use crate::method::edit::Method;
use crate::method::requant::Requant;
use crate::method::search::{DirectionSource, SearchOptions};
use crate::sources::Source;
use crate::sources::ollama::Name;

/// Whether a model that can think before it answers does so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ThinkingMode {
    /// It answers at once; `inject` also tells what it answers once it has thought.
    #[default]
    Auto,
    /// It thinks first. An error where the model does not think.
    On,
    /// It answers at once.
    Off,
}

/// Checks that are waived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Allow {
    /// Whether a model that was injected before is edited.
    pub injected: bool,
    /// Whether the search goes on where the model refuses hardly any harmful prompt.
    pub no_refusal: bool,
    /// Whether an edit beyond the limits is taken where none within them helps.
    pub over_limits: bool,
}

/// Whether a safety system prompt is used while the direction is extracted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SystemPrompt {
    /// Only when the model hardly refuses without it.
    Auto,
    /// Never.
    Off,
    /// Always this text.
    Text(String),
}

/// What a model that can think before it answers does, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThinkingOptions {
    /// What was asked for.
    pub asked: ThinkingMode,
    /// Most tokens of thoughts about one prompt.
    pub budget: usize,
}

impl ThinkingOptions {
    /// Most tokens of thoughts from which `inject` learns and of which it reports; `None` where the user wants none.
    pub fn beside_answers(&self) -> Option<usize> {
        (self.asked != ThinkingMode::Off).then_some(self.budget)
    }

    /// Most tokens of thoughts before every answer; `None` where answers begin at once.
    pub fn before_answers(&self) -> Option<usize> {
        (self.asked == ThinkingMode::On).then_some(self.budget)
    }
}

/// How to run a model.
#[derive(Debug, Clone, PartialEq)]
pub struct RunOptions {
    /// CPU threads.
    pub threads: usize,
    /// What runs on GPUs or RPC workers.
    pub offload: Offload,
    /// Folder of further patches.
    pub patches: Option<PathBuf>,
}

/// Options of `inject`, and of `search`, which is the same up to the search.
#[derive(Debug, Clone)]
pub struct InjectOptions {
    /// The model.
    pub source: Source,
    /// Where to write; in place the model itself.
    pub output: PathBuf,
    /// Whether the model itself is changed.
    pub in_place: bool,
    /// What is done to the weights, where the user says so.
    pub asked_method: Option<Method>,
    /// What is done to the weights: what the user says or, once the model is known, what it allows.
    pub method: Method,
    /// Layer, strength and budget.
    pub search: SearchOptions,
    /// The stored edit that is applied in place of a search.
    pub edit: Option<PathBuf>,
    /// Whether a stopped search goes on.
    pub resume: bool,
    /// Most bytes of the writers' inputs.
    pub memory: u64,
    /// How edited tensors are quantized.
    pub requant: Requant,
    /// Importance matrix of the model's weights.
    pub imatrix: Option<PathBuf>,
    /// The user's prompt files; empty = bundled.
    pub prompts: Vec<PathBuf>,
    /// Safety system prompt.
    pub system_prompt: SystemPrompt,
    /// System prompts under which the model will run.
    pub contexts: Vec<String>,
    /// Thoughts before answers.
    pub thinking: ThinkingOptions,
    /// Only this direction source.
    pub direction_source: Option<DirectionSource>,
    /// Where the JSON report goes.
    pub report: Option<PathBuf>,
    /// Where the report goes as a page.
    pub html: Option<PathBuf>,
    /// Whether the JSON report goes to stdout.
    pub json: bool,
    /// Whether nothing is run or written.
    pub dry_run: bool,
    /// Whether to overwrite what is written.
    pub overwrite: bool,
    /// Which checks are waived.
    pub allow: Allow,
    /// Whether a stored edit of other weights is applied.
    pub allow_other_weights: bool,
    /// Where the adapter goes.
    pub save_adapter: Option<PathBuf>,
    /// What the Ollama server is to call it.
    pub ollama_create: Option<Name>,
    /// Whether the controls are run.
    pub controls: bool,
    /// Whether the report keeps whole answers.
    pub full_answers: bool,
    /// Seed of the random control.
    pub seed: u64,
    /// How to run the model.
    pub run: RunOptions,
}

impl InjectOptions {
    /// The same with a method that was not asked for, and all that goes with it.
    ///
    /// # Errors
    /// [`Error::Option`] for a strength or a κ that the method does not know.
    pub fn with_method(&self, method: Method) -> Result<Self, Error> {
        check_strength(self.search.strength, method)?;
        check_contrast(self.search.contrast, method)?;
        // The published edit buys refusals with false ones at every strength (docs/notebook/linear-gates.md), so it has no
        // limit unless one is given.
        let max_false_refusal =
            self.search.max_false_refusal.or((method == Method::Published).then_some(1.0));
        let search = SearchOptions { max_false_refusal, ..self.search };
        Ok(Self { method, search, ..self.clone() })
    }
}

fn option(flag: &'static str, problem: String, hint: &str) -> Error {
    Error::Option { flag, problem, hint: Some(hint.to_owned()) }
}

/// What strengths mean.
pub const STRENGTHS: &str = "detectors push by so many lengths of the direction (6 to 12); of the other methods 0.04 changes the edited weights by 4 %";

/// Refuses a strength beyond the largest of the method.
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

/// Refuses a κ where nothing has one.
fn check_contrast(contrast: Option<f64>, method: Method) -> Result<(), Error> {
    match contrast {
        Some(_) if method == Method::Published => {
            let problem = "goes with --method detector or contrast, found published".to_owned();
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
