//! What one decode is given.

use super::LlamaError;
use super::ffi::{ContextSize, Token};

/// Tokens of several sequences for one decode.
#[derive(Debug, Default, Clone)]
pub struct Batch {
    pub(super) tokens: Vec<Token>,
    pub(super) pos: Vec<i32>,
    pub(super) n_seq: Vec<i32>,
    pub(super) seq: Vec<i32>,
    pub(super) output: Vec<i8>,
}

impl Batch {
    /// Adds `token` at `pos` of sequence `seq`; `output` asks for its logits. Returns its index.
    pub fn push(&mut self, token: Token, pos: usize, seq: usize, output: bool) -> usize {
        self.tokens.push(token);
        self.pos.push(pos as i32);
        self.n_seq.push(1);
        self.seq.push(seq as i32);
        self.output.push(i8::from(output));
        self.tokens.len() - 1
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Number of tokens that ask for logits.
    pub fn n_outputs(&self) -> usize {
        self.output.iter().filter(|&&o| o != 0).count()
    }

    /// ggml asserts on what does not fit, which ends the process: say it before.
    pub(super) fn check(&self, size: ContextSize) -> Result<(), LlamaError> {
        let too_large = self.len() > size.n_batch as usize
            || self.n_outputs() > size.n_seq as usize
            || self.seq.iter().any(|&s| s < 0 || s as u32 >= size.n_seq);
        if too_large || self.is_empty() {
            return Err(LlamaError::BatchTooLarge {
                tokens: self.len(),
                outputs: self.n_outputs(),
                n_batch: size.n_batch as usize,
                n_seq: size.n_seq as usize,
            });
        }
        Ok(())
    }

    /// Says it before ggml asserts on a position that the model has no vector for.
    pub(super) fn check_positions(&self, n_positions: usize) -> Result<(), LlamaError> {
        let found = self.pos.iter().copied().max().and_then(|pos| usize::try_from(pos).ok()).unwrap_or(0);
        if found < n_positions { Ok(()) } else { Err(LlamaError::Position { found, n_positions }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_that_the_model_lacks_is_told() {
        let mut batch = Batch::default();
        for pos in 0..4 {
            batch.push(1, pos, 0, false);
        }
        assert!(batch.check_positions(4).is_ok());
        let error = batch.check_positions(3).unwrap_err();
        assert!(matches!(error, LlamaError::Position { found: 3, n_positions: 3 }), "{error}");
    }
}
