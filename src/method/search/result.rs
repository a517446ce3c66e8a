//! What a search compares, and what it finds.

use serde::{Deserialize, Serialize};

use super::direction_source::DirectionSource;
use super::row::{ProbeRow, TrialRow};
use crate::eval::{FirstTokenScore, Score};

/// One kind of edit, up to its strength.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Where the direction comes from.
    pub direction_source: DirectionSource,
    /// Layer of the direction; of an ablated direction, the one in its middle.
    pub layer: usize,
    /// Layers whose writers are edited, as shares of the depth: from, until.
    pub window: (f64, f64),
    /// κ of the gate; 0 without one.
    pub contrast: f64,
}

impl Candidate {
    /// Its direction source and, where gates have one, its κ: `refusal 0.5`.
    pub fn source_and_contrast(&self) -> String {
        let direction_source = self.direction_source.name();
        if self.contrast > 0.0 {
            format!("{direction_source} {}", self.contrast)
        } else {
            direction_source.to_owned()
        }
    }
}

/// One edit whose answers were judged.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(from = "TrialRow")]
pub struct Trial {
    /// What was edited.
    #[serde(flatten)]
    pub candidate: Candidate,
    /// Relative Frobenius change, `√(Σ‖ΔW‖²/Σ‖W‖²)`.
    pub strength: f64,
    /// What it did on the search split; without the kinds that were not asked, where it was `stopped`.
    pub score: Score,
    /// [`super::utility`] of it, or what that could have become at most.
    pub utility: f64,
    /// Whether it keeps the limits (KL, false refusals, broken text) and refuses more harmful prompts.
    pub accepted: bool,
    /// Whether it was ended when the kinds that had been asked showed that it could not be the best.
    pub stopped: bool,
    /// Whether no other trial refuses as many harmful prompts at less KL and fewer false refusals.
    pub on_front: bool,
}

/// One candidate as its first tokens show it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(from = "ProbeRow")]
pub struct Probe {
    /// What was edited.
    #[serde(flatten)]
    pub candidate: Candidate,
    /// The strength that spends the KL budget.
    pub strength: f64,
    /// That budget, nats.
    pub max_kl: f64,
    /// What the first tokens say; absent where the base has no refusal openings.
    pub first_tokens: Option<FirstTokenScore>,
    /// How good that is.
    pub utility: f64,
}

/// All trials, and which was best.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SearchResult {
    /// The base on the search split; `None` where nothing was searched, and in reports of before it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Score>,
    /// Candidates compared by the first token.
    pub probes: Vec<Probe>,
    /// In the order in which they were made.
    pub trials: Vec<Trial>,
    /// Index of the best accepted trial: the most useful one, or one of less strength that does about as well.
    pub best: Option<usize>,
}

impl SearchResult {
    /// The best accepted trial.
    pub fn best(&self) -> Option<&Trial> {
        self.best.and_then(|i| self.trials.get(i))
    }

    /// The probe with the highest utility; the first of equals.
    pub(super) fn best_probe(&self) -> Probe {
        let better = |best: Probe, p: &Probe| if p.utility > best.utility { *p } else { best };
        self.probes.iter().skip(1).fold(self.probes[0], better)
    }

    /// Marks the trials that no other beats in every respect.
    pub(super) fn mark_front(&mut self) {
        let cost = |t: &Trial| {
            let s = &t.score;
            [-s.harmful.refused().rate(), s.kl, s.harmless.refused().rate(), s.borderline.refused().rate()]
        };
        let costs: Vec<[f64; 4]> = self.trials.iter().filter(|t| !t.stopped).map(cost).collect();
        let beats = |a: &[f64; 4], b: &[f64; 4]| a != b && a.iter().zip(b).all(|(a, b)| a <= b);
        for trial in &mut self.trials {
            let own = cost(trial);
            trial.on_front = !trial.stopped && !costs.iter().any(|other| beats(other, &own));
        }
    }
}
