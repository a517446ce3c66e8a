//! Lines and bars on stderr.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How much is said.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    quiet: bool,
    verbose: u8,
}

impl Printer {
    /// From `-q` and `-v`.
    pub fn new(quiet: bool, verbose: u8) -> Self {
        Self { quiet, verbose }
    }

    /// A line for people.
    pub fn say(&self, text: impl AsRef<str>) {
        if !self.quiet {
            eprintln!("{}", text.as_ref());
        }
    }

    /// A line for those who asked for more.
    pub fn detail(&self, text: impl AsRef<str>) {
        if self.verbose > 0 {
            eprintln!("{}", text.as_ref());
        }
    }

    /// A line that even `-q` shows.
    pub fn warn(&self, text: impl AsRef<str>) {
        eprintln!("warning: {}", text.as_ref());
    }

    /// Data, on stdout. A reader that went away is not an error.
    pub fn data(&self, text: impl AsRef<str>) {
        use std::io::Write;
        let _ = writeln!(std::io::stdout().lock(), "{}", text.as_ref());
    }

    /// A bar of `total` steps that tells the time left; a plain line where stderr is no terminal.
    pub fn bar(&self, what: &str, total: u64) -> Bar {
        let shown = !self.quiet && std::io::stderr().is_terminal();
        if !shown {
            self.say(format!("{what} …"));
        }
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let style = "{msg:32} {wide_bar} {percent:>3} %  {elapsed} gone, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(250));
        Bar { bar, plain: !shown && !self.quiet }
    }
}

/// One running bar; gone when dropped.
pub struct Bar {
    bar: ProgressBar,
    plain: bool,
}

impl Bar {
    /// Steps done.
    pub fn set(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// Steps done out of a total that became known.
    pub fn set_of(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    /// What is being done, or the best so far.
    pub fn note(&self, text: &str) {
        self.bar.set_message(text.to_owned());
        if self.plain {
            eprintln!("  {text}");
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
