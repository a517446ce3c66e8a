//! The model as the rest of the crate sees it: answers, logits, hidden states, edits to preview.

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
    /// What is said.
    pub text: String,
}

/// One conversation that the model is to answer, before its template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chat<'a> {
    /// The system prompt, if any.
    pub system: Option<&'a str>,
    /// What was said before.
    pub before: &'a [Message],
    /// What the user says.
    pub user: &'a str,
}

impl<'a> Chat<'a> {
    /// What a user says first, without a system prompt.
    pub fn of(user: &'a str) -> Self {
        Self { system: None, before: &[], user }
    }
}

/// Receives the logits of the first answer token: index of the chat, logits `[n_vocab]`.
pub type FirstLogits<'a> = dyn FnMut(usize, &[f32]) + 'a;

/// Whether an answer goes on: its index, its tokens so far.
pub(super) type More<'a> = dyn Fn(usize, &[Token]) -> bool + 'a;

/// A language model that can be asked, looked into, and given edits to preview.
///
/// llama.cpp stands behind [`LlamaEngine`]; tests of the search use a small stand-in.
pub trait Engine {
    /// Number of blocks.
    fn n_layer(&self) -> usize;

    /// Applies rank-one edits to every later call, in place of those before; none = the base model.
    ///
    /// # Errors
    /// [`LlamaError`] when an edit does not fit its tensor.
    fn apply(&mut self, edits: &[LowRank]) -> Result<(), LlamaError>;

    /// Greedy answers of at most `n_predict` tokens; `first` sees the first token's logits.
    ///
    /// # Errors
    /// [`LlamaError`] when rendering or decoding fails.
    fn answer(
        &mut self,
        chats: &[Chat<'_>],
        n_predict: usize,
        first: &mut FirstLogits<'_>,
    ) -> Result<Vec<String>, LlamaError> {
        self.answer_until(chats, &Length::of(n_predict), first)
    }

    /// Greedy answers, each as long as `length` says; `first` sees the first token's logits.
    ///
    /// # Errors
    /// [`LlamaError`] when rendering or decoding fails.
    fn answer_until(
        &mut self,
        chats: &[Chat<'_>],
        length: &Length<'_>,
        first: &mut FirstLogits<'_>,
    ) -> Result<Vec<String>, LlamaError>;

    /// Residual stream of every layer at the last prompt token, and the writers' inputs, computed in
    /// [F32](super::Arithmetic::F32); `first` sees the logits of the token that would follow, of which there are none where
    /// `capture` looks for inputs only.
    ///
    /// # Errors
    /// [`LlamaError`] when rendering, decoding or the capture fails.
    fn collect(
        &mut self,
        chats: &[Chat<'_>],
        capture: &Capture,
        first: &mut FirstLogits<'_>,
    ) -> Result<Activations, LlamaError>;
}

/// How to load a model.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The GGUF.
    pub path: PathBuf,
    /// CPU threads.
    pub threads: usize,
    /// What runs on GPUs or RPC workers.
    pub offload: Offload,
}

/// Sequences per batch. More did not run faster on 2 cores and costs logits memory.
pub(super) const N_SEQ: usize = 32;
/// Tokens per batch: one micro-batch, so that llama.cpp keeps their order.
pub(super) const N_BATCH: usize = 1024;
/// Cells of the KV cache that a context begins with: a batch of prompts and their answers.
pub(super) const N_CTX: usize = 2048;
/// Cells by which the cache grows for longer prompts.
const CTX_STEP: usize = 256;

/// [`Engine`] over llama.cpp.
pub struct LlamaEngine {
    pub(super) model: Rc<Model>,
    pub(super) context: Context,
    pub(super) template: Option<ChatTemplate>,
    /// How the model thinks before it answers.
    pub(super) thinking: Option<Thinking>,
    /// A token that ends an answer besides those that llama.cpp knows.
    pub(super) ends: Option<Token>,
    /// Tokens of the longest prompt.
    pub(super) prompt_tokens: usize,
}

impl LlamaEngine {
    /// Loads the model; `template` is its chat template's source (without one, prompts are plain). A model that thinks
    /// before it answers is made to answer at once.
    ///
    /// # Errors
    /// [`LlamaError`] when the model, the context or the template cannot be made.
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
        let mut engine = Self { model, context, template, thinking: None, ends: None, prompt_tokens };
        engine.find_thinking()?;
        Ok(engine)
    }

    /// The tokens of `chat` as the model sees them, ready for its answer.
    ///
    /// # Errors
    /// [`LlamaError`] when the template or the vocabulary refuses.
    pub fn tokens(&self, chat: &Chat<'_>) -> Result<Vec<Token>, LlamaError> {
        let prompt = match &self.template {
            Some(template) => template.render(chat)?,
            None => Prompt::plain(chat.user),
        };
        self.prompt_tokens(&prompt, chat.user)
    }

    /// The tokens of a finished exchange, as the template of a guard model lays it out for its verdict.
    ///
    /// # Errors
    /// As [`Self::tokens`].
    pub fn exchange_tokens(&self, user: &str, assistant: &str) -> Result<Vec<Token>, LlamaError> {
        let prompt = match &self.template {
            Some(template) => template.render_exchange(user, assistant)?,
            None => Prompt::plain(&format!("{user}\n\n{assistant}")),
        };
        self.prompt_tokens(&prompt, user)
    }

    /// Computes answers so from now on, and returns how it did before. Hidden states are collected in F32 whatever it says.
    pub fn set_arithmetic(&mut self, arithmetic: Arithmetic) -> Arithmetic {
        self.context.set_arithmetic(arithmetic)
    }

    /// Splits a rendered prompt that begins (for the error) with `start`.
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

    /// Number of tokens with which all of `chats` end, whatever was said: those of the template behind a message.
    ///
    /// # Errors
    /// As [`Self::tokens`].
    pub fn shared_ending(&self, chats: &[Chat<'_>]) -> Result<usize, LlamaError> {
        let reversed = |mut tokens: Vec<Token>| {
            tokens.reverse();
            tokens
        };
        let prompts: Vec<Vec<Token>> = self.all_tokens(chats)?.into_iter().map(reversed).collect();
        Ok(shared_prefix(&prompts))
    }

    /// Logits at the last token of each chat, `[n_chat][n_vocab]`.
    ///
    /// # Errors
    /// As [`Engine::answer`].
    pub fn last_logits(&mut self, chats: &[Chat<'_>]) -> Result<Vec<Vec<f32>>, LlamaError> {
        let mut rows = vec![Vec::new(); chats.len()];
        self.answer(chats, 1, &mut |i, logits| rows[i] = logits.to_vec())?;
        Ok(rows)
    }

    /// As [`Engine::answer`], to prompts that are tokens already.
    ///
    /// # Errors
    /// [`LlamaError`] when decoding fails.
    pub fn answer_tokens(
        &mut self,
        prompts: &[Vec<Token>],
        n_predict: usize,
        first: &mut FirstLogits<'_>,
    ) -> Result<Vec<String>, LlamaError> {
        let answers = self.generate(prompts, n_predict, &|_, _| true, first)?;
        Ok(answers.iter().map(|tokens| self.model.detokenize(tokens)).collect())
    }

    /// Greedy answers to `prompts`, as tokens; each ends early when `more` is false of its index and of what it has.
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

    /// Gives the context room for `cells`; what it held is forgotten.
    fn reserve(&mut self, cells: usize) -> Result<(), LlamaError> {
        if cells > self.context.n_ctx() {
            let n_ctx = u32::try_from(cells.next_multiple_of(CTX_STEP)).unwrap_or(u32::MAX);
            self.context = self.context.resized(n_ctx)?;
        }
        self.context.clear();
        Ok(())
    }

    /// Runs the prompts of one group, with room for answers of `n_predict` tokens: the shared beginning once, then the
    /// rest of each. Returns the batch index of each prompt's last token.
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

    /// Greedy answers of one group whose prompts and answers fit the cache together.
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
                let token = lanes.greedy(seq)?;
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

/// The most likely token; the lowest id among equals. `None` when a logit is NaN.
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
