//! Lines and bars on stderr.

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::rc::Rc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::printable::{escape_json, one_line, printable};

/// What took time, and how much: every bar, those of the same name together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// What was done.
    pub name: String,
    /// Wall time.
    pub seconds: f64,
}

type Stages = Rc<RefCell<Vec<Stage>>>;

/// A line on stderr, for what is told without a [`Printer`].
pub fn tell(text: impl AsRef<str>) {
    eprintln!("{}", printable(text.as_ref()));
}

/// How much is said.
#[derive(Debug, Clone)]
pub struct Printer {
    quiet: bool,
    verbose: u8,
    stages: Stages,
}

impl Printer {
    /// From `-q` and `-v`.
    pub fn new(quiet: bool, verbose: u8) -> Self {
        Self { quiet, verbose, stages: Stages::default() }
    }

    /// The stages that ended since they were last taken, in the order in which they were begun first.
    pub fn take_stages(&self) -> Vec<Stage> {
        self.stages.take()
    }

    /// A line for people.
    pub fn say(&self, text: impl AsRef<str>) {
        if !self.quiet {
            tell(text);
        }
    }

    /// A line for those who asked for more.
    pub fn detail(&self, text: impl AsRef<str>) {
        if self.verbose > 0 {
            tell(text);
        }
    }

    /// A line that even `-q` shows.
    pub fn warn(&self, text: impl AsRef<str>) {
        tell(format!("warning: {}", text.as_ref()));
    }

    /// What was asked for, on stdout, for people. A reader that went away is not an error.
    pub fn data(&self, text: impl AsRef<str>) {
        self.piece(text);
        self.piece("\n");
    }

    /// A piece of what was asked for, shown at once.
    pub fn piece(&self, text: impl AsRef<str>) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(printable(text.as_ref()).as_bytes());
        let _ = out.flush();
    }

    /// What was asked for, on stdout, for programs.
    pub fn json(&self, value: &impl Serialize) {
        self.json_text(&serde_json::to_string_pretty(value).unwrap_or_default());
    }

    /// As [`Printer::json`], from JSON as it is laid out already.
    pub fn json_text(&self, text: &str) {
        let _ = writeln!(std::io::stdout().lock(), "{}", escape_json(text));
    }

    /// What a user is asked for a message by.
    pub fn prompt(&self) {
        eprint!("> ");
    }

    /// A bar of `total` steps that tells the time left; a plain line where stderr is no terminal.
    pub fn bar(&self, what: &str, total: u64) -> Bar {
        let what = one_line(what);
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
        bar.set_message(what.clone().into_owned());
        bar.enable_steady_tick(Duration::from_millis(250));
        let (stages, name, start) = (Rc::clone(&self.stages), what.into_owned(), Instant::now());
        Bar { bar, plain: !shown && !self.quiet, stages, name, start }
    }
}

/// One running bar; gone when dropped.
pub struct Bar {
    bar: ProgressBar,
    plain: bool,
    stages: Stages,
    name: String,
    start: Instant,
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
        let text = one_line(text);
        if self.plain {
            tell(format!("  {text}"));
        }
        self.bar.set_message(text.into_owned());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
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
