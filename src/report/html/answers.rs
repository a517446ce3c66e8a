//! The answers before and after the edit, by kind of prompt.

use serde::Serialize;

use crate::eval::prompts::PromptKind;
use crate::report::AnswerPair;

/// The answers to the prompts of one kind, changed outcomes first.
#[derive(Debug, Serialize)]
pub struct Answers<'a> {
    kind: PromptKind,
    /// Number of changed outcomes; `None` if the report has no outcomes.
    changed: Option<usize>,
    rows: Vec<Row<'a>>,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    pair: &'a AnswerPair,
    /// Whether the outcome differs from before.
    changed: bool,
}

impl<'a> Answers<'a> {
    /// Groups the answers by kind, omitting kinds without prompts.
    pub fn by_kind(pairs: &'a [AnswerPair]) -> Vec<Self> {
        let of = |kind| {
            let changed = |pair: &AnswerPair| Some(pair.outcomes?[0] != pair.outcomes?[1]);
            let own: Vec<&AnswerPair> = pairs.iter().filter(|pair| pair.kind == kind).collect();
            let told: Option<Vec<bool>> = own.iter().map(|pair| changed(pair)).collect();
            let row = |pair| Row { pair, changed: changed(pair) == Some(true) };
            let mut rows: Vec<Row> = own.into_iter().map(row).collect();
            rows.sort_by_key(|row| !row.changed);
            Self { kind, changed: told.map(|told| told.into_iter().filter(|&changed| changed).count()), rows }
        };
        PromptKind::ALL.into_iter().map(of).filter(|answers| !answers.rows.is_empty()).collect()
    }
}
