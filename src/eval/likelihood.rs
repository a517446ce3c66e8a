//! Log-likelihoods of a given text.

use crate::llama::{LlamaError, TextModel, Token};
use crate::util::stats::log_sum_exp;

/// Returns `ln p(token)` in nats under the softmax of `logits` `[n_vocab]`, computed in f64 as
/// `l_token − max l − ln Σ exp(l − max l)`.
///
/// Returns `None` if the row contains a NaN or +infinity, masks every token, or lacks the token.
pub fn log_prob(logits: &[f32], token: Token) -> Option<f64> {
    let logit = *logits.get(usize::try_from(token).ok()?)?;
    Some(f64::from(logit) - log_sum_exp(logits)?)
}

/// Returns the log-probability of every token of each continuation, given `context` and the tokens before it, in nats.
///
/// # Errors
/// Returns [`LlamaError`] if decoding fails, and [`LlamaError::Logits`] if a row is not a distribution.
pub fn log_probs(
    model: &mut dyn TextModel,
    context: &[Token],
    continuations: &[Vec<Token>],
) -> Result<Vec<Vec<f64>>, LlamaError> {
    let mut found: Vec<Vec<Option<f64>>> = continuations.iter().map(|c| vec![None; c.len()]).collect();
    model.follow(context, continuations, &mut |seq, i, logits| {
        found[seq][i] = log_prob(logits, continuations[seq][i]);
    })?;
    let whole = |(seq, row): (usize, Vec<Option<f64>>)| {
        let complete: Option<Vec<f64>> = row.into_iter().collect();
        complete.ok_or(LlamaError::Logits { prompt: seq, found: "no distribution" })
    };
    found.into_iter().enumerate().map(whole).collect()
}

/// A test model in which every byte is a token, with logits from `odds`.
#[cfg(test)]
pub struct Bytes {
    /// Logit of the second byte after the first.
    pub odds: fn(u8, u8) -> f32,
    /// Whether the vocabulary requires byte 1 (BOS) before every text.
    pub bos: bool,
    /// Contexts and continuations read so far.
    pub read: Vec<(Vec<Token>, Vec<Vec<Token>>)>,
}

#[cfg(test)]
impl Bytes {
    /// Creates a model with `odds` and no BOS.
    pub fn new(odds: fn(u8, u8) -> f32) -> Self {
        Self { odds, bos: false, read: Vec::new() }
    }
}

#[cfg(test)]
impl TextModel for Bytes {
    fn text_tokens(&self, text: &str, add_special: bool) -> Result<Vec<Token>, LlamaError> {
        let special = (add_special && self.bos).then_some(1);
        Ok(special.into_iter().chain(text.bytes().map(Token::from)).collect())
    }

    fn bos(&self) -> Option<Token> {
        self.bos.then_some(1)
    }

    fn follow(
        &mut self,
        context: &[Token],
        continuations: &[Vec<Token>],
        seen: &mut crate::llama::follow::SeenLogits<'_>,
    ) -> Result<(), LlamaError> {
        self.read.push((context.to_vec(), continuations.to_vec()));
        for (seq, continuation) in continuations.iter().enumerate() {
            let mut before = *context.last().unwrap();
            for (i, &token) in continuation.iter().enumerate() {
                let row: Vec<f32> = (0..=255).map(|b| (self.odds)(before as u8, b)).collect();
                seen(seq, i, &row);
                before = token;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_prob_is_that_of_the_softmax() {
        let logits = [0.0, 3.0_f32.ln(), f32::NEG_INFINITY];
        assert!((log_prob(&logits, 1).unwrap() - 0.75_f64.ln()).abs() < 1e-7);
        assert_eq!(log_prob(&logits, 2), Some(f64::NEG_INFINITY));
        assert_eq!(log_prob(&logits, 3), None);
        assert_eq!(log_prob(&logits, -1), None);
        assert_eq!(log_prob(&[f32::NAN], 0), None);
    }

    #[test]
    fn a_row_that_is_no_distribution_is_an_error() {
        let mut model = Bytes::new(|_, b| if b == 7 { f32::NAN } else { 0.0 });
        let error = log_probs(&mut model, &[1], &[vec![2], vec![3]]).unwrap_err();
        assert!(matches!(error, LlamaError::Logits { prompt: 0, .. }), "{error}");
    }
}
