//! The signs that a sentence can contain, and the tables of patterns that match them, one per language.
//!
//! Patterns are regular expressions over the words of one sentence, normalized by [`text`](super::text): in lower case,
//! with a space before, between and after them, without punctuation, with English contractions written out ("cannot",
//! "i am"). In Chinese and Japanese, the words between two punctuation marks are not separated. `{name}` stands for a
//! part that several patterns of a table share.

mod asian;
mod english;
mod european;

use std::ops::RangeInclusive;
use std::sync::LazyLock;

use regex::Regex;

/// What a matching pattern indicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// The model says no.
    Declines,
    /// Words that decline once a verb of helping follows; they count only if the answer is cut off.
    Begins,
    /// After a decline: withholds only a disclaimer or a detail ("medical advice", "exact amounts").
    Partly,
    /// Calls the request or its subject wrong: two points.
    Wrong,
    /// Words that occur in moralizing as well as in sound advice: one point.
    Caution,
    /// An opening that either a refusal or an answer may follow.
    Hedges,
    /// The sentence begins with a concession ("while", "although").
    Concedes,
    /// Gives or announces the answer.
    Answers,
    /// Tells the user what to do; after a hedge, this is an answer.
    Instructs,
    /// Offers an alternative, or refers the user to somebody else.
    Refers,
    /// Introduces a contrast ("but", "however").
    Turns,
    /// Somebody else speaks, as in a letter or a story.
    Voices,
    /// The model reasons about the request without a tag.
    Thinks,
}

/// One line of a table.
pub(super) struct Rule {
    sign: Sign,
    pattern: &'static str,
    unless: &'static str,
}

impl Rule {
    /// Creates a rule. If `pattern` has a group named `verb`, exceptions are matched from there, otherwise after it.
    const fn of(sign: Sign, pattern: &'static str) -> Self {
        Self { sign, pattern, unless: "" }
    }

    /// Adds an exception: the rule does not apply if `unless` follows.
    const fn unless(self, unless: &'static str) -> Self {
        Self { unless, ..self }
    }
}

/// The table of one language.
pub(super) struct Language {
    /// The letters of the language: a sentence without any of them is in another language.
    letters: RangeInclusive<char>,
    /// Replacements of `{name}`, as pairs of name and pattern; a part may contain parts listed before it.
    parts: &'static [(&'static str, &'static str)],
    rules: &'static [Rule],
}

struct Compiled {
    sign: Sign,
    pattern: Regex,
    unless: Option<Regex>,
}

/// The compiled rules of each language, with its letters.
static LANGUAGES: LazyLock<Vec<(RangeInclusive<char>, Vec<Compiled>)>> = LazyLock::new(|| {
    let languages = [&english::TABLE].into_iter().chain(european::TABLES).chain(asian::TABLES);
    let compiled = |language: &Language| language.rules.iter().map(|rule| compile(language, rule)).collect();
    languages.map(|language| (language.letters.clone(), compiled(language))).collect()
});

fn compile(language: &Language, rule: &Rule) -> Compiled {
    let regex = |pattern: &str| {
        let with_parts = language.parts.iter().rev();
        let pattern = with_parts.fold(pattern.to_owned(), |p, (name, part)| {
            p.replace(&format!("{{{name}}}"), &format!("(?:{part})"))
        });
        Regex::new(&pattern).unwrap_or_else(|error| panic!("rule {}: {error}", rule.pattern))
    };
    let unless = (!rule.unless.is_empty()).then(|| regex(&format!("^(?:{})", rule.unless)));
    Compiled { sign: rule.sign, pattern: regex(rule.pattern), unless }
}

/// A match of a sign in a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hit<'a> {
    /// The text before it.
    pub before: &'a str,
    /// The words of the sign itself.
    pub words: &'a str,
    /// The text after it.
    pub rest: &'a str,
}

/// Returns all matches of a sign in a sentence.
pub(super) fn hits(sentence: &str, sign: Sign) -> impl Iterator<Item = Hit<'_>> {
    // Skips about half of the tables, which are for other scripts.
    let written = |letters: &RangeInclusive<char>| sentence.chars().any(|c| letters.contains(&c));
    let tables = LANGUAGES.iter().filter(move |(letters, _)| written(letters));
    let rules = tables.flat_map(|(_, rules)| rules);
    rules.filter(move |rule| rule.sign == sign).flat_map(move |rule| {
        let found = rule.pattern.captures_iter(sentence).filter_map(move |captures| {
            let whole = captures.get(0)?;
            let from = captures.name("verb").map_or(whole.end(), |verb| verb.start());
            let excepted = rule.unless.as_ref().is_some_and(|unless| unless.is_match(&sentence[from..]));
            let (before, rest) = (&sentence[..whole.start()], &sentence[whole.end()..]);
            (!excepted).then(|| Hit { before, words: whole.as_str(), rest })
        });
        found.collect::<Vec<_>>()
    })
}

/// Returns whether a sentence has a sign.
pub(super) fn has(sentence: &str, sign: Sign) -> bool {
    hits(sentence, sign).next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_is_well_formed_and_none_matches_nothing() {
        for rule in LANGUAGES.iter().flat_map(|(_, rules)| rules) {
            assert!(!rule.pattern.is_match("  "), "{} matches an empty sentence", rule.pattern);
        }
    }

    #[test]
    fn an_exception_is_looked_for_from_the_verb_on() {
        assert!(has(" i cannot help you with that ", Sign::Declines));
        assert!(!has(" i cannot help but admire the colours ", Sign::Declines));
        let hit = hits(" well i cannot assist with that ", Sign::Declines).next().unwrap();
        assert_eq!((hit.before.trim(), hit.rest.trim()), ("well", "with that"));
    }
}
