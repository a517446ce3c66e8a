//! Text to tokens. A control token counts where the chat template wrote it, and is text where a message spells it:
//! otherwise whoever writes a prompt, or an answer that is judged, could end a turn and begin another.

pub(super) mod ffi;

use std::ops::Range;

use super::LlamaError;
use super::ffi::{Model, Token};
use super::template::{Prompt, Said};

/// A control token, or the one for what is unknown: llama.cpp finds them by their text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Special {
    token: Token,
    text: String,
    /// Whether whitespace before it belongs to it.
    strips_left: bool,
    /// Whether whitespace behind it belongs to it.
    strips_right: bool,
}

/// The special tokens of a vocabulary.
#[derive(Debug, Default)]
pub(super) struct Specials {
    /// The longest first: llama.cpp looks for them in this order.
    all: Vec<Special>,
    /// Indices into `all`, by the first byte of the text.
    by_byte: Vec<Vec<usize>>,
}

/// A part of a text that is tokenized by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Range<usize>),
    Token(Token),
}

impl Specials {
    fn new(mut all: Vec<Special>) -> Self {
        all.retain(|special| !special.text.is_empty());
        all.sort_by_key(|special| std::cmp::Reverse(special.text.len()));
        let mut by_byte = vec![Vec::new(); 256];
        for (i, special) in all.iter().enumerate() {
            by_byte[usize::from(special.text.as_bytes()[0])].push(i);
        }
        Self { all, by_byte }
    }

    /// The special tokens in `text`, each where it begins.
    fn occurrences<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (usize, &'a Special)> {
        let bytes = text.as_bytes();
        (0..bytes.len()).flat_map(move |at| {
            let here = self.by_byte[usize::from(bytes[at])].iter().map(|&i| &self.all[i]);
            here.filter(move |special| bytes[at..].starts_with(special.text.as_bytes()))
                .map(move |special| (at, special))
        })
    }

    /// Whether one has a character in what was `said`.
    fn are_spelled(&self, text: &str, said: &[Range<usize>]) -> bool {
        self.occurrences(text).any(|(at, special)| overlaps(said, &(at..at + special.text.len())))
    }

    /// Cuts `text` as llama.cpp does, but at no special token with a character in what was `said`.
    fn split(&self, text: &str, said: &[Range<usize>]) -> Vec<Piece> {
        let mut pieces = vec![Piece::Text(0..text.len())];
        for special in &self.all {
            let cut = |piece| match piece {
                Piece::Text(range) => special.cut(text, range, said),
                token @ Piece::Token(_) => vec![token],
            };
            pieces = pieces.into_iter().flat_map(cut).collect();
        }
        pieces
    }
}

impl Special {
    fn cut(&self, text: &str, range: Range<usize>, said: &[Range<usize>]) -> Vec<Piece> {
        let (mut pieces, mut start, mut from) = (Vec::new(), range.start, range.start);
        while let Some(found) = text[from..range.end].find(&self.text) {
            let at = from + found;
            let end = at + self.text.len();
            if overlaps(said, &(at..end)) {
                from = at + text[at..].chars().next().map_or(1, char::len_utf8);
                continue;
            }
            let before = &text[start..at];
            let before = if self.strips_left { before.trim_end_matches(is_space) } else { before };
            if !before.is_empty() {
                pieces.push(Piece::Text(start..start + before.len()));
            }
            pieces.push(Piece::Token(self.token));
            let rest = &text[end..range.end];
            let kept = if self.strips_right { rest.trim_start_matches(is_space) } else { rest };
            start = range.end - kept.len();
            from = start;
        }
        if start < range.end {
            pieces.push(Piece::Text(start..range.end));
        }
        pieces
    }
}

/// Whitespace of C's `isspace`.
fn is_space(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\u{b}'
}

fn overlaps(said: &[Range<usize>], range: &Range<usize>) -> bool {
    let after = said.partition_point(|said| said.end <= range.start);
    said.get(after).is_some_and(|said| said.start < range.end)
}

impl Model {
    /// The tokens of a rendered prompt. Of what the vocabulary adds to a text it gets the token to begin with, unless
    /// the template wrote that itself; a token to end with would stand behind the prompt for an answer.
    ///
    /// # Errors
    /// [`LlamaError::Tokenize`]; [`LlamaError::ControlTokens`] for messages that spell control tokens, where these cannot
    /// be told from the template's or the vocabulary makes them of plain text.
    pub fn prompt_tokens(&self, prompt: &Prompt) -> Result<Vec<Token>, LlamaError> {
        let text = &prompt.text;
        let tokens = match &prompt.said {
            Said::At(said) if self.specials().are_spelled(text, said) => self.text_between(text, said)?,
            Said::At(_) => self.tokenize(text, true)?,
            Said::Unknown { neutral } => {
                let specials = |text| self.specials().occurrences(text).map(|(_, special)| special.token);
                if !specials(text).eq(specials(neutral)) {
                    return Err(LlamaError::ControlTokens);
                }
                self.tokenize(text, true)?
            }
        };
        let Some(bos) = self.bos_to_add() else { return Ok(tokens) };
        let written = tokens.iter().position(|&token| token == bos);
        if written.is_some_and(|at| self.detokenize(&tokens[..at]).trim().is_empty()) {
            return Ok(tokens);
        }
        Ok([vec![bos], tokens].concat())
    }

    /// The tokens of a text outside any template, in which nothing is a control token.
    ///
    /// # Errors
    /// [`LlamaError::Tokenize`].
    pub fn text_tokens(&self, text: &str, begins: bool) -> Result<Vec<Token>, LlamaError> {
        let tokens = self.tokenize(text, false)?;
        let bos = self.bos_to_add().filter(|_| begins);
        Ok(bos.into_iter().chain(tokens).collect())
    }

    /// The tokens of a prompt whose messages spell control tokens.
    fn text_between(&self, text: &str, said: &[Range<usize>]) -> Result<Vec<Token>, LlamaError> {
        let mut tokens = Vec::new();
        for piece in self.specials().split(text, said) {
            match piece {
                Piece::Token(token) => tokens.push(token),
                Piece::Text(range) => {
                    let found = self.tokenize(&text[range], false)?;
                    // Some vocabularies join any letters to any token.
                    if found.iter().any(|&token| self.is_control(token)) {
                        return Err(LlamaError::ControlTokens);
                    }
                    tokens.extend(found);
                }
            }
        }
        Ok(tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn special(token: Token, text: &str, strips: (bool, bool)) -> Special {
        Special { token, text: text.into(), strips_left: strips.0, strips_right: strips.1 }
    }

    fn specials() -> Specials {
        let plain = (false, false);
        Specials::new(vec![
            special(1, "<s>", plain),
            special(2, "<end>", (true, true)),
            special(3, "<end><s>", plain),
            special(4, "", plain),
        ])
    }

    fn split(text: &str, said: &str) -> Vec<String> {
        let said: Vec<Range<usize>> = text.match_indices(said).map(|(at, s)| at..at + s.len()).collect();
        let show = |piece| match piece {
            Piece::Text(range) => text[range].to_owned(),
            Piece::Token(token) => token.to_string(),
        };
        specials().split(text, &said).into_iter().map(show).collect()
    }

    #[test]
    fn special_tokens_are_found_as_llama_cpp_finds_them() {
        assert_eq!(split("<s>user: a \n<end> \n<s>b<end>", "a"), ["1", "user: a", "2", "1", "b", "2"]);
        assert_eq!(split("a<end><s>", "-"), ["a", "3"]);
        assert_eq!(split("", "-"), [""; 0]);
    }

    #[test]
    fn those_that_a_message_spells_are_text() {
        assert_eq!(split("<s>a<end>b<end>", "a<end>b"), ["1", "a<end>b", "2"]);
        assert_eq!(split("<s>[<s>]<end>", "[<s>]"), ["1", "[<s>]", "2"]);
        // One that the message begins and the template ends, and the shorter one that is the template's.
        assert_eq!(split("ü<end><s>", "ü<en"), ["ü<end>", "1"]);
        assert_eq!(split("<end><s>", "<end>"), ["<end>", "1"]);
    }

    #[test]
    fn a_message_without_any_is_known() {
        let specials = specials();
        let are_spelled = |text, said: Range<usize>| specials.are_spelled(text, &[said]);
        assert!(!are_spelled("<s>user<end>", 3..7));
        assert!(are_spelled("<s>us<s><end>", 3..8));
        assert!(are_spelled("<s>us<end>", 3..6));
        assert!(!overlaps(&[0..2, 5..6], &(2..5)) && overlaps(&[0..2, 5..6], &(4..6)));
    }
}
