//! Agreement of the rules with the human labels in `tests/refusal-labels.jsonl`.
//!
//! Each line is an answer, or its beginning, with the label that a person gave it: from real models (`source` names the
//! model and its token limit), from PyPI `pyrit` 1.1.0 (whose authors labeled the whole answers), from the reports of
//! `scripts/evidence` (a random sample; at most two lines begin alike), or `written` in the style of models that were
//! not available. The rules were developed on the lines that are not held out ([`is_held_out`]), including all of
//! pyrit's; the held-out lines were labeled and then only measured.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;

/// Minimum accuracy, maximum share of false refusals, and maximum share of missed refusals.
const ALL: [f64; 3] = [0.945, 0.015, 0.05];
const HELD_OUT: [f64; 3] = [0.935, 0.03, 0.05];
const OTHERS: [f64; 3] = [0.96, 0.0, 0.05];
const REAL: [f64; 3] = [0.925, 0.015, 0.0];
const EVIDENCE: [f64; 3] = [0.945, 0.005, 0.06];

#[derive(Deserialize)]
struct Labelled {
    label: Outcome,
    source: String,
    language: String,
    answer: String,
}

fn labelled() -> Vec<Labelled> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/refusal-labels.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Returns whether the rules were developed without a line. They were developed on all of pyrit's, on those of the
/// evidence that "cannot refuse", and on the others whose FNV-1a hash has bit 32 clear.
fn is_held_out(row: &Labelled) -> bool {
    if row.source.starts_with("evidence") {
        return !row.answer.contains(" refuse");
    }
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = row.answer.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step);
    hash >> 32 & 1 == 1 && !row.source.starts_with("pyrit")
}

/// Agreement counts on some lines.
#[derive(Debug, Default)]
struct Agreement {
    lines: usize,
    right: usize,
    /// Answers labeled as complying; those of them classified as refusals are `false_refusals`.
    complied: usize,
    false_refusals: usize,
    /// Answers labeled as refusals; those of them with another outcome are `missed_refusals`.
    refused: usize,
    missed_refusals: usize,
}

impl Agreement {
    fn of<'a>(rows: impl Iterator<Item = &'a Labelled>) -> Self {
        let mut sum = Self::default();
        for row in rows {
            let said = classify(&row.answer);
            let [refuses, complies] = [Outcome::Refused, Outcome::Complied].map(|o| row.label == o);
            sum.lines += 1;
            sum.right += usize::from(said == row.label);
            sum.complied += usize::from(complies);
            sum.false_refusals += usize::from(complies && said == Outcome::Refused);
            sum.refused += usize::from(refuses);
            sum.missed_refusals += usize::from(refuses && said != Outcome::Refused);
        }
        sum
    }

    /// Returns accuracy, false refusals among complying answers, and missed refusals among refusals, as shares.
    fn shares(&self) -> [f64; 3] {
        let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
        [
            share(self.right, self.lines),
            share(self.false_refusals, self.complied),
            share(self.missed_refusals, self.refused),
        ]
    }

    fn keeps(&self, name: &str, [accuracy, false_refusals, missed]: [f64; 3]) {
        let found = self.shares();
        println!("{name}: {self:?}, shares {found:.3?}");
        let kept = found[0] >= accuracy && found[1] <= false_refusals && found[2] <= missed;
        assert!(kept, "{name}: {self:?}, shares {found:.3?}");
    }
}

#[test]
fn the_rules_agree_with_people() {
    let rows = labelled();
    Agreement::of(rows.iter()).keeps("all", ALL);
    Agreement::of(rows.iter().filter(|row| is_held_out(row))).keeps("held out", HELD_OUT);
    Agreement::of(rows.iter().filter(|row| row.language != "en")).keeps("other languages", OTHERS);
    Agreement::of(rows.iter().filter(|row| row.source.contains("tokens"))).keeps("real models", REAL);
    Agreement::of(rows.iter().filter(|row| row.source.starts_with("evidence"))).keeps("evidence", EVIDENCE);
}

#[test]
fn there_are_labels_enough_of_every_sort() {
    let rows = labelled();
    let mut languages = BTreeMap::<&str, usize>::new();
    for row in &rows {
        *languages.entry(&row.language).or_default() += 1;
        assert!(row.answer.split_whitespace().count() <= 42, "{}", row.answer);
    }
    assert!(rows.len() >= 300 && rows.iter().filter(|row| is_held_out(row)).count() >= 100);
    assert!(languages.len() >= 11 && languages.values().all(|&n| n >= 3), "{languages:?}");
    let answers: std::collections::HashSet<&str> = rows.iter().map(|row| row.answer.as_str()).collect();
    assert_eq!(answers.len(), rows.len(), "duplicate line");
}
