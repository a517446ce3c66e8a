//! Which characters of a rendered prompt its messages wrote.
//!
//! A template may trim a content, cut it, or write it as JSON, so a content cannot be looked for in what was rendered.
//! The conversation is rendered a second time, with each character of a content replaced by one of Unicode's private
//! use that stands for the character and its message. Where that rendering, translated back, equals the real one, it
//! tells who wrote each character.

use std::collections::HashMap;
use std::ops::Range;

use minijinja::{Value, context};

/// The first of the characters for private use, which are planes 15 and 16.
const PRIVATE: u32 = 0xF_0000;
/// A content that no template has a reason to treat differently from others.
const NEUTRAL: &str = "x";

/// A rendered prompt, of which the vocabulary must know what the messages say: control tokens count in the
/// template's own text only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// What the model is to read.
    pub text: String,
    pub(in crate::llama) said: Said,
}

/// What in a prompt came from messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::llama) enum Said {
    /// At these bytes, in order.
    At(Vec<Range<usize>>),
    /// The template's own text depends on what is said. This is the same conversation with other contents: its control
    /// tokens are the template's.
    Unknown { neutral: String },
}

impl Prompt {
    /// Text without a template around it.
    pub(in crate::llama) fn plain(text: &str) -> Self {
        let whole = 0..text.len();
        Self { text: text.to_owned(), said: Said::At(vec![whole]) }
    }

    /// With more of the template's own text behind it.
    pub(super) fn followed_by(mut self, text: &str) -> Self {
        self.text.push_str(text);
        if let Said::Unknown { neutral } = &mut self.said {
            neutral.push_str(text);
        }
        self
    }
}

/// One message before rendering.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) role: String,
    pub(super) content: String,
    /// Whether a rendering without all of it is wrong.
    pub(super) required: bool,
}

impl Message {
    pub(super) fn new(role: &str, content: &str, required: bool) -> Self {
        Self { role: role.to_owned(), content: content.to_owned(), required }
    }

    /// As a template gets it.
    pub(super) fn value(&self, form: Form) -> Value {
        let (role, text) = (&self.role, &self.content);
        match form {
            Form::Text => context! { role, content => text },
            Form::Parts => context! { role, content => [context! { type => "text", text }] },
        }
    }
}

/// How a content is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    /// A list of one part of type `text`, as templates of models that see images take it.
    Parts,
}

/// The same messages with contents that say nothing.
pub(super) fn neutral(messages: &[Message]) -> Vec<Message> {
    messages.iter().map(|m| Message { content: NEUTRAL.into(), ..m.clone() }).collect()
}

/// What stands for which character of which message.
#[derive(Default)]
pub(super) struct Marks {
    marked: Vec<(char, usize)>,
    codes: HashMap<(char, usize), char>,
}

/// What was found in a rendering of marked messages.
pub(super) struct Reading {
    /// It, translated back.
    pub(super) text: String,
    /// Where the messages are in it.
    pub(super) said: Vec<Range<usize>>,
    /// Of each message the marked characters, in the order of the rendering.
    found: Vec<String>,
}

impl Marks {
    /// The messages with marked contents; `None` where there are more different characters than marks.
    pub(super) fn mark(&mut self, messages: &[Message]) -> Option<Vec<Message>> {
        let marked = messages.iter().enumerate().map(|(i, message)| {
            let content = message.content.chars().map(|c| self.code(c, i)).collect::<Option<String>>()?;
            Some(Message { content, ..message.clone() })
        });
        marked.collect()
    }

    fn code(&mut self, c: char, message: usize) -> Option<char> {
        if is_left(c) {
            return Some(c);
        }
        if let Some(&code) = self.codes.get(&(c, message)) {
            return Some(code);
        }
        let code = char::from_u32(PRIVATE + u32::try_from(self.marked.len()).ok()?)?;
        self.marked.push((c, message));
        self.codes.insert((c, message), code);
        Some(code)
    }

    fn meaning(&self, code: char) -> Option<(char, usize)> {
        let index = u32::from(code).checked_sub(PRIVATE)?;
        self.marked.get(index as usize).copied()
    }

    /// Reads a rendering of `n_message` marked messages.
    pub(super) fn read(&self, rendered: &str, n_message: usize) -> Reading {
        let mut reading = Reading {
            text: String::with_capacity(rendered.len()),
            said: Vec::new(),
            found: vec![String::new(); n_message],
        };
        // The message that wrote the last mark, while nothing but what is never marked came after it.
        let mut open = None;
        for c in rendered.chars() {
            let start = reading.text.len();
            let Some((c, message)) = self.meaning(c) else {
                reading.text.push(c);
                open = open.filter(|_| is_left(c));
                continue;
            };
            reading.text.push(c);
            reading.found[message].push(c);
            let end = reading.text.len();
            match reading.said.last_mut() {
                Some(said) if open == Some(message) || said.end == start => said.end = end,
                _ => reading.said.push(start..end),
            }
            open = Some(message);
        }
        reading
    }
}

impl Reading {
    /// Whether every message that is required was rendered with all its characters.
    pub(super) fn is_whole(&self, messages: &[Message]) -> bool {
        messages.iter().zip(&self.found).filter(|(message, _)| message.required).all(|(message, found)| {
            let expected: String = message.content.chars().filter(|&c| !is_left(c)).collect();
            found.contains(&expected)
        })
    }
}

/// What is never marked: templates trim and split at whitespace, and JSON escapes the rest.
fn is_left(c: char) -> bool {
    c.is_whitespace() || c.is_control() || c == '"' || c == '\\'
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Characters of planes 15 and 16.
    const N_PRIVATE: usize = 0x2_0000;

    fn read(rendered: impl Fn(&[Message]) -> String, contents: &[&str]) -> (Reading, Vec<Message>) {
        let messages: Vec<Message> = contents.iter().map(|c| Message::new("user", c, true)).collect();
        let mut marks = Marks::default();
        let marked = marks.mark(&messages).unwrap();
        (marks.read(&rendered(&marked), messages.len()), messages)
    }

    #[test]
    fn what_a_message_wrote_is_known_by_its_marks() {
        let (reading, messages) = read(
            |m| format!("user: {}\nuser: {}<end>", m[0].content.trim(), m[1].content.replace('"', "\\\"")),
            &[" user \n me ", "a \"user\": ü"],
        );
        assert_eq!(reading.text, "user: user \n me\nuser: a \\\"user\\\": ü<end>");
        let said: Vec<&str> = reading.said.iter().map(|range| &reading.text[range.clone()]).collect();
        assert_eq!(said, ["user \n me", "a \\\"user\\\": ü"]);
        assert!(reading.is_whole(&messages));
    }

    #[test]
    fn a_message_that_is_cut_is_not_whole_unless_that_is_no_matter() {
        let (reading, mut messages) = read(|m| m[0].content.chars().skip(1).collect(), &["abc"]);
        assert_eq!((reading.text.as_str(), reading.is_whole(&messages)), ("bc", false));
        messages[0].required = false;
        assert!(reading.is_whole(&messages));
    }

    #[test]
    fn more_characters_than_marks_are_told() {
        let all: String = ('\u{21}'..=char::MAX).filter(|&c| !is_left(c)).take(N_PRIVATE + 1).collect();
        let messages = |text: &str| vec![Message::new("user", text, true)];
        assert!(Marks::default().mark(&messages(&all)).is_none());
        let fits: String = all.chars().skip(1).collect();
        assert!(Marks::default().mark(&messages(&fits)).is_some());
    }
}
