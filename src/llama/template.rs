//! The model's own chat template (Jinja), rendered by `minijinja`.
//!
//! `llama_chat_apply_template` is a heuristic over known templates, not Jinja (it drops SmolLM2's
//! default system prompt), so hidden states would come from another prompt than the one users send.
//! A template is code from a stranger: it gets no loader, limited fuel, and limited output.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};

use super::engine::Chat;

/// Instructions that one rendering may take; real templates use some thousands.
const FUEL: u64 = 2_000_000;
/// Longest template source and longest rendered prompt, in bytes.
const MAX_BYTES: usize = 1 << 20;
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
    env: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Parses `source`; `bos` and `eos` are the texts that the template may write.
    ///
    /// # Errors
    /// [`TemplateError`] when it does not parse or is over 1 MiB.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        check_length("the template", source)?;
        let mut env = Environment::new();
        env.set_fuel(Some(FUEL));
        // As transformers and llama.cpp render chat templates.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(jinja)?;
        env.set_syntax(syntax);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        env.add_function("strftime_now", |format: String| {
            FIXED_DATE.iter().fold(format, |text, (key, value)| text.replace(key, value))
        });
        env.add_template_owned("chat", source.to_owned()).map_err(jinja)?;
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
        let template = self.env.get_template("chat").map_err(jinja)?;
        let text = template
            .render(context! {
                messages,
                add_generation_prompt => true,
                bos_token => &self.bos,
                eos_token => &self.eos,
                enable_thinking => false,
            })
            .map_err(jinja)?;
        check_length("the rendered prompt", &text)?;
        Ok(text)
    }
}

fn jinja(error: Error) -> TemplateError {
    TemplateError::Jinja(error.to_string())
}

fn check_length(what: &'static str, text: &str) -> Result<(), TemplateError> {
    if text.len() > MAX_BYTES {
        return Err(TemplateError::TooLong { what, found: text.len(), limit: MAX_BYTES });
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
