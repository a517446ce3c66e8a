//! Namespaces are the only values of a template that can change, and so the only ones that can be made to
//! hold themselves; walking such a value (`ns | tojson`) ends in an exhausted stack, which ends the process. Real
//! templates keep flags and texts in them, and never hand one on. So it is refused to: then a namespace is
//! only ever reached by its own name.

use super::source::{Block, Kind, PRIVATE_MAKER, Word, blocks, is_name, is_sign};

/// The word that makes one.
const MAKER: &str = "namespace";

/// The first namespace that `source` hands on.
pub(super) fn handed_on(source: &str) -> Option<String> {
    let blocks = blocks(source);
    let mut names = vec![PRIVATE_MAKER];
    for Block { words, .. } in &blocks {
        names.extend((2..words.len()).filter(|&i| is_made(words, i)).map(|i| words[i - 2].text));
    }
    let bare = |words: &[Word<'_>], i: usize| {
        let target = i > 0 && is_name(words, i - 1, "set") && is_sign(words, i + 1, "=");
        !target && !is_made(words, i) && !is_member(words, i) && !is_sign(words, i + 1, ".")
    };
    let is_bare = |name: &&str| {
        blocks
            .iter()
            .any(|Block { words, .. }| (0..words.len()).any(|i| is_name(words, i, name) && bare(words, i)))
    };
    names.into_iter().find(is_bare).map(str::to_owned)
}

/// Whether the word is the function in `set NAME = namespace(…)`. The engine knows no other use of it.
pub(super) fn is_made(words: &[Word<'_>], i: usize) -> bool {
    is_name(words, i, MAKER)
        && i >= 3
        && is_name(words, i - 3, "set")
        && words[i - 2].kind == Kind::Name
        && is_sign(words, i - 1, "=")
        && is_sign(words, i + 1, "(")
}

/// Whether the word is an attribute of another value.
fn is_member(words: &[Word<'_>], i: usize) -> bool {
    i > 0 && is_sign(words, i - 1, ".")
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
            "{% set ns = namespace() %}{% raw %}{{ ns }}{% endraw %}",
            "{% macro f(namespace) %}{{ namespace }}{% endmacro %}{% for namespace in x %}{{ [namespace] }}{% endfor %}",
            "{% set namespace = namespace(a=1) %}{{ namespace.a }}",
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
            "{% raw %}{{ ' {% endraw %}{{ [ns] }}{{ '' }}",
            "{{ ns['me'] }}",
        ] {
            let source = format!("{{% set ns = namespace() %}}{use_}");
            assert_eq!(handed_on(&source).as_deref(), Some("ns"), "{use_}");
        }
        for source in ["{% set a = make_namespace() %}", "{% for x in [make_namespace()] %}{% endfor %}"] {
            assert_eq!(handed_on(source).as_deref(), Some(PRIVATE_MAKER), "{source}");
        }
        let source = "{% set namespace = namespace() %}{% set namespace.me = namespace %}";
        assert_eq!(handed_on(source).as_deref(), Some(MAKER));
    }
}
