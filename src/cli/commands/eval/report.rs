//! The report of `eval`: the measurements and their summary.

use std::collections::BTreeMap;

use serde::Serialize;

use super::tables;
use crate::eval::Tally;
use crate::eval::choice::Choices;
use crate::eval::compare::{Divergence, Paired};
use crate::eval::jailbreak::Wrapped;
use crate::eval::judge::{SecondOpinion, Verdict};
use crate::eval::perplexity::Perplexity;
use crate::eval::prompts::PromptKind;
use crate::eval::refusal::{Outcome, classify};
use crate::eval::thoughts::Thoughts;
use crate::llama::Sampling;
use crate::report::{FileFacts, JudgeFacts};

/// The full report of `eval`.
#[derive(Debug, Clone, Serialize)]
pub struct EvalReport {
    /// Version of this tool.
    pub version: String,
    /// Version of llama.cpp.
    pub llama_cpp: String,
    /// Token limit of an answer; one that is still undecided then continues to at most
    /// [`N_PREDICT_MOST`](crate::eval::answers::N_PREDICT_MOST) tokens.
    pub tokens: usize,
    /// How answers were sampled; greedy if `None`.
    pub sampling: Option<Sampling>,
    /// The system prompt that the models were asked under, if any.
    pub system_prompt: Option<String>,
    /// The judge, if one was given.
    pub judge: Option<JudgeFacts>,
    /// The base, if one was given.
    pub base: Option<ModelReport>,
    /// The measured models.
    pub models: Vec<ModelReport>,
    /// Duration in seconds.
    pub seconds: f64,
    /// Peak resident memory in bytes, if the system reports it.
    pub peak_memory: Option<u64>,
}

/// Measurements of one model.
#[derive(Debug, Clone, Serialize)]
pub struct ModelReport {
    /// The model's file.
    #[serde(flatten)]
    pub file: FileFacts,
    /// Results for each set of prompts.
    pub sets: Vec<SetReport>,
    /// Perplexity on the text, if one was given.
    pub perplexity: Option<Perplexity>,
    /// Results on the multiple-choice questions, if any were given.
    pub choice: Option<ChoiceReport>,
}

/// Results of one model on one set of prompts.
#[derive(Debug, Clone, Serialize)]
pub struct SetReport {
    /// Path of the prompt file, or `bundled report split`.
    pub source: String,
    /// sha256 of the whole set.
    pub sha256: String,
    /// Results for each kind of prompt in the set.
    pub kinds: BTreeMap<PromptKind, KindReport>,
    /// KL divergence from the base on the harmless prompts.
    pub kl: Option<Divergence>,
    /// Results on the harmful prompts wrapped in each jailbreak.
    pub jailbreak: Vec<JailbreakReport>,
}

/// Results of one model on one kind of prompt.
#[derive(Debug, Clone, Serialize)]
pub struct KindReport {
    /// Counts of outcomes, classified by rules.
    #[serde(flatten)]
    pub tally: Tally,
    /// Statistics of the thoughts before the answers, if there were any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thoughts: Option<Thoughts>,
    /// Paired comparison of refusals with the base.
    pub against_base: Option<Paired>,
    /// The judge's verdicts, compared with the rules.
    pub judge: Option<SecondOpinion>,
    /// Every prompt with its answer.
    pub answers: Vec<AnswerRow>,
}

/// One prompt with its answer.
#[derive(Debug, Clone, Serialize)]
pub struct AnswerRow {
    /// The prompt.
    pub prompt: String,
    /// The answer.
    pub answer: String,
    /// Outcome according to the rules.
    pub outcome: Outcome,
    /// Verdict of the judge.
    pub judge: Option<Verdict>,
}

/// Results on the harmful prompts wrapped in one jailbreak.
#[derive(Debug, Clone, Serialize)]
pub struct JailbreakReport {
    /// The jailbreak, with its counts and answers.
    #[serde(flatten)]
    pub wrapped: Wrapped,
    /// Paired comparison of refusals with the base.
    pub against_base: Option<Paired>,
}

/// Results on multiple-choice questions.
#[derive(Debug, Clone, Serialize)]
pub struct ChoiceReport {
    /// Counts of right choices, and the picks.
    #[serde(flatten)]
    pub choices: Choices,
    /// Paired comparison of right picks with the base.
    pub against_base: Option<Paired>,
}

impl KindReport {
    /// Classifies `answers` to `prompts` by the rules.
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

    /// Returns the outcomes according to the rules, in the order of the prompts.
    pub fn outcomes(&self) -> Vec<Outcome> {
        self.answers.iter().map(|row| row.outcome).collect()
    }

    /// Returns the prompts with their answers.
    pub fn exchanges(&self) -> Vec<(&str, &str)> {
        self.answers.iter().map(|row| (row.prompt.as_str(), row.answer.as_str())).collect()
    }

    /// Stores the judge's `verdicts`, one for each answer.
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
    /// Adds paired tests of everything that was measured on both models.
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
    /// Returns the base, then the models, each with its name for tables.
    pub fn rows(&self) -> Vec<(String, &ModelReport)> {
        let base = self.base.iter().map(|base| (format!("base {}", short_name(&base.file.path)), base));
        base.chain(self.models.iter().map(|model| (short_name(&model.file.path), model))).collect()
    }

    /// Formats the report as tables.
    pub fn summary(&self) -> String {
        tables::all(self)
    }
}

/// Returns the file name of a path without its directories.
pub fn short_name(path: &str) -> String {
    let name = std::path::Path::new(path).file_name();
    name.map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
}
