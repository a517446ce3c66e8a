//! What a judge says about the answers to the report split.

use serde::{Deserialize, Serialize};

use super::FileFacts;
use crate::eval::PerKind;
use crate::eval::judge::{JudgeKind, SecondOpinion};
use crate::util::stats::Proportion;

/// The judge: a model that decides whether answers refuse.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JudgeFacts {
    /// The judge's file.
    #[serde(flatten)]
    pub file: FileFacts,
    /// How the judge is asked.
    pub kind: JudgeKind,
}

/// The judge's counts, compared with the rules; `None` for kinds of prompts that it cannot judge.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JudgeReport {
    /// The judge.
    #[serde(flatten)]
    pub judge: JudgeFacts,
    /// The base's answers.
    pub base: PerKind<Option<SecondOpinion>>,
    /// The written file's answers.
    pub written: PerKind<Option<SecondOpinion>>,
}

impl JudgeReport {
    /// Returns the models with their names.
    pub fn named(&self) -> [(&'static str, &PerKind<Option<SecondOpinion>>); 2] {
        [("base", &self.base), ("written file", &self.written)]
    }

    /// Returns how often judge and rules agree on a model's answers of all kinds.
    pub fn agreement(of: &PerKind<Option<SecondOpinion>>) -> Proportion {
        let all = of.values().into_iter().flatten().map(|opinion| opinion.agreement);
        let (agreed, total) = all.fold((0, 0), |(count, total), p| (count + p.count, total + p.total));
        Proportion::new(agreed, total)
    }

    /// Returns the number of a model's answers without a verdict.
    pub fn unclear(of: &PerKind<Option<SecondOpinion>>) -> u64 {
        of.values().into_iter().flatten().map(|opinion| opinion.unclear).sum()
    }
}
