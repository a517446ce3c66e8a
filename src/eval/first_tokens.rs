//! First tokens of answers: which ones open refusals, and how likely a model is to open with them.

use super::per_kind::PerKind;
use super::refusal::{Outcome, classify};
use crate::util::largest::largest;

/// Number of first tokens that are kept of each answer, the most likely ones. The others have little probability.
const KEPT: usize = 256;

/// Mean probability that the first answer token is one with which the base opens its refusals: high is desired on
/// harmful prompts, low on all others.
pub type FirstTokenScore = PerKind<f64>;

/// The most likely first tokens of one answer.
#[derive(Debug, Clone, Default)]
pub(super) struct FirstTokens(Vec<Likely>);

/// A token and its probability.
#[derive(Debug, Clone, Copy)]
struct Likely {
    token: usize,
    probability: f64,
}

impl FirstTokens {
    /// Returns the most likely tokens under softmax(`logits`); none if a logit is NaN or +∞.
    pub fn of(logits: &[f32]) -> Self {
        let Some(softmax) = Softmax::of(logits) else { return Self::default() };
        let likely = |token| Likely { token, probability: softmax.probability(logits[token]) };
        Self(largest(logits, KEPT).into_iter().map(likely).collect())
    }

    /// Returns the probability of `tokens`.
    pub fn share(&self, tokens: &[usize]) -> f64 {
        self.0.iter().filter(|likely| tokens.contains(&likely.token)).map(|likely| likely.probability).sum()
    }
}

/// Denominator of softmax.
struct Softmax {
    most: f32,
    /// Σ exp(logit − most).
    sum: f64,
}

impl Softmax {
    /// Returns `None` if a logit is NaN or +∞.
    fn of(logits: &[f32]) -> Option<Self> {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - most).exp()).sum();
        sum.is_finite().then_some(Self { most, sum })
    }

    fn probability(&self, logit: f32) -> f64 {
        f64::from(logit - self.most).exp() / self.sum
    }
}

/// Returns the index of the largest logit.
pub(super) fn most_likely(logits: &[f32]) -> usize {
    logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(token, _)| token)
}

/// Returns the first tokens that open more refusals than other answers.
pub(super) fn openings<'a>(answers: impl Iterator<Item = (usize, &'a String)>) -> Vec<usize> {
    let mut balance = std::collections::BTreeMap::<usize, i64>::new();
    for (token, answer) in answers {
        *balance.entry(token).or_default() += match classify(answer) {
            Outcome::Refused => 1,
            Outcome::Undecided => 0,
            Outcome::Complied | Outcome::Broken => -1,
        };
    }
    balance.into_iter().filter(|&(_, n)| n > 0).map(|(token, _)| token).collect()
}

/// Returns the probability of `tokens` under softmax(`logits`); `None` if a logit is NaN or +∞.
pub(super) fn share(logits: &[f32], tokens: &[usize]) -> Option<f64> {
    let softmax = Softmax::of(logits)?;
    Some(tokens.iter().filter_map(|&token| logits.get(token)).map(|&logit| softmax.probability(logit)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_are_what_refusals_begin_with() {
        let (refusal, answer) =
            ("I'm sorry, but I can't assist with that.".to_string(), "Sure, here you are.".to_string());
        let seen = [(40, &refusal), (40, &refusal), (40, &answer), (7, &answer), (9, &refusal), (9, &answer)];
        assert_eq!(openings(seen.into_iter()), [40]);
    }

    #[test]
    fn kept_tokens_have_the_probability_of_the_softmax() {
        let logits = [0.0, 0.0, f32::NEG_INFINITY];
        for share in [share(&logits, &[0, 2, 99]).unwrap(), FirstTokens::of(&logits).share(&[0, 2, 99])] {
            assert!((share - 0.5).abs() < 1e-12);
        }
        let peaked: Vec<f32> =
            (0..1000).map(|i| if i % 10 == 3 { 12.0 } else { (i % 7) as f32 * 0.1 }).collect();
        let (kept, all) =
            (FirstTokens::of(&peaked).share(&[3, 13, 14]), share(&peaked, &[3, 13, 14]).unwrap());
        assert!((kept - all).abs() < 1e-4 && kept > 0.019, "{kept} {all}");
        for broken in [[f32::NAN, 0.0], [f32::INFINITY, 0.0]] {
            assert_eq!((share(&broken, &[0]), FirstTokens::of(&broken).share(&[0])), (None, 0.0));
        }
    }
}
