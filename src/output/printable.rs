//! Escaping of untrusted text for terminals: names in files, answers of a model, messages of a server. Such text must
//! not move the cursor, hide or reorder the text around it, or open a link.

use std::borrow::Cow;
use std::fmt::Write;

/// Returns whether a terminal or text layout interprets the character instead of displaying it: C0 and C1 controls,
/// DEL, and Unicode's bidirectional controls, line separators, and deprecated and interlinear format characters.
/// Includes line feed and tab.
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{206a}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}' | '\u{feff}')
}

/// Escapes control characters as in `\u{1b}`; keeps line feeds and tabs, and turns `\r\n` into `\n`.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(|c: char| steers(c) && !matches!(c, '\n' | '\t')) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(escape(&text.replace("\r\n", "\n"), &['\n', '\t']))
}

/// Escapes control characters as [`printable`] does, and also line feeds and tabs, as `\u{a}` and `\u{9}`.
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

/// Escapes control characters in JSON as in `\u009b`, which preserves the data; keeps the line feeds between tokens.
pub fn escape_json(text: &str) -> Cow<'_, str> {
    if !text.contains(|c: char| steers(c) && c != '\n') {
        return Cow::Borrowed(text);
    }
    // These characters occur only in strings, where JSON already escapes C0 controls.
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
