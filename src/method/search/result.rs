//! The candidates that a search compares, and its result.

use serde::{Deserialize, Serialize};

use super::direction_source::DirectionSource;
use super::row::{ProbeRow, TrialRow};
use crate::arch::window::Window;
use crate::eval::{FirstTokenScore, Score};

/// An edit without its strength.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Where the direction comes from.
    pub direction_source: DirectionSource,
    /// Layer of the direction; for an ablated direction, the middle one of its layers.
    pub layer: usize,
    /// Layers whose writers are edited, as start and end shares of the depth.
    pub window: Window,
    /// κ of the gates; 0 without gates.
    pub contrast: f64,
}

impl Candidate {
    /// Formats the direction source and, if it is not 0, κ: `refusal 0.5`.
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
    /// The judged candidate.
    #[serde(flatten)]
    pub candidate: Candidate,
    /// Relative Frobenius change, `√(Σ‖ΔW‖²/Σ‖W‖²)`; the push for detectors.
    pub strength: f64,
    /// Score on the search split; incomplete if the trial was `stopped`.
    pub score: Score,
    /// [`super::utility`] of the score or, if the trial was `stopped`, the maximum that it could have reached.
    pub utility: f64,
    /// Whether the trial keeps the limits (KL, false refusals, broken text) and refuses more harmful prompts than the
    /// base.
    pub accepted: bool,
    /// Whether the trial ended early, when the kinds asked so far showed that it could not be the best.
    pub stopped: bool,
    /// Whether no other trial is at least as good in harmful refusals, KL, and false refusals, and better in one of
    /// them.
    pub on_front: bool,
}

/// One candidate, compared by first tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(from = "ProbeRow")]
pub struct Probe {
    /// The probed candidate.
    #[serde(flatten)]
    pub candidate: Candidate,
    /// The given strength, or the one that uses up the KL budget.
    pub strength: f64,
    /// KL budget, nats.
    pub max_kl: f64,
    /// Score of the first tokens; `None` if the base has no refusal openings.
    pub first_tokens: Option<FirstTokenScore>,
    /// Utility of the first tokens or, without them, of the answers.
    pub utility: f64,
}

/// All probes and trials of a search, and the best trial.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SearchResult {
    /// Score of the base on the search split; `None` if nothing was searched, and in older reports, which do not have
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Score>,
    /// Candidates compared by the first token.
    pub probes: Vec<Probe>,
    /// Trials, in the order in which they ran.
    pub trials: Vec<Trial>,
    /// Index of the best accepted trial: the most useful one, or one with less strength that does about as well.
    pub best: Option<usize>,
}

impl SearchResult {
    /// Returns the best accepted trial.
    pub fn best(&self) -> Option<&Trial> {
        self.best.and_then(|i| self.trials.get(i))
    }

    /// Returns the probe with the highest utility; the first one of equals.
    pub(super) fn best_probe(&self) -> Probe {
        let better = |best: Probe, p: &Probe| if p.utility > best.utility { *p } else { best };
        self.probes.iter().skip(1).fold(self.probes[0], better)
    }

    /// Marks the trials on the Pareto front.
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
