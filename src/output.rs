//! All terminal output: messages go to stderr, data to stdout. Control characters in untrusted text are escaped, so
//! that nothing printed here can control the terminal.

use std::io::{self, Write};
use std::sync::LazyLock;

use indicatif::MultiProgress;

mod printable;
mod progress;
mod shell;
mod table;
mod text;

pub use printable::{escape_json, one_line, printable, steers};
pub use progress::{Bar, Printer, Stage};
pub use shell::shell;
pub use table::Table;
pub use text::{bar, sparkline, wrap};

/// Length above which a message is shortened, in characters.
const MAX_LINE: usize = 4000;

/// Prints a message to stderr. Ignores write errors, so that work continues after stderr is closed; `eprintln!` would
/// panic.
pub fn tell(line: impl std::fmt::Display) {
    print_line(&printable(&shortened(line.to_string())));
}

/// All progress bars that are shown.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Prints to stderr, above the progress bars if any are drawn.
fn print_line(line: &str) {
    let _ = match BARS.is_hidden() {
        true => writeln!(io::stderr().lock(), "{line}"),
        false => BARS.println(line),
    };
}

/// Stderr for logs: prints every event above the progress bars.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        print_line(String::from_utf8_lossy(bytes).trim_end_matches('\n'));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Cuts out the middle of a message that is too long to read: it may quote names of any length.
fn shortened(line: String) -> String {
    let n = line.chars().count();
    if n <= MAX_LINE {
        return line;
    }
    let part = |from: usize, n: usize| line.chars().skip(from).take(n).collect::<String>();
    format!("{} … {}", part(0, MAX_LINE / 2), part(n - MAX_LINE / 2, MAX_LINE / 2))
}

/// Formats a share as a percentage with one decimal: `4.0 %` for 0.04.
pub fn percent(value: f64) -> String {
    format!("{:.1} %", value * 100.0)
}
