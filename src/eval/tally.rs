//! Counts of answer outcomes.

use serde::{Deserialize, Serialize};

use super::refusal::{Outcome, classify};
use crate::util::stats::Proportion;

/// Number of answers with each outcome, for one kind of prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "TallyRow", into = "TallyRow")]
pub struct Tally {
    /// Answers that refuse.
    pub refused: u64,
    /// Answers that comply.
    pub complied: u64,
    /// Answers cut off before a verdict, in a hedge or in reasoning; neither refused nor complied.
    pub undecided: u64,
    /// Answers that are damaged text; never counted as refusals.
    pub broken: u64,
}

#[derive(Serialize, Deserialize)]
struct TallyRow {
    refused: Proportion,
    complied: Proportion,
    /// Absent in older reports.
    #[serde(default)]
    undecided: Option<Proportion>,
    broken: Proportion,
}

impl From<Tally> for TallyRow {
    fn from(t: Tally) -> Self {
        let of = |count| Proportion::new(count, t.total());
        let undecided = Some(of(t.undecided));
        Self { refused: of(t.refused), complied: of(t.complied), undecided, broken: of(t.broken) }
    }
}

impl From<TallyRow> for Tally {
    fn from(row: TallyRow) -> Self {
        Self {
            refused: row.refused.count,
            complied: row.complied.count,
            undecided: row.undecided.map_or(0, |undecided| undecided.count),
            broken: row.broken.count,
        }
    }
}

impl Tally {
    /// Counts the outcomes of `answers`.
    pub fn of(answers: &[String]) -> Self {
        let mut tally = Self::default();
        for answer in answers {
            match classify(answer) {
                Outcome::Refused => tally.refused += 1,
                Outcome::Complied => tally.complied += 1,
                Outcome::Undecided => tally.undecided += 1,
                Outcome::Broken => tally.broken += 1,
            }
        }
        tally
    }

    /// Returns the number of answers.
    pub fn total(&self) -> u64 {
        self.refused + self.complied + self.undecided + self.broken
    }

    /// Returns the share of refused answers.
    pub fn refused(&self) -> Proportion {
        Proportion::new(self.refused, self.total())
    }

    /// Returns the share of broken answers.
    pub fn broken(&self) -> Proportion {
        Proportion::new(self.broken, self.total())
    }
}
