//! The model interface for the rest of the crate: answers, logits, hidden states, and previews of edits.

mod collecting;
mod groups;
mod sample;

use std::path::PathBuf;
use std::rc::Rc;

use super::LlamaError;
use super::adapter::{self, LowRank};
use super::batch::Batch;
use super::capture::Capture;
use super::context_memory;
use super::ffi::{Adapter, Context, ContextSize, Model, Token};
use super::follow::Lanes;
use super::length::Length;
use super::matmul::Arithmetic;
use super::offload::Offload;
use super::sampling::Sampling;
use super::template::{ChatTemplate, Prompt};
use super::thinking::Thinking;
use crate::llama::activations::Activations;
pub use groups::groups;
use groups::{cells, shared_prefix};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: &'static str,
    /// Content of the message.
    pub text: String,
}

/// A conversation for the model to answer, before the chat template is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chat<'a> {
    /// System prompt, if any.
    pub system: Option<&'a str>,
    /// Earlier messages of the conversation.
    pub before: &'a [Message],
    /// The user's message, to be answered.
    pub user: &'a str,
}

impl<'a> Chat<'a> {
    /// Creates a conversation with a single user message and no system prompt.
    pub fn of(user: &'a str) -> Self {
        Self { system: None, before: &[], user }
    }
}

/// Callback that receives the logits of an answer's first token: index of the chat, logits `[n_vocab]`.
pub type FirstLogits<'a> = dyn FnMut(usize, &[f32]) + 'a;

/// Predicate that decides whether an answer goes on, given its index and its tokens so far.
pub(super) type More<'a> = dyn Fn(usize, &[Token]) -> bool + 'a;

/// A language model that answers prompts, exposes hidden states, and previews edits.
///
/// [`LlamaEngine`] implements this with llama.cpp; tests of the search use a small stand-in.
pub trait Engine {
    /// Returns the number of blocks.
    fn n_layer(&self) -> usize;

    /// Applies low-rank edits to all later calls, replacing earlier ones; an empty slice restores the base model.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if an edit does not fit its tensor.
    fn apply(&mut self, edits: &[LowRank]) -> Result<(), LlamaError>;

    /// Returns greedy answers of at most `n_predict` tokens; `first` receives the logits of each first token.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if rendering or decoding fails.
    fn answer(
        &mut self,
        chats: &[Chat<'_>],
        n_predict: usize,
        first: &mut FirstLogits<'_>,
    ) -> Result<Vec<String>, LlamaError> {
        self.answer_until(chats, &Length::of(n_predict), first)
    }

    /// Returns greedy answers, each as long as `length` allows; `first` receives the logits of each first token.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if rendering or decoding fails.
    fn answer_until(
        &mut self,
        chats: &[Chat<'_>],
        length: &Length<'_>,
        first: &mut FirstLogits<'_>,
    ) -> Result<Vec<String>, LlamaError>;

    /// Captures the residual stream of every layer at the last prompt token and the writers' inputs, computed in
    /// [floating point](super::Arithmetic::Float). `first` receives the logits of the token that would follow: an empty
    /// slice if `capture` covers inputs only.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if rendering, decoding or the capture fails.
    fn collect(
        &mut self,
        chats: &[Chat<'_>],
        capture: &Capture,
        first: &mut FirstLogits<'_>,
    ) -> Result<Activations, LlamaError>;
}

/// Options for loading a model.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Path of the GGUF file.
    pub path: PathBuf,
    /// Number of CPU threads.
    pub threads: usize,
    /// Which parts of the model run on GPUs or RPC workers.
    pub offload: Offload,
}

/// Sequences per batch. More ran no faster on 2 cores and cost memory for logits.
pub(super) const N_SEQ: usize = 32;
/// Tokens per batch: one micro-batch, so that llama.cpp keeps their order.
pub(super) const N_BATCH: usize = 1024;
/// Initial size of the KV cache, in cells: room for a batch of prompts and their answers.
pub(super) const N_CTX: usize = 2048;
/// Step, in cells, by which the cache grows for longer prompts.
const CTX_STEP: usize = 256;

/// An [`Engine`] that runs llama.cpp.
pub struct LlamaEngine {
    pub(super) model: Rc<Model>,
    pub(super) context: Context,
    pub(super) template: Option<ChatTemplate>,
    /// How the model thinks before it answers; `None` if it does not.
    pub(super) thinking: Option<Thinking>,
    /// Token that ends an answer in addition to those that llama.cpp knows.
    pub(super) ends: Option<Token>,
    /// Maximum number of tokens in a prompt.
    pub(super) prompt_tokens: usize,
    /// How answers are sampled; greedy if `None`.
    pub(super) sampling: Option<Sampling>,
}

impl LlamaEngine {
    /// Loads the model. `template` is the source of its chat template; without one, prompts are plain text. A model
    /// that thinks before it answers is made to answer at once.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if the model or the template cannot be loaded, or the context cannot be created.
    pub fn load(
        options: &EngineOptions,
        template: Option<&str>,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Self, LlamaError> {
        let model = Model::load(&options.path, &options.offload, progress)?;
        let size = ContextSize {
            n_ctx: N_CTX as u32,
            n_batch: N_BATCH as u32,
            n_seq: N_SEQ as u32,
            n_threads: i32::try_from(options.threads.max(1)).unwrap_or(1),
            flash_attn: options.offload.flash_attn,
        };
        let context = Context::new(&model, size)?;
        let (bos, eos) = model.bos_eos_text();
        let template = template.map(|source| ChatTemplate::new(source, &bos, &eos)).transpose()?;
        let prompt_tokens = context_memory::longest_prompt(&model);
        let mut engine =
            Self { model, context, template, thinking: None, ends: None, prompt_tokens, sampling: None };
        engine.find_thinking()?;
        Ok(engine)
    }

    /// Returns the tokens of `chat` as the model sees them, up to where the answer begins.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if `chat` cannot be rendered or tokenized, or has no or too many tokens.
    pub fn tokens(&self, chat: &Chat<'_>) -> Result<Vec<Token>, LlamaError> {
        let prompt = match &self.template {
            Some(template) => template.render(chat)?,
            None => Prompt::plain(chat.user),
        };
        self.prompt_tokens(&prompt, chat.user)
    }

    /// Returns the tokens of a finished exchange, rendered by a guard model's template up to where its verdict begins.
    ///
    /// # Errors
    /// Same as [`Self::tokens`].
    pub fn exchange_tokens(&self, user: &str, assistant: &str) -> Result<Vec<Token>, LlamaError> {
        let prompt = match &self.template {
            Some(template) => template.render_exchange(user, assistant)?,
            None => Prompt::plain(&format!("{user}\n\n{assistant}")),
        };
        self.prompt_tokens(&prompt, user)
    }

    /// Sets the arithmetic for later answers and returns the previous one. Hidden states are always collected in
    /// floating point.
    pub fn set_arithmetic(&mut self, arithmetic: Arithmetic) -> Arithmetic {
        self.context.set_arithmetic(arithmetic)
    }

    /// Samples all later answers instead of taking the most likely tokens.
    pub fn set_sampling(&mut self, sampling: Option<Sampling>) {
        self.sampling = sampling;
    }

    /// Tokenizes a rendered prompt; `start` is quoted in the error if it is too long.
    fn prompt_tokens(&self, prompt: &Prompt, start: &str) -> Result<Vec<Token>, LlamaError> {
        let tokens = self.model.prompt_tokens(prompt)?;
        if tokens.is_empty() {
            return Err(LlamaError::EmptyPrompt);
        }
        if tokens.len() > self.prompt_tokens {
            return Err(LlamaError::PromptTooLong {
                tokens: tokens.len(),
                limit: self.prompt_tokens,
                start: start.chars().take(60).collect(),
            });
        }
        Ok(tokens)
    }

    pub(super) fn all_tokens(&self, chats: &[Chat<'_>]) -> Result<Vec<Vec<Token>>, LlamaError> {
        chats.iter().map(|chat| self.tokens(chat)).collect()
    }

    /// Returns the number of tokens that `chats` have in common at the end: those that the template adds after a
    /// message.
    ///
    /// # Errors
    /// Same as [`Self::tokens`].
    pub fn shared_ending(&self, chats: &[Chat<'_>]) -> Result<usize, LlamaError> {
        let reversed = |mut tokens: Vec<Token>| {
            tokens.reverse();
            tokens
        };
        let prompts: Vec<Vec<Token>> = self.all_tokens(chats)?.into_iter().map(reversed).collect();
        Ok(shared_prefix(&prompts))
    }

    /// Returns the logits at the last token of each chat, `[n_chat][n_vocab]`.
    ///
    /// # Errors
    /// Same as [`Engine::answer`].
    pub fn last_logits(&mut self, chats: &[Chat<'_>]) -> Result<Vec<Vec<f32>>, LlamaError> {
        let mut rows = vec![Vec::new(); chats.len()];
        self.answer(chats, 1, &mut |i, logits| rows[i] = logits.to_vec())?;
        Ok(rows)
    }

    /// Like [`Engine::answer`], for tokenized prompts.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if decoding fails.
    pub fn answer_tokens(
        &mut self,
        prompts: &[Vec<Token>],
        n_predict: usize,
        first: &mut FirstLogits<'_>,
    ) -> Result<Vec<String>, LlamaError> {
        let answers = self.generate(prompts, n_predict, &|_, _| true, first)?;
        Ok(answers.iter().map(|tokens| self.model.detokenize(tokens)).collect())
    }

    /// Generates answers to `prompts`, as tokens; each ends early once `more` returns false.
    pub(super) fn generate(
        &mut self,
        prompts: &[Vec<Token>],
        n_predict: usize,
        more: &More<'_>,
        first: &mut FirstLogits<'_>,
    ) -> Result<Vec<Vec<Token>>, LlamaError> {
        let mut answers = Vec::with_capacity(prompts.len());
        for range in groups(prompts, n_predict) {
            let start = range.start;
            let more = |i: usize, tokens: &[Token]| more(start + i, tokens);
            let mut first = |i: usize, logits: &[f32]| first(start + i, logits);
            answers.extend(self.generate_group(&prompts[range], n_predict, &more, &mut first)?);
        }
        Ok(answers)
    }

    /// Clears the context and enlarges it if it has fewer than `cells` cells.
    fn reserve(&mut self, cells: usize) -> Result<(), LlamaError> {
        if cells > self.context.n_ctx() {
            let n_ctx = u32::try_from(cells.next_multiple_of(CTX_STEP)).unwrap_or(u32::MAX);
            self.context = self.context.resized(n_ctx)?;
        }
        self.context.clear();
        Ok(())
    }

    /// Decodes the prompts of one group, with room for answers of `n_predict` tokens: the shared prefix once, then the
    /// rest of each prompt. Returns the batch index of each prompt's last token.
    pub(super) fn prefill(
        &mut self,
        prompts: &[Vec<Token>],
        n_predict: usize,
    ) -> Result<Vec<usize>, LlamaError> {
        let shared = shared_prefix(prompts);
        self.reserve(cells(prompts, shared, n_predict))?;
        let beginning = prompts.first().map_or(&[][..], |prompt| &prompt[..shared]);
        for (i, part) in beginning.chunks(N_BATCH).enumerate() {
            let mut batch = Batch::default();
            for (j, &token) in part.iter().enumerate() {
                batch.push(token, i * N_BATCH + j, 0, false);
            }
            self.context.decode(&mut batch, None)?;
        }
        for seq in 1..prompts.len() {
            self.context.copy_sequence(0, seq as i32);
        }
        let mut batch = Batch::default();
        let mut last = Vec::with_capacity(prompts.len());
        for (seq, tokens) in prompts.iter().enumerate() {
            for (pos, &token) in tokens.iter().enumerate().skip(shared) {
                if batch.len() == N_BATCH {
                    self.context.decode(&mut batch, None)?;
                    batch = Batch::default();
                }
                let index = batch.push(token, pos, seq, pos + 1 == tokens.len());
                if pos + 1 == tokens.len() {
                    last.push(index);
                }
            }
        }
        self.context.decode(&mut batch, None)?;
        Ok(last)
    }

    /// Generates answers for one group, whose prompts and answers fit the cache together.
    fn generate_group(
        &mut self,
        prompts: &[Vec<Token>],
        n_predict: usize,
        more: &More<'_>,
        first: &mut FirstLogits<'_>,
    ) -> Result<Vec<Vec<Token>>, LlamaError> {
        let mut answers: Vec<Vec<Token>> = vec![Vec::new(); prompts.len()];
        let mut lanes = Lanes::new(self, prompts, n_predict)?;
        for step in 0..n_predict {
            let mut next = vec![None; prompts.len()];
            for (seq, answer) in answers.iter_mut().enumerate() {
                let Some(logits) = lanes.logits(seq)? else { continue };
                if step == 0 {
                    first(seq, logits);
                }
                let token = lanes.next(seq, &[&prompts[seq], answer])?;
                answer.extend(token);
                next[seq] = token.filter(|_| more(seq, answer));
            }
            if step + 1 == n_predict || !lanes.feed(&next)? {
                break;
            }
        }
        Ok(answers)
    }
}

impl Engine for LlamaEngine {
    fn n_layer(&self) -> usize {
        self.model.n_layer()
    }

    fn apply(&mut self, edits: &[LowRank]) -> Result<(), LlamaError> {
        if edits.is_empty() {
            return self.context.set_adapter(None, 0.0);
        }
        let mut bytes = adapter::to_gguf(&self.model.architecture(), edits)?;
        let adapter = Adapter::from_bytes(&self.model, &mut bytes)?;
        self.context.set_adapter(Some(adapter), 1.0)
    }

    fn answer_until(
        &mut self,
        chats: &[Chat<'_>],
        length: &Length<'_>,
        first: &mut FirstLogits<'_>,
    ) -> Result<Vec<String>, LlamaError> {
        let prompts = self.all_tokens(chats)?;
        self.answer_tokens_until(prompts, length, first)
    }

    fn collect(
        &mut self,
        chats: &[Chat<'_>],
        capture: &Capture,
        first: &mut FirstLogits<'_>,
    ) -> Result<Activations, LlamaError> {
        let prompts = self.all_tokens(chats)?;
        self.collect_sampled(&prompts, &vec![0; prompts.len()], capture, first)
    }
}

/// Returns the most likely token, the lowest id in a tie; `None` if a logit is NaN.
pub(super) fn argmax(logits: &[f32]) -> Option<Token> {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, &logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return None;
        }
        if logit > best.1 {
            best = (i, logit);
        }
    }
    Token::try_from(best.0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argmax_takes_the_lowest_of_equals_and_refuses_nan() {
        assert_eq!(argmax(&[0.0, 2.0, 2.0]), Some(1));
        assert_eq!(argmax(&[0.0, f32::NAN]), None);
    }
}
