//! The report of an injection: one structure, shown as JSON for scripts, as a summary for terminals and as a page for
//! browsers. The JSON can be read back to produce the other two later.

use serde::{Deserialize, Serialize};

use crate::arch::window::Window;
use crate::eval::prompts::PromptKind;
use crate::eval::refusal::{Outcome, classify};
use crate::eval::thoughts::Thoughts;
use crate::eval::{Evaluation, PerKind, Questions, Score, Tally};
use crate::method::abliteration::AblatedDirection;
use crate::method::detector::train::Profile;
use crate::method::direction::Separation;
use crate::method::edit::Method;
use crate::method::fidelity::{Fidelity, Projections};
use crate::method::search::{DirectionSource, ExtractionPrompt, SearchResult, SourceOutcome};
use crate::method::verify::Verification;
use crate::output::Stage;

mod contexts;
mod file;
mod html;
mod judge;
mod summary;
#[cfg(test)]
mod tests;

pub use file::ReportError;
pub use judge::{JudgeFacts, JudgeReport};

/// Share of the edit that a file must contain to count as verified.
pub const MIN_SURVIVAL: f64 = 0.9;
/// Characters of an answer that the report keeps, unless full answers are requested.
const SHORT_ANSWER: usize = 60;

/// The full report of `inject`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Version of this tool.
    pub version: String,
    /// Version of the linked llama.cpp.
    pub llama_cpp: String,
    /// The model file that was edited.
    pub input: FileFacts,
    /// The file that was written.
    pub output: FileFacts,
    /// The stored edit that was applied, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_edit: Option<FileFacts>,
    /// `general.architecture`.
    pub architecture: String,
    /// The prompts that were used.
    pub prompts: PromptFacts,
    /// Parameters of the edit.
    pub edit: EditFacts,
    /// The direction that was removed from the weights before, if any.
    pub ablated: Option<AblatedDirection>,
    /// Results of each direction source that was tried, on the search split.
    pub direction_sources: Vec<SourceOutcome>,
    /// Separation of harmful from harmless prompts per layer, on the extract split.
    pub separation: Vec<Separation>,
    /// Every trial on the search split.
    pub search: SearchResult,
    /// Scores on the report split, which neither extraction nor search used.
    pub scores: Scores,
    /// What changed in the written file.
    pub verification: Verification,
    /// How closely the written file follows the exact edit.
    pub fidelity: Fidelity,
    /// Projections of prompts on the direction, before and after; absent in reports of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projections: Option<Projections>,
    /// Results with thinking turned on, for a model that can think before it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<ThinkingReport>,
    /// The judge's verdicts on the answers to the report split, if a judge was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<JudgeReport>,
    /// Answers to the report split before and after.
    pub answers: Vec<AnswerPair>,
    /// Duration in seconds.
    pub seconds: f64,
    /// Duration of each stage.
    #[serde(default)]
    pub stages: Vec<Stage>,
    /// CPU seconds of all threads, if the system reports them.
    #[serde(default)]
    pub cpu_seconds: Option<f64>,
    /// Peak resident memory in bytes, if the system reports it.
    pub peak_memory: Option<u64>,
}

/// Answers that a thinking model gives after its thoughts, on prompts of the report split.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ThinkingReport {
    /// Marker that opens a thought.
    pub open: String,
    /// Marker that closes a thought.
    pub close: String,
    /// Token limit for the thoughts about one prompt.
    pub budget: usize,
    /// Results of the base.
    pub base: Thoughtful,
    /// Results of the written file.
    pub written: Thoughtful,
}

/// Counts of answers after thoughts. If the thoughts do not end within their limit, the answer counts as undecided.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Thoughtful {
    /// Answers to harmful prompts.
    pub harmful: Tally,
    /// Answers to harmless prompts.
    pub harmless: Tally,
    /// Answers to borderline prompts.
    pub borderline: Tally,
    /// Statistics of the thoughts.
    pub thoughts: Thoughts,
}

impl Thoughtful {
    /// Returns the outcomes by kind.
    pub fn by_kind(&self) -> PerKind<Tally> {
        let Self { harmful, harmless, borderline, .. } = *self;
        PerKind { harmful, harmless, borderline }
    }
}

/// Identity of one file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FileFacts {
    /// Path as given.
    pub path: String,
    /// sha256 of the contents, in hexadecimal.
    pub sha256: String,
    /// Size in bytes.
    pub bytes: u64,
}

/// Identity and numbers of the prompts that were used.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PromptFacts {
    /// `bundled`, or the names of the prompt files.
    pub source: String,
    /// sha256 of the set.
    pub sha256: String,
    /// Numbers of prompts in the extract split.
    pub extract: PerKind<usize>,
    /// Numbers of prompts in the search split.
    pub search: PerKind<usize>,
    /// Numbers of prompts in the report split.
    pub report: PerKind<usize>,
}

/// Parameters of the edit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EditFacts {
    /// Name of the method.
    pub method: String,
    /// Where the direction comes from.
    pub direction_source: DirectionSource,
    /// System prompt during extraction.
    pub system_prompt: ExtractionPrompt,
    /// Layer of the direction; for an ablated direction, the middle layer of the model.
    pub layer: usize,
    /// Layers whose writers were edited.
    pub window: Window,
    /// κ of the gate: how strongly borderline prompts are pushed the other way. For detectors, the pull as a share of
    /// the push.
    pub contrast: f64,
    /// Requested relative Frobenius change of the matrices; for detectors, the push.
    pub strength: f64,
    /// α of the formula.
    pub alpha: f64,
    /// Number of edited matrices.
    pub writers: usize,
    /// Number of edited matrices that push away from refusal on harmful prompts (α·rightᵀx < 0).
    pub writers_against: usize,
    /// Number of experts left unedited because no prompt was routed to them while the gates were trained.
    pub experts_unrouted: usize,
    /// Σ over writers of α·rightᵀ mean(x_harmful), in units of ‖s‖; for detectors, the push when all are open.
    pub push: f64,
    /// Behavior of each detector gate on its training data, by held-out scores; empty without detectors and for a
    /// stored edit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<Profile>,
}

/// Scores of the models and controls on the report split.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Scores {
    /// The original model.
    pub base: Score,
    /// Control: the edit applied exactly, as an adapter.
    pub exact: Option<Score>,
    /// The written file.
    pub written: Score,
    /// Control: a random direction of the same size, applied exactly.
    pub random_direction: Option<Score>,
    /// Control: the published edit along the same direction, at the exact edit's KL, applied exactly.
    pub published_at_same_kl: Option<Score>,
    /// Control: the same tensors requantized without an edit.
    pub requantized: Option<Score>,
    /// Why the requantized control is missing, if it was requested but could not be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requantized_left_out: Option<String>,
}

impl Scores {
    /// Returns every available score with its name: base, exact edit, written file, controls.
    pub fn named(&self) -> Vec<(&'static str, &Score)> {
        let all = [
            ("base", Some(&self.base)),
            ("exact edit", self.exact.as_ref()),
            ("written file", Some(&self.written)),
            ("random direction", self.random_direction.as_ref()),
            ("published edit", self.published_at_same_kl.as_ref()),
            ("requantized only", self.requantized.as_ref()),
        ];
        all.into_iter().filter_map(|(name, score)| score.map(|score| (name, score))).collect()
    }
}

/// The answers to one prompt before and after the edit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AnswerPair {
    /// Kind of the prompt.
    pub kind: PromptKind,
    /// The prompt.
    pub prompt: String,
    /// The base's answer.
    pub before: String,
    /// The written file's answer.
    pub after: String,
    /// Outcomes of the full answers, before and after; absent in reports of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcomes: Option<[Outcome; 2]>,
}

impl AnswerPair {
    /// Pairs the answers to prompts of all kinds, truncating them unless `full` is set.
    pub fn all(prompts: &Questions, before: &Evaluation, after: &Evaluation, full: bool) -> Vec<Self> {
        let cut = |text: &String| match text.char_indices().nth(SHORT_ANSWER) {
            Some((end, _)) if !full => format!("{}…", &text[..end]),
            _ => text.clone(),
        };
        let mut pairs = Vec::new();
        for (kind, prompts) in prompts.iter() {
            for (i, prompt) in prompts.iter().enumerate() {
                let (before, after) = (&before.answers[kind][i], &after.answers[kind][i]);
                pairs.push(Self {
                    kind,
                    prompt: prompt.clone(),
                    before: cut(before),
                    after: cut(after),
                    outcomes: Some([classify(before), classify(after)]),
                });
            }
        }
        pairs
    }
}

impl Report {
    /// Returns whether the edit is made of detector neurons.
    fn is_detector(&self) -> bool {
        self.edit.method == Method::Detector.name()
    }

    /// Returns whether at least [`MIN_SURVIVAL`] of the edit is in the file; detector neurons must also match the exact
    /// ones.
    pub fn survived(&self) -> bool {
        self.verification.arrived(MIN_SURVIVAL)
    }
}

/// Returns the CPU seconds of all threads of this process, or `None` if the system does not report them.
pub fn cpu_seconds() -> Option<f64> {
    /// Clock ticks per second in /proc, on every Linux.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Parse after the program's name, which may contain anything: state is field 3, user and system time are 14 and 15.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
    Some((ticks(14)? + ticks(15)?) / TICKS)
}

/// Returns the peak resident memory of this process in bytes, or `None` if the system does not report it.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}
