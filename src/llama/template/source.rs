//! Splits the source of a template into words, and rewrites it for the engine.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use super::namespaces::is_made;

/// Name under which the engine knows the function `namespace`; templates must not use it.
pub(super) const PRIVATE_MAKER: &str = "make_namespace";
/// Name of the filter that replaces Python's `%` after a string.
pub(super) const PERCENT: &str = "percent_format";

/// Kind of a [`Word`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A name, a keyword or a number.
    Name,
    /// A string literal with its quotes.
    Text,
    /// Any other single character.
    Sign,
}

/// A word (lexical token) of a template's code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
    /// Byte offset in the source.
    start: usize,
}

/// The code between `{{` and `}}`, or between `{%` and `%}`.
#[derive(Debug)]
pub(super) struct Block<'a> {
    pub(super) words: Vec<Word<'a>>,
    is_statement: bool,
    /// Byte offset in the source.
    start: usize,
}

impl<'a> Block<'a> {
    /// Returns whether the block is the tag `name` and nothing else.
    fn is_tag(&self, name: &str) -> bool {
        self.is_statement && matches!(self.code(), [word] if word.text == name)
    }

    /// Returns whether the block is a statement, `{% … %}`.
    pub(super) fn is_statement(&self) -> bool {
        self.is_statement
    }

    /// Returns the words without the signs for whitespace control.
    pub(super) fn code(&self) -> &[Word<'a>] {
        let is_trim = |word: &Word<'_>| word.kind == Kind::Sign && matches!(word.text, "-" | "+");
        let from = usize::from(self.words.first().is_some_and(is_trim));
        let until = self.words.len() - usize::from(self.words.last().is_some_and(is_trim));
        self.words.get(from..until).unwrap_or_default()
    }
}

impl Word<'_> {
    fn end(&self) -> usize {
        self.start + self.text.len()
    }
}

pub(super) fn is_name(words: &[Word<'_>], i: usize, name: &str) -> bool {
    words.get(i).is_some_and(|word| word.kind == Kind::Name && word.text == name)
}

pub(super) fn is_sign(words: &[Word<'_>], i: usize, sign: &str) -> bool {
    words.get(i).is_some_and(|word| word.kind == Kind::Sign && word.text == sign)
}

/// Returns all blocks, `{{ … }}` and `{% … %}`, except those inside comments and `raw` blocks.
pub(super) fn blocks(source: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut at = 0;
    while let Some(found) = source[at..].find('{') {
        at += found + 1;
        let rest = &source[at..];
        if rest.starts_with('#') {
            at = rest.find("#}").map_or(source.len(), |end| at + end + 2);
        } else if rest.starts_with(['{', '%']) {
            let is_statement = rest.starts_with('%');
            let (words, after) = words(source, at + 1, if is_statement { "%}" } else { "}}" });
            let block = Block { words, is_statement, start: at - 1 };
            at = if block.is_tag("raw") { end_of_raw(source, after) } else { after };
            blocks.push(block);
        }
    }
    blocks
}

/// Returns the offset of the tag that ends a `raw` block.
fn end_of_raw(source: &str, from: usize) -> usize {
    let ends = |&(at, _): &(usize, &str)| {
        let tag = source[from + at + 2..].trim_start_matches(['-', '+']);
        tag.trim_start().starts_with("endraw")
    };
    source[from..].match_indices("{%").find(ends).map_or(source.len(), |(at, _)| from + at)
}

/// Returns the words from `at` up to the next `closing` outside of brackets, and the offset after it.
fn words<'a>(source: &'a str, mut at: usize, closing: &str) -> (Vec<Word<'a>>, usize) {
    let (mut words, mut depth) = (Vec::new(), 0usize);
    while let Some(c) = source[at..].chars().next() {
        let rest = &source[at..];
        if depth == 0 && rest.starts_with(closing) {
            return (words, at + closing.len());
        }
        let (kind, len) = match c {
            '\'' | '"' => (Kind::Text, string_len(rest, c)),
            _ if is_name_part(c) => (Kind::Name, rest.find(|c| !is_name_part(c)).unwrap_or(rest.len())),
            _ => (Kind::Sign, c.len_utf8()),
        };
        match c {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if !c.is_whitespace() {
            words.push(Word { kind, text: &rest[..len], start: at });
        }
        at += len;
    }
    (words, source.len())
}

fn is_name_part(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Returns the length of the string literal at the beginning of `text`, including its quotes, in bytes.
fn string_len(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}

/// Normalizes line endings to `\n`, as Jinja does.
pub(super) fn with_unix_lines(source: &str) -> Cow<'_, str> {
    if source.contains('\r') {
        source.replace("\r\n", "\n").replace('\r', "\n").into()
    } else {
        source.into()
    }
}

/// Rewrites `source` for the engine, which supports less than Python's Jinja2:
///
/// - The tags `generation` and `endgeneration`, which mark text to train on, become a block without effect.
/// - `%` after a string becomes a filter.
/// - `namespace` becomes the private function only where a namespace is created; elsewhere it stays an ordinary name.
/// - A macro gets access to the namespaces outside of it whose attributes it sets.
pub(super) fn for_engine(source: &str) -> String {
    let blocks = blocks(source);
    let formats: HashSet<&str> = blocks.iter().filter_map(|block| format_name(block.code())).collect();
    let mut changes: Vec<(Range<usize>, String)> = Vec::new();
    changes.extend(reads(&blocks).into_iter().map(|(at, read)| (at..at, read)));
    for block in &blocks {
        let tag = [("generation", "if true"), ("endgeneration", "endif")];
        let tag = tag.into_iter().find(|(name, _)| block.is_tag(name));
        let words = &block.words;
        for (i, word) in words.iter().enumerate() {
            let here = word.start..word.end();
            if is_made(words, i) {
                changes.push((here, PRIVATE_MAKER.into()));
            } else if let Some((_, instead)) = tag.filter(|_| word.kind == Kind::Name) {
                changes.push((here, instead.into()));
            } else if is_sign(words, i, "%") && follows_format(words, i, &formats) {
                let end = operand_end(words, i + 1);
                changes.push((here, format!("| {PERCENT}(")));
                changes.push((end..end, ")".into()));
            }
        }
    }
    apply(source, changes)
}

/// Returns the code to insert, with its offsets, so that macros can set attributes of namespaces outside of them: the
/// engine gives a macro only those outer variables that it reads.
fn reads(blocks: &[Block<'_>]) -> Vec<(usize, String)> {
    let (mut depth, mut reads) = (0usize, Vec::new());
    for block in blocks.iter().filter(|block| block.is_statement) {
        let code = block.code();
        match code.first().map(|word| word.text) {
            Some("macro" | "call") => depth += 1,
            Some("endmacro" | "endcall") => depth = depth.saturating_sub(1),
            Some("set") if depth > 0 && is_sign(code, 2, ".") => {
                let trim =
                    block.words.first().filter(|word| word.kind == Kind::Sign).map_or("", |word| word.text);
                reads.push((block.start, format!("{{%{trim} if {} %}}{{% endif %}}", code[1].text)));
            }
            _ => {}
        }
    }
    reads
}

fn apply(source: &str, mut changes: Vec<(Range<usize>, String)>) -> String {
    changes.sort_by_key(|(range, _)| range.start);
    let (mut out, mut at) = (String::with_capacity(source.len()), 0);
    for (range, text) in changes {
        out.push_str(&source[at..range.start]);
        out.push_str(&text);
        at = range.end;
    }
    out.push_str(&source[at..]);
    out
}

/// Returns the variable that a block sets to a string literal, if it does.
fn format_name<'a>(code: &[Word<'a>]) -> Option<&'a str> {
    match code {
        [set, name, equals, text] if text.kind == Kind::Text => {
            (set.text == "set" && equals.text == "=").then_some(name.text)
        }
        _ => None,
    }
}

/// Returns whether the word before `i` is a string, which a following `%` formats.
fn follows_format(words: &[Word<'_>], i: usize, formats: &HashSet<&str>) -> bool {
    let Some(before) = i.checked_sub(1).map(|at| &words[at]) else { return false };
    match before.kind {
        Kind::Text => true,
        Kind::Name => formats.contains(before.text) && (i < 2 || !is_sign(words, i - 2, ".")),
        Kind::Sign => false,
    }
}

/// Returns the offset of the end of the operand that begins with the word `i`: a value with its attributes, items,
/// calls and filters.
fn operand_end(words: &[Word<'_>], mut i: usize) -> usize {
    while is_sign(words, i, "-") || is_sign(words, i, "+") {
        i += 1;
    }
    let mut end = skip_value(words, i);
    loop {
        let next = if is_sign(words, end, ".") || is_sign(words, end, "|") {
            end + 2
        } else if is_sign(words, end, "[") || is_sign(words, end, "(") {
            skip_value(words, end)
        } else {
            break;
        };
        end = next;
    }
    end.checked_sub(1).and_then(|last| words.get(last)).or(words.last()).map_or(0, Word::end)
}

/// Returns the index after the word `i`, or after the brackets that it opens.
fn skip_value(words: &[Word<'_>], mut i: usize) -> usize {
    let mut depth = 0usize;
    while let Some(word) = words.get(i) {
        match (word.kind, word.text) {
            (Kind::Sign, "(" | "[" | "{") => depth += 1,
            (Kind::Sign, ")" | "]" | "}") => depth = depth.saturating_sub(1),
            _ => {}
        }
        i += 1;
        if depth == 0 {
            break;
        }
    }
    i
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_keep_their_content_together_and_do_nothing_else() {
        let source = "{%- generation -%} {{ generation }}{% endgeneration %}{% set generation = 1 %}";
        let expected = "{%- if true -%} {{ generation }}{% endif %}{% set generation = 1 %}";
        assert_eq!(for_engine(source), expected);
        let raw = "{% raw %}{% generation %} {{ ' {%- endraw %}{# {% generation %} #}";
        assert_eq!(for_engine(raw), raw);
    }

    #[test]
    fn a_string_may_be_followed_by_percent() {
        for (source, expected) in [
            ("{{ '%s' % x }}", "{{ '%s' | percent_format( x) }}"),
            (
                "{{ '%s %%' % (a, '%d' % b.c[0]) ~ d }}",
                "{{ '%s %%' | percent_format( (a, '%d' | percent_format( b.c[0]))) ~ d }}",
            ),
            ("{{ \"%s\" % x | upper * 2 }}", "{{ \"%s\" | percent_format( x | upper) * 2 }}"),
            ("{% set f = '%s' %}{{ f % -x(1) }}", "{% set f = '%s' %}{{ f | percent_format( -x(1)) }}"),
        ] {
            assert_eq!(for_engine(source), expected);
        }
        let numbers = "{{ loop.index0 % 2 }}{{ a.f % 2 }}{% set f = 3 %}{{ 7 % f }}{{ 'a' }}%{{ b }}";
        assert_eq!(for_engine(numbers), numbers);
    }

    #[test]
    fn only_what_makes_a_namespace_is_the_function() {
        let source = "{% set ns = namespace(a=1) %}{% macro f(namespace) %}{{ namespace }}{% endmacro %}";
        assert_eq!(for_engine(source), source.replacen("namespace(", "make_namespace(", 1));
    }

    #[test]
    fn a_macro_reads_the_namespaces_that_it_sets() {
        let source = "{% macro f(x) %}\n  {%- set n.v = 1 -%}{{ x }}{% endmacro %}{% set n.v = 2 %}";
        let expected = "{% macro f(x) %}\n  {%- if n %}{% endif %}{%- set n.v = 1 -%}{{ x }}{% endmacro %}{% set n.v = 2 %}";
        assert_eq!(for_engine(source), expected);
    }

    #[test]
    fn lines_may_end_as_on_windows() {
        assert_eq!(with_unix_lines("a\r\nb\rc\n"), "a\nb\nc\n");
    }
}
