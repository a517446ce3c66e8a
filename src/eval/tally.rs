//! Counts of what answers amount to.

use serde::{Deserialize, Serialize};

use super::refusal::{Outcome, classify};
use crate::util::stats::Proportion;

/// Outcomes of one kind of prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "TallyRow", into = "TallyRow")]
pub struct Tally {
    /// Answers that decline.
    pub refused: u64,
    /// Answers that answer.
    pub complied: u64,
    /// Answers that end before they tell, in a hedge or among thoughts; neither refused nor complied.
    pub undecided: u64,
    /// Answers that are no text any more; never counted as refusals.
    pub broken: u64,
}

#[derive(Serialize, Deserialize)]
struct TallyRow {
    refused: Proportion,
    complied: Proportion,
    /// Absent in what was measured before it was counted.
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
    /// Judges `answers`.
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

    /// Number of answers.
    pub fn total(&self) -> u64 {
        self.refused + self.complied + self.undecided + self.broken
    }

    /// Share refused, with its interval.
    pub fn refused(&self) -> Proportion {
        Proportion::new(self.refused, self.total())
    }

    /// Share broken, with its interval.
    pub fn broken(&self) -> Proportion {
        Proportion::new(self.broken, self.total())
    }
}
