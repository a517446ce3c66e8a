//! The model as the rest of the crate sees it: answers, logits, hidden states, edits to preview.

use std::path::PathBuf;
use std::rc::Rc;

use super::LlamaError;
use super::adapter::{self, LowRank};
use super::batch::Batch;
use super::capture::{Capture, CaptureHook, Keep};
use super::ffi::{Adapter, Context, ContextSize, Model, Token};
use super::follow::Lanes;
use super::length::Length;
use super::offload::Offload;
use super::template::ChatTemplate;
use crate::activations::{Activations, WriterInputs};

/// One conversation of a single turn, before the model's template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chat<'a> {
    /// The system prompt, if any.
    pub system: Option<&'a str>,
    /// What the user says.
    pub user: &'a str,
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

    /// Residual stream of every layer at the last prompt token, and the writers' inputs; `first` sees the
    /// logits of the token that would follow, unless `capture` looks for inputs only.
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
/// Cells of the KV cache: a batch of prompts and their answers.
pub(super) const N_CTX: usize = 2048;
/// Tokens of the longest prompt: it fits one batch, and the cache together with its answer.
pub(super) const PROMPT_TOKENS: usize = if N_BATCH < N_CTX / 2 { N_BATCH } else { N_CTX / 2 };

/// [`Engine`] over llama.cpp.
pub struct LlamaEngine {
    pub(super) model: Rc<Model>,
    pub(super) context: Context,
    template: Option<ChatTemplate>,
}

impl LlamaEngine {
    /// Loads the model; `template` is its chat template's source (without one, prompts are plain).
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
        Ok(Self { model, context, template })
    }

    /// The tokens of `chat` as the model sees them, ready for its answer.
    ///
    /// # Errors
    /// [`LlamaError`] when the template or the vocabulary refuses.
    pub fn tokens(&self, chat: &Chat<'_>) -> Result<Vec<Token>, LlamaError> {
        let text = match &self.template {
            Some(template) => template.render(chat)?,
            None => chat.user.to_owned(),
        };
        self.prompt_tokens(&text, chat.user)
    }

    /// The tokens of a finished exchange, as the template of a guard model lays it out for its verdict.
    ///
    /// # Errors
    /// As [`Self::tokens`].
    pub fn exchange_tokens(&self, user: &str, assistant: &str) -> Result<Vec<Token>, LlamaError> {
        let text = match &self.template {
            Some(template) => template.render_exchange(user, assistant)?,
            None => format!("{user}\n\n{assistant}"),
        };
        self.prompt_tokens(&text, user)
    }

    /// Splits a rendered prompt that begins (for the error) with `start`.
    fn prompt_tokens(&self, text: &str, start: &str) -> Result<Vec<Token>, LlamaError> {
        let has_bos = self.template.as_ref().is_some_and(|template| template.starts_with_bos(text));
        // A template that writes BOS itself must not get a second one from the tokenizer.
        let tokens = self.model.tokenize(text, !has_bos)?;
        if tokens.len() > PROMPT_TOKENS || tokens.is_empty() {
            return Err(LlamaError::PromptTooLong {
                tokens: tokens.len(),
                limit: PROMPT_TOKENS,
                start: start.chars().take(60).collect(),
            });
        }
        Ok(tokens)
    }

    fn all_tokens(&self, chats: &[Chat<'_>]) -> Result<Vec<Vec<Token>>, LlamaError> {
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

    /// Runs the prompts of one group: the shared beginning once, then the rest of each.
    /// Returns the batch index of each prompt's last token.
    pub(super) fn prefill(&mut self, prompts: &[Vec<Token>]) -> Result<Vec<usize>, LlamaError> {
        let shared = shared_prefix(prompts);
        self.context.clear();
        if shared > 0 {
            let mut batch = Batch::default();
            for (pos, &token) in prompts[0][..shared].iter().enumerate() {
                batch.push(token, pos, 0, false);
            }
            self.context.decode(&mut batch, None)?;
            for seq in 1..prompts.len() {
                self.context.copy_sequence(0, seq as i32);
            }
        }
        let mut batch = Batch::default();
        let mut last = Vec::with_capacity(prompts.len());
        for (seq, tokens) in prompts.iter().enumerate() {
            for (pos, &token) in tokens.iter().enumerate().skip(shared) {
                let index = batch.push(token, pos, seq, pos + 1 == tokens.len());
                if pos + 1 == tokens.len() {
                    last.push(index);
                }
            }
        }
        self.context.decode(&mut batch, None)?;
        Ok(last)
    }

    /// Groups that llama.cpp decodes in one piece each, as a capture must see them.
    fn whole_groups(&self, prompts: &[Vec<Token>]) -> Vec<std::ops::Range<usize>> {
        match self.model.is_recurrent() {
            true => (0..prompts.len()).map(|prompt| prompt..prompt + 1).collect(),
            false => groups(prompts, 0),
        }
    }

    /// Decodes one group under the eyes of a capture.
    fn capture_group(
        &mut self,
        mut group: Group,
        capture: &Capture,
        activations: &mut Activations,
    ) -> Result<(), LlamaError> {
        if group.batch.is_empty() {
            return Ok(());
        }
        let mut hook = CaptureHook::new(capture, activations, group.keep);
        self.context.decode(&mut group.batch, Some(&mut hook))?;
        hook.finish()
    }

    /// As [`Engine::collect`], of text as it is: what a model reads outside any template.
    ///
    /// # Errors
    /// [`LlamaError`] when tokenizing, decoding or the capture fails.
    pub fn collect_text(&mut self, texts: &[String], capture: &Capture) -> Result<Activations, LlamaError> {
        let prompts =
            texts.iter().map(|text| self.prompt_tokens(text, text)).collect::<Result<Vec<_>, _>>()?;
        self.collect_sampled(&prompts, &vec![0; prompts.len()], capture, &mut |_, _| ())
    }

    /// As [`Engine::collect`], of `answers` to `chats`: tokens are sampled from the answers only.
    ///
    /// # Errors
    /// [`LlamaError`] when tokenizing, decoding or the capture fails.
    pub fn collect_answers(
        &mut self,
        chats: &[Chat<'_>],
        answers: &[String],
        capture: &Capture,
    ) -> Result<Activations, LlamaError> {
        let mut prompts = self.all_tokens(chats)?;
        let from: Vec<usize> = prompts.iter().map(Vec::len).collect();
        for (prompt, answer) in prompts.iter_mut().zip(answers) {
            prompt.extend(self.model.tokenize(answer, false)?);
            prompt.truncate(PROMPT_TOKENS);
        }
        self.collect_sampled(&prompts, &from, capture, &mut |_, _| ())
    }

    /// Decodes `prompts` under the eyes of `capture`; of each the tokens from position `from` on may be sampled.
    fn collect_sampled(
        &mut self,
        prompts: &[Vec<Token>],
        from: &[usize],
        capture: &Capture,
        first: &mut FirstLogits<'_>,
    ) -> Result<Activations, LlamaError> {
        let sample = Sample::new(prompts, from, capture);
        let mut activations = capture.allocate(prompts.len(), sample.n_kept);
        for range in self.whole_groups(prompts) {
            self.context.clear();
            // What all prompts begin with is decoded once a group, and looked at in the first.
            let mut shared = Group::default();
            for (pos, &token) in prompts[range.start][..sample.shared].iter().enumerate() {
                shared.push(&sample, (range.start, pos, 0), token, false);
            }
            if range.start > 0 {
                shared.keep.sample.clear();
            }
            self.capture_group(shared, capture, &mut activations)?;
            let mut rest = Group::default();
            rest.keep.first = range.start;
            for (seq, prompt) in range.enumerate() {
                if seq > 0 {
                    self.context.copy_sequence(0, seq as i32);
                }
                let tokens = &prompts[prompt];
                for (pos, &token) in tokens.iter().enumerate().skip(sample.shared) {
                    rest.push(&sample, (prompt, pos, seq), token, pos + 1 == tokens.len());
                }
            }
            let (start, last) = (rest.keep.first, rest.keep.last.clone());
            self.capture_group(rest, capture, &mut activations)?;
            if capture.is_inputs_only() {
                continue;
            }
            for (i, &token) in last.iter().enumerate() {
                first(start + i, self.context.logits(token).unwrap_or_default());
            }
        }
        activations.inputs.iter_mut().for_each(WriterInputs::drop_unseen);
        Ok(activations)
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
        let mut lanes = Lanes::new(self, prompts)?;
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

/// One decode of a collection, and what is kept of it.
#[derive(Default)]
struct Group {
    batch: Batch,
    keep: Keep,
}

impl Group {
    /// Adds the token at `pos` of `prompt` to sequence `seq`.
    fn push(&mut self, sample: &Sample, (prompt, pos, seq): (usize, usize, usize), token: Token, last: bool) {
        let index = self.batch.push(token, pos, seq, last);
        self.keep.n_tokens = index + 1;
        self.keep.sample.extend(sample.row(prompt, pos).map(|row| (index, row)));
        self.keep.tail.extend(sample.tail(prompt, pos).map(|row| (index, row)));
        if last {
            self.keep.last.push(index);
        }
    }
}

/// Tokens spread evenly over all prompts and positions but the last ones; what all begin with counts once.
struct Sample {
    shared: usize,
    /// Position of each prompt's first token that may be taken.
    from: Vec<usize>,
    /// How far before the last token those are that are kept whole.
    tail: Vec<usize>,
    /// The farthest of them: no token from there on is sampled.
    n_tail: usize,
    /// Position of each prompt's last token.
    last: Vec<usize>,
    /// Number of each prompt's first token behind the shared ones.
    starts: Vec<usize>,
    n_tokens: usize,
    n_kept: usize,
}

impl Sample {
    fn new(prompts: &[Vec<Token>], from: &[usize], capture: &Capture) -> Self {
        let shared = shared_prefix(prompts);
        let tail = capture.tail().to_vec();
        let n_tail = tail.iter().copied().max().unwrap_or(0);
        let mut n_tokens = shared.saturating_sub(from.first().copied().unwrap_or(0));
        let starts = prompts.iter().zip(from).map(|(p, &from)| {
            let inside = p.len().saturating_sub(shared.max(from) + 1 + n_tail);
            n_tokens += inside;
            n_tokens - inside
        });
        let starts = starts.collect();
        let last = prompts.iter().map(|p| p.len().saturating_sub(1)).collect();
        let (n_kept, from) = (capture.n_sample(n_tokens), from.to_vec());
        Self { shared, from, tail, n_tail, last, starts, n_tokens, n_kept }
    }

    /// The row of the token at `pos` of `prompt`, if it is kept.
    fn row(&self, prompt: usize, pos: usize) -> Option<usize> {
        let from = self.from[prompt];
        let number = match pos < self.shared {
            _ if pos < from => return None,
            true if prompt > 0 => return None,
            true => pos - from,
            false if pos + self.n_tail >= self.last[prompt] => return None,
            false => self.starts[prompt] + pos - self.shared.max(from),
        };
        // Row r is the first token with number·n_kept/n_tokens ≥ r.
        let row = (number * self.n_kept).div_ceil(self.n_tokens.max(1));
        let before = number.checked_sub(1).map(|n| (n * self.n_kept).div_ceil(self.n_tokens.max(1)));
        (row < self.n_kept && before != Some(row)).then_some(row)
    }

    /// The row of the token at `pos` of `prompt` among those before the last ones, if it is one.
    fn tail(&self, prompt: usize, pos: usize) -> Option<usize> {
        let before = self.last[prompt].checked_sub(pos)?;
        let at = self.tail.iter().position(|&offset| offset == before).filter(|_| pos >= self.shared)?;
        Some(prompt * self.tail.len() + at)
    }
}

/// Cuts prompts into runs that fit one batch and, with their answers, the cache. What all prompts begin with is there
/// once.
pub fn groups(prompts: &[Vec<Token>], n_predict: usize) -> Vec<std::ops::Range<usize>> {
    let shared = shared_prefix(prompts);
    let mut groups = Vec::new();
    let (mut start, mut tokens) = (0, shared);
    for (i, prompt) in prompts.iter().enumerate() {
        let own = prompt.len() - shared;
        let full = i - start == N_SEQ
            || tokens + own > N_BATCH
            || tokens + own + (i - start + 1) * n_predict > N_CTX;
        if full && i > start {
            groups.push(start..i);
            (start, tokens) = (i, shared);
        }
        tokens += own;
    }
    if start < prompts.len() {
        groups.push(start..prompts.len());
    }
    groups
}

/// Length of the beginning that all prompts share, leaving at least one token of each.
fn shared_prefix(prompts: &[Vec<Token>]) -> usize {
    let Some((first, rest)) = prompts.split_first() else { return 0 };
    let shortest = prompts.iter().map(Vec::len).min().unwrap_or(0).saturating_sub(1);
    (0..shortest).find(|&i| rest.iter().any(|p| p[i] != first[i])).unwrap_or(shortest)
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
    fn shared_prefix_leaves_a_token_of_each() {
        assert_eq!(shared_prefix(&[vec![1, 2, 3], vec![1, 2, 4]]), 2);
        assert_eq!(shared_prefix(&[vec![1, 2], vec![1, 2]]), 1);
        assert_eq!(shared_prefix(&[vec![5], vec![1, 2]]), 0);
        assert_eq!(shared_prefix(&[]), 0);
    }

    #[test]
    fn a_sample_takes_every_row_once() {
        let prompts: Vec<Vec<Token>> = (0..9).map(|i| [vec![7; 5], (0..3 + i).collect()].concat()).collect();
        for n_kept in [0, 1, 4, 31, 43] {
            for from in [0, 3, 6] {
                let mut sample = Sample::new(&prompts, &[from; 9], &Capture::nothing());
                sample.n_kept = n_kept.min(sample.n_tokens);
                let mut rows = Vec::new();
                for (i, prompt) in prompts.iter().enumerate() {
                    let taken = (0..prompt.len()).filter_map(|pos| Some((pos, sample.row(i, pos)?)));
                    rows.extend(taken.map(|(pos, row)| {
                        assert!(pos >= from);
                        row
                    }));
                }
                assert_eq!(rows, (0..sample.n_kept).collect::<Vec<_>>(), "{n_kept} from {from}");
            }
        }
    }

    #[test]
    fn groups_cover_everything_once_and_fit() {
        let prompts: Vec<Vec<Token>> = (0..70).map(|i| vec![i; 1 + (i as usize * 37) % 300]).collect();
        let groups = groups(&prompts, 20);
        assert_eq!(groups.first().map(|g| g.start), Some(0));
        assert_eq!(groups.last().map(|g| g.end), Some(70));
        for pair in groups.windows(2) {
            assert_eq!(pair[0].end, pair[1].start);
        }
        for group in groups {
            let tokens: usize = prompts[group.clone()].iter().map(Vec::len).sum();
            assert!(group.len() <= N_SEQ && tokens <= N_BATCH && tokens + group.len() * 20 <= N_CTX);
        }
    }

    #[test]
    fn what_all_begin_with_counts_once() {
        let prompts: Vec<Vec<Token>> = (0..64).map(|i| [vec![7; 25], vec![i; 15]].concat()).collect();
        assert_eq!(super::groups(&prompts, 20), [0..32, 32..64]);
        let alone: Vec<Vec<Token>> = (0..64).map(|i| vec![i; 40]).collect();
        assert_eq!(super::groups(&alone, 20).len(), 3);
    }

    #[test]
    fn argmax_takes_the_lowest_of_equals_and_refuses_nan() {
        assert_eq!(argmax(&[0.0, 2.0, 2.0]), Some(1));
        assert_eq!(argmax(&[0.0, f32::NAN]), None);
    }
}
