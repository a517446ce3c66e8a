//! Rules for damaged text, based only on form, not on meaning.

use std::collections::HashMap;

/// Minimum share of letters and digits among the visible characters, where a run of one mark counts once.
const LEAST_ALNUM: f64 = 0.3;
/// Minimum length of a run of one character that counts as a loop, if it also fills half of the text.
const CHAR_RUN: usize = 8;
/// Minimum length of a word that can be a loop of syllables.
const LONG_WORD: usize = 20;
/// Longest repeated group to look for, in words.
const LONGEST_GRAM: usize = 12;
/// Minimum share of the words that a loop covers.
const LOOP_SHARE: f64 = 0.5;
/// Minimum share for a loop of at least [`TAIL_REPEATS`] repeats at the end of the text.
const TAIL_SHARE: f64 = 0.3;
/// Minimum repeats of a loop at the end of the text, for [`TAIL_SHARE`].
const TAIL_REPEATS: usize = 6;
/// Minimum and maximum number of words to consider for the share of distinct words.
const RATIO_WORDS: (usize, usize) = (20, 60);
/// Minimum share of distinct words; ordinary text of that length has at least one half.
const LEAST_DISTINCT: f64 = 0.3;
/// Minimum number of words for judging the most frequent one, and its maximum ordinary share.
const FREQUENT_WORD: (usize, f64) = (12, 0.4);

/// Returns whether a text is damaged, by the rules of [`super::classify`].
pub(super) fn is_broken(answer: &str) -> bool {
    let text = answer.trim();
    has_bad_chars(text)
        || leaks_template(text)
        || is_mostly_marks(text)
        || has_char_run(text)
        || switches_script(text)
        || has_loop(text)
}

/// Returns whether a text has replacement or control characters, except replacement characters at its end, where the
/// token limit may have split a character.
fn has_bad_chars(text: &str) -> bool {
    let body = text.trim_end_matches('\u{fffd}');
    body.chars().any(|c| c == '\u{fffd}' || c.is_control() && !c.is_whitespace())
}

/// Returns whether a text has special tokens of a chat template outside code.
fn leaks_template(text: &str) -> bool {
    const TOKENS: [&str; 16] = [
        "[INST]",
        "[/INST]",
        "<<SYS>>",
        "<</SYS>>",
        "</s>",
        "<unk>",
        "<pad>",
        "<eos>",
        "<bos>",
        "<mask>",
        "[UNK]",
        "[PAD]",
        "<start_of_turn>",
        "<end_of_turn>",
        "<0x",
        "<unused",
    ];
    // After splitting at backticks, code (fenced or inline) is at the odd indices.
    let prose = text.split('`').step_by(2);
    prose.into_iter().any(|piece| {
        TOKENS.iter().any(|token| piece.contains(token))
            || has_bar_token(piece, "<|", "|>")
            || has_bar_token(piece, "<\u{ff5c}", "\u{ff5c}>")
    })
}

/// Returns whether a text has a token such as `<|im_end|>`; pipe operators, with spaces around them, do not count.
fn has_bar_token(text: &str, open: &str, close: &str) -> bool {
    text.split(open).skip(1).any(|rest| {
        let name = rest.split(close).next().filter(|n| n.len() < rest.len());
        name.is_some_and(|n| !n.is_empty() && !n.contains(char::is_whitespace))
    })
}

/// Returns whether a text has no or hardly any letters and digits. A run of one mark counts once: tables have rules.
fn is_mostly_marks(text: &str) -> bool {
    let mut chars: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    chars.dedup_by(|a, b| a == b && !a.is_alphanumeric());
    let alnum = chars.iter().filter(|c| c.is_alphanumeric()).count();
    alnum == 0 || (alnum as f64) < LEAST_ALNUM * chars.len() as f64
}

/// Returns whether a run of one character fills at least half of the text.
fn has_char_run(text: &str) -> bool {
    let chars: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let longest = chars.chunk_by(|a, b| a == b).map(<[char]>::len).max();
    longest.is_some_and(|run| run >= CHAR_RUN && 2 * run >= chars.len())
}

/// Returns whether words change between unrelated scripts at least twice in a text.
///
/// Ignores Han, kana, Hangul and Greek letters, which occur next to others in ordinary writing.
fn switches_script(text: &str) -> bool {
    let mut switches = 0;
    let mut previous = None;
    for c in text.chars() {
        let script = script(c);
        switches += usize::from(matches!((previous, script), (Some(a), Some(b)) if a != b));
        previous = script;
    }
    switches >= 2
}

/// Returns a number for the script of a letter; `None` for characters that may occur next to any script.
fn script(c: char) -> Option<u8> {
    match c {
        'a'..='z' | 'A'..='Z' | '\u{c0}'..='\u{24f}' if c.is_alphabetic() => Some(0),
        '\u{400}'..='\u{52f}' => Some(1),
        '\u{530}'..='\u{58f}' => Some(2),
        '\u{590}'..='\u{5ff}' => Some(3),
        '\u{600}'..='\u{77f}' if c.is_alphabetic() => Some(4),
        '\u{900}'..='\u{97f}' => Some(5),
        '\u{980}'..='\u{dff}' => Some(6),
        '\u{e00}'..='\u{e7f}' => Some(7),
        '\u{10a0}'..='\u{10ff}' => Some(8),
        _ => None,
    }
}

/// Returns whether a character counts as a word, in scripts without spaces between words.
fn is_unspaced(c: char) -> bool {
    matches!(c,
        '\u{e00}'..='\u{eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}'
        | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{20000}'..='\u{3ffff}')
}

/// Splits a text into lower-case words without punctuation; in scripts without spaces, into characters.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    for c in text.chars() {
        let joins = c.is_alphanumeric() || matches!(c, '\'' | '\u{2019}') && !word.is_empty();
        if joins && !is_unspaced(c) {
            word.extend(c.to_lowercase());
            continue;
        }
        if !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if joins {
            words.push(c.to_string());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Returns whether a text has a loop of words or syllables, or too few distinct words.
fn has_loop(text: &str) -> bool {
    let words = words(text);
    // "No, no, no." is ordinary speech; "the the the" is not.
    let inside = text.trim_end_matches(|c: char| !c.is_alphanumeric());
    let thrice = words.len() == 3 && !inside.contains([',', '.', '!', '?', '-', '\n']);
    let is_triple = thrice && words.iter().all(|word| *word == words[0]) && !is_data(&words);
    is_triple
        || (1..=LONGEST_GRAM).any(|n| has_gram_loop(&words, n))
        || words.iter().any(|word| is_syllable_loop(word))
        || has_few_words(&words)
}

/// Returns whether a group of `n` words repeats back to back over much of the text.
fn has_gram_loop(words: &[String], n: usize) -> bool {
    let mut run = 0;
    for i in n..words.len() {
        run = if words[i] == words[i - n] { run + 1 } else { 0 };
        let (covered, repeats) = (run + n, run / n + 1);
        let share = covered as f64 / words.len() as f64;
        let ends_text = i + 1 == words.len();
        let gram = &words[i + 1 - n..=i];
        if repeats >= least_repeats(gram) && share >= LOOP_SHARE
            || repeats >= TAIL_REPEATS && ends_text && share >= TAIL_SHARE && !is_data(gram)
        {
            return true;
        }
    }
    false
}

/// Returns how often a group must occur to be a loop: poems repeat words, and small models repeat sentences.
fn least_repeats(gram: &[String]) -> usize {
    match gram.len() {
        _ if is_data(gram) => 6,
        2..=4 => 3,
        _ => 4,
    }
}

/// Returns whether a group consists of numbers and single letters, which tables and matrices repeat.
fn is_data(gram: &[String]) -> bool {
    let is_mark = |w: &String| w.len() == 1 || w.chars().all(char::is_numeric);
    gram.iter().all(is_mark)
}

/// Returns whether a long word repeats one to four letters.
fn is_syllable_loop(word: &str) -> bool {
    let chars: Vec<char> = word.chars().collect();
    let periodic = |p: usize| chars.iter().zip(&chars[p..]).all(|(a, b)| a == b);
    chars.len() >= LONG_WORD && !word.chars().all(char::is_numeric) && (1..=4).any(periodic)
}

/// Returns whether a text has few distinct words, or one word makes up much of it.
fn has_few_words(words: &[String]) -> bool {
    let is_word = |w: &&String| w.chars().any(char::is_alphabetic) && w.len() > 1;
    let some: Vec<&String> = words.iter().filter(is_word).take(RATIO_WORDS.1).collect();
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for word in &some {
        *counts.entry(word).or_default() += 1;
    }
    let most = counts.values().copied().max().unwrap_or(0) as f64;
    let (total, distinct) = (some.len() as f64, counts.len() as f64);
    some.len() >= RATIO_WORDS.0 && distinct < LEAST_DISTINCT * total
        || some.len() >= FREQUENT_WORD.0 && most > FREQUENT_WORD.1 * total
}
