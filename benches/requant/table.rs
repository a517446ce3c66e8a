//! Markdown tables on stdout.

/// Prints a heading, a text and a table; the first column is text, the others are numbers.
pub fn print(heading: &str, text: &str, header: &[&str], rows: &[Vec<String>]) {
    println!("## {heading}\n\n{text}\n");
    println!("| {} |", header.join(" | "));
    println!("|---|{}", "--:|".repeat(header.len().saturating_sub(1)));
    for row in rows {
        println!("| {} |", row.join(" | "));
    }
    println!();
}
