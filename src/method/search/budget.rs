//! Finds the strength that uses up a KL budget.

use super::SearchError;
use super::WEAKEST;
use crate::eval::Evaluator;
use crate::llama::{Engine, LowRank};

/// Shares of the KL budget at which a probe is close enough.
const CLOSE: std::ops::RangeInclusive<f64> = 0.8..=1.0;
/// Maximum number of probes per candidate.
const MAX_PROBES: usize = 4;
/// Share of the budget that the next strength should use.
const AIM: f64 = 0.85;
/// Approximate share of a budget that the strength found spends.
const FOUND: f64 = 0.9;
/// Factors of the strength that need no new measurement: over such a small change, the KL grows with a power of 1.6 to
/// 2.4 of the strength (1.9 to 2.2 on Qwen2.5-Coder-0.5B), so a strength that should use .85 of the budget uses
/// .74-.98. If the KL grows faster, the trial reveals it and is repeated with less strength.
const TRUSTED: std::ops::RangeInclusive<f64> = 0.7..=1.4;
/// Power of the strength with which the KL grows, until two measurements show it.
const POWER: f64 = 2.0;
/// Range of that power: 1.6 to 4.3 were measured, the largest for pushes of detectors that exceed the budget.
const POWERS: std::ops::RangeInclusive<f64> = 1.5..=6.0;

/// The share of the budget that a strength uses.
#[derive(Clone, Copy)]
pub(super) struct Spent {
    pub(super) strength: f64,
    /// KL over the budget.
    pub(super) share: f64,
}

impl Spent {
    /// Returns the factor, 0.25 to 4, by which to multiply the strength so that it uses [`AIM`], given an earlier
    /// measurement at another strength.
    pub(super) fn next(self, earlier: Option<Self>) -> f64 {
        let power = earlier.map_or(POWER, |earlier| self.power(earlier));
        let factor =
            if self.share.is_finite() { (AIM / self.share.max(1e-6)).powf(power.recip()) } else { 0.0 };
        factor.clamp(0.25, 4.0)
    }

    /// Returns the power of the strength with which the KL grows between the two measurements.
    fn power(self, other: Self) -> f64 {
        let power = (self.share / other.share).ln() / (self.strength / other.strength).ln();
        if power.is_finite() { power.clamp(*POWERS.start(), *POWERS.end()) } else { POWER }
    }
}

/// Makes the edit of a strength.
type MakeEdit<'a> = dyn Fn(f64) -> Result<Vec<LowRank>, SearchError> + 'a;

/// A limit on the KL of an edit, and the means to measure it.
pub struct KlBudget<'a> {
    /// The model.
    pub engine: &'a mut dyn Engine,
    /// Measures the KL.
    pub evaluator: &'a Evaluator,
    /// The budget, nats.
    pub max_kl: f64,
    /// Largest strength to try.
    pub strongest: f64,
}

impl KlBudget<'_> {
    /// Returns the budget, in nats, of which a search spends about `kl`.
    pub fn spending(kl: f64) -> f64 {
        kl / FOUND
    }

    /// Finds the strength that uses most of the budget without exceeding it, beginning at `start`.
    ///
    /// The KL was measured at that strength or at one close to it. If no probe stays within the budget, returns the
    /// strength that would be probed next.
    ///
    /// # Errors
    /// Returns [`SearchError`] if the model cannot be run or an edit cannot be made.
    pub fn strength(self, make: &MakeEdit<'_>, start: f64) -> Result<f64, SearchError> {
        self.strength_after(make, start, None)
    }

    /// Finds that strength when the KL at an `earlier` one is known.
    pub(super) fn strength_after(
        self,
        make: &MakeEdit<'_>,
        start: f64,
        mut earlier: Option<Spent>,
    ) -> Result<f64, SearchError> {
        let mut strength = start;
        let mut within = None;
        for _ in 0..MAX_PROBES {
            self.engine.apply(&make(strength)?)?;
            let spent = Spent { strength, share: self.evaluator.kl(self.engine)? / self.max_kl };
            if spent.share <= 1.0 {
                within = Some(within.map_or(strength, |w: f64| w.max(strength)));
            }
            if CLOSE.contains(&spent.share) {
                break;
            }
            let factor = spent.next(earlier.replace(spent));
            strength = (strength * factor).clamp(WEAKEST, self.strongest);
            if TRUSTED.contains(&factor) {
                return Ok(strength);
            }
        }
        Ok(within.unwrap_or(strength))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_show_how_fast_the_kl_grows() {
        let kl_at =
            |power: f64| move |strength: f64| Spent { strength, share: (strength / 10.0_f64).powf(power) };
        for power in [1.6, 2.0, 3.4, 4.3] {
            let spent = kl_at(power);
            let next = 16.0 * spent(16.0).next(Some(spent(8.0)));
            assert!((spent(next).share - AIM).abs() < 1e-9, "power {power}: {next}");
        }
        let guess = 16.0 * kl_at(3.4)(16.0).next(None);
        assert!(kl_at(3.4)(guess).share < 0.7, "one measurement alone leaves much of the budget");
    }

    #[test]
    fn what_two_measurements_cannot_show_is_guessed() {
        let at = |strength, share| Spent { strength, share };
        let guess = at(4.0, 2.0).next(None);
        for earlier in [at(4.0, 1.0), at(4.0, 2.0), at(2.0, f64::NAN), at(2.0, 0.0)] {
            assert_eq!(
                at(4.0, 2.0).next(Some(earlier)),
                guess,
                "{} of the budget at {}",
                earlier.share,
                earlier.strength
            );
        }
        assert_eq!(at(4.0, f64::NAN).next(None), 0.25, "a broken model gets a quarter");
        assert_eq!(at(4.0, 0.0).next(None), 4.0);
    }
}
