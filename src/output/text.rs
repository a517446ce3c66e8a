//! Line wrapping and small charts in plain text.

/// Wraps `text` between words into lines of at most `width` characters; a longer word stays whole. Keeps spaces except
/// at line breaks.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some((end, _)) = rest.char_indices().nth(width) {
        // A line can end at a space right after the last column.
        let last = rest.char_indices().take(width + 1).filter(|(_, c)| *c == ' ').last();
        let after = rest[end..].find(' ').map(|at| end + at);
        let Some(at) = last.map(|(at, _)| at).filter(|&at| !rest[..at].trim().is_empty()).or(after) else {
            break;
        };
        lines.push(rest[..at].trim_end().to_owned());
        rest = rest[at..].trim_start();
    }
    lines.push(rest.to_owned());
    lines
}

/// Draws a bar of `width` characters for a share from 0 to 1, in steps of an eighth of a character.
pub fn bar(share: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share.clamp(0.0, 1.0) * 8.0 * width as f64).round() as usize;
    let bar = "█".repeat(eighths / 8) + EIGHTHS[eighths % 8];
    let left = width - bar.chars().count();
    bar + &"·".repeat(left)
}

/// Draws a row of at most `width` small columns for heights from 0 to 1. If there are more heights, adjacent ones share
/// a column, which shows their mean. NaN leaves a gap.
pub fn sparkline(heights: &[f64], width: usize) -> String {
    const COLUMNS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let count = heights.len().min(width);
    let column = |i: usize| {
        let part = &heights[i * heights.len() / count..(i + 1) * heights.len() / count];
        let mean = part.iter().sum::<f64>() / part.len() as f64;
        if mean.is_nan() { ' ' } else { COLUMNS[(mean.clamp(0.0, 1.0) * 7.0).round() as usize] }
    };
    (0..count).map(column).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrap("aa bb  cc", 5), ["aa bb", "cc"]);
        assert_eq!(wrap("  aa   bb", 80), ["  aa   bb"]);
        assert_eq!(wrap("aa longer b", 5), ["aa", "longer", "b"]);
        assert_eq!(wrap("  longer b", 5), ["  longer", "b"]);
        assert_eq!(wrap("ŝŝŝŝŝ ŝ", 5), ["ŝŝŝŝŝ", "ŝ"]);
        assert_eq!(wrap("", 5), [""]);
    }

    #[test]
    fn bars_are_as_long_as_their_share() {
        assert_eq!(bar(0.0, 4), "····");
        assert_eq!(bar(0.5, 4), "██··");
        assert_eq!(bar(0.28, 4), "█▏··");
        assert_eq!((bar(1.5, 2), bar(f64::NAN, 2)), ("██".into(), "··".into()));
    }

    #[test]
    fn columns_are_as_high_as_their_mean() {
        assert_eq!(sparkline(&[0.0, 0.5, 1.0, f64::NAN, -3.0, 9.0], 10), "▁▅█ ▁█");
        assert_eq!(sparkline(&[0.0, 0.0, 1.0, 1.0], 2), "▁█");
        assert_eq!(sparkline(&[], 10), "");
    }
}
