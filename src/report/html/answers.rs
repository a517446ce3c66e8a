//! Answers before and after, by kind of prompt.

use serde::Serialize;

use crate::prompts::PromptKind;
use crate::report::AnswerPair;

/// The answers to the prompts of one kind; those that became something else first.
#[derive(Debug, Serialize)]
pub struct Answers<'a> {
    kind: PromptKind,
    changed: usize,
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
            let changed = |pair: &AnswerPair| pair.outcomes.is_some_and(|[before, after]| before != after);
            let own = pairs.iter().filter(|pair| pair.kind == kind);
            let mut rows: Vec<Row> = own.map(|pair| Row { pair, changed: changed(pair) }).collect();
            rows.sort_by_key(|row| !row.changed);
            Self { kind, changed: rows.iter().filter(|row| row.changed).count(), rows }
        };
        PromptKind::ALL.into_iter().map(of).filter(|answers| !answers.rows.is_empty()).collect()
    }
}
