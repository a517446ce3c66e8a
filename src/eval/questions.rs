//! Prompts to ask, all kinds together.

use super::answers::ask;
use super::chats;
use super::per_kind::PerKind;
use super::prompts::{PromptKind, PromptSet, Split};
use crate::llama::{Engine, LlamaError};
use crate::util::spread::spread;

/// The prompts of one split, by kind.
pub type Questions = PerKind<Vec<String>>;

/// Receives the kind, the index of the prompt in it, and the first answer token's logits `[n_vocab]`.
type FirstOfKind<'a> = dyn FnMut(PromptKind, usize, &[f32]) + 'a;

impl Questions {
    /// The limits that select every prompt.
    pub const ALL: PerKind<usize> = PerKind::uniform(usize::MAX);

    /// Selects at most `limits` prompts of each kind of `split`, evenly spread and in order.
    pub fn of(prompts: &PromptSet, split: Split, limits: PerKind<usize>) -> Self {
        Self::from_fn(|kind| spread(&prompts.texts(kind, Some(split)), limits[kind]))
    }

    /// Asks the prompts of `kinds` together, to fill batches. Returns no answers for the other kinds.
    pub(super) fn ask(
        &self,
        engine: &mut dyn Engine,
        kinds: &[PromptKind],
        n_predict: usize,
        first: &mut FirstOfKind<'_>,
    ) -> Result<PerKind<Vec<String>>, LlamaError> {
        let asked = Together::new(self, kinds);
        let all = ask(engine, &chats(&asked.texts, None), n_predict, &mut asked.first(first))?;
        let mut answers = PerKind::<Vec<String>>::default();
        for (answer, place) in all.into_iter().zip(&asked.places) {
            answers[place.kind].push(answer);
        }
        Ok(answers)
    }

    /// Passes the first-token logits of all prompts to `first`, as [`Self::ask`] does, without generating answers.
    pub(super) fn first_logits(
        &self,
        engine: &mut dyn Engine,
        first: &mut FirstOfKind<'_>,
    ) -> Result<(), LlamaError> {
        let asked = Together::new(self, &PromptKind::ALL);
        engine.answer(&chats(&asked.texts, None), 1, &mut asked.first(first)).map(drop)
    }

    /// Returns the number of prompts of all kinds.
    pub fn len(&self) -> usize {
        self.values().into_iter().map(Vec::len).sum()
    }

    /// Returns whether there are no prompts.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Prompts of several kinds to ask together.
struct Together {
    texts: Vec<String>,
    /// Where each text comes from.
    places: Vec<Place>,
}

/// Place of a text in [`Questions`].
struct Place {
    kind: PromptKind,
    /// Index among the prompts of its kind.
    number: usize,
}

impl Together {
    fn new(questions: &Questions, kinds: &[PromptKind]) -> Self {
        let places = |&kind| (0..questions[kind].len()).map(move |number| Place { kind, number });
        Self {
            texts: kinds.iter().flat_map(|&kind| questions[kind].clone()).collect(),
            places: kinds.iter().flat_map(places).collect(),
        }
    }

    /// Maps the index of a text to its place, for `first`.
    fn first(&self, first: &mut FirstOfKind<'_>) -> impl FnMut(usize, &[f32]) {
        |i, logits| first(self.places[i].kind, self.places[i].number, logits)
    }
}
