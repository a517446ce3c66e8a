//! Detection of the characters in a rendered prompt that come from its messages.
//!
//! A template may trim or cut a message's content or write it as JSON, so the content cannot simply be searched for in
//! the prompt. Instead, the conversation is rendered a second time, with each character of a content replaced by a
//! private-use character of Unicode that stands for the character and its message. If this rendering, translated back,
//! equals the real one, it shows the origin of each character.

use std::collections::HashMap;
use std::ops::Range;

use minijinja::{Value, context};

/// First private-use character of planes 15 and 16.
const PRIVATE: u32 = 0xF_0000;
/// Content that templates have no reason to treat specially.
const NEUTRAL: &str = "x";

/// A rendered prompt that records which text comes from messages: control tokens are recognized only in the
/// template's own text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Text for the model to read.
    pub text: String,
    /// Parts of `text` that come from messages.
    pub(in crate::llama) said: Said,
}

/// The parts of a prompt that come from messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::llama) enum Said {
    /// Byte ranges, in order.
    At(Vec<Range<usize>>),
    /// The template's own text depends on the messages. `neutral` is the same conversation with neutral contents, whose
    /// control tokens all come from the template.
    Unknown { neutral: String },
}

impl Prompt {
    /// Creates a prompt from text without a template.
    pub(in crate::llama) fn plain(text: &str) -> Self {
        let whole = 0..text.len();
        Self { text: text.to_owned(), said: Said::At(vec![whole]) }
    }

    /// Appends `text` as the template's own.
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
    /// Whether a rendering must contain the whole content.
    pub(super) required: bool,
}

impl Message {
    pub(super) fn new(role: &str, content: &str, required: bool) -> Self {
        Self { role: role.to_owned(), content: content.to_owned(), required }
    }

    /// Returns the message as passed to a template.
    pub(super) fn value(&self, form: Form) -> Value {
        let (role, text) = (&self.role, &self.content);
        match form {
            Form::Text => context! { role, content => text },
            Form::Parts => context! { role, content => [context! { type => "text", text }] },
        }
    }
}

/// How a content is passed to a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A string.
    Text,
    /// A list with one part of type `text`, as templates of vision models expect.
    Parts,
}

/// Returns the same messages with neutral contents.
pub(super) fn neutral(messages: &[Message]) -> Vec<Message> {
    messages.iter().map(|m| Message { content: NEUTRAL.into(), ..m.clone() }).collect()
}

/// Mapping between private-use characters and the characters of messages.
#[derive(Default)]
pub(super) struct Marks {
    /// Character and index of the message of each mark.
    marked: Vec<(char, usize)>,
    /// Mark of each character of each message.
    codes: HashMap<(char, usize), char>,
}

/// A rendering of marked messages, translated back.
pub(super) struct Reading {
    /// Text of the rendering.
    pub(super) text: String,
    /// Byte ranges of `text` that come from messages.
    pub(super) said: Vec<Range<usize>>,
    /// Marked characters of each message, in the order of the rendering.
    found: Vec<String>,
}

impl Marks {
    /// Returns the messages with marked contents; `None` if there are more distinct characters than marks.
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
        // Message of the last mark, as long as only characters that are never marked have followed it.
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
    /// Returns whether every required message was rendered with all its characters.
    pub(super) fn is_whole(&self, messages: &[Message]) -> bool {
        messages.iter().zip(&self.found).filter(|(message, _)| message.required).all(|(message, found)| {
            let expected: String = message.content.chars().filter(|&c| !is_left(c)).collect();
            found.contains(&expected)
        })
    }
}

/// Returns whether `c` is never marked: templates trim and split at whitespace, and JSON escapes the others.
fn is_left(c: char) -> bool {
    c.is_whitespace() || c.is_control() || c == '"' || c == '\\'
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number of code points in planes 15 and 16.
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
