//! Reading of given text: likelihoods of continuations, and sequences extended token by token.
//!
//! A decode has room for `N_SEQ` = 32 rows of logits, and a row has `n_vocab` values (0.6 MB for Qwen), so
//! rows are never stored: each is passed on once and is overwritten by the next decode.

use super::LlamaError;
use super::batch::Batch;
use super::engine::{LlamaEngine, N_BATCH, N_CTX, N_SEQ, argmax};
use super::ffi::Token;

/// Callback that receives the logits predicting a token: index of the continuation, index of the token in
/// it, logits `[n_vocab]`.
pub type SeenLogits<'a> = dyn FnMut(usize, usize, &[f32]) + 'a;

/// A language model that reads plain text, without a chat template.
///
/// [`LlamaEngine`] implements this with llama.cpp; tests of the evaluation use a small stand-in.
pub trait TextModel {
    /// Tokenizes `text`, treating all of it as plain text without control tokens. If `begins`, the token that the
    /// vocabulary requires before every text is added.
    ///
    /// # Errors
    /// Returns [`LlamaError::Tokenize`] if the vocabulary cannot tokenize `text`.
    fn text_tokens(&self, text: &str, begins: bool) -> Result<Vec<Token>, LlamaError>;

    /// Returns the token that the vocabulary requires before every text, if any.
    fn bos(&self) -> Option<Token>;

    /// Reads `context` once and each of at most 32 `continuations` after it. `seen` receives the logits that
    /// predict each token of each continuation; those of one continuation arrive in order.
    ///
    /// # Errors
    /// Returns [`LlamaError::PromptTooLong`] if the texts do not fit the cache, or the error of a failed decode.
    fn follow(
        &mut self,
        context: &[Token],
        continuations: &[Vec<Token>],
        seen: &mut SeenLogits<'_>,
    ) -> Result<(), LlamaError>;
}

impl TextModel for LlamaEngine {
    fn text_tokens(&self, text: &str, begins: bool) -> Result<Vec<Token>, LlamaError> {
        self.model.text_tokens(text, begins)
    }

    fn bos(&self) -> Option<Token> {
        self.model.bos_to_add()
    }

    fn follow(
        &mut self,
        context: &[Token],
        continuations: &[Vec<Token>],
        seen: &mut SeenLogits<'_>,
    ) -> Result<(), LlamaError> {
        self.check_fit(context, continuations)?;
        let last = self.prefill(std::slice::from_ref(&context.to_vec()), N_CTX - context.len())?;
        for seq in 1..continuations.len() {
            self.context.copy_sequence(0, seq as i32);
        }
        let logits = self.row(0, last[0])?;
        for (seq, continuation) in continuations.iter().enumerate() {
            if !continuation.is_empty() {
                seen(seq, 0, logits);
            }
        }
        // What follows the last token of a continuation is not needed.
        let steps: Vec<(usize, usize)> = (continuations.iter().enumerate())
            .flat_map(|(seq, c)| (0..c.len().saturating_sub(1)).map(move |i| (seq, i)))
            .collect();
        for run in steps.chunks(N_SEQ) {
            let mut batch = Batch::default();
            for &(seq, i) in run {
                batch.push(continuations[seq][i], context.len() + i, seq, true);
            }
            self.context.decode(&mut batch, None)?;
            for (index, &(seq, i)) in run.iter().enumerate() {
                seen(seq, i + 1, self.row(seq, index)?);
            }
        }
        Ok(())
    }
}

impl LlamaEngine {
    /// Returns the number of tokens in the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.model.n_vocab()
    }

    fn check_fit(&self, context: &[Token], continuations: &[Vec<Token>]) -> Result<(), LlamaError> {
        let tokens = context.len() + continuations.iter().map(Vec::len).sum::<usize>();
        let fits = !context.is_empty() && context.len() <= N_BATCH && tokens <= N_CTX;
        if fits && continuations.len() <= N_SEQ {
            return Ok(());
        }
        let start: String = self.model.detokenize(context).chars().take(60).collect();
        Err(LlamaError::PromptTooLong { tokens, limit: N_CTX, start })
    }

    /// Returns the logits in row `index` of the last batch, which belong to sequence `seq`.
    fn row(&self, seq: usize, index: usize) -> Result<&[f32], LlamaError> {
        self.context.logits(index).ok_or(LlamaError::Logits { prompt: seq, found: "no logits" })
    }
}

/// Prompts of one group, extended token by token with tokens that the caller chooses.
///
/// Feeding the lanes of two models the same tokens runs them in lockstep (teacher forcing).
pub struct Lanes<'a> {
    engine: &'a mut LlamaEngine,
    lanes: Vec<Lane>,
}

/// One sequence: its length, and the batch index of its last token until the lane ends.
#[derive(Clone, Copy)]
struct Lane {
    len: usize,
    row: Option<usize>,
}

impl<'a> Lanes<'a> {
    /// Reads `prompts`, which must form one of the [`groups`](super::engine::groups), with room for `n_predict`
    /// more tokens each. Discards what the engine read before.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if decoding fails.
    pub fn new(
        engine: &'a mut LlamaEngine,
        prompts: &[Vec<Token>],
        n_predict: usize,
    ) -> Result<Self, LlamaError> {
        let rows = engine.prefill(prompts, n_predict)?;
        let lane = |(prompt, row): (&Vec<Token>, usize)| Lane { len: prompt.len(), row: Some(row) };
        Ok(Self { lanes: prompts.iter().zip(rows).map(lane).collect(), engine })
    }

    /// Returns the logits after the last token of lane `seq`, `[n_vocab]`; `None` if the lane has ended.
    ///
    /// # Errors
    /// Returns [`LlamaError::Logits`] if llama.cpp has no logits for that token.
    pub fn logits(&self, seq: usize) -> Result<Option<&[f32]>, LlamaError> {
        let row = self.lanes.get(seq).and_then(|lane| lane.row);
        row.map(|row| self.engine.row(seq, row)).transpose()
    }

    /// Returns the most likely next token of lane `seq`; `None` if that token ends the answer or the lane has ended.
    ///
    /// # Errors
    /// Returns [`LlamaError::Logits`] if logits are missing or one is NaN.
    pub fn greedy(&self, seq: usize) -> Result<Option<Token>, LlamaError> {
        self.choose(seq, argmax)
    }

    /// Returns the next token of lane `seq`, which consists of `so_far`: sampled if the engine samples, or the most
    /// likely one. `None` if that token ends the answer or the lane has ended.
    ///
    /// # Errors
    /// Returns [`LlamaError::Logits`] if logits are missing or one is NaN.
    pub(super) fn next(&self, seq: usize, so_far: &[&[Token]]) -> Result<Option<Token>, LlamaError> {
        match self.engine.sampling {
            Some(sampling) => self.choose(seq, |logits| sampling.pick(logits, so_far)),
            None => self.greedy(seq),
        }
    }

    /// Applies `pick` to the logits of lane `seq`; `None` if the picked token ends the answer or the lane has ended.
    fn choose(
        &self,
        seq: usize,
        pick: impl Fn(&[f32]) -> Option<Token>,
    ) -> Result<Option<Token>, LlamaError> {
        let Some(logits) = self.logits(seq)? else { return Ok(None) };
        let token = pick(logits).ok_or(LlamaError::Logits { prompt: seq, found: "NaN" })?;
        let ends = self.engine.model.is_eog(token) || self.engine.ends == Some(token);
        Ok((!ends).then_some(token))
    }

    /// Feeds `next[seq]` to each lane and returns whether any lane goes on. A lane ends if it gets no token or has
    /// reached the last position that the model has learned.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if decoding fails.
    pub fn feed(&mut self, next: &[Option<Token>]) -> Result<bool, LlamaError> {
        let mut batch = Batch::default();
        let n_positions = self.engine.model.n_positions().unwrap_or(usize::MAX);
        for (seq, lane) in self.lanes.iter_mut().enumerate() {
            let goes_on = lane.row.is_some() && lane.len < n_positions;
            let token = next.get(seq).copied().flatten().filter(|_| goes_on);
            lane.row = token.map(|token| batch.push(token, lane.len, seq, true));
            lane.len += 1;
        }
        if batch.is_empty() {
            return Ok(false);
        }
        self.engine.context.decode(&mut batch, None)?;
        Ok(true)
    }
}
