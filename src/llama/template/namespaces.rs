//! Namespaces are the only values of a template that can change, and so the only ones that can be made to
//! hold themselves; walking such a value (`ns | tojson`) ends in an exhausted stack, which ends the process. Real
//! templates keep flags and texts in them, and never hand one on. So it is refused to: then a namespace is
//! only ever reached by its own name.

/// The word that makes one.
const MAKER: &str = "namespace";

/// What an expression consists of, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Name(String),
    Sign(char),
}

/// The first namespace that `source` hands on, or `namespace` where that is used for anything but
/// `set NAME = namespace(…)`.
pub fn handed_on(source: &str) -> Option<String> {
    let blocks = blocks(source);
    let mut names = Vec::new();
    for words in &blocks {
        for i in 0..words.len() {
            if !is(words, i, MAKER) || member(words, i) {
                continue;
            }
            let made =
                i >= 3 && is(words, i - 3, "set") && sign(words, i - 1, '=') && sign(words, i + 1, '(');
            match (made, words.get(i.wrapping_sub(2))) {
                (true, Some(Word::Name(name))) => names.push(name.clone()),
                _ => return Some(MAKER.into()),
            }
        }
    }
    let bare = |words: &[Word], i: usize| {
        let target = i > 0 && is(words, i - 1, "set") && sign(words, i + 1, '=');
        !target && !member(words, i) && !sign(words, i + 1, '.')
    };
    names.into_iter().find(|name| {
        blocks.iter().any(|words| (0..words.len()).any(|i| is(words, i, name) && bare(words, i)))
    })
}

fn is(words: &[Word], i: usize, name: &str) -> bool {
    matches!(words.get(i), Some(Word::Name(found)) if found == name)
}

fn sign(words: &[Word], i: usize, wanted: char) -> bool {
    words.get(i) == Some(&Word::Sign(wanted))
}

/// Whether the word is an attribute of another value.
fn member(words: &[Word], i: usize) -> bool {
    i > 0 && sign(words, i - 1, '.')
}

/// The words of every `{{ … }}` and `{% … %}`. What a `raw` block holds is taken for code, which is the
/// safe side.
fn blocks(source: &str) -> Vec<Vec<Word>> {
    let mut blocks = Vec::new();
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        rest = &rest[start + 1..];
        if let Some(comment) = rest.strip_prefix('#') {
            rest = comment.split_once("#}").map_or("", |(_, after)| after);
        } else if let Some(code) = rest.strip_prefix(['{', '%']) {
            let closing = if rest.starts_with('{') { '}' } else { '%' };
            let (words, after) = words(code, closing);
            blocks.push(words);
            rest = after;
        }
    }
    blocks
}

/// The words up to `closing` and `}` outside of all brackets, and what follows.
fn words(code: &str, closing: char) -> (Vec<Word>, &str) {
    let (mut words, mut depth, mut rest) = (Vec::new(), 0usize, code);
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        if depth == 0 && c == closing && after.starts_with('}') {
            return (words, &after[1..]);
        }
        match c {
            '\'' | '"' => {
                rest = after_string(after, c);
                words.push(Word::Sign(c));
                continue;
            }
            _ if c == '_' || c.is_alphanumeric() => {
                let end = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
                words.push(Word::Name(rest[..end].to_owned()));
                rest = &rest[end..];
                continue;
            }
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if !c.is_whitespace() {
            words.push(Word::Sign(c));
        }
        rest = after;
    }
    (words, rest)
}

/// What follows a string that ends with `quote`.
fn after_string(text: &str, quote: char) -> &str {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if c == quote && !escaped {
            return &text[at + 1..];
        }
        escaped = c == '\\' && !escaped;
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_texts_are_no_harm() {
        for source in [
            "{%- set ns = namespace(found=false, text='') -%}{% if ns.found %}{% set ns.text = ns.text + 'ns' %}{% endif %}{{ ns.text }}",
            "The word ns, or {# a comment on ns #} {{ 'ns' }} {{ messages[0].ns }}",
            "{% set ns = namespace() %}{{ \"a \\\" ns\" }} { ns }",
        ] {
            assert_eq!(handed_on(source), None, "{source}");
        }
    }

    #[test]
    fn a_namespace_that_is_handed_on_is_found() {
        for use_ in [
            "{% set ns.me = ns %}",
            "{% set ns.me = [1, ns] %}",
            "{% set other = ns %}{% set ns.me = other %}",
            "{{ ns | tojson }}",
            "{{ f(ns) }}",
            "{{ {'a': {'b': 1}}, f(ns) }}",
            "{% for x in [ns] %}{% endfor %}",
            "{% raw %}{{ ns }}{% endraw %}",
            "{{ ns['me'] }}",
        ] {
            let source = format!("{{% set ns = namespace() %}}{use_}");
            assert_eq!(handed_on(&source).as_deref(), Some("ns"), "{use_}");
        }
        for source in [
            "{% for x in [namespace()] %}{% set x.me = x %}{{ x }}{% endfor %}",
            "{% set make = namespace %}{% set a = make() %}",
            "{% set a, b = namespace(), 1 %}",
            "{% with a = namespace() %}{{ a }}{% endwith %}",
        ] {
            assert_eq!(handed_on(source).as_deref(), Some(MAKER), "{source}");
        }
    }
}
