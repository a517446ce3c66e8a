//! How long answers are: alike for all, or longer where a text does not tell enough yet.

use super::LlamaError;
use super::engine::{FirstLogits, LlamaEngine};
use super::ffi::Token;

/// Says of the text of an answer whether it must go on.
pub type Open<'a> = dyn Fn(&str) -> bool + 'a;

/// How long answers are.
#[derive(Clone, Copy)]
pub struct Length<'a> {
    /// Tokens of every answer that does not end before.
    pub n_predict: usize,
    /// Tokens of an answer that is still open then, at most.
    pub most: usize,
    /// Whether an answer is open.
    pub open: &'a Open<'a>,
}

impl Length<'_> {
    /// The same for all answers.
    pub fn of(n_predict: usize) -> Self {
        Self { n_predict, most: n_predict, open: &|_| false }
    }
}

impl LlamaEngine {
    /// As [`Engine::answer_until`](super::Engine::answer_until), to prompts that are tokens already.
    ///
    /// # Errors
    /// [`LlamaError`] when decoding fails.
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
            // A shorter answer has ended, and what is longer than a prompt may be cannot be read again.
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
