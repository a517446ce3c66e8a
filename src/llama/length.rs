//! Lengths of answers: the same for all, or longer for those whose text is still inconclusive.

use super::LlamaError;
use super::engine::{FirstLogits, LlamaEngine};
use super::ffi::Token;

/// Predicate on the text of an answer: whether the answer is still open, that is, must be continued.
pub type Open<'a> = dyn Fn(&str) -> bool + 'a;

/// Limits on the length of answers.
#[derive(Clone, Copy)]
pub struct Length<'a> {
    /// Number of tokens of every answer that does not end earlier.
    pub n_predict: usize,
    /// Maximum number of tokens of an answer that is still open after `n_predict` tokens.
    pub most: usize,
    /// Whether an answer is still open.
    pub open: &'a Open<'a>,
}

impl Length<'_> {
    /// Creates a fixed limit of `n_predict` tokens for all answers.
    pub fn of(n_predict: usize) -> Self {
        Self { n_predict, most: n_predict, open: &|_| false }
    }
}

impl LlamaEngine {
    /// Like [`Engine::answer_until`](super::Engine::answer_until), for tokenized prompts.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if decoding fails.
    pub fn answer_tokens_until(
        &mut self,
        mut prompts: Vec<Vec<Token>>,
        length: &Length<'_>,
        first: &mut FirstLogits<'_>,
    ) -> Result<Vec<String>, LlamaError> {
        let mut answers = self.generate(&prompts, length.n_predict, &|_, _| true, first)?;
        let more = length.most.saturating_sub(length.n_predict);
        let goes_on = |i: &usize| {
            let (prompt, answer) = (&prompts[*i], &answers[*i]);
            // A shorter answer has ended, and one that exceeds the prompt limit cannot be read again.
            answer.len() == length.n_predict
                && prompt.len() + answer.len() <= self.prompt_tokens
                && (length.open)(&self.model.detokenize(answer))
        };
        let open: Vec<usize> = (0..answers.len()).filter(|i| more > 0 && goes_on(i)).collect();
        let so_far: Vec<Vec<Token>> = open
            .iter()
            .map(|&i| {
                prompts[i].extend(&answers[i]);
                std::mem::take(&mut prompts[i])
            })
            .collect();
        let model = self.model.clone();
        let still_open = |i: usize, tokens: &[Token]| {
            (length.open)(&model.detokenize(&[&answers[open[i]], tokens].concat()))
        };
        let rest = self.generate(&so_far, more, &still_open, &mut |_, _| ())?;
        for (&i, rest) in open.iter().zip(rest) {
            answers[i].extend(rest);
        }
        Ok(answers.iter().map(|tokens| self.model.detokenize(tokens)).collect())
    }
}
