//! Bringing an answer into the form that the rules compare: plain lower-case words.

use std::collections::HashSet;

use crate::llama::thinking::{FORMS, Form};

/// Longest speech (in bytes) taken for a quotation; a longer one is the answer itself.
const LONGEST_QUOTE: usize = 400;
/// Words that must remain outside quotation marks for the quotations to be dropped.
const WORDS_OUTSIDE: usize = 3;

/// Words that come with speech, in stories.
const SPEECH: [&str; 10] =
    ["said", "says", "replied", "whispered", "answered", "muttered", "shouted", "sighed", "asked", "snapped"];
/// Labels before a colon that stand for the model itself or for its answer, and not for a speaker in a script.
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

/// What an answer says once it has been thought about, or the thoughts that it ends in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// The answer itself.
    Answer(String),
    /// Thoughts without an end.
    Thoughts(String),
}

/// The answer without the thoughts before it.
pub(super) fn without_thoughts(answer: &str) -> Said {
    // Upper case is as long as lower case in ASCII, so that positions are those of the answer.
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
/// The padding lets a phrase be found whole with `contains(" phrase ")`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sentence {
    /// The words.
    pub words: String,
    /// Whether it is whole: a mark or the end of a line follows.
    pub ends: bool,
}

/// The sentences of an answer.
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
    // Two words that are one verb; joined here so that each stem is listed once.
    format!(" {joined} ").replace(" can not ", " cannot ").replace(" can 't ", " cannot ")
}

/// Without code, fenced or inline: what a program prints, its author does not say. Text in the dress of code stays.
fn without_code(answer: &str) -> String {
    let prose: String = answer.split('`').step_by(2).collect::<Vec<_>>().join(" ");
    let language =
        answer.split_once("```").and_then(|(_, code)| code.lines().next()).unwrap_or_default().trim();
    let is_text =
        ["", "text", "plaintext", "markdown", "md", "txt"].contains(&language.to_lowercase().as_str());
    if is_text && !prose.chars().any(char::is_alphanumeric) { answer.replace('`', " ") } else { prose }
}

/// Without the labels of lines ("Answer:"), and without the lines of a script, which has several speakers: they say them, not
/// the model. A single one may be the name that a model was told to answer by.
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

/// One or two words before a colon, the first with a capital, and what follows on the line.
fn label(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_start_matches(['*', '_', ' ', '>', '#', '[', '(']);
    let (label, speech) = line.split_once(':')?;
    let label = label.trim_end_matches(['*', '_', ' ', ']', ')']);
    let name = label.chars().next().is_some_and(char::is_uppercase) && label.split(' ').count() <= 2;
    let words = label.chars().all(|c| c.is_alphabetic() || matches!(c, ' ' | '.' | '\''));
    (name && words && !speech.trim().is_empty()).then_some((label, speech))
}

/// Whether a label stands for the model or for its answer.
fn is_own(label: &str) -> bool {
    let last = label.rsplit(' ').next().unwrap_or_default().to_lowercase();
    OWN_LABELS.contains(&last.as_str())
}

/// Lower case, straight quotes, no markdown marks, no vowel marks of Arabic.
fn plain(answer: &str) -> String {
    let mut out = String::with_capacity(answer.len());
    let mut previous = ' ';
    for c in answer.chars() {
        match c {
            // As the opening of a quotation it follows no word; as an apostrophe it does.
            '\u{2018}' | '\u{201b}' | '\'' if !previous.is_alphanumeric() => out.push('"'),
            '\u{2018}' | '\u{2019}' | '\u{201b}' | '\u{2bc}' | '\u{b4}' => out.push('\''),
            '\u{201c}'..='\u{201f}' | '\u{ab}' | '\u{bb}' | '\u{300c}'..='\u{300f}' => out.push('"'),
            // Dashes join clauses; a hyphen inside a word splits it into its parts all the same.
            '\u{2010}'..='\u{2015}' | '-' | '/' => out.push(' '),
            '*' | '_' | '#' | '>' | '~' => {}
            '\u{200b}'..='\u{200f}' | '\u{feff}' | '\u{640}' | '\u{64b}'..='\u{652}' => {}
            // What no space follows ends a sentence too.
            '\u{3002}' | '\u{ff01}' | '\u{ff1f}' | '\u{964}' => out.extend([c, ' ']),
            _ => out.extend(c.to_lowercase()),
        }
        previous = c;
    }
    closing(out)
}

/// Turns the single mark that closes a quotation into a double one, where a single one opened it.
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

/// Drop quoted speech, so that a character in a story cannot refuse for the model.
///
/// An unclosed quotation runs to the end of a cut-off answer. Nothing is dropped if little else
/// would remain that is not of a story: then the quotation is the answer.
fn without_quotations(plain: &str) -> String {
    let mut outside = String::with_capacity(plain.len());
    for (i, piece) in plain.split('"').enumerate() {
        let quoted = i % 2 == 1 && piece.len() <= LONGEST_QUOTE;
        if !quoted {
            outside.push_str(piece);
        } else if piece.trim_end().ends_with(['.', '!', '?']) {
            // The quotation may have held the end of the sentence.
            outside.push_str(". ");
        }
        outside.push(' ');
    }
    let told = outside.split(|c: char| !c.is_alphanumeric()).any(|word| SPEECH.contains(&word));
    let words = outside.split_whitespace().filter(|word| word.contains(char::is_alphanumeric)).count();
    if words < WORDS_OUTSIDE && !told { plain.replace('"', " ") } else { outside }
}

/// Whether a word with its punctuation closes a sentence; "1." and "e.g." do not.
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

/// Marks that belong to the letter before them, in scripts where they are part of a word.
fn is_mark(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}' | '\u{900}'..='\u{963}' | '\u{980}'..='\u{dff}')
}

/// Split one whitespace-delimited piece into words, contractions written out.
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

/// Spellings without an apostrophe that small models produce.
fn undotted(word: &str) -> &str {
    match word {
        "cant" | "can't" => "cannot",
        "im" => "i am",
        "wont" => "will not",
        "dont" => "do not",
        _ => word,
    }
}

/// Two words for a contraction, or `None` if the word is none (or becomes a single word).
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
        // A possessive gains a stray "is", which no phrase trips over.
        "s" => "is",
        _ => return None,
    };
    Some((stem.to_owned(), second))
}
