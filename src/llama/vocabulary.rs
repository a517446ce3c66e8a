//! Tokenization. Control tokens are recognized where the chat template wrote them, and are plain text where a message
//! contains them: otherwise the author of a prompt, or of an answer to be judged, could end a turn and begin another.

pub(super) mod ffi;

use std::collections::HashSet;
use std::ops::Range;

use super::LlamaError;
use super::ffi::{Model, Token};
use super::template::{Prompt, Said};

/// A token that llama.cpp finds by its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Special {
    token: Token,
    text: String,
    /// Whether llama.cpp finds it only on request: a control token or the unknown token. Other special tokens are found
    /// in every text, and mark turns in the files of some models.
    is_control: bool,
    /// Whether it absorbs the whitespace before it.
    strips_left: bool,
    /// Whether it absorbs the whitespace after it.
    strips_right: bool,
}

/// The special tokens of a vocabulary.
#[derive(Debug, Default)]
pub(super) struct Specials {
    /// Sorted from longest to shortest, the order in which llama.cpp searches for them.
    all: Vec<Special>,
    /// Indices into `all`, by the first byte of the text.
    by_byte: Vec<Vec<usize>>,
}

/// A part of a text that is tokenized on its own.
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

    /// Iterates over the special tokens in `text`, each with its start; occurrences may overlap.
    fn occurrences<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (usize, &'a Special)> {
        let bytes = text.as_bytes();
        (0..bytes.len()).flat_map(move |at| {
            let here = self.by_byte[usize::from(bytes[at])].iter().map(|&i| &self.all[i]);
            here.filter(move |special| bytes[at..].starts_with(special.text.as_bytes()))
                .map(move |special| (at, special))
        })
    }

    /// Returns the special tokens in `text` that the template wrote, that is, outside of the ranges `said`. Tokens of
    /// whitespace or punctuation only are left out unless they are control tokens, because they mark nothing.
    fn marks(&self, text: &str, said: &[Range<usize>]) -> HashSet<Token> {
        let own = |(at, special): &(usize, &Special)| {
            let says = special.is_control || special.text.contains(char::is_alphanumeric);
            says && !overlaps(said, &(*at..at + special.text.len()))
        };
        self.occurrences(text).filter(own).map(|(_, special)| special.token).collect()
    }

    /// Returns whether a control token, or a mark of the template, overlaps the ranges `said`.
    fn are_spelled(&self, text: &str, said: &[Range<usize>]) -> bool {
        let marks = self.marks(text, said);
        self.occurrences(text).any(|(at, special)| {
            let steers = special.is_control || marks.contains(&special.token);
            steers && overlaps(said, &(at..at + special.text.len()))
        })
    }

    /// Iterates over the tokens in `text` that are control tokens or contained in `marks`, in order.
    fn steering<'a>(&'a self, text: &'a str, marks: &'a HashSet<Token>) -> impl Iterator<Item = Token> {
        let found = self.occurrences(text).map(|(_, special)| special);
        found
            .filter(|special| special.is_control || marks.contains(&special.token))
            .map(|special| special.token)
    }

    /// Cuts `text` at special tokens as llama.cpp does, except at control tokens that overlap the ranges `said`. Other
    /// marks of the template that overlap `said` are cut in two.
    fn split(&self, text: &str, said: &[Range<usize>]) -> Vec<Piece> {
        let marks = self.marks(text, said);
        let mut pieces = vec![Piece::Text(0..text.len())];
        for special in self.all.iter().filter(|special| special.is_control || marks.contains(&special.token))
        {
            let cut = |piece| match piece {
                Piece::Text(range) if !special.is_control => special.part(text, range, said),
                Piece::Text(range) => special.cut(text, range, said),
                token @ Piece::Token(_) => vec![token],
            };
            pieces = pieces.into_iter().flat_map(cut).collect();
        }
        pieces
    }
}

impl Special {
    /// Cuts the text after the first character of each occurrence that overlaps `said`, so that no piece contains it.
    fn part(&self, text: &str, range: Range<usize>, said: &[Range<usize>]) -> Vec<Piece> {
        let (mut pieces, mut start, mut from) = (Vec::new(), range.start, range.start);
        while let Some(found) = text[from..range.end].find(&self.text) {
            let at = from + found;
            from = at + text[at..].chars().next().map_or(1, char::len_utf8);
            if overlaps(said, &(at..at + self.text.len())) {
                pieces.push(Piece::Text(start..from));
                start = from;
            }
        }
        pieces.push(Piece::Text(start..range.end));
        pieces
    }

    /// Cuts the text at each occurrence that does not overlap `said`, replacing the occurrence by the token.
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

/// Returns whether `c` is whitespace for C's `isspace`.
fn is_space(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\u{b}'
}

fn overlaps(said: &[Range<usize>], range: &Range<usize>) -> bool {
    let after = said.partition_point(|said| said.end <= range.start);
    said.get(after).is_some_and(|said| said.start < range.end)
}

impl Model {
    /// Returns the tokens of a rendered prompt. The vocabulary's BOS token is added unless the template wrote it; an
    /// EOS token is never added, because it would precede the answer.
    ///
    /// # Errors
    /// Returns [`LlamaError::Tokenize`] if the vocabulary cannot tokenize the text, or [`LlamaError::ControlTokens`] if
    /// the messages contain control tokens that cannot be distinguished from the template's, or that the vocabulary
    /// makes of plain text.
    pub fn prompt_tokens(&self, prompt: &Prompt) -> Result<Vec<Token>, LlamaError> {
        let text = &prompt.text;
        let tokens = match &prompt.said {
            Said::At(said) if self.specials().are_spelled(text, said) => self.text_between(text, said)?,
            Said::At(_) => self.tokenize(text, true)?,
            Said::Unknown { neutral } => {
                let specials = self.specials();
                let marks = specials.marks(neutral, &[]);
                if !specials.steering(text, &marks).eq(specials.steering(neutral, &marks)) {
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

    /// Returns the tokens of text from a template, in which control tokens are recognized.
    ///
    /// # Errors
    /// Returns [`LlamaError::Tokenize`] if the vocabulary cannot tokenize the text.
    pub(super) fn template_tokens(&self, text: &str) -> Result<Vec<Token>, LlamaError> {
        self.tokenize(text, true)
    }

    /// Returns the special token with the given text, if any.
    pub(super) fn special(&self, text: &str) -> Option<Token> {
        self.specials().all.iter().find(|special| special.text == text).map(|special| special.token)
    }

    /// Returns the tokens of a text outside of any template, in which nothing is a control token. If `begins`, the
    /// vocabulary's BOS token is added.
    ///
    /// # Errors
    /// Returns [`LlamaError::Tokenize`] if the vocabulary cannot tokenize the text.
    pub fn text_tokens(&self, text: &str, begins: bool) -> Result<Vec<Token>, LlamaError> {
        let tokens = self.tokenize(text, false)?;
        let bos = self.bos_to_add().filter(|_| begins);
        Ok(bos.into_iter().chain(tokens).collect())
    }

    /// Returns the tokens of a prompt whose messages contain control tokens.
    fn text_between(&self, text: &str, said: &[Range<usize>]) -> Result<Vec<Token>, LlamaError> {
        let mut tokens = Vec::new();
        for piece in self.specials().split(text, said) {
            match piece {
                Piece::Token(token) => tokens.push(token),
                Piece::Text(range) => {
                    let found = self.tokenize(&text[range], false)?;
                    // Some vocabularies merge plain characters into control tokens.
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

    /// Returns a special token that does not absorb whitespace; ids below 5 are control tokens.
    fn special(token: Token, text: &str) -> Special {
        let is_control = token < 5;
        Special { token, text: text.into(), is_control, strips_left: false, strips_right: false }
    }

    fn specials() -> Specials {
        Specials::new(vec![
            special(1, "<s>"),
            Special { strips_left: true, strips_right: true, ..special(2, "<end>") },
            special(3, "<end><s>"),
            special(4, ""),
            special(5, "<user>"),
            special(6, "\n\n"),
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
        // A token that the message begins and the template ends, and a shorter one that is the template's own.
        assert_eq!(split("ü<end><s>", "ü<en"), ["ü<end>", "1"]);
        assert_eq!(split("<end><s>", "<end>"), ["<end>", "1"]);
    }

    #[test]
    fn marks_of_the_template_that_a_message_spells_are_found_in_no_piece() {
        assert_eq!(split("<user>a<user>b<end>", "a<user>b"), ["<user>a<", "user>b", "2"]);
        assert_eq!(split("<user>-<user>\n\n", "-<us"), ["<user>-<", "user>\n\n"]);
        // A token that the template does not write marks nothing, and neither does whitespace.
        assert_eq!(split("a<user>\n\n<s>", "a<user>\n\n"), ["a<user>\n\n", "1"]);
        let specials = specials();
        assert!(!specials.are_spelled("<user>\n\nc\n\n", &[8..9, 9..11]));
        assert!(specials.are_spelled("<user>c<user>", &[6..7, 7..13]));
        let marks = specials.marks("<user>x<end>", &[]);
        assert_eq!(specials.steering("<user>\n\n<user>", &marks).collect::<Vec<_>>(), [5, 5]);
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
