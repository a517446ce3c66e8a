//! Input batches for `llama_decode`.

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
    /// Adds `token` at position `pos` of sequence `seq` and returns its index in the batch; `output` requests its
    /// logits.
    pub fn push(&mut self, token: Token, pos: usize, seq: usize, output: bool) -> usize {
        self.tokens.push(token);
        self.pos.push(pos as i32);
        self.n_seq.push(1);
        self.seq.push(seq as i32);
        self.output.push(i8::from(output));
        self.tokens.len() - 1
    }

    /// Returns the number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Returns whether the batch has no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Returns the number of tokens whose logits are requested.
    pub fn n_outputs(&self) -> usize {
        self.output.iter().filter(|&&o| o != 0).count()
    }

    /// Checks the batch against `size`; ggml asserts on violations, which ends the process.
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

    /// Checks that the model has a vector for every position; ggml asserts on others, which ends the process.
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
