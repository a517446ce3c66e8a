//! Conversations with a model: turns are kept in the KV cache, and answers are streamed piece by piece.
//!
//! Each turn renders the whole conversation again, as the template requires, and decodes only what differs
//! from the cache: usually just the new message, but more if the template rewrites earlier turns.

pub(in crate::llama) mod ffi;

use std::path::Path;
use std::rc::Rc;

use super::LlamaError;
use super::batch::Batch;
use super::engine::{Message, argmax};
use super::ffi::{Context, ContextSize, Model, Token};
use super::offload::Offload;
use super::sidecar::load_adapter;
use super::template::ChatTemplate;
use super::thinking::{self, Thinking};
use crate::gguf::Gguf;

/// Maximum tokens per decode.
const N_BATCH: usize = 512;

/// A generated answer, possibly incomplete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Text generated so far.
    pub text: String,
    /// Whether the user stopped the answer with Ctrl-C.
    pub stopped: bool,
}

/// Options of a conversation.
#[derive(Debug, Clone)]
pub struct ChatOptions {
    /// Number of CPU threads.
    pub threads: usize,
    /// Which parts of the model run on GPUs or RPC workers.
    pub offload: Offload,
    /// Maximum tokens of the whole conversation.
    pub n_ctx: usize,
    /// Maximum tokens of an answer.
    pub n_predict: usize,
    /// Maximum tokens of the thoughts before an answer; with 0, answers begin at once.
    pub n_think: usize,
}

/// A loaded model that can hold several conversations.
pub struct ChatModel {
    model: Rc<Model>,
    template: Rc<ChatTemplate>,
    thinking: Option<Thinking>,
    options: ChatOptions,
}

/// One conversation with a [`ChatModel`].
pub struct Conversation {
    model: Rc<Model>,
    template: Rc<ChatTemplate>,
    /// Token that ends an answer in addition to those that llama.cpp knows.
    ends: Option<Token>,
    /// Text that ends a thought.
    close: Option<&'static str>,
    context: Context,
    options: ChatOptions,
    /// Tokens in the KV cache.
    cached: Vec<Token>,
    /// Messages so far, without the system prompt.
    messages: Vec<Message>,
    system: Option<String>,
}

impl ChatModel {
    /// Loads the model at `path`, whose header must have been checked; `template` is the source of its chat
    /// template.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if the model or the template cannot be used, or `options` asks for thoughts and the
    /// model has none.
    pub fn load(
        path: &Path,
        template: &str,
        options: ChatOptions,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Self, LlamaError> {
        let model = Model::load(path, &options.offload, progress)?;
        let (bos, eos) = model.bos_eos_text();
        let mut template = ChatTemplate::new(template, &bos, &eos)?;
        let thinking = thinking::of_template(&template);
        match &thinking {
            Some(thinking) => thinking.set(&mut template, options.n_think > 0),
            None if options.n_think > 0 => return Err(LlamaError::NoThoughts),
            None => {}
        }
        Ok(Self { model, template: Rc::new(template), thinking, options })
    }

    /// Begins a conversation with the given system prompt.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if its context cannot be created, usually for lack of memory.
    pub fn begin(&self, system: Option<&str>) -> Result<Conversation, LlamaError> {
        let size = ContextSize {
            n_ctx: u32::try_from(self.options.n_ctx).unwrap_or(u32::MAX),
            n_batch: N_BATCH as u32,
            n_seq: 1,
            n_threads: i32::try_from(self.options.threads.max(1)).unwrap_or(1),
            flash_attn: self.options.offload.flash_attn,
        };
        let context = Context::new(&self.model, size)?;
        Ok(Conversation {
            model: Rc::clone(&self.model),
            template: Rc::clone(&self.template),
            ends: self.thinking.as_ref().and_then(|thinking| thinking.end(&self.model)),
            close: self.thinking.as_ref().map(|thinking| thinking.close),
            context,
            options: self.options.clone(),
            cached: Vec::new(),
            messages: Vec::new(),
            system: system.map(str::to_owned),
        })
    }
}

impl Conversation {
    /// Applies the adapter at `path` to all later answers; `gguf` is the model's header.
    ///
    /// # Errors
    /// Returns [`LlamaError::Adapter`] if the file is not a LoRA adapter for this model.
    pub fn with_adapter(mut self, path: &Path, gguf: &Gguf) -> Result<Self, LlamaError> {
        let adapter = load_adapter(path, &self.model, gguf)?;
        self.context.set_adapter(Some(adapter), 1.0)?;
        Ok(self)
    }

    /// Discards all messages except the system prompt.
    pub fn reset(&mut self) {
        self.messages.clear();
        self.cached.clear();
        self.context.clear();
    }

    /// Sends `user` and returns the greedy answer; `show` receives each new piece as it is generated. Both
    /// messages become part of the conversation, or neither if an error occurs.
    ///
    /// # Errors
    /// Returns [`LlamaError::ControlTokens`] if the message contains control tokens that cannot be distinguished from
    /// those of the template, [`LlamaError::PromptTooLong`] if the conversation is full, or the error of a failed
    /// decode.
    pub fn say(&mut self, user: &str, show: &mut dyn FnMut(&str)) -> Result<Answer, LlamaError> {
        let tokens = self.tokens(user)?;
        let limit = self.options.n_ctx.saturating_sub(self.options.n_predict + self.options.n_think);
        let limit = limit.min(self.n_positions());
        if tokens.len() > limit {
            let start = user.chars().take(60).collect();
            return Err(LlamaError::PromptTooLong { tokens: tokens.len(), limit, start });
        }
        let answer = self.answer(&tokens, show)?;
        self.messages.push(Message { role: "user", text: user.to_owned() });
        // Thoughts are not part of the conversation; templates leave them out as well.
        let behind = self.close.and_then(|close| Some(answer.text.rsplit_once(close)?.1.trim_start()));
        let text = behind.unwrap_or(&answer.text).to_owned();
        self.messages.push(Message { role: "assistant", text });
        Ok(answer)
    }

    /// Returns the number of positions that the model has learned, or `usize::MAX` if positions are not learned.
    fn n_positions(&self) -> usize {
        self.model.n_positions().unwrap_or(usize::MAX)
    }

    /// Returns the tokens of the conversation with one more message, as the model sees them.
    fn tokens(&self, user: &str) -> Result<Vec<Token>, LlamaError> {
        let said = self.messages.iter().map(|m| (m.role, m.text.as_str()));
        let messages: Vec<(&str, &str)> = said.chain([("user", user)]).collect();
        self.model.prompt_tokens(&self.template.render_conversation(self.system.as_deref(), &messages)?)
    }

    fn answer(&mut self, tokens: &[Token], show: &mut dyn FnMut(&str)) -> Result<Answer, LlamaError> {
        let (mut answer, mut shown) = (Vec::new(), 0);
        let stopped = match self.generate(tokens, &mut answer, &mut |text| {
            // A character is not shown until all its bytes have been generated.
            let whole = text.trim_end_matches('\u{FFFD}');
            if let Some(new) = whole.get(shown..).filter(|new| !new.is_empty()) {
                show(new);
                shown = whole.len();
            }
        }) {
            Ok(()) => false,
            Err(LlamaError::Interrupted(_)) => true,
            Err(error) => {
                self.forget_after(0);
                return Err(error);
            }
        };
        if stopped {
            // It is unknown what a stopped decode left in the cache.
            self.forget_after(self.cached.len());
        }
        Ok(Answer { text: self.text(&answer), stopped })
    }

    /// Returns the text of an answer to show. It includes control tokens if thoughts precede the answer, since the two
    /// may be separated by control tokens.
    fn text(&self, tokens: &[Token]) -> String {
        if self.options.n_think > 0 { self.model.text_of_all(tokens) } else { self.model.detokenize(tokens) }
    }

    /// Returns whether `next` ends the answer after the tokens `so_far`.
    fn is_end(&self, next: Token, so_far: &[Token]) -> bool {
        let thinks =
            || self.options.n_think > 0 && self.close.is_some_and(|close| !self.text(so_far).contains(close));
        self.model.is_eog(next) || (self.ends == Some(next) && !thinks())
    }

    /// Decodes the tokens that the cache lacks, then generates the answer token by token.
    fn generate(
        &mut self,
        tokens: &[Token],
        answer: &mut Vec<Token>,
        show: &mut dyn FnMut(&str),
    ) -> Result<(), LlamaError> {
        let same = self.cached.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        self.forget_after(same.min(tokens.len().saturating_sub(1)));
        let mut last = self.feed(&tokens[self.cached.len()..])?;
        let room = self.n_positions().saturating_sub(tokens.len()).saturating_add(1);
        let n_predict = (self.options.n_think + self.options.n_predict).min(room);
        for step in 0..n_predict {
            let row = self.context.logits(last);
            let next = row
                .ok_or("none")
                .and_then(|row| argmax(row).ok_or("NaN"))
                .map_err(|found| LlamaError::Logits { prompt: 0, found })?;
            if self.is_end(next, answer) {
                break;
            }
            answer.push(next);
            show(&self.text(answer));
            if step + 1 < n_predict {
                last = self.feed(&[next])?;
            }
        }
        Ok(())
    }

    /// Decodes `tokens` after the cached ones and returns the index of the last one in its batch.
    fn feed(&mut self, tokens: &[Token]) -> Result<usize, LlamaError> {
        let mut last = 0;
        let n = tokens.len();
        for (i, part) in tokens.chunks(N_BATCH).enumerate() {
            let mut batch = Batch::default();
            for (j, &token) in part.iter().enumerate() {
                last = batch.push(token, self.cached.len() + j, 0, i * N_BATCH + j + 1 == n);
            }
            self.context.decode(&mut batch, None)?;
            self.cached.extend(part);
        }
        Ok(last)
    }

    /// Keeps only the first `n` tokens in the cache, or none for a recurrent model, which cannot forget a part.
    fn forget_after(&mut self, n: usize) {
        if ffi::forget_from(&mut self.context, n) {
            self.cached.truncate(n);
        } else {
            self.context.clear();
            self.cached.clear();
        }
    }
}
