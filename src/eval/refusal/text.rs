//! Normalization of answers for the rules: plain lower-case words.

use std::collections::HashSet;

use crate::llama::thinking::{FORMS, Form};

/// Longest quotation, in bytes; longer text in quotation marks is the answer itself.
const LONGEST_QUOTE: usize = 400;
/// Minimum number of words outside quotation marks for the quotations to be dropped.
const WORDS_OUTSIDE: usize = 3;

/// Words that indicate direct speech in stories.
const SPEECH: [&str; 10] =
    ["said", "says", "replied", "whispered", "answered", "muttered", "shouted", "sighed", "asked", "snapped"];
/// Labels before a colon that refer to the model or its answer, not to a speaker in a script.
const OWN_LABELS: [&str; 21] = [
    "answer",
    "response",
    "reply",
    "assistant",
    "ai",
    "bot",
    "chatbot",
    "model",
    "system",
    "note",
    "warning",
    "disclaimer",
    "important",
    "output",
    "result",
    "refusal",
    "safety",
    "caution",
    "attention",
    "explanation",
    "solution",
];

/// The answer after the model's reasoning, or reasoning that does not end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// The answer itself.
    Answer(String),
    /// Reasoning without an end.
    Thoughts(String),
}

/// Removes the reasoning before an answer.
pub(super) fn without_thoughts(answer: &str) -> Said {
    // Lower-casing ASCII does not change lengths, so positions are valid in `answer`, too.
    let lower = answer.to_ascii_lowercase();
    let lower_of = |form: &Form| [form.open, form.close].map(str::to_ascii_lowercase);
    let end = |close: &str| Some(lower.rfind(close)? + close.len());
    let closed = FORMS.iter().filter_map(|form| end(&lower_of(form)[1])).max();
    let (said, lower) = closed.map_or((answer, lower.as_str()), |end| (&answer[end..], &lower[end..]));
    let opened = FORMS.iter().find(|form| lower.trim_start().starts_with(&lower_of(form)[0]));
    match opened {
        Some(Form { open, .. }) => Said::Thoughts(said.trim_start()[open.len()..].to_owned()),
        None => Said::Answer(said.to_owned()),
    }
}

/// A sentence as padded words: `" i am sorry but i cannot help "`.
///
/// The padding lets `contains(" phrase ")` match only whole words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sentence {
    /// The words, with a space before, between and after them.
    pub words: String,
    /// Whether the sentence is complete: punctuation or a line end follows.
    pub ends: bool,
}

/// Splits an answer into sentences.
pub(super) fn sentences(answer: &str) -> Vec<Sentence> {
    let plain = without_quotations(&plain(&without_scripts(&without_code(answer))));
    let mut found = Vec::new();
    let mut words: Vec<String> = Vec::new();
    for piece in plain.split_inclusive(char::is_whitespace) {
        push_words(piece, &mut words);
        let ends = ends_sentence(piece.trim_end()) || piece.ends_with('\n');
        if ends && !words.is_empty() {
            found.push(Sentence { words: padded(&words), ends });
            words.clear();
        }
    }
    if !words.is_empty() {
        found.push(Sentence { words: padded(&words), ends: false });
    }
    found
}

fn padded(words: &[String]) -> String {
    let joined = words.join(" ");
    // Joined, so that the tables list only "cannot".
    format!(" {joined} ").replace(" can not ", " cannot ").replace(" can 't ", " cannot ")
}

/// Removes code, fenced or inline, which the model does not say itself. Keeps an answer that is only formatted as code.
fn without_code(answer: &str) -> String {
    let prose: String = answer.split('`').step_by(2).collect::<Vec<_>>().join(" ");
    let language =
        answer.split_once("```").and_then(|(_, code)| code.lines().next()).unwrap_or_default().trim();
    let is_text =
        ["", "text", "plaintext", "markdown", "md", "txt"].contains(&language.to_lowercase().as_str());
    if is_text && !prose.chars().any(char::is_alphanumeric) { answer.replace('`', " ") } else { prose }
}

/// Removes labels of the model's own lines ("Answer:"), and the lines of a script, which has several speakers and is
/// not said by the model. A single speaker may be a name that the model was told to use.
fn without_scripts(text: &str) -> String {
    let labels: HashSet<&str> = text.lines().filter_map(|line| Some(label(line)?.0)).collect();
    let speakers = labels.iter().filter(|label| !is_own(label)).count();
    let said = |line: &str| match label(line) {
        Some((label, speech)) if is_own(label) => format!("{speech}\n"),
        Some(_) if speakers > 1 => String::new(),
        _ => format!("{line}\n"),
    };
    let text_said: String = text.lines().map(said).collect();
    if text.ends_with('\n') { text_said } else { text_said.trim_end_matches('\n').to_owned() }
}

/// Splits off a label: one or two words before a colon, starting with a capital letter. Returns it and the rest.
fn label(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_start_matches(['*', '_', ' ', '>', '#', '[', '(']);
    let (label, speech) = line.split_once(':')?;
    let label = label.trim_end_matches(['*', '_', ' ', ']', ')']);
    let name = label.chars().next().is_some_and(char::is_uppercase) && label.split(' ').count() <= 2;
    let words = label.chars().all(|c| c.is_alphabetic() || matches!(c, ' ' | '.' | '\''));
    (name && words && !speech.trim().is_empty()).then_some((label, speech))
}

/// Returns whether a label refers to the model or its answer.
fn is_own(label: &str) -> bool {
    let last = label.rsplit(' ').next().unwrap_or_default().to_lowercase();
    OWN_LABELS.contains(&last.as_str())
}

/// Converts to lower case and straight quotes; removes Markdown marks and Arabic vowel marks.
fn plain(answer: &str) -> String {
    let mut out = String::with_capacity(answer.len());
    let mut previous = ' ';
    for c in answer.chars() {
        match c {
            // An opening quotation mark does not follow a word; an apostrophe does.
            '\u{2018}' | '\u{201b}' | '\'' if !previous.is_alphanumeric() => out.push('"'),
            '\u{2018}' | '\u{2019}' | '\u{201b}' | '\u{2bc}' | '\u{b4}' => out.push('\''),
            '\u{201c}'..='\u{201f}' | '\u{ab}' | '\u{bb}' | '\u{300c}'..='\u{300f}' => out.push('"'),
            // Dashes separate clauses; hyphenated words are split, too.
            '\u{2010}'..='\u{2015}' | '-' | '/' => out.push(' '),
            '*' | '_' | '#' | '>' | '~' => {}
            '\u{200b}'..='\u{200f}' | '\u{feff}' | '\u{640}' | '\u{64b}'..='\u{652}' => {}
            // These marks end sentences without a space after them.
            '\u{3002}' | '\u{ff01}' | '\u{ff1f}' | '\u{964}' => out.extend([c, ' ']),
            _ => out.extend(c.to_lowercase()),
        }
        previous = c;
    }
    closing(out)
}

/// Turns the single mark that closes a quotation into a double one.
fn closing(text: String) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut open = false;
    let word = |i: usize| chars.get(i).is_some_and(|c| c.is_alphanumeric());
    let close = |(i, &c): (usize, &char)| match c {
        '"' => {
            open = !open;
            c
        }
        '\'' if open && !word(i + 1) => {
            open = false;
            '"'
        }
        _ => c,
    };
    chars.iter().enumerate().map(close).collect()
}

/// Drops quoted speech, so that a refusal by a character in a story does not count as the model's.
///
/// An unclosed quotation extends to the end of the answer. If little else remains and it is not from a story,
/// nothing is dropped: the quotation is the answer.
fn without_quotations(plain: &str) -> String {
    let mut outside = String::with_capacity(plain.len());
    for (i, piece) in plain.split('"').enumerate() {
        let quoted = i % 2 == 1 && piece.len() <= LONGEST_QUOTE;
        if !quoted {
            outside.push_str(piece);
        } else if piece.trim_end().ends_with(['.', '!', '?']) {
            // The quotation may contain the end of the sentence.
            outside.push_str(". ");
        }
        outside.push(' ');
    }
    let told = outside.split(|c: char| !c.is_alphanumeric()).any(|word| SPEECH.contains(&word));
    let words = outside.split_whitespace().filter(|word| word.contains(char::is_alphanumeric)).count();
    if words < WORDS_OUTSIDE && !told { plain.replace('"', " ") } else { outside }
}

/// Returns whether a word with its punctuation ends a sentence; "1." and "e.g." do not.
fn ends_sentence(piece: &str) -> bool {
    let core = piece.trim_end_matches(['"', '\'', ')', ']']);
    let Some(last) = core.chars().next_back() else {
        return false;
    };
    match last {
        '!' | '?' | ';' | '…' | '。' | '！' | '？' | '؟' | '।' => true,
        '.' => {
            let word = core.trim_end_matches('.');
            let short = word.chars().count() <= 1 || word.contains('.');
            let number = word.chars().all(|c| c.is_ascii_digit());
            !(short || number || ["etc", "vs", "dr", "mr", "mrs", "ms", "st"].contains(&word))
        }
        _ => false,
    }
}

/// Returns whether `c` is a combining mark that is part of a word.
fn is_mark(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}' | '\u{900}'..='\u{963}' | '\u{980}'..='\u{dff}')
}

/// Splits one whitespace-delimited piece into words, with contractions written out.
fn push_words(piece: &str, words: &mut Vec<String>) {
    let parts = piece.split(|c: char| !(c.is_alphanumeric() || c == '\'' || is_mark(c)));
    for part in parts {
        let word = part.trim_matches('\'');
        if word.is_empty() {
            continue;
        }
        match expand(word) {
            Some((first, second)) => words.extend([first, second.to_owned()]),
            None => words.push(undotted(word).to_owned()),
        }
    }
}

/// Writes out "can't", and contractions without an apostrophe, which small models produce.
fn undotted(word: &str) -> &str {
    match word {
        "cant" | "can't" => "cannot",
        "im" => "i am",
        "wont" => "will not",
        "dont" => "do not",
        _ => word,
    }
}

/// Returns the two words of a contraction; `None` if the word is not one, or becomes a single word.
fn expand(word: &str) -> Option<(String, &'static str)> {
    match word {
        "won't" => return Some(("will".to_owned(), "not")),
        "let's" => return Some(("let".to_owned(), "us")),
        "can't" => return None,
        _ => {}
    }
    let (stem, tail) = word.rsplit_once('\'')?;
    if let Some(verb) = stem.strip_suffix('n').filter(|_| tail == "t") {
        return Some((verb.to_owned(), "not"));
    }
    let second = match tail {
        "m" => "am",
        "re" => "are",
        "ve" => "have",
        "ll" => "will",
        "d" => "would",
        // A possessive gets a stray "is", which affects no pattern.
        "s" => "is",
        _ => return None,
    };
    Some((stem.to_owned(), second))
}
