//! Thoughts before an answer: how a model marks them, and how to make it answer at once.
//!
//! Some templates have a switch, some always open a thought, and some leave that to the model. The behavior is
//! detected from what the template writes after a message with the switch on and off, and from the first tokens of a
//! few answers. To make the model answer at once, the prompt ends with a thought that is closed as soon as it is
//! opened, as such models were trained to read it.

use std::rc::Rc;

use serde::Serialize;

use super::LlamaError;
use super::engine::{Chat, Engine, FirstLogits, LlamaEngine};
use super::ffi::{Model, Token};
use super::length::Length;
use super::template::ChatTemplate;
use crate::llama::activations::Activations;
use crate::llama::{Capture, LowRank};

/// One syntax for marking thoughts.
#[derive(Debug, PartialEq, Eq)]
pub struct Form {
    /// Text that opens a thought.
    pub open: &'static str,
    /// Text that ends a thought.
    pub close: &'static str,
    /// Full text to write in order to end a thought.
    closing: &'static str,
    /// End of prompts that leave it to the model to open a thought, if only thinking models use that text.
    header: Option<&'static str>,
    /// Text that ends a message, if llama.cpp does not treat it as an end.
    end: Option<&'static str>,
}

impl Form {
    const fn tags(open: &'static str, close: &'static str) -> Self {
        Self { open, close, closing: close, header: None, end: None }
    }
}

/// The known syntaxes. Among tags in angle brackets, those with `think` are by far the most frequent.
pub const FORMS: [Form; 13] = [
    Form { closing: "\n</think>\n\n", ..Form::tags("<think>", "</think>") },
    Form { closing: "\n</thinking>\n\n", ..Form::tags("<thinking>", "</thinking>") },
    Form { closing: "\n</thought>\n\n", ..Form::tags("<thought>", "</thought>") },
    Form { closing: "\n</reasoning>\n\n", ..Form::tags("<reasoning>", "</reasoning>") },
    Form::tags("<seed:think>", "</seed:think>"),
    Form::tags("<mm:think>", "</mm:think>"),
    // Gemma 4.
    Form::tags("<|channel>thought\n", "<channel|>"),
    Form::tags("[THINK]", "[/THINK]"),
    Form::tags("\u{25c1}think\u{25b7}", "\u{25c1}/think\u{25b7}"),
    Form::tags("<|START_THINKING|>", "<|END_THINKING|>"),
    Form::tags("<|inner_prefix|>", "<|inner_suffix|>"),
    // OpenAI's harmony format, used by gpt-oss: thoughts are a separate channel.
    Form {
        open: "<|channel|>analysis<|message|>",
        close: "<|channel|>final<|message|>",
        closing: "<|end|><|start|>assistant<|channel|>final<|message|>",
        header: Some("<|start|>assistant"),
        end: Some("<|end|>"),
    },
    // Solar Open.
    Form {
        open: "<|think|>",
        close: "<|content|>",
        closing: "<|end|><|begin|>assistant<|content|>",
        header: None,
        end: Some("<|end|>"),
    },
];

/// Prompts whose answers show whether a model begins with a thought.
const SHOWING: [&str; 2] = ["What is the capital of France?", "Name three colours."];
/// Number of tokens to generate for each of these answers.
const N_SHOWN: usize = 8;
/// Number of tokens at the beginning or end of generated text that are searched for a tag.
const N_CLOSE: usize = 24;

/// How a model separates thoughts from its answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Thinking {
    /// Text that opens a thought.
    pub open: &'static str,
    /// Text that ends a thought.
    pub close: &'static str,
    /// Text appended to a prompt to make the answer begin at once; empty if the template's switch does that.
    pub answer_prefix: String,
    /// Whether the template itself opens a thought when its switch is on.
    pub opened: bool,
    /// Whether the template cannot be rendered with its switch off.
    #[serde(skip)]
    always_on: bool,
    #[serde(skip)]
    form: &'static Form,
}

/// Length and completeness of the thoughts before one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thought {
    /// Number of tokens.
    pub n_token: usize,
    /// Whether the thoughts ended within their budget.
    pub ended: bool,
}

/// Returns the last tag in `text`, if any.
fn last_tag<'a>(form: &Form, text: &'a str) -> Option<Tag<'a>> {
    let opened = text.rfind(form.open).map(|at| at + form.open.len());
    let closed = text.rfind(form.close).map(|at| at + form.close.len());
    match (opened, closed) {
        (Some(open), closed) if closed.is_none_or(|closed| closed <= open) => Some(Tag::Open(&text[open..])),
        (_, Some(_)) => Some(Tag::Closed),
        _ => None,
    }
}

/// The last tag of a text.
#[derive(Debug, PartialEq, Eq)]
enum Tag<'a> {
    /// A thought is open; the text after its opening.
    Open(&'a str),
    Closed,
}

impl Thinking {
    fn new(form: &'static Form, answer_prefix: String, opened: bool) -> Self {
        Self { open: form.open, close: form.close, answer_prefix, opened, always_on: false, form }
    }

    /// Detects thinking from the endings of prompts rendered with the template's switch on and off; `None` if there is
    /// no sign of thoughts.
    pub fn of_endings(on: &str, off: &str) -> Option<Self> {
        FORMS.iter().find_map(|form| {
            let opened = matches!(last_tag(form, on), Some(Tag::Open(rest)) if rest.trim().is_empty());
            let prefix = match last_tag(form, off) {
                Some(Tag::Closed) => Some(String::new()),
                Some(Tag::Open(rest)) => rest.trim().is_empty().then(|| form.closed_behind(rest)),
                None if opened => Some(String::new()),
                None => form.header.filter(|header| off.ends_with(header)).map(|_| form.empty()),
            };
            Some(Self::new(form, prefix?, opened))
        })
    }

    /// Returns the token that ends a message, if llama.cpp does not treat it as an end.
    pub(super) fn end(&self, model: &Model) -> Option<Token> {
        self.form.end.and_then(|end| model.special(end))
    }

    /// Makes `template` render prompts that lead to thoughts if `on`, and to an answer at once otherwise.
    pub(super) fn set(&self, template: &mut ChatTemplate, on: bool) {
        template.set_thinking(on || self.always_on, if on { "" } else { &self.answer_prefix });
    }

    /// Detects thinking from the beginning of an answer, given with its control tokens.
    pub fn of_answer(answer: &str) -> Option<Self> {
        let form = FORMS.iter().find(|form| answer.trim_start().starts_with(form.open))?;
        Some(Self::new(form, form.empty(), false))
    }
}

impl Form {
    /// Returns the text that closes a thought, given the text `rest` after its opening.
    fn closed_behind(&self, rest: &str) -> String {
        let line = if self.closing.starts_with('\n') && !rest.ends_with('\n') { "\n" } else { "" };
        format!("{line}{}", self.closing)
    }

    /// Returns a thought that is closed at once.
    fn empty(&self) -> String {
        format!("{}{}", self.open, self.closed_behind(""))
    }
}

/// Detects thinking from a template. Returns `None` if the template cannot be rendered: the first prompt will report
/// that error.
pub fn of_template(template: &ChatTemplate) -> Option<Thinking> {
    let on = template.ending(true).ok()?;
    match template.ending(false) {
        Ok(off) => Thinking::of_endings(&on, &off),
        Err(_) => Thinking::of_endings(&on, &on).map(|thinking| Thinking { always_on: true, ..thinking }),
    }
}

impl LlamaEngine {
    /// Returns how the model thinks; `None` if its template and the first tokens of a few answers show no thoughts.
    pub fn thinking(&self) -> Option<&Thinking> {
        self.thinking.as_ref()
    }

    /// Detects how the model thinks, and makes answers begin at once.
    pub(super) fn find_thinking(&mut self) -> Result<(), LlamaError> {
        let Some(template) = &self.template else { return Ok(()) };
        self.thinking = match of_template(template) {
            Some(thinking) => Some(thinking),
            None if self.may_think(template) => self.seen_thinking()?,
            None => None,
        };
        self.ends = self.thinking.as_ref().and_then(|thinking| thinking.end(&self.model));
        self.set_thinking(false);
        Ok(())
    }

    /// Returns whether the template or the vocabulary contains the opening of a thought.
    fn may_think(&self, template: &ChatTemplate) -> bool {
        FORMS.iter().any(|form| template.mentions(form.open) || self.model.special(form.open).is_some())
    }

    /// Detects thinking from the first tokens of a few answers.
    fn seen_thinking(&mut self) -> Result<Option<Thinking>, LlamaError> {
        let prompts: Vec<_> = SHOWING.iter().filter_map(|user| self.tokens(&Chat::of(user)).ok()).collect();
        let answers = self.generate(&prompts, N_SHOWN, &|_, _| true, &mut |_, _| ())?;
        Ok(answers.iter().find_map(|answer| Thinking::of_answer(&self.model.text_of_all(answer))))
    }

    /// Returns the tokens of `chats`, rendered to lead to thoughts.
    fn prompts_to_think_about(&mut self, chats: &[Chat<'_>]) -> Result<Vec<Vec<Token>>, LlamaError> {
        self.set_thinking(true);
        let prompts = self.all_tokens(chats);
        self.set_thinking(false);
        prompts
    }

    /// Makes all later prompts lead to thoughts if `on`, and to an answer at once otherwise.
    fn set_thinking(&mut self, on: bool) {
        if let (Some(template), Some(thinking)) = (&mut self.template, &self.thinking) {
            thinking.set(template, on);
        }
    }

    /// Generates the model's thoughts about `prompts`, each up to its end or to `budget` tokens; `None` where the model
    /// answers without thinking.
    fn thoughts(
        &mut self,
        prompts: &[Vec<Token>],
        budget: usize,
    ) -> Result<Vec<Option<Written>>, LlamaError> {
        let Some(thinking) = self.thinking.clone() else { return Ok(vec![None; prompts.len()]) };
        let model: Rc<Model> = Rc::clone(&self.model);
        let tail = |tokens: &[Token]| model.text_of_all(&tokens[tokens.len().saturating_sub(N_CLOSE)..]);
        let goes_on = |_: usize, tokens: &[Token]| !tail(tokens).contains(thinking.close);
        let ends = self.ends.take();
        let written = self.generate(prompts, budget, &goes_on, &mut |_, _| ());
        self.ends = ends;
        let read = |tokens: Vec<Token>| {
            let ended = tail(&tokens).contains(thinking.close);
            let begins = || model.text_of_all(&tokens[..tokens.len().min(N_CLOSE)]);
            let thinks = thinking.opened || ended || begins().trim_start().starts_with(thinking.open);
            thinks.then_some(Written { tokens, ended })
        };
        Ok(written?.into_iter().map(read).collect())
    }

    /// Returns answers given after the model's own thoughts of at most `budget` tokens, and the length of the thoughts.
    /// Where thoughts do not end, `first` is not called, and the text of the thoughts, including their opening, takes
    /// the place of the answer.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if rendering or decoding fails.
    pub fn answer_thinking(
        &mut self,
        chats: &[Chat<'_>],
        budget: usize,
        length: &Length<'_>,
        first: &mut FirstLogits<'_>,
    ) -> Result<Vec<(String, Thought)>, LlamaError> {
        let prompts = self.prompts_to_think_about(chats)?;
        let thoughts = self.thoughts(&prompts, budget)?;
        let form = self.thinking.as_ref().map(|thinking| thinking.form);
        let (open, end) = form.map_or(("", ""), |form| (form.open, form.end.unwrap_or_default()));
        let mut all: Vec<(String, Thought)> = Vec::with_capacity(chats.len());
        let (mut ready, mut asked) = (Vec::new(), Vec::new());
        for (i, (mut prompt, thought)) in prompts.into_iter().zip(thoughts).enumerate() {
            let (n_token, ended) = thought.as_ref().map_or((0, true), |t| (t.tokens.len(), t.ended));
            let mut text = String::new();
            match thought {
                Some(thought) if !ended => {
                    let thought = self.model.text_of_all(&thought.tokens);
                    let thought = thought.trim_start().trim_start_matches(open);
                    text = format!("{open}{}", thought.strip_suffix(end).unwrap_or(thought));
                }
                thought => {
                    prompt.extend(thought.map_or_else(Vec::new, |thought| thought.tokens));
                    ready.push(prompt);
                    asked.push(i);
                }
            }
            all.push((text, Thought { n_token, ended }));
        }
        let answers = self.answer_tokens_until(ready, length, &mut |i, logits| first(asked[i], logits))?;
        for (&i, answer) in asked.iter().zip(answers) {
            all[i].0 = answer;
        }
        Ok(all)
    }

    /// Returns prompts followed by the model's own thoughts of at most `budget` tokens, closed if they did not end, up
    /// to where the answer begins; `None` where the model answers at once or the result is too long. The list is empty
    /// if the model does not think.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if rendering or decoding fails.
    pub(super) fn prompts_with_thoughts(
        &mut self,
        chats: &[Chat<'_>],
        budget: usize,
    ) -> Result<Vec<Option<ThoughtOf>>, LlamaError> {
        let prompts = self.prompts_to_think_about(chats)?;
        let thoughts = self.thoughts(&prompts, budget)?;
        let Some(form) = self.thinking.as_ref().map(|thinking| thinking.form) else { return Ok(Vec::new()) };
        let behind = form.closing.rsplit(form.close).next().unwrap_or_default();
        let join = |(mut prompt, thought): (Vec<Token>, Option<Written>)| {
            let Some(thought) = thought else { return Ok(None) };
            let from = prompt.len();
            prompt.extend(thought.tokens);
            prompt.extend(self.model.template_tokens(if thought.ended { behind } else { form.closing })?);
            Ok((prompt.len() <= self.prompt_tokens).then_some(ThoughtOf { tokens: prompt, from }))
        };
        prompts.into_iter().zip(thoughts).map(join).collect()
    }
}

/// A prompt followed by thoughts.
pub(super) struct ThoughtOf {
    /// Tokens of the prompt and the thoughts.
    pub tokens: Vec<Token>,
    /// Position at which the thoughts begin.
    pub from: usize,
}

/// Thoughts as they were generated.
#[derive(Debug, Clone)]
struct Written {
    tokens: Vec<Token>,
    ended: bool,
}

/// An [`Engine`] that thinks before each answer and records its thoughts.
pub struct Thinker<'a> {
    engine: &'a mut LlamaEngine,
    budget: usize,
    /// Thoughts before each answer so far.
    pub thoughts: Vec<Thought>,
}

impl<'a> Thinker<'a> {
    /// Wraps `engine`, with thoughts of at most `budget` tokens.
    pub fn new(engine: &'a mut LlamaEngine, budget: usize) -> Self {
        Self { engine, budget, thoughts: Vec::new() }
    }
}

impl Engine for Thinker<'_> {
    fn n_layer(&self) -> usize {
        self.engine.n_layer()
    }

    fn apply(&mut self, edits: &[LowRank]) -> Result<(), LlamaError> {
        self.engine.apply(edits)
    }

    fn answer_until(
        &mut self,
        chats: &[Chat<'_>],
        length: &Length<'_>,
        first: &mut FirstLogits<'_>,
    ) -> Result<Vec<String>, LlamaError> {
        let answers = self.engine.answer_thinking(chats, self.budget, length, first)?;
        self.thoughts.extend(answers.iter().map(|(_, thought)| *thought));
        Ok(answers.into_iter().map(|(answer, _)| answer).collect())
    }

    fn collect(
        &mut self,
        chats: &[Chat<'_>],
        capture: &Capture,
        first: &mut FirstLogits<'_>,
    ) -> Result<Activations, LlamaError> {
        self.engine.collect(chats, capture, first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(on: &str, off: &str) -> Option<(&'static str, String, bool)> {
        Thinking::of_endings(on, off).map(|t| (t.form.open, t.answer_prefix, t.opened))
    }

    #[test]
    fn what_templates_write_behind_a_message_tells_how_models_think() {
        let head = "<|im_end|>\n<|im_start|>assistant\n";
        let at = |text: &str| format!("{head}{text}");
        let closed = |prefix: &str| Some(("<think>", prefix.to_owned(), true));
        for (on, off, expected) in [
            // Qwen3: the model opens the thought, the switch writes an empty one.
            (at(""), at("<think>\n\n</think>\n\n"), Some(("<think>", String::new(), false))),
            // Qwen3.5, GLM: the template opens it, or writes an empty one.
            (at("<think>\n"), at("<think>\n\n</think>\n\n"), closed("")),
            // DeepSeek-V3.1.
            (at("<think>"), at("</think>"), closed("")),
            // A switch that only opens.
            (at("<think>\n"), at(""), closed("")),
            // R1, QwQ: always open.
            (at("<think>\n"), at("<think>\n"), closed("\n</think>\n\n")),
            (at("<think>"), at("<think>"), closed("\n\n</think>\n\n")),
            (at("[THINK]"), at("[THINK]"), Some(("[THINK]", "[/THINK]".to_owned(), true))),
            (at("<thought>\n"), at("<thought>\n"), Some(("<thought>", "\n</thought>\n\n".to_owned(), true))),
            // gpt-oss.
            (
                "<|end|><|start|>assistant".into(),
                "<|end|><|start|>assistant".into(),
                Some((
                    "<|channel|>analysis<|message|>",
                    "<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|>"
                        .to_owned(),
                    false,
                )),
            ),
            (at(""), at(""), None),
            (at("<tool>"), at("Sure, "), None),
        ] {
            assert_eq!(found(&on, &off), expected, "{on:?} {off:?}");
        }
    }

    #[test]
    fn the_beginning_of_an_answer_tells_it_too() {
        let prefix = |answer| Thinking::of_answer(answer).map(|thinking| thinking.answer_prefix);
        assert_eq!(prefix("<think>\nOkay, the").as_deref(), Some("<think>\n\n</think>\n\n"));
        assert_eq!(prefix("\n[THINK]So").as_deref(), Some("[THINK][/THINK]"));
        assert_eq!(prefix("The capital <think>"), None);
    }

    #[test]
    fn the_last_tag_of_a_text_is_what_counts() {
        let form = &FORMS[0];
        assert_eq!(last_tag(form, "<think>a</think>b<think> "), Some(Tag::Open(" ")));
        assert_eq!(last_tag(form, "<think>a</think>b"), Some(Tag::Closed));
        assert_eq!(last_tag(form, "</think>"), Some(Tag::Closed));
        assert_eq!(last_tag(form, "thinking"), None);
    }
}
