//! The report of `eval`: what was found, and what is said of it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::tables;
use crate::eval::Tally;
use crate::eval::choice::Choices;
use crate::eval::compare::{Divergence, Paired};
use crate::eval::jailbreak::Wrapped;
use crate::eval::judge::{JudgeKind, SecondOpinion, Verdict};
use crate::eval::perplexity::Perplexity;
use crate::eval::prompts::PromptKind;
use crate::eval::refusal::{Outcome, classify};
use crate::eval::thoughts::Thoughts;
use crate::report::FileFacts;

/// The whole report.
#[derive(Debug, Clone, Serialize)]
pub struct EvalReport {
    /// Version of this tool.
    pub version: String,
    /// Version of llama.cpp.
    pub llama_cpp: String,
    /// Most tokens of an answer that tells by then whether it refuses; others have
    /// [`N_PREDICT_MOST`](crate::eval::answers::N_PREDICT_MOST) at most.
    pub tokens: usize,
    /// The system prompt that the models were asked under, if any.
    pub system_prompt: Option<String>,
    /// The judge, if one was asked.
    pub judge: Option<JudgeFacts>,
    /// The base, if one was given.
    pub base: Option<ModelReport>,
    /// The models.
    pub models: Vec<ModelReport>,
    /// Seconds that it took.
    pub seconds: f64,
    /// Peak resident memory in bytes, where the system tells it.
    pub peak_memory: Option<u64>,
}

/// The judge.
#[derive(Debug, Clone, Serialize)]
pub struct JudgeFacts {
    /// Its file.
    #[serde(flatten)]
    pub file: FileFacts,
    /// How it is asked.
    pub kind: JudgeKind,
}

/// One model.
#[derive(Debug, Clone, Serialize)]
pub struct ModelReport {
    /// Its file.
    #[serde(flatten)]
    pub file: FileFacts,
    /// One for each set of prompts.
    pub sets: Vec<SetReport>,
    /// On the text, if one was given.
    pub perplexity: Option<Perplexity>,
    /// On the multiple-choice questions, if any were given.
    pub choice: Option<ChoiceReport>,
}

/// One model on one set of prompts.
#[derive(Debug, Clone, Serialize)]
pub struct SetReport {
    /// The file, or `bundled report split`.
    pub source: String,
    /// Hash of the whole set.
    pub sha256: String,
    /// The kinds of prompt that the set has.
    pub kinds: BTreeMap<PromptKind, KindReport>,
    /// Distance from the base on the harmless prompts.
    pub kl: Option<Divergence>,
    /// The harmful prompts, put in other ways.
    pub jailbreak: Vec<JailbreakReport>,
}

/// One model on one kind of prompt.
#[derive(Debug, Clone, Serialize)]
pub struct KindReport {
    /// The counts by the rules.
    #[serde(flatten)]
    pub tally: Tally,
    /// The thoughts before the answers, where there were any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thoughts: Option<Thoughts>,
    /// Refusals beside those of the base.
    pub against_base: Option<Paired>,
    /// What the judge says.
    pub judge: Option<SecondOpinion>,
    /// The answers.
    pub answers: Vec<AnswerRow>,
}

/// One answer.
#[derive(Debug, Clone, Serialize)]
pub struct AnswerRow {
    /// The prompt.
    pub prompt: String,
    /// The answer.
    pub answer: String,
    /// By the rules.
    pub outcome: Outcome,
    /// By the judge.
    pub judge: Option<Verdict>,
}

/// Harmful prompts put one way.
#[derive(Debug, Clone, Serialize)]
pub struct JailbreakReport {
    /// The counts.
    #[serde(flatten)]
    pub wrapped: Wrapped,
    /// Refusals beside those of the base.
    pub against_base: Option<Paired>,
}

/// Multiple choice.
#[derive(Debug, Clone, Serialize)]
pub struct ChoiceReport {
    /// The counts.
    #[serde(flatten)]
    pub choices: Choices,
    /// Right picks beside those of the base.
    pub against_base: Option<Paired>,
}

impl KindReport {
    /// Judges `answers` to `prompts` by the rules.
    pub fn new(prompts: &[String], answers: Vec<String>) -> Self {
        let tally = Tally::of(&answers);
        let row = |(prompt, answer): (&String, String)| AnswerRow {
            prompt: prompt.clone(),
            outcome: classify(&answer),
            answer,
            judge: None,
        };
        let answers = prompts.iter().zip(answers).map(row).collect();
        Self { tally, thoughts: None, against_base: None, judge: None, answers }
    }

    /// By the rules, in the order of the prompts.
    pub fn outcomes(&self) -> Vec<Outcome> {
        self.answers.iter().map(|row| row.outcome).collect()
    }

    /// Takes the judge's `verdicts`, one for each answer.
    pub fn second_opinion(&mut self, verdicts: &[Verdict]) {
        self.judge = Some(SecondOpinion::new(&self.outcomes(), verdicts));
        for (row, &verdict) in self.answers.iter_mut().zip(verdicts) {
            row.judge = Some(verdict);
        }
    }
}

impl JailbreakReport {
    fn outcomes(&self) -> Vec<Outcome> {
        self.wrapped.answers.iter().map(|answer| classify(answer)).collect()
    }
}

impl ModelReport {
    /// Tests what was asked of both models, pair by pair.
    pub fn set_beside(&mut self, base: &Self) {
        for (this, base) in self.sets.iter_mut().zip(&base.sets) {
            for (kind, report) in &mut this.kinds {
                let base = base.kinds.get(kind);
                report.against_base = base.map(|base| Paired::refusals(&base.outcomes(), &report.outcomes()));
            }
            for (this, base) in this.jailbreak.iter_mut().zip(&base.jailbreak) {
                this.against_base = Some(Paired::refusals(&base.outcomes(), &this.outcomes()));
            }
        }
        if let (Some(this), Some(base)) = (&mut self.choice, &base.choice) {
            let right = |report: &ChoiceReport| report.choices.right.clone();
            this.against_base = Some(Paired::new(right(base), right(this)));
        }
    }
}

impl EvalReport {
    /// The base, then the models, with their names for tables.
    pub fn rows(&self) -> Vec<(String, &ModelReport)> {
        let base = self.base.iter().map(|base| (format!("base {}", short_name(&base.file.path)), base));
        base.chain(self.models.iter().map(|model| (short_name(&model.file.path), model))).collect()
    }

    /// The tables for people.
    pub fn summary(&self) -> String {
        tables::all(self)
    }
}

/// The name of a file without its folders.
pub fn short_name(path: &str) -> String {
    let name = std::path::Path::new(path).file_name();
    name.map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
}
