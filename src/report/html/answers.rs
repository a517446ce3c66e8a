//! Answers before and after, by kind of prompt.

use serde::Serialize;

use crate::eval::prompts::PromptKind;
use crate::report::AnswerPair;

/// The answers to the prompts of one kind; those that became something else first.
#[derive(Debug, Serialize)]
pub struct Answers<'a> {
    kind: PromptKind,
    /// How many did; `None` where the report does not say what answers amount to.
    changed: Option<usize>,
    rows: Vec<Row<'a>>,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    pair: &'a AnswerPair,
    /// Whether it is refused, answered or broken otherwise than before.
    changed: bool,
}

impl<'a> Answers<'a> {
    /// Of every kind that there is.
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
