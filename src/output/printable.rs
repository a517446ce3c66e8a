//! Text of strangers on a terminal: names in files, answers of a model, messages of a server. None of it may move the
//! cursor, hide or reorder what stands beside it, or open a link.

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a terminal, or whoever lays out the line, obeys the character instead of showing it: C0 and C1 controls,
/// DEL, Unicode's bidirectional controls, its line separators, and its deprecated and interlinear format characters.
/// Line feed and tab count too.
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{206a}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}' | '\u{feff}')
}

/// The text with what steers a terminal written as `\u{1b}`; lines and tabs stay, and `\r\n` ends a line as `\n` does.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(|c: char| steers(c) && !matches!(c, '\n' | '\t')) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(escape(&text.replace("\r\n", "\n"), &['\n', '\t']))
}

/// As [`printable`], but on one line: line feeds and tabs are written as `\u{a}` and `\u{9}`.
pub fn one_line(text: &str) -> Cow<'_, str> {
    if text.contains(steers) { Cow::Owned(escape(text, &[])) } else { Cow::Borrowed(text) }
}

fn escape(text: &str, kept: &[char]) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match steers(c) && !kept.contains(&c) {
            true => out.extend(c.escape_unicode()),
            false => out.push(c),
        }
        out
    })
}

/// JSON with what steers a terminal as `\u009b`: the same data for a program. JSON's own line feeds stay.
pub fn escape_json(text: &str) -> Cow<'_, str> {
    if !text.contains(|c: char| steers(c) && c != '\n') {
        return Cow::Borrowed(text);
    }
    // Outside strings JSON is ASCII without any of these, and in strings C0 controls are escaped already.
    Cow::Owned(text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        if steers(c) && c != '\n' {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
        out
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        let link = "\u{1b}]8;;http://x\u{7}here\u{1b}]8;;\u{1b}\\";
        for (text, shown) in [
            ("plain, ŝ and 🏳️‍🌈\n\tnext", "plain, ŝ and 🏳️‍🌈\n\tnext"),
            ("a\u{1b}[2Jb", r"a\u{1b}[2Jb"),
            (link, r"\u{1b}]8;;http://x\u{7}here\u{1b}]8;;\u{1b}\"),
            ("a\u{9b}2J\u{7f}\u{85}", r"a\u{9b}2J\u{7f}\u{85}"),
            ("x\u{202e}fugg\u{2066}\u{200f}", r"x\u{202e}fugg\u{2066}\u{200f}"),
            ("fine\rover\r\nline", "fine\\u{d}over\nline"),
        ] {
            assert_eq!(printable(text), shown);
            assert!(!printable(text).contains(|c: char| steers(c) && !matches!(c, '\n' | '\t')));
        }
        assert_eq!(one_line("a\n\tb\u{2028}"), r"a\u{a}\u{9}b\u{2028}");
    }

    #[test]
    fn json_keeps_the_data() {
        let given = "\u{1b}[2J \u{7f} \u{9b} \u{202e} \u{feff} \r\n ŝ\t\"";
        for text in [serde_json::to_string(&[given]), serde_json::to_string_pretty(&[given])] {
            let text = text.unwrap();
            let shown = escape_json(&text);
            assert!(!shown.contains(|c: char| steers(c) && c != '\n'), "{shown}");
            assert_eq!(serde_json::from_str::<[String; 1]>(&shown).unwrap(), [given]);
        }
    }
}
