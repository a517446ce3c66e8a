//! Bringing an answer into the form the phrase rules compare: plain lower-case words.

/// Longest speech (in bytes) taken for a quotation; a longer one is the answer itself.
const LONGEST_QUOTE: usize = 400;
/// Words that must remain outside quotation marks for the quotations to be dropped.
const WORDS_OUTSIDE: usize = 3;

/// The answer without a leading `<think> … </think>` block or stray think tags.
pub(super) fn without_thinking(answer: &str) -> String {
    let after = match answer.split_once("</think>") {
        Some((_, rest)) => rest,
        None => answer,
    };
    after.replace("<think>", " ")
}

/// The sentences of an answer, as padded words: `" i am sorry but i cannot help "`.
///
/// The padding lets a phrase be found whole with `contains(" phrase ")`.
pub(super) fn sentences(answer: &str) -> Vec<String> {
    let plain = without_quotations(&plain(answer));
    let mut found = Vec::new();
    let mut words: Vec<String> = Vec::new();
    for piece in plain.split_inclusive(char::is_whitespace) {
        push_words(piece, &mut words);
        let ends = ends_sentence(piece.trim_end()) || piece.ends_with('\n');
        if ends && !words.is_empty() {
            found.push(padded(&words));
            words.clear();
        }
    }
    if !words.is_empty() {
        found.push(padded(&words));
    }
    found
}

fn padded(words: &[String]) -> String {
    let joined = words.join(" ");
    // Two words that are one verb; joined here so that each stem is listed once.
    format!(" {joined} ").replace(" can not ", " cannot ")
}

/// Lower case, straight quotes, no markdown marks.
fn plain(answer: &str) -> String {
    let mut out = String::with_capacity(answer.len());
    for c in answer.chars() {
        match c {
            '\u{2018}' | '\u{2019}' | '\u{201b}' | '\u{2bc}' | '\u{b4}' | '`' => out.push('\''),
            '\u{201c}'..='\u{201f}' | '\u{ab}' | '\u{bb}' => out.push('"'),
            // Dashes join clauses; a hyphen inside a word splits it into its parts all the same.
            '\u{2010}'..='\u{2015}' | '-' | '/' => out.push(' '),
            '*' | '_' | '#' | '>' | '~' => {}
            '\u{200b}'..='\u{200d}' | '\u{feff}' => {}
            _ => out.extend(c.to_lowercase()),
        }
    }
    out
}

/// Drop quoted speech, so that a character in a story cannot refuse for the model.
///
/// An unclosed quotation runs to the end of a cut-off answer. Nothing is dropped if little else
/// would remain: then the quotation is the answer.
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
    let words = outside.split_whitespace().count();
    if words < WORDS_OUTSIDE { plain.replace('"', " ") } else { outside }
}

/// Whether a word with its punctuation closes a sentence; "1." and "e.g." do not.
fn ends_sentence(piece: &str) -> bool {
    let core = piece.trim_end_matches(['"', '\'', ')', ']']);
    let Some(last) = core.chars().next_back() else {
        return false;
    };
    match last {
        '!' | '?' | '…' | '。' | '！' | '？' => true,
        '.' => {
            let word = core.trim_end_matches('.');
            let short = word.chars().count() <= 1 || word.contains('.');
            let number = word.chars().all(|c| c.is_ascii_digit());
            !(short || number || ["etc", "vs", "dr", "mr", "mrs", "ms", "st"].contains(&word))
        }
        _ => false,
    }
}

/// Split one whitespace-delimited piece into words, contractions written out.
fn push_words(piece: &str, words: &mut Vec<String>) {
    let parts = piece.split(|c: char| !(c.is_alphanumeric() || c == '\''));
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
