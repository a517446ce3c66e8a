//! Messages and progress bars on stderr, and results on stdout.

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::rc::Rc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::printable::{escape_json, one_line, printable};
use super::{BARS, tell};

/// A timed stage of the work: all progress bars of one name together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Name of the progress bar.
    pub name: String,
    /// Wall time in seconds.
    pub seconds: f64,
}

type Stages = Rc<RefCell<Vec<Stage>>>;

/// Prints messages and results at the requested verbosity.
#[derive(Debug, Clone)]
pub struct Printer {
    quiet: bool,
    verbose: u8,
    stages: Stages,
}

impl Printer {
    /// Creates a printer for the flags `-q` and `-v`; `verbose` counts the latter.
    pub fn new(quiet: bool, verbose: u8) -> Self {
        Self { quiet, verbose, stages: Stages::default() }
    }

    /// Takes the stages that ended since the last call, in the order in which they first ended.
    pub fn take_stages(&self) -> Vec<Stage> {
        self.stages.take()
    }

    /// Prints a message, unless `-q` was given.
    pub fn say(&self, text: impl AsRef<str>) {
        if !self.quiet {
            tell(text.as_ref());
        }
    }

    /// Prints a message if `-v` was given.
    pub fn detail(&self, text: impl AsRef<str>) {
        if self.verbose > 0 {
            tell(text.as_ref());
        }
    }

    /// Prints a warning, even with `-q`.
    pub fn warn(&self, text: impl AsRef<str>) {
        tell(format_args!("warning: {}", text.as_ref()));
    }

    /// Prints a human-readable result and a line feed to stdout. Ignores write errors, such as a closed pipe.
    pub fn data(&self, text: impl AsRef<str>) {
        self.piece(text);
        self.piece("\n");
    }

    /// Prints part of a human-readable result to stdout and flushes it.
    pub fn piece(&self, text: impl AsRef<str>) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(printable(text.as_ref()).as_bytes());
        let _ = out.flush();
    }

    /// Prints a result to stdout as indented JSON.
    pub fn json(&self, value: &impl Serialize) {
        self.json_text(&serde_json::to_string_pretty(value).unwrap_or_default());
    }

    /// Prints JSON text to stdout as it is, apart from escaped control characters.
    pub fn json_text(&self, text: &str) {
        let _ = writeln!(std::io::stdout().lock(), "{}", escape_json(text));
    }

    /// Prints the prompt for user input, `> `, to stderr.
    pub fn prompt(&self) {
        let _ = write!(std::io::stderr(), "> ");
    }

    /// Starts a progress bar of `total` steps with the time left; prints a plain line if stderr is not a terminal.
    pub fn bar(&self, what: &str, total: u64) -> Bar {
        let what = one_line(what);
        let shown = !self.quiet && std::io::stderr().is_terminal();
        if !shown {
            self.say(format!("{what} …"));
        }
        let bar = match shown {
            true => BARS.add(ProgressBar::new(total)),
            false => ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden()),
        };
        let style = "{msg:32} {wide_bar} {percent:>3} %  {elapsed} elapsed, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_message(what.clone().into_owned());
        bar.enable_steady_tick(Duration::from_millis(250));
        let (stages, name, start) = (Rc::clone(&self.stages), what.into_owned(), Instant::now());
        Bar { bar, plain: !shown && !self.quiet, stages, name, start }
    }
}

/// A running progress bar; dropping it removes it and records its time.
pub struct Bar {
    bar: ProgressBar,
    plain: bool,
    stages: Stages,
    name: String,
    start: Instant,
}

impl Bar {
    /// Sets the number of steps done.
    pub fn set(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// Sets the number of steps done and the total.
    pub fn set_of(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    /// Replaces the label, for example with the current step or the best result so far.
    pub fn note(&self, text: &str) {
        let text = one_line(text);
        if self.plain {
            tell(format_args!("  {text}"));
        }
        self.bar.set_message(text.into_owned());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        BARS.remove(&self.bar);
        let seconds = self.start.elapsed().as_secs_f64();
        let mut stages = self.stages.borrow_mut();
        match stages.iter_mut().find(|stage| stage.name == self.name) {
            Some(stage) => stage.seconds += seconds,
            None => stages.push(Stage { name: std::mem::take(&mut self.name), seconds }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_timed_by_name() {
        let printer = Printer::new(true, 0);
        drop(printer.bar("asking", 1));
        let bar = printer.bar("writing", 1);
        std::thread::sleep(Duration::from_millis(20));
        drop((bar, printer.bar("asking", 1)));
        let stages = printer.take_stages();
        assert_eq!(stages.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["asking", "writing"]);
        assert!(stages[1].seconds >= 0.02 && stages[0].seconds < stages[1].seconds, "{stages:?}");
        assert!(printer.take_stages().is_empty());
    }
}
