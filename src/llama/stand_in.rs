//! An engine for tests that only answers.

use super::activations::Activations;
use super::engine::FirstLogits;
use super::{Capture, Chat, Engine, Length, LlamaError, LowRank};

/// An engine whose answers a function gives; edits have no effect.
pub struct StandIn<F>(F);

impl<F> StandIn<F>
where
    F: FnMut(usize, &Chat<'_>, &Length<'_>, &mut FirstLogits<'_>) -> String,
{
    /// Creates an engine from a function that is called with the index of a chat, the chat, the limits on the length of
    /// its answer and the receiver of its first logits, and returns the answer.
    pub fn new(answer: F) -> Self {
        Self(answer)
    }
}

impl<F> Engine for StandIn<F>
where
    F: FnMut(usize, &Chat<'_>, &Length<'_>, &mut FirstLogits<'_>) -> String,
{
    fn n_layer(&self) -> usize {
        1
    }

    fn apply(&mut self, _: &[LowRank]) -> Result<(), LlamaError> {
        Ok(())
    }

    fn answer_until(
        &mut self,
        chats: &[Chat<'_>],
        length: &Length<'_>,
        first: &mut FirstLogits<'_>,
    ) -> Result<Vec<String>, LlamaError> {
        Ok(chats.iter().enumerate().map(|(i, chat)| (self.0)(i, chat, length, first)).collect())
    }

    fn collect(
        &mut self,
        _: &[Chat<'_>],
        _: &Capture,
        _: &mut FirstLogits<'_>,
    ) -> Result<Activations, LlamaError> {
        unreachable!("a stand-in collects nothing")
    }
}
