//! Capture of hidden states on prompts and texts.

use std::ops::Range;

use super::groups::{cells, small_groups};
use super::sample::Sample;
use super::{Chat, FirstLogits, LlamaEngine, N_BATCH};
use crate::llama::LlamaError;
use crate::llama::activations::{Activations, WriterInputs};
use crate::llama::batch::Batch;
use crate::llama::capture::{Capture, CaptureHook, Keep};
use crate::llama::ffi::Token;
use crate::llama::matmul::Arithmetic;
use crate::llama::template::Prompt;
use crate::llama::thinking::ThoughtOf;

impl LlamaEngine {
    /// Groups prompts so that llama.cpp decodes each group in one piece, as a capture requires.
    fn whole_groups(&self, prompts: &[Vec<Token>]) -> Vec<Range<usize>> {
        match self.model.is_recurrent() {
            true => (0..prompts.len()).map(|prompt| prompt..prompt + 1).collect(),
            false => small_groups(prompts),
        }
    }

    /// Decodes one group and captures its hidden states.
    fn capture_group(&mut self, mut group: Group, of: &mut Collection<'_>) -> Result<(), LlamaError> {
        if group.batch.is_empty() {
            return Ok(());
        }
        let mut hook = CaptureHook::new(of.capture, &mut of.activations, group.keep);
        self.context.decode(&mut group.batch, Some(&mut hook))?;
        hook.finish()
    }

    /// Like [`Engine::collect`](super::Engine::collect), for plain texts without a chat template.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if tokenizing, decoding or the capture fails.
    pub fn collect_text(&mut self, texts: &[String], capture: &Capture) -> Result<Activations, LlamaError> {
        let prompts = texts
            .iter()
            .map(|text| self.prompt_tokens(&Prompt::plain(text), text))
            .collect::<Result<Vec<_>, _>>()?;
        self.collect_sampled(&prompts, &vec![0; prompts.len()], capture, &mut |_, _| ())
    }

    /// Like [`Engine::collect`](super::Engine::collect), for `chats` followed by the model's own thoughts of at most
    /// `budget` tokens; only tokens of the thoughts are sampled. Also returns the indices of the captured chats: those
    /// that the model answers without thinking, or that become too long, are skipped.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if rendering, decoding or the capture fails.
    pub fn collect_thinking(
        &mut self,
        chats: &[Chat<'_>],
        budget: usize,
        capture: &Capture,
    ) -> Result<(Activations, Vec<usize>), LlamaError> {
        let found = self.prompts_with_thoughts(chats, budget)?;
        let thought = found.into_iter().enumerate().filter_map(|(i, found)| Some((i, found?)));
        let (which, both): (Vec<usize>, Vec<_>) = thought.unzip();
        let (prompts, from): (Vec<Vec<Token>>, Vec<usize>) =
            both.into_iter().map(|ThoughtOf { tokens, from }| (tokens, from)).unzip();
        Ok((self.collect_sampled(&prompts, &from, capture, &mut |_, _| ())?, which))
    }

    /// Like [`Engine::collect`](super::Engine::collect), for `chats` followed by `answers`; only tokens of the answers
    /// are sampled.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if tokenizing, decoding or the capture fails.
    pub fn collect_answers(
        &mut self,
        chats: &[Chat<'_>],
        answers: &[String],
        capture: &Capture,
    ) -> Result<Activations, LlamaError> {
        let mut prompts = self.all_tokens(chats)?;
        let from: Vec<usize> = prompts.iter().map(Vec::len).collect();
        for (prompt, answer) in prompts.iter_mut().zip(answers) {
            prompt.extend(self.model.text_tokens(answer, false)?);
            prompt.truncate(self.prompt_tokens);
        }
        self.collect_sampled(&prompts, &from, capture, &mut |_, _| ())
    }

    /// Decodes `prompts` and captures what `capture` selects; in each prompt, tokens from position `from` on may be
    /// sampled.
    pub(super) fn collect_sampled(
        &mut self,
        prompts: &[Vec<Token>],
        from: &[usize],
        capture: &Capture,
        first: &mut FirstLogits<'_>,
    ) -> Result<Activations, LlamaError> {
        let sample = Sample::new(prompts, from, capture);
        let activations = capture.allocate(prompts.len(), sample.n_kept);
        let mut collection = Collection { prompts, sample, capture, activations };
        let before = self.context.set_arithmetic(Arithmetic::Float);
        let collected = self.collect_groups(&mut collection, first);
        self.context.set_arithmetic(before);
        collected?;
        let mut activations = collection.activations;
        activations.inputs.iter_mut().for_each(WriterInputs::drop_unseen);
        Ok(activations)
    }

    /// Decodes the prompts group by group.
    fn collect_groups(
        &mut self,
        collection: &mut Collection<'_>,
        first: &mut FirstLogits<'_>,
    ) -> Result<(), LlamaError> {
        let prompts = collection.prompts;
        for range in self.whole_groups(prompts) {
            let shared = collection.sample.shared;
            let cells = cells(&prompts[range.clone()], shared, 0);
            if range.start == 0 || !self.keep_beginning(cells, shared) {
                self.reserve(cells)?;
                self.collect_beginning(range.start, collection)?;
            }
            for seq in 1..range.len() {
                self.context.copy_sequence(0, seq as i32);
            }
            self.collect_own(range, collection, first)?;
        }
        Ok(())
    }

    /// Tries to keep only the prefix that all prompts share; returns false if the model cannot forget the rest or
    /// the cache has fewer than `cells` cells.
    fn keep_beginning(&mut self, cells: usize, shared: usize) -> bool {
        !self.model.is_recurrent() && cells <= self.context.n_ctx() && self.context.keep_beginning(shared)
    }

    /// Decodes the prefix that all prompts share, for a group that begins with `prompt`. It is captured only for the
    /// first group.
    fn collect_beginning(&mut self, prompt: usize, of: &mut Collection<'_>) -> Result<(), LlamaError> {
        let beginning = &of.prompts[prompt][..of.sample.shared];
        for (i, part) in beginning.chunks(N_BATCH).enumerate() {
            let mut group = Group::default();
            for (j, &token) in part.iter().enumerate() {
                let place = TokenPlace { prompt, pos: i * N_BATCH + j, seq: 0 };
                group.push(&of.sample, place, token, false);
            }
            if prompt > 0 {
                group.keep.sample.clear();
            }
            self.capture_group(group, of)?;
        }
        Ok(())
    }

    /// Decodes the rest of each prompt in a group, after the shared prefix.
    fn collect_own(
        &mut self,
        range: Range<usize>,
        of: &mut Collection<'_>,
        first: &mut FirstLogits<'_>,
    ) -> Result<(), LlamaError> {
        let own = |prompt: usize| (of.sample.shared..of.prompts[prompt].len()).map(move |pos| (prompt, pos));
        let own: Vec<(usize, usize)> = range.clone().flat_map(own).collect();
        let mut start = range.start;
        for part in own.chunks(N_BATCH) {
            let mut group = Group::default();
            group.keep.first = start;
            for &(prompt, pos) in part {
                let tokens = &of.prompts[prompt];
                let place = TokenPlace { prompt, pos, seq: prompt - range.start };
                group.push(&of.sample, place, tokens[pos], pos + 1 == tokens.len());
            }
            let last = group.keep.last.clone();
            self.capture_group(group, of)?;
            for (i, &token) in last.iter().enumerate() {
                let logits = if of.capture.is_inputs_only() { None } else { self.context.logits(token) };
                first(start + i, logits.unwrap_or_default());
            }
            start += last.len();
        }
        Ok(())
    }
}

/// State of a collection in progress.
struct Collection<'a> {
    prompts: &'a [Vec<Token>],
    sample: Sample,
    capture: &'a Capture,
    activations: Activations,
}

/// Location of a token in a collection.
struct TokenPlace {
    /// Index of its prompt.
    prompt: usize,
    /// Position in the prompt.
    pos: usize,
    /// Sequence of the context that the token is decoded into.
    seq: usize,
}

/// One decode of a collection, with the tokens to keep from it.
#[derive(Default)]
struct Group {
    batch: Batch,
    keep: Keep,
}

impl Group {
    /// Adds `token`, located at `place`, and marks it to be kept if `sample` selects it or it is the prompt's last.
    fn push(&mut self, sample: &Sample, place: TokenPlace, token: Token, last: bool) {
        let TokenPlace { prompt, pos, seq } = place;
        let index = self.batch.push(token, pos, seq, last);
        self.keep.n_tokens = index + 1;
        self.keep.sample.extend(sample.row(prompt, pos).map(|row| (index, row)));
        self.keep.tail.extend(sample.tail(prompt, pos).map(|row| (index, row)));
        if last {
            self.keep.last.push(index);
        }
    }
}
