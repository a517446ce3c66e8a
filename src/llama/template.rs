//! The model's own chat template (Jinja), rendered by `minijinja`.
//!
//! `llama_chat_apply_template` is a heuristic over known templates, not Jinja (it drops SmolLM2's
//! default system prompt), so hidden states would come from another prompt than the one users send.
//! A template is code from a stranger: it gets no loader, limited fuel (which also bounds what it can
//! allocate), limited output and time, and a thread with a stack of its own: the engine walks a long expression,
//! or a list in a list in a list …, by recursion, and an exhausted stack would end the process.

mod namespaces;

use std::io::{self, Write};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, State, Value, context};

use super::engine::Chat;

/// What one rendering may use: 1 for an instruction, 1 for 64 bytes of a new value; real templates take
/// some thousands.
const FUEL: u64 = 500_000;
/// Longest template source, in bytes; the longest that we know have some 30 000.
const MAX_SOURCE: usize = 128 << 10;
/// Longest rendered prompt, in bytes.
const MAX_RENDERED: usize = 1 << 20;
/// Most characters of the engine's error, which may quote the template.
const MAX_ERROR: usize = 1000;
/// Longest time for one parsing or rendering; real templates take a millisecond.
const MAX_TIME: Duration = Duration::from_secs(3);
/// Stack of the thread that parses or renders; only what is used takes memory. Of the source's
/// constructs none was found to take more than 500 bytes of stack per byte (a row of unary operators),
/// of nested values 400 per level at 6 of fuel: 64 MiB and 32 MiB.
const STACK: usize = 256 << 20;
/// Templates that print today's date get this one (the default date of Llama 3's own template):
/// the same input must give the same bytes tomorrow.
const FIXED_DATE: [(&str, &str); 12] = [
    ("%Y", "2024"),
    ("%m", "07"),
    ("%d", "26"),
    ("%B", "July"),
    ("%b", "Jul"),
    ("%A", "Friday"),
    ("%a", "Fri"),
    ("%y", "24"),
    ("%H", "12"),
    ("%I", "12"),
    ("%M", "00"),
    ("%S", "00"),
];

/// Why a template could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// It does not parse, or failed while rendering.
    #[error("{0}")]
    Jinja(String),
    /// It is too long, or writes too much.
    #[error("{what} has {found} bytes, over the limit of {limit}")]
    TooLong {
        /// The source or the rendered prompt.
        what: &'static str,
        /// Its size.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// It does not end.
    #[error("it was not done after {seconds} s")]
    TooSlow {
        /// How long it was waited for.
        seconds: u64,
    },
    /// It hands a namespace on, which may end up holding itself.
    #[error("it uses {name:?} as a value; a namespace may only be used for its attributes")]
    HandsOn {
        /// The namespace, or `namespace`.
        name: String,
    },
    /// It left out a message.
    #[error("the rendered prompt does not contain the whole message")]
    DropsMessage,
}

impl TemplateError {
    /// A next step for the user.
    pub fn hint(&self) -> Option<String> {
        Some("the file's tokenizer.chat_template is at fault; see it with `rosi-gguf inspect --json`".into())
    }
}

/// A parsed chat template with the model's special tokens.
pub struct ChatTemplate {
    env: Arc<Environment<'static>>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Parses `source`; `bos` and `eos` are the texts that the template may write.
    ///
    /// # Errors
    /// [`TemplateError`] when it does not parse, is over 128 KiB, or hands a namespace on.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        check_length("the template", source.len(), MAX_SOURCE)?;
        if let Some(name) = namespaces::handed_on(source) {
            return Err(TemplateError::HandsOn { name });
        }
        let mut env = Environment::new();
        env.set_fuel(Some(FUEL));
        // As transformers and llama.cpp render chat templates.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(jinja)?;
        env.set_syntax(syntax);
        env.set_unknown_method_callback(python_method);
        env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        env.add_function("strftime_now", |format: String| {
            FIXED_DATE.iter().fold(format, |text, (key, value)| text.replace(key, value))
        });
        let source = source.to_owned();
        let env = on_own_stack(move || match env.add_template_owned("chat", source) {
            Ok(()) => Ok(Arc::new(env)),
            Err(error) => Err(jinja(error)),
        })?;
        Ok(Self { env, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// Renders one turn, ready for the model's answer. A template that has no system role gets
    /// the system prompt in front of the user's message.
    ///
    /// # Errors
    /// [`TemplateError`] when rendering fails, takes too long, or loses the message.
    pub fn render(&self, chat: &Chat<'_>) -> Result<String, TemplateError> {
        let text = match self.render_turn(chat.system, chat.user) {
            Ok(text) if chat.system.is_none_or(|system| text.contains(system.trim())) => text,
            Err(error) if chat.system.is_none() => return Err(error),
            _ => {
                let joined = format!("{}\n\n{}", chat.system.unwrap_or_default(), chat.user);
                self.render_turn(None, &joined)?
            }
        };
        if text.contains(chat.user.trim()) { Ok(text) } else { Err(TemplateError::DropsMessage) }
    }

    /// Renders a finished exchange for a guard model, whose template puts a question about it after
    /// it. Some guards take contents as text, some as a list of parts.
    ///
    /// # Errors
    /// [`TemplateError`] when rendering fails, takes too long, or loses one of the messages.
    pub fn render_exchange(&self, user: &str, assistant: &str) -> Result<String, TemplateError> {
        let roles = [("user", user), ("assistant", assistant)];
        let whole = |text: &str| roles.iter().all(|(_, content)| text.contains(content.trim()));
        let plain = roles.map(|(role, content)| context! { role, content });
        let text = self.render_messages(&plain);
        if text.as_deref().is_ok_and(whole) {
            return text;
        }
        let parts =
            roles.map(|(role, text)| context! { role, content => [context! { type => "text", text }] });
        match self.render_messages(&parts) {
            Ok(text) if whole(&text) => Ok(text),
            // What went wrong with plain contents is the better explanation.
            _ => text.and(Err(TemplateError::DropsMessage)),
        }
    }

    /// Renders a conversation of `(role, text)`, ready for the model's next answer. A template that has no
    /// system role gets the system prompt in front of the first message.
    ///
    /// # Errors
    /// [`TemplateError`] when rendering fails, takes too long, or loses the last message.
    pub fn render_conversation(
        &self,
        system: Option<&str>,
        messages: &[(&str, &str)],
    ) -> Result<String, TemplateError> {
        let said: Vec<Value> = messages.iter().map(|&(role, content)| context! { role, content }).collect();
        let last = messages.last().map_or("", |(_, text)| text.trim());
        let whole = |text: &str| text.contains(last) && system.is_none_or(|s| text.contains(s.trim()));
        let with_system = system.map(|content| context! { role => "system", content });
        let text = self.render_messages(&with_system.into_iter().chain(said.clone()).collect::<Vec<_>>());
        if text.as_deref().is_ok_and(whole) {
            return text;
        }
        let (Some(system), Some(&(role, first))) = (system, messages.first()) else {
            return text.and(Err(TemplateError::DropsMessage));
        };
        let joined = context! { role, content => format!("{system}\n\n{first}") };
        let messages: Vec<Value> = [joined].into_iter().chain(said.into_iter().skip(1)).collect();
        let text = self.render_messages(&messages)?;
        if whole(&text) { Ok(text) } else { Err(TemplateError::DropsMessage) }
    }

    /// Whether a rendered prompt already begins with the BOS token.
    pub fn starts_with_bos(&self, rendered: &str) -> bool {
        !self.bos.is_empty() && rendered.starts_with(&self.bos)
    }

    fn render_turn(&self, system: Option<&str>, user: &str) -> Result<String, TemplateError> {
        let mut messages = Vec::new();
        if let Some(system) = system {
            messages.push(context! { role => "system", content => system });
        }
        messages.push(context! { role => "user", content => user });
        self.render_messages(&messages)
    }

    fn render_messages(&self, messages: &[Value]) -> Result<String, TemplateError> {
        let (env, bos, eos) = (self.env.clone(), self.bos.clone(), self.eos.clone());
        let messages = messages.to_vec();
        on_own_stack(move || {
            let template = env.get_template("chat").map_err(jinja)?;
            let mut out = Limited { bytes: Vec::new(), found: 0 };
            let rendered = template.render_captured_to(
                context! {
                    messages,
                    add_generation_prompt => true,
                    bos_token => bos,
                    eos_token => eos,
                    enable_thinking => false,
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

/// Takes what is rendered up to the limit, and then ends the rendering.
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

/// Runs `work`, with all that it drops, where recursion as deep as a template can make it has room, and
/// waits no longer than [`MAX_TIME`] for it: the engine can visit a list that holds itself twice, sixty
/// times over, and cannot be stopped then. What still runs ends with the process.
fn on_own_stack<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TemplateError> + Send + 'static,
) -> Result<T, TemplateError> {
    let (send, receive) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("chat template".into()).stack_size(STACK);
    // The receiver is gone when nobody waits any more.
    let started = thread.spawn(move || drop(send.send(work())));
    started.map_err(|error| TemplateError::Jinja(format!("no thread could be started for it: {error}")))?;
    receive.recv_timeout(MAX_TIME).unwrap_or_else(|error| match error {
        mpsc::RecvTimeoutError::Timeout => Err(TemplateError::TooSlow { seconds: MAX_TIME.as_secs() }),
        mpsc::RecvTimeoutError::Disconnected => {
            Err(TemplateError::Jinja("the template engine panicked".into()))
        }
    })
}

/// Python's methods of values, but none that pads a text to any width without paying for it.
fn python_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let wide = |text: &str| text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 3);
    if method == "format" && value.as_str().is_some_and(wide) {
        return Err(Error::new(ErrorKind::InvalidOperation, "format with a width over 999"));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// The engine's error. Its text may be the template's own (`raise_exception`), so it is cut, and nothing
/// in it can steer a terminal.
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
        Chat { system, user: "How do I bake bread?" }
    }

    #[test]
    fn chatml_renders_with_and_without_system() {
        let t = ChatTemplate::new(CHATML, "<s>", "</s>").unwrap();
        insta::assert_snapshot!(t.render(&chat(None)).unwrap(), @r"
        <|im_start|>user
        How do I bake bread?<|im_end|>
        <|im_start|>assistant
        ");
        assert!(t.render(&chat(Some("Be kind."))).unwrap().starts_with("<|im_start|>system\nBe kind."));
    }

    #[test]
    fn a_template_without_system_role_gets_it_in_the_message() {
        let source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}\
            {{ bos_token }}[INST] {{ messages[0].content }} [/INST]";
        let t = ChatTemplate::new(source, "<s>", "</s>").unwrap();
        let text = t.render(&chat(Some("Be kind."))).unwrap();
        assert_eq!(text, "<s>[INST] Be kind.\n\nHow do I bake bread? [/INST]");
        assert!(t.starts_with_bos(&text));
    }

    #[test]
    fn a_template_that_ignores_the_system_message_gets_it_too() {
        let t = ChatTemplate::new(
            "{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }}{% endif %}{% endfor %}",
            "",
            "",
        )
        .unwrap();
        assert_eq!(t.render(&chat(Some("Be kind."))).unwrap(), "U:Be kind.\n\nHow do I bake bread?");
    }

    #[test]
    fn an_exchange_reaches_guards_that_take_text_and_guards_that_take_parts() {
        let task = "Task: is the last message of the agent unsafe?\n";
        let plain = r"{% for m in messages %}{{ m.role ~ ': ' ~ (m.content | trim) ~ '\n' }}{% endfor %}";
        let parts = r"{% for m in messages %}{{ m.role ~ ': ' }}{% for c in m.content | selectattr('type', 'equalto', 'text') %}{{ (c.text | trim) ~ '\n' }}{% endfor %}{% endfor %}";
        for body in [plain, parts] {
            let t = ChatTemplate::new(&format!("{task}{body}Verdict:"), "", "").unwrap();
            let text = t.render_exchange("How do I bake bread?", " Mix flour. ").unwrap();
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
        assert!(t.render(&chat(None)).unwrap().starts_with("26 Jul 2024"));
    }

    #[test]
    fn python_methods_work() {
        let t = ChatTemplate::new(
            "{{ messages[0].content.strip().split('?')[0] }} {{ messages[0]['content'] }}",
            "",
            "",
        )
        .unwrap();
        assert!(t.render(&chat(None)).unwrap().starts_with("How do I bake bread"));
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
