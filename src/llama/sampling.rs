//! Sampling of answers, as the servers do by default that people run models with.
//!
//! ```text
//! 1. the TOP_K tokens of largest logits;
//! 2. of these, the most likely ones whose probabilities, softmax(logits), add up to at least TOP_P;
//! 3. one of these, with probability softmax(logits / temperature).
//! ```
//!
//! The random number is a hash of the tokens before: the same call gives the same answers, and two models that say the
//! same draw the same number. In another batch, rounding shifts the probabilities by some hundredths, so a few tokens in
//! a hundred differ.

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::ffi::Token;
use crate::util::largest::largest;

/// Number of tokens to choose from: `top_k` of Ollama and llama.cpp.
pub const TOP_K: usize = 40;
/// Probability to choose from: `top_p` of Ollama.
pub const TOP_P: f64 = 0.9;

/// How to choose the tokens of answers that are not greedy.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sampling {
    /// Positive; below 1, likely tokens become likelier.
    pub temperature: f64,
}

impl Sampling {
    /// Returns the token that follows `before` (the parts of one sequence), given its `logits` `[n_vocab]`; `None` if a
    /// logit is NaN or +∞.
    pub(super) fn pick(&self, logits: &[f32], before: &[&[Token]]) -> Option<Token> {
        let likely = most_likely(logits)?;
        let weights = |temperature: f64| -> Vec<f64> {
            let weight = |&token: &usize| (f64::from(logits[token] - logits[likely[0]]) / temperature).exp();
            likely.iter().map(weight).collect()
        };
        let kept = reached(&weights(1.0), TOP_P) + 1;
        let weights = &weights(self.temperature)[..kept];
        Token::try_from(likely[reached(weights, random(before))]).ok()
    }
}

/// Returns the indices of the [`TOP_K`] largest logits, the largest first; `None` if there is none, or one is NaN or +∞.
fn most_likely(logits: &[f32]) -> Option<Vec<usize>> {
    let tokens = largest(logits, TOP_K);
    let unusable = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
    let possible = tokens.first().is_some_and(|&token| logits[token].is_finite());
    (possible && !logits.iter().any(unusable)).then_some(tokens)
}

/// Returns the first index at which the sum of `weights` so far exceeds `share` of the whole sum.
fn reached(weights: &[f64], share: f64) -> usize {
    let wanted = share * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let found = weights.iter().position(|weight| {
        sum += weight;
        sum > wanted
    });
    found.unwrap_or(weights.len() - 1)
}

/// Returns a number in [0, 1) that depends on `tokens` only.
fn random(tokens: &[&[Token]]) -> f64 {
    let mut hash = Sha256::new();
    for token in tokens.iter().copied().flatten() {
        hash.update(token.to_le_bytes());
    }
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash.finalize()[..8]);
    // 53 bits: the precision of f64.
    (u64::from_le_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns how often each of four tokens is drawn in 4,000 sequences.
    fn drawn(temperature: f64, probabilities: [f32; 4]) -> [usize; 4] {
        let logits = probabilities.map(f32::ln);
        let mut counts = [0; 4];
        for i in 0..4000 {
            counts[Sampling { temperature }.pick(&logits, &[&[1, 2], &[i]]).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn tokens_are_drawn_by_probability_and_temperature() {
        let near = |found: usize, share: f64| (found as f64 / 4000.0 - share).abs() < 0.03;
        // .95 is left after TOP_P: the last token is never drawn.
        let counts = drawn(1.0, [0.05, 0.5, 0.25, 0.2]);
        assert!(counts[0] == 0 && near(counts[1], 0.5 / 0.95) && near(counts[3], 0.2 / 0.95), "{counts:?}");
        // At .5, probabilities are squared.
        let counts = drawn(0.5, [0.4, 0.3, 0.25, 0.05]);
        assert!(near(counts[0], 0.16 / 0.3125) && near(counts[2], 0.0625 / 0.3125), "{counts:?}");
        assert_eq!(drawn(0.01, [0.3, 0.4, 0.2, 0.1]), [0, 4000, 0, 0]);
    }

    #[test]
    fn what_came_before_decides() {
        let logits: Vec<f32> = (0..100).map(|i| (i % 7) as f32 * 0.1).collect();
        let sampling = Sampling { temperature: 0.8 };
        let pick = |before: &[&[Token]]| sampling.pick(&logits, before).unwrap();
        assert_eq!(pick(&[&[5, 6], &[7]]), pick(&[&[5], &[6, 7]]));
        let picks: std::collections::BTreeSet<Token> = (0..60).map(|i| pick(&[&[i]])).collect();
        assert!(picks.len() > 10 && picks.iter().all(|token| token % 7 >= 4), "{picks:?}");
    }

    #[test]
    fn what_is_no_distribution_gives_no_token() {
        let pick = |logits: &[f32]| Sampling { temperature: 0.8 }.pick(logits, &[]);
        assert_eq!(pick(&[]), None);
        assert_eq!(pick(&[0.0, f32::NAN]), None);
        assert_eq!(pick(&[0.0, f32::INFINITY]), None);
        assert_eq!(pick(&[f32::NEG_INFINITY; 2]), None);
        assert_eq!(pick(&[f32::NEG_INFINITY, 2.0]), Some(1));
    }
}
