//! What is said about an injection: one structure, as JSON for scripts, as a summary for terminals and as a
//! page for browsers. The JSON is read back, so that the other two can be had from it later.

use serde::{Deserialize, Serialize};

use crate::eval::prompts::PromptKind;
use crate::eval::refusal::{Outcome, classify};
use crate::eval::thoughts::Thoughts;
use crate::eval::{Evaluation, Score, Tally};
use crate::method::abliteration::AblatedDirection;
use crate::method::detector::train::Profile;
use crate::method::direction::Separation;
use crate::method::edit::Method;
use crate::method::fidelity::{Fidelity, Projections};
use crate::method::search::{DirectionSource, SearchResult, SourceOutcome};
use crate::method::verify::Verification;
use crate::output::Stage;

mod contexts;
mod file;
mod html;
mod summary;
#[cfg(test)]
mod tests;

pub use file::ReportError;

/// Share of the edit that must arrive for a file to count as verified.
pub const MIN_SURVIVAL: f64 = 0.9;
/// Characters of an answer that the report keeps unless asked for all.
const SHORT_ANSWER: usize = 60;

/// The whole report of `inject`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Version of this tool.
    pub version: String,
    /// Version of llama.cpp.
    pub llama_cpp: String,
    /// The file that was injected.
    pub input: FileFacts,
    /// The file that was written.
    pub output: FileFacts,
    /// The stored edit that was applied, if it was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_edit: Option<FileFacts>,
    /// `general.architecture`.
    pub architecture: String,
    /// Prompts that were used.
    pub prompts: PromptFacts,
    /// What was done.
    pub edit: EditFacts,
    /// What was removed from the weights before, if anything.
    pub ablated: Option<AblatedDirection>,
    /// What each direction source that was tried could do, on the search split.
    pub direction_sources: Vec<SourceOutcome>,
    /// Separation of harmful from harmless per layer, on the extract split.
    pub separation: Vec<Separation>,
    /// Every trial on the search split.
    pub search: SearchResult,
    /// Scores on the report split, which neither extraction nor search saw.
    pub scores: Scores,
    /// What changed in the written file.
    pub verification: Verification,
    /// What the written file does beside the exact edit.
    pub fidelity: Fidelity,
    /// Where prompts lie along the direction, before and after; absent in reports of before it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projections: Option<Projections>,
    /// Answers behind thoughts, of a model that thinks before it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<ThinkingReport>,
    /// Answers to the report split before and after.
    pub answers: Vec<AnswerPair>,
    /// Seconds that it took.
    pub seconds: f64,
    /// Those that each stage took.
    #[serde(default)]
    pub stages: Vec<Stage>,
    /// CPU seconds of all threads, where the system tells them.
    #[serde(default)]
    pub cpu_seconds: Option<f64>,
    /// Peak resident memory in bytes, where the system tells it.
    pub peak_memory: Option<u64>,
}

/// What a model that thinks before it answers says once it has, on prompts of the report split.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ThinkingReport {
    /// What its thoughts begin with.
    pub open: String,
    /// What ends them.
    pub close: String,
    /// Most tokens of thoughts about one prompt.
    pub budget: usize,
    /// The base.
    pub base: Thoughtful,
    /// The written file.
    pub written: Thoughtful,
}

/// Answers behind thoughts; those of thoughts that do not end count as undecided.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Thoughtful {
    /// Harmful prompts.
    pub harmful: Tally,
    /// Harmless prompts.
    pub harmless: Tally,
    /// Borderline prompts.
    pub borderline: Tally,
    /// The thoughts.
    pub thoughts: Thoughts,
}

/// One file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FileFacts {
    /// Path as given.
    pub path: String,
    /// Hash of its bytes.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
}

/// The prompts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PromptFacts {
    /// `bundled`, or the files.
    pub source: String,
    /// Hash of the set.
    pub sha256: String,
    /// Harmful, harmless and borderline prompts in each split.
    pub extract: [usize; 3],
    /// As `extract`.
    pub search: [usize; 3],
    /// As `extract`.
    pub report: [usize; 3],
}

/// The edit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EditFacts {
    /// How the right factor was chosen.
    pub method: String,
    /// Where the direction comes from.
    pub direction_source: DirectionSource,
    /// `none`, `safety` or `user`: the system prompt while extracting.
    pub system_prompt: String,
    /// Layer of the direction; of an ablated direction, the one in the middle of the model.
    pub layer: usize,
    /// Layers whose writers were edited, as shares of the depth: from, until.
    pub window: (f64, f64),
    /// κ of the gate: how far borderline prompts are pushed the other way.
    pub contrast: f64,
    /// Relative Frobenius change asked for.
    pub strength: f64,
    /// α of the formula.
    pub alpha: f64,
    /// Number of edited matrices.
    pub writers: usize,
    /// Of these, how many push away from refusal on harmful prompts (α·rightᵀx < 0).
    pub writers_against: usize,
    /// Experts of the edited matrices that no prompt was routed to while the gates were learned: left alone.
    pub experts_unrouted: usize,
    /// Σ over writers of α·rightᵀ mean(x_harmful), in units of ‖s‖; of detectors what they push by when all are open.
    pub push: f64,
    /// What each gate of detectors does to what it was learned from, by held-out scores; empty where there are none, and of
    /// a stored edit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<Profile>,
}

/// Scores on the report split.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Scores {
    /// The model as it was.
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
    /// Why that control was left out, where it was asked for and could not be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requantized_left_out: Option<String>,
}

impl Scores {
    /// Every score there is with its name: base, exact edit, written file, controls.
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

/// One answer before and after.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AnswerPair {
    /// What the model should do with it.
    pub kind: PromptKind,
    /// The prompt.
    pub prompt: String,
    /// The base's answer.
    pub before: String,
    /// The written file's answer.
    pub after: String,
    /// What the whole answers, before and after, amount to; absent in reports of before it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcomes: Option<[Outcome; 2]>,
}

impl AnswerPair {
    /// Pairs of all kinds; answers cut short unless `full`.
    pub fn all(prompts: [&[String]; 3], before: &Evaluation, after: &Evaluation, full: bool) -> Vec<Self> {
        let cut = |text: &String| match text.char_indices().nth(SHORT_ANSWER) {
            Some((end, _)) if !full => format!("{}…", &text[..end]),
            _ => text.clone(),
        };
        let mut pairs = Vec::new();
        for (k, kind) in PromptKind::ALL.into_iter().enumerate() {
            for (i, prompt) in prompts[k].iter().enumerate() {
                let (before, after) = (&before.answers[k][i], &after.answers[k][i]);
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
    /// Whether neurons were changed, not writers.
    fn is_detector(&self) -> bool {
        self.edit.method == Method::Detector.name()
    }

    /// Whether what was asked for is in the file.
    pub fn survived(&self) -> bool {
        self.verification.arrived(MIN_SURVIVAL)
    }
}

/// CPU seconds of this process, all threads; `None` where the system does not tell.
pub fn cpu_seconds() -> Option<f64> {
    /// Ticks of /proc a second, on every Linux.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Behind the program's name, which may hold anything: state is field 3, user and system time are 14 and 15.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
    Some((ticks(14)? + ticks(15)?) / TICKS)
}

/// Peak resident memory of this process in bytes; `None` where the system does not tell.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}
