//! Markdown tables on stdout.

/// Prints a heading, a paragraph and a table; the first column is left-aligned text, the others are right-aligned
/// numbers.
pub fn print(heading: &str, text: &str, header: &[&str], rows: &[Vec<String>]) {
    println!("## {heading}\n\n{text}\n");
    println!("| {} |", header.join(" | "));
    println!("|---|{}", "--:|".repeat(header.len().saturating_sub(1)));
    for row in rows {
        println!("| {} |", row.join(" | "));
    }
    println!();
}
