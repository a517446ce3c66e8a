//! The model's own chat template (Jinja), rendered by `minijinja`.
//!
//! `llama_chat_apply_template` is a heuristic over known templates, not Jinja (it drops SmolLM2's
//! default system prompt), so hidden states would come from a different prompt than the one users send.
//!
//! Templates are untrusted code. They get no loader, limited fuel (which also bounds allocation), limited output and
//! CPU time, and a thread with its own stack: the engine recurses into long expressions and deeply nested lists, and
//! an exhausted stack would end the process.

mod builtins;
mod json;
mod messages;
mod namespaces;
mod python;
mod source;
mod stack;

use std::io::{self, Write};
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, Value, context};

use super::engine::Chat;
use crate::util::hint::Hint;
pub use messages::Prompt;
pub(super) use messages::Said;
use messages::{Form, Marks, Message, neutral};
use stack::on_own_stack;

/// Fuel for one rendering: an instruction takes 1, and so do 64 bytes of a new value. Real templates take a few
/// thousand.
const FUEL: u64 = 500_000;
/// Maximum length of a template's source, in bytes; the longest known ones have some 30 000.
const MAX_SOURCE: usize = 128 << 10;
/// Maximum length of a rendered prompt, in bytes.
const MAX_RENDERED: usize = 1 << 20;
/// Maximum length of the engine's error, which may quote the template, in characters.
const MAX_ERROR: usize = 1000;
/// Reasons why a template cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template does not parse, or failed while rendering.
    #[error("{0}")]
    Jinja(String),
    /// The template or its output is too long.
    #[error("{what}: expected at most {limit} bytes, found {found}")]
    TooLong {
        /// `the template` or `the rendered prompt`.
        what: &'static str,
        /// Size, in bytes.
        found: usize,
        /// Maximum size, in bytes.
        limit: usize,
    },
    /// The template takes too long.
    #[error("parsing or rendering exceeded {seconds} s of CPU time")]
    TooSlow {
        /// Limit on the CPU time, in seconds.
        seconds: u64,
    },
    /// The template puts a namespace into another value, which could make it contain itself.
    #[error(
        "the template puts the namespace {name:?} into another value; namespaces may be named, read and \
         passed to macros, but not stored"
    )]
    StoresNamespace {
        /// Name of the namespace.
        name: String,
    },
    /// The template leaves out a required message or a part of one.
    #[error("the rendered prompt does not contain the whole message")]
    DropsMessage,
}

impl Hint for TemplateError {
    fn hint(&self) -> Option<String> {
        Some("view the file's tokenizer.chat_template with `rosi-gguf inspect --json`".into())
    }
}

/// A parsed chat template with the model's special tokens.
#[derive(Clone)]
pub struct ChatTemplate {
    env: Arc<Environment<'static>>,
    bos: String,
    eos: String,
    /// Whether the template's switch for thoughts is on.
    thinks: bool,
    /// Text appended to every prompt.
    suffix: String,
}

impl ChatTemplate {
    /// Parses `source`; `bos` and `eos` are the texts of the BOS and EOS tokens, which the template may write.
    ///
    /// # Errors
    /// Returns [`TemplateError`] if the template does not parse, exceeds 128 KiB, or stores a namespace.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        check_length("the template", source.len(), MAX_SOURCE)?;
        let mut env = Environment::new();
        env.set_fuel(Some(FUEL));
        // Same settings as in transformers and llama.cpp.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(jinja)?;
        env.set_syntax(syntax);
        builtins::add_to(&mut env);
        let source = source.to_owned();
        let env = on_own_stack(move || {
            let source = source::with_unix_lines(&source);
            if let Some(name) = namespaces::stored(&source) {
                return Err(TemplateError::StoresNamespace { name });
            }
            env.add_template_owned("chat", source::for_engine(&source)).map_err(jinja)?;
            Ok(Arc::new(env))
        })?;
        Ok(Self { env, bos: bos.to_owned(), eos: eos.to_owned(), thinks: false, suffix: String::new() })
    }

    /// Sets the template's switch for thoughts, and the text to append to every later prompt.
    pub fn set_thinking(&mut self, on: bool, suffix: &str) {
        self.thinks = on;
        suffix.clone_into(&mut self.suffix);
    }

    /// Returns the text that the template writes after a message, with its switch for thoughts set to `thinks`.
    ///
    /// # Errors
    /// Same as [`Self::render`].
    pub fn ending(&self, thinks: bool) -> Result<String, TemplateError> {
        let plain = Self { thinks, suffix: String::new(), ..self.clone() };
        let Prompt { text, said } = plain.render(&Chat::of("x"))?;
        let end = match &said {
            Said::At(said) => said.last().map_or(0, |said| said.end),
            Said::Unknown { .. } => text.rfind('x').map_or(0, |at| at + 1),
        };
        Ok(text[end..].to_owned())
    }

    /// Returns whether the source of the template contains `text`.
    pub fn mentions(&self, text: &str) -> bool {
        self.env.get_template("chat").is_ok_and(|template| template.source().contains(text))
    }

    /// Renders one turn, up to where the model's answer begins. If the template has no system role, the system prompt
    /// is put in front of the first message.
    ///
    /// # Errors
    /// Same as [`Self::render_conversation`].
    pub fn render(&self, chat: &Chat<'_>) -> Result<Prompt, TemplateError> {
        let before = chat.before.iter().map(|message| (message.role, message.text.as_str()));
        let messages: Vec<(&str, &str)> = before.chain([("user", chat.user)]).collect();
        self.render_conversation(chat.system, &messages)
    }

    /// Renders a finished exchange for a guard model, whose template adds a question about the exchange.
    ///
    /// # Errors
    /// Returns [`TemplateError`] if rendering fails, takes too long, or drops one of the messages.
    pub fn render_exchange(&self, user: &str, assistant: &str) -> Result<Prompt, TemplateError> {
        let exchange = [("user", user), ("assistant", assistant)];
        self.first_whole(&[exchange.map(|(role, text)| Message::new(role, text, true)).to_vec()])
    }

    /// Renders a conversation of `(role, text)` messages, up to where the model's next answer begins. If the template
    /// has no system role, the system prompt is put in front of the first message.
    ///
    /// # Errors
    /// Returns [`TemplateError`] if rendering fails, takes too long, or drops the system prompt or the last message.
    pub fn render_conversation(
        &self,
        system: Option<&str>,
        messages: &[(&str, &str)],
    ) -> Result<Prompt, TemplateError> {
        let last = messages.len().saturating_sub(1);
        let said = messages.iter().enumerate().map(|(i, (role, text))| Message::new(role, text, i == last));
        let said: Vec<Message> = said.collect();
        let Some(system) = system else { return self.first_whole(&[said]) };
        let mut joined = said.clone();
        if let Some(first) = joined.first_mut() {
            *first = Message::new(&first.role, &format!("{system}\n\n{}", first.content), true);
        }
        let apart = [vec![Message::new("system", system, true)], said].concat();
        self.first_whole(&[apart, joined])
    }

    /// Renders the first of `conversations` that keeps all required messages, trying contents as text and as lists of
    /// parts, because some templates accept only the latter. If none succeeds, returns the first error.
    fn first_whole(&self, conversations: &[Vec<Message>]) -> Result<Prompt, TemplateError> {
        let mut first = None;
        for messages in conversations {
            for form in [Form::Text, Form::Parts] {
                match self.prompt(messages, form) {
                    Err(error @ (TemplateError::Jinja(_) | TemplateError::DropsMessage)) => {
                        first.get_or_insert(error);
                    }
                    done => return done,
                }
            }
        }
        Err(first.unwrap_or(TemplateError::DropsMessage))
    }

    /// Renders `messages`, and determines which parts of the prompt come from them.
    fn prompt(&self, messages: &[Message], form: Form) -> Result<Prompt, TemplateError> {
        let render = |messages: &[Message]| {
            let values: Vec<Value> = messages.iter().map(|message| message.value(form)).collect();
            self.render_messages(values)
        };
        let text = render(messages)?;
        let mut marks = Marks::default();
        let marked = marks.mark(messages).and_then(|marked| render(&marked).ok());
        let reading = marked.map(|marked| marks.read(&marked, messages.len()));
        let (whole, said) = match reading.filter(|reading| reading.text == text) {
            Some(reading) => (reading.is_whole(messages), Said::At(reading.said)),
            None => {
                let neutral = render(&neutral(messages))?;
                let mut required = messages.iter().filter(|message| message.required);
                (required.all(|m| text.contains(m.content.trim())), Said::Unknown { neutral })
            }
        };
        if whole {
            Ok(Prompt { text, said }.followed_by(&self.suffix))
        } else {
            Err(TemplateError::DropsMessage)
        }
    }

    fn render_messages(&self, messages: Vec<Value>) -> Result<String, TemplateError> {
        let (env, bos, eos) = (self.env.clone(), self.bos.clone(), self.eos.clone());
        let thinks = self.thinks;
        on_own_stack(move || {
            let template = env.get_template("chat").map_err(jinja)?;
            let mut out = Limited { bytes: Vec::new(), found: 0 };
            let rendered = template.render_captured_to(
                context! {
                    messages,
                    add_generation_prompt => true,
                    bos_token => bos,
                    eos_token => eos,
                    // Qwen3, GLM, Hunyuan, …; DeepSeek and Granite; MiniMax.
                    enable_thinking => thinks,
                    thinking => thinks,
                    thinking_mode => if thinks { "enabled" } else { "disabled" },
                },
                &mut out,
            );
            let error = rendered.err().map(jinja);
            check_length("the rendered prompt", out.found, MAX_RENDERED)?;
            match error {
                Some(error) => Err(error),
                None => Ok(String::from_utf8_lossy(&out.bytes).into_owned()),
            }
        })
    }
}

/// Writer that fails after [`MAX_RENDERED`] bytes, which ends the rendering.
struct Limited {
    bytes: Vec<u8>,
    found: usize,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.found += bytes.len();
        if self.found > MAX_RENDERED {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Converts an error of the engine. The template may supply its text (`raise_exception`), so it is truncated and
/// stripped of control characters, which could affect the terminal.
fn jinja(error: Error) -> TemplateError {
    let text = error.to_string();
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    TemplateError::Jinja(printable.take(MAX_ERROR).collect())
}

fn check_length(what: &'static str, found: usize, limit: usize) -> Result<(), TemplateError> {
    if found > limit {
        return Err(TemplateError::TooLong { what, found, limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn chat<'a>(system: Option<&'a str>) -> Chat<'a> {
        Chat { system, ..Chat::of("How do I bake bread?") }
    }

    fn text(t: &ChatTemplate, chat: &Chat<'_>) -> String {
        t.render(chat).unwrap().text
    }

    #[test]
    fn chatml_renders_with_and_without_system() {
        let t = ChatTemplate::new(CHATML, "<s>", "</s>").unwrap();
        insta::assert_snapshot!(text(&t, &chat(None)), @r"
        <|im_start|>user
        How do I bake bread?<|im_end|>
        <|im_start|>assistant
        ");
        assert!(text(&t, &chat(Some("Be kind."))).starts_with("<|im_start|>system\nBe kind."));
    }

    #[test]
    fn a_template_without_system_role_gets_it_in_the_message() {
        let source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}\
            {{ bos_token }}[INST] {{ messages[0].content }} [/INST]";
        let t = ChatTemplate::new(source, "<s>", "</s>").unwrap();
        let text = text(&t, &chat(Some("Be kind.")));
        assert_eq!(text, "<s>[INST] Be kind.\n\nHow do I bake bread? [/INST]");
    }

    fn said(prompt: &Prompt) -> Vec<&str> {
        let Said::At(said) = &prompt.said else { panic!("{prompt:?}") };
        said.iter().map(|range| &prompt.text[range.clone()]).collect()
    }

    #[test]
    fn what_was_said_is_known_whatever_the_template_makes_of_it() {
        let user = " user\n<|im_end|>\n \"a\" ";
        let chat = Chat { system: Some("user"), ..Chat::of(user) };
        let json = "{{ {'system': messages[0].content, 'user': messages[1].content} | tojson }}user";
        for (source, expected) in [
            (CHATML, &["user", "user\n<|im_end|>\n \"a"][..]),
            (
                "{{ messages[0].content }}: {{ messages[1].content | trim }}",
                &["user", "user\n<|im_end|>\n \"a"],
            ),
            (json, &["user", "user", "<|im_end|>", "a"]),
        ] {
            let prompt = ChatTemplate::new(source, "", "").unwrap().render(&chat).unwrap();
            assert_eq!(said(&prompt), expected, "{source}");
        }
        let cut = "{{ messages[0].content }}{{ messages[1].content.split('>')[-1] }}";
        let cut = ChatTemplate::new(cut, "", "").unwrap().render(&chat);
        assert!(matches!(cut, Err(TemplateError::DropsMessage)), "{cut:?}");
    }

    #[test]
    fn a_template_that_looks_at_what_is_said_is_held_against_neutral_words() {
        let source = "{% if 'no_think' in messages[0].content %}<t>{% endif %}{{ messages[0].content }}<end>";
        let t = ChatTemplate::new(source, "", "").unwrap();
        let prompt = t.render(&Chat::of("/no_think")).unwrap();
        assert_eq!(prompt.text, "<t>/no_think<end>");
        assert_eq!(prompt.said, Said::Unknown { neutral: "x<end>".into() });
    }

    #[test]
    fn a_template_that_ignores_the_system_message_gets_it_too() {
        let t = ChatTemplate::new(
            "{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }}{% endif %}{% endfor %}",
            "",
            "",
        )
        .unwrap();
        assert_eq!(text(&t, &chat(Some("Be kind."))), "U:Be kind.\n\nHow do I bake bread?");
    }

    #[test]
    fn an_exchange_reaches_guards_that_take_text_and_guards_that_take_parts() {
        let task = "Task: is the last message of the agent unsafe?\n";
        let plain = r"{% for m in messages %}{{ m.role ~ ': ' ~ (m.content | trim) ~ '\n' }}{% endfor %}";
        let parts = r"{% for m in messages %}{{ m.role ~ ': ' }}{% for c in m.content | selectattr('type', 'equalto', 'text') %}{{ (c.text | trim) ~ '\n' }}{% endfor %}{% endfor %}";
        for body in [plain, parts] {
            let t = ChatTemplate::new(&format!("{task}{body}Verdict:"), "", "").unwrap();
            let text = t.render_exchange("How do I bake bread?", " Mix flour. ").unwrap().text;
            assert!(text.starts_with(task) && text.ends_with("Verdict:"), "{text}");
            assert!(text.contains("user: How do I bake bread?\nassistant: Mix flour.\n"), "{text}");
        }
        let only_user = ChatTemplate::new("{{ messages[0].content }}", "", "").unwrap();
        assert!(matches!(only_user.render_exchange("a", "b"), Err(TemplateError::DropsMessage)));
        let fails = ChatTemplate::new("{{ raise_exception('no agents') }}", "", "").unwrap();
        assert!(matches!(fails.render_exchange("a", "b"), Err(TemplateError::Jinja(_))));
    }

    #[test]
    fn the_date_does_not_move() {
        let t =
            ChatTemplate::new("{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}", "", "").unwrap();
        assert!(text(&t, &chat(None)).starts_with("26 Jul 2024"));
    }

    #[test]
    fn python_methods_work() {
        let t = ChatTemplate::new(
            "{{ messages[0].content.strip().split('?')[0] }} {{ messages[0]['content'] }}",
            "",
            "",
        )
        .unwrap();
        assert!(text(&t, &chat(None)).starts_with("How do I bake bread"));
    }

    #[test]
    fn endless_and_huge_templates_end_in_an_error() {
        let endless = "{% for a in range(9000) %}{% for b in range(9000) %}{% for c in range(9000) %}x{% endfor %}{% endfor %}{% endfor %}";
        let t = ChatTemplate::new(endless, "", "").unwrap();
        assert!(matches!(t.render(&chat(None)), Err(TemplateError::Jinja(_))));
        let t =
            ChatTemplate::new("{% set x = 'abcdefghij' * 1000000 %}{{ x }}{{ messages[0].content }}", "", "")
                .unwrap();
        assert!(t.render(&chat(None)).is_err());
    }

    #[test]
    fn a_broken_template_and_one_that_drops_the_message_are_errors() {
        assert!(matches!(ChatTemplate::new("{% for %}", "", ""), Err(TemplateError::Jinja(_))));
        let t = ChatTemplate::new("hello", "", "").unwrap();
        assert!(matches!(t.render(&chat(None)), Err(TemplateError::DropsMessage)));
    }
}
