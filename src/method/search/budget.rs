//! The strength that a KL budget pays for.

use super::SearchError;
use super::WEAKEST;
use crate::eval::Evaluator;
use crate::llama::{Engine, LowRank};

/// A probe is close enough when it spends this share of the KL budget.
const CLOSE: std::ops::RangeInclusive<f64> = 0.8..=1.0;
/// Probes per candidate.
const MAX_PROBES: usize = 4;
/// Share of the budget that the next strength is to spend.
const AIM: f64 = 0.85;
/// Changes of the strength that need not be measured again: over so little the KL grows with a power of 1.6 to 2.4 of
/// it (on Qwen2.5-Coder-0.5B 1.9 to 2.2), so one that is to spend .85 of the budget spends .74-.98. Where it grows faster the
/// trial shows it, and is made again with less.
const TRUSTED: std::ops::RangeInclusive<f64> = 0.7..=1.4;

/// What to multiply a strength by that spends so much of the budget, to spend [`AIM`] of it: a quarter to four.
pub(super) fn next(spent: f64) -> f64 {
    let factor = if spent.is_finite() { (AIM / spent.max(1e-6)).sqrt() } else { 0.0 };
    factor.clamp(0.25, 4.0)
}

/// How much KL an edit may cost.
pub struct KlBudget<'a> {
    /// The model.
    pub engine: &'a mut dyn Engine,
    /// Measures the KL.
    pub evaluator: &'a Evaluator,
    /// The budget, nats.
    pub max_kl: f64,
    /// The largest strength.
    pub strongest: f64,
}

impl KlBudget<'_> {
    /// The strength that spends most of the budget without passing it, starting at `start`: measured to do so, or a
    /// small step away from one whose KL was measured.
    ///
    /// # Errors
    /// [`SearchError`].
    pub fn strength(
        self,
        make: &dyn Fn(f64) -> Result<Vec<LowRank>, SearchError>,
        start: f64,
    ) -> Result<f64, SearchError> {
        let mut strength = start;
        let mut within = None;
        for _ in 0..MAX_PROBES {
            self.engine.apply(&make(strength)?)?;
            let spent = self.evaluator.kl(self.engine)? / self.max_kl;
            if spent <= 1.0 {
                within = Some(within.map_or(strength, |w: f64| w.max(strength)));
            }
            if CLOSE.contains(&spent) {
                break;
            }
            let factor = next(spent);
            strength = (strength * factor).clamp(WEAKEST, self.strongest);
            if TRUSTED.contains(&factor) {
                return Ok(strength);
            }
        }
        Ok(within.unwrap_or(strength))
    }
}
