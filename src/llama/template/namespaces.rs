//! Detection of templates that may store a namespace in another value.
//!
//! Namespaces are the only mutable values of a template, and so the only ones that can be made to contain
//! themselves; traversing such a value (`ns | tojson`) would exhaust the stack, which ends the process.
//!
//! A template is therefore rejected if it may put a namespace into another value: an attribute, a list, a tuple, a map,
//! or a call that may do so. Real templates only read and set attributes of namespaces, give them second names, and
//! pass them to macros. All attributes and items are then free of namespaces, and none can be reached from itself.

use std::collections::{BTreeMap, HashSet};

use super::source::{Block, Kind, PRIVATE_MAKER, Word, blocks, is_name, is_sign};

/// Name of the function that creates a namespace.
const MAKER: &str = "namespace";
/// Functions that a call may refer to before a macro of the same name is defined.
const GLOBALS: [&str; 8] = [MAKER, PRIVATE_MAKER, "dict", "range", "debug", "caller", "loop", "super"];
/// Words that are not functions when a bracket follows them.
const KEYWORDS: [&str; 14] =
    ["and", "or", "not", "in", "is", "if", "elif", "else", "for", "set", "with", "print", "do", "recursive"];

/// Returns the first namespace that `source` may put into another value, if any.
pub(super) fn stored(source: &str) -> Option<String> {
    let blocks = blocks(source);
    let is_private =
        |block: &Block<'_>| (0..block.words.len()).any(|i| is_name(&block.words, i, PRIVATE_MAKER));
    if blocks.iter().any(is_private) {
        return Some(PRIVATE_MAKER.into());
    }
    let macros = macros(&blocks);
    let mut names: HashSet<&str> = HashSet::new();
    for Block { words, .. } in &blocks {
        names.extend((2..words.len()).filter(|&i| is_made(words, i)).map(|i| words[i - 2].text));
    }
    loop {
        let known = names.len();
        for block in &blocks {
            match flow(block, &macros, &names) {
                Ok(more) => names.extend(more),
                Err(name) => return Some(name.to_owned()),
            }
        }
        if names.len() == known {
            return None;
        }
    }
}

/// Returns whether the word `i` is the function in `set NAME = namespace(…)`, the only use that the engine supports.
pub(super) fn is_made(words: &[Word<'_>], i: usize) -> bool {
    is_name(words, i, MAKER)
        && i >= 3
        && is_name(words, i - 3, "set")
        && words[i - 2].kind == Kind::Name
        && is_sign(words, i - 1, "=")
        && is_sign(words, i + 1, "(")
}

/// Returns the parameters of each macro by its name, except macros whose name has another meaning somewhere.
fn macros<'a>(blocks: &[Block<'a>]) -> BTreeMap<&'a str, Vec<&'a str>> {
    let mut macros: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut others: HashSet<&str> = GLOBALS.into();
    for block in blocks {
        let words = block.code();
        match words {
            [_, name, ..] if block.is_statement() && is_name(words, 0, "macro") => {
                let parameters = parameters(words);
                others.extend(&parameters);
                if macros.insert(name.text, parameters).is_some() {
                    others.insert(name.text);
                }
            }
            _ if block.is_statement() => others.extend(targets(words)),
            _ => {}
        }
    }
    macros.retain(|name, _| !others.contains(name));
    macros
}

/// Returns the parameter names in the header of a macro or of a `call`, without names in default values.
fn parameters<'a>(words: &[Word<'a>]) -> Vec<&'a str> {
    let opens = openers(words);
    let is_parameter = |&i: &usize| {
        words[i].kind == Kind::Name
            && opens[i].is_some_and(|open| open <= 2)
            && (is_sign(words, i - 1, "(") || is_sign(words, i - 1, ","))
    };
    (1..words.len()).filter(is_parameter).map(|i| words[i].text).collect()
}

/// Returns the names that a statement assigns.
fn targets<'a>(words: &[Word<'a>]) -> Vec<&'a str> {
    let names = |words: &[Word<'a>]| words.iter().filter(|w| w.kind == Kind::Name).map(|w| w.text).collect();
    let end = |sign: &str| (0..words.len()).find(|&i| is_sign(words, i, sign) || is_name(words, i, sign));
    match words.first().map(|word| word.text) {
        Some("set") => {
            let target = &words[1..end("=").unwrap_or(words.len())];
            if target.iter().any(|word| word.text == ".") { Vec::new() } else { names(target) }
        }
        Some("for") => names(&words[1..end("in").unwrap_or(words.len())]),
        Some("with") => {
            let opens = openers(words);
            let assigned = |&i: &usize| opens[i].is_none() && is_sign(words, i + 1, "=");
            (1..words.len()).filter(assigned).map(|i| words[i].text).collect()
        }
        Some("call") => parameters(words),
        Some("import" | "from" | "block") => names(&words[1..]),
        _ => Vec::new(),
    }
}

/// Returns, for each word, the index of the innermost bracket that contains it.
fn openers(words: &[Word<'_>]) -> Vec<Option<usize>> {
    let (mut open, mut openers) = (Vec::new(), Vec::with_capacity(words.len()));
    for (i, word) in words.iter().enumerate() {
        if word.kind == Kind::Sign && matches!(word.text, ")" | "]" | "}") {
            open.pop();
        }
        openers.push(open.last().copied());
        if word.kind == Kind::Sign && matches!(word.text, "(" | "[" | "{") {
            open.push(i);
        }
    }
    openers
}

/// Returns the additional names that `block` gives to the namespaces `names`.
///
/// # Errors
/// Returns the name of a namespace that `block` may put into another value.
fn flow<'a>(
    block: &Block<'a>,
    macros: &BTreeMap<&'a str, Vec<&'a str>>,
    names: &HashSet<&str>,
) -> Result<Vec<&'a str>, &'a str> {
    let words = block.code();
    let opens = openers(words);
    let mut more = Vec::new();
    for i in (0..words.len()).filter(|&i| names.contains(words[i].text) && is_bare(words, &opens, i)) {
        let refused = Err(words[i].text);
        match receiver(words, &opens, i) {
            Receiver::Nobody => {}
            Receiver::Value => return refused,
            Receiver::Call { open } => {
                let (index, name) = argument(words, &opens, open, i);
                match (macros.get(words[open - 1].text), name) {
                    // In a macro header, only a default value passes the namespace on; a parameter is a new variable.
                    _ if is_header(words, open) => more.extend(name),
                    (Some(_), Some(name)) => more.push(name),
                    (Some(parameters), None) => more.extend(parameters.get(index)),
                    (None, _) => return refused,
                }
            }
            Receiver::Statement if !block.is_statement() => {}
            Receiver::Statement => match words[0].text {
                "set" if is_member_target(words) => return refused,
                "set" | "with" => more.extend(targets(words)),
                _ => {}
            },
        }
    }
    Ok(more)
}

/// Returns whether the word `i` is a variable that is used as a whole, without taking an attribute or item.
fn is_bare(words: &[Word<'_>], opens: &[Option<usize>], i: usize) -> bool {
    let is_target = opens[i].is_none() && i > 0 && is_name(words, 0, "set") && {
        let equals = (0..words.len()).find(|&k| is_sign(words, k, "="));
        equals.is_none_or(|equals| i < equals)
    };
    // `a == b` is a comparison.
    let is_keyword = opens[i].is_some() && is_sign(words, i + 1, "=") && !is_sign(words, i + 2, "=");
    let is_member = i > 0 && (is_sign(words, i - 1, ".") || is_sign(words, i - 1, "|"));
    let read = is_sign(words, i + 1, ".") || is_sign(words, i + 1, "[");
    words[i].kind == Kind::Name && !is_target && !is_keyword && !is_member && !read && !is_made(words, i)
}

/// Returns whether the statement is `set a.b = …` or `set a, b = …`.
fn is_member_target(words: &[Word<'_>]) -> bool {
    let before = words.iter().take_while(|word| word.text != "=");
    before.into_iter().any(|word| word.kind == Kind::Sign && matches!(word.text, "." | ",")) || {
        let opens = openers(words);
        (0..words.len()).any(|i| opens[i].is_none() && is_sign(words, i, ","))
    }
}

/// Returns whether the bracket `open` encloses the parameters of a macro.
fn is_header(words: &[Word<'_>], open: usize) -> bool {
    is_name(words, 0, "macro") && open == 2
}

/// Returns the index of the argument that contains the word `i` in the brackets `open`, and its name if it is named.
fn argument<'a>(
    words: &[Word<'a>],
    opens: &[Option<usize>],
    open: usize,
    i: usize,
) -> (usize, Option<&'a str>) {
    let commas = (open + 1..i).filter(|&k| opens[k] == Some(open) && is_sign(words, k, ","));
    let (n, start) = commas.fold((0, open), |(n, _), comma| (n + 1, comma));
    let named = is_sign(words, start + 2, "=") && !is_sign(words, start + 3, "=") && start + 2 < i;
    (n, words.get(start + 1).filter(|_| named).map(|word| word.text))
}

/// Destination of a variable's value.
enum Receiver {
    /// None: the variable is an index.
    Nobody,
    /// A list, a tuple, a map, or an unknown value.
    Value,
    /// A function whose arguments begin at the bracket `open`, or the header of a macro.
    Call { open: usize },
    /// The whole statement or expression.
    Statement,
}

fn receiver(words: &[Word<'_>], opens: &[Option<usize>], mut i: usize) -> Receiver {
    while let Some(open) = opens[i] {
        let before = open.checked_sub(1).map(|k| &words[k]);
        let follows_value = before.is_some_and(|word| match word.kind {
            Kind::Name => !KEYWORDS.contains(&word.text),
            Kind::Text => true,
            Kind::Sign => matches!(word.text, ")" | "]" | "}"),
        });
        let asked_of = open >= 2 && [".", "|"].iter().any(|sign| is_sign(words, open - 2, sign));
        match (words[open].text, before) {
            ("[", _) if follows_value => return Receiver::Nobody,
            ("(", Some(name)) if follows_value && name.kind == Kind::Name && !asked_of => {
                return Receiver::Call { open };
            }
            ("(", _) if !follows_value => {
                if (0..words.len()).any(|k| opens[k] == Some(open) && is_sign(words, k, ",")) {
                    return Receiver::Value;
                }
                i = open;
            }
            _ => return Receiver::Value,
        }
    }
    Receiver::Statement
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
            "{% set ns = namespace() %}{% raw %}{{ [ns] }}{% endraw %}",
            "{% macro f(namespace) %}{{ namespace }}{% endmacro %}{% for namespace in x %}{{ [namespace] }}{% endfor %}",
            "{% set namespace = namespace(a=1) %}{{ namespace.a }}",
            "{% set found = namespace(found=1) %}{{ found.found }}{{ x | found }}",
            "{% set ns = namespace() %}{{ dict(ns=1) }}{{ ns['a'] }}{% if ns and not (ns) %}{% endif %}{{ ns is defined }}",
            "{% set ns = namespace() %}{% set ns.text = x[ns.i] + ns['a'] %}{{ ns }}",
        ] {
            assert_eq!(stored(source), None, "{source}");
        }
    }

    #[test]
    fn a_namespace_may_be_passed_to_a_macro_and_named_twice() {
        for source in [
            // From the templates of Kimi-K3 and GigaChat3.5.
            "{% macro f(s) %}{% set s.a = s.a + 1 %}{{ s.a }}{% endmacro %}{% set ns = namespace(a=1) %}{{ f(ns) }}",
            "{% macro f(n, ref=none) %}{% if ref is none %}{% set r = namespace(c=[]) %}{% else %}{% set r = ref %}{% endif %}\
             {{ n }}{% if n > 1 %}{{ f(n - 1, r) }}{% endif %}{% endmacro %}{{ f(3) }}",
            "{% set ns = namespace() %}{% macro f(a, b=ns) %}{% set b.x = a %}{% endmacro %}{{ f(1, b=ns) }}",
            "{% set ns = namespace() %}{% macro f(a) %}{{ caller() }}{% endmacro %}{% call f(ns) %}{{ ns.a }}{% endcall %}",
        ] {
            assert_eq!(stored(source), None, "{source}");
        }
    }

    #[test]
    fn a_namespace_that_is_stored_is_found() {
        for use_ in [
            "{% set ns.me = ns %}",
            "{% set ns.me = [1, ns] %}",
            "{% set ns.me = (ns) %}",
            "{% set ns.me = x if y else ns %}",
            "{% set other = ns %}{% set ns.me = other %}",
            "{% set other = x or ns %}{% set ns['me'] = 1 %}{% set ns.me = other | default(1) %}",
            "{% set a, b = 1, ns %}{% set ns.me = b %}",
            "{% with b = ns %}{% set ns.me = b %}{% endwith %}",
            "{% macro f(a) %}{% set a.me = a %}{% endmacro %}{{ f(ns) }}",
            "{% macro f(a) %}{{ g(a) }}{% endmacro %}{% macro g(b) %}{% set b.me = [b] %}{% endmacro %}{{ f(ns) }}",
            "{% macro f(a, b=ns) %}{% set b.me = b %}{% endmacro %}{{ f(1) }}",
            "{% macro dict(a) %}{% endmacro %}{{ dict(ns) }}",
            "{% macro f(a) %}{% endmacro %}{% set f = dict %}{{ f(a=ns) }}",
            "{% macro f(f) %}{{ f(ns) }}{% endmacro %}",
            "{% call(x) f() %}{% set x.me = x %}{% endcall %}{{ caller(ns) }}",
            "{{ f(ns) }}",
            "{{ x.f(ns) }}",
            "{{ x | f(ns) }}",
            "{{ {'a': {'b': 1}}, f(ns) }}",
            "{{ {'a': ns} }}",
            "{{ (1, ns) }}",
            "{% for x in [ns] %}{% endfor %}",
            "{% set y = namespace(me=ns) %}",
            "{% raw %}{{ ' {% endraw %}{{ [ns] }}{{ '' }}",
        ] {
            let source = format!("{{% set ns = namespace() %}}{use_}");
            assert!(stored(&source).is_some(), "{use_}");
        }
        for source in ["{% set a = make_namespace() %}", "{% for x in [make_namespace()] %}{% endfor %}"] {
            assert_eq!(stored(source).as_deref(), Some(PRIVATE_MAKER), "{source}");
        }
        let source = "{% set namespace = namespace() %}{% set namespace.me = namespace %}";
        assert_eq!(stored(source).as_deref(), Some(MAKER));
    }
}
