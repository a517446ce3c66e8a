//! The judge: a second model that is asked whether answers refuse. It is loaded after the models that it judges are
//! unloaded.

use std::path::Path;

use crate::eval::judge::{JudgeKind, Verdict, judge};
use crate::eval::prompts::PromptKind;
use crate::gguf::Gguf;
use crate::output::Printer;
use crate::pipeline::error::Error;
use crate::pipeline::facts::file_facts;
use crate::pipeline::options::RunOptions;
use crate::pipeline::session;
use crate::report::{FileFacts, JudgeFacts};
use crate::sources::Source;

/// A judge, checked but not loaded.
pub struct Judge {
    gguf: Gguf,
    kind: JudgeKind,
    /// The name that the user gave.
    name: String,
}

/// The answers of a model to prompts of one kind.
pub struct Answered<'a> {
    /// Kind of the prompts.
    pub kind: PromptKind,
    /// Prompts with their answers.
    pub exchanges: Vec<(&'a str, &'a str)>,
}

impl Judge {
    /// Opens the file and detects how to ask the judge.
    ///
    /// # Errors
    /// Returns [`Error`] if the file cannot be used, or if the judge needs a chat template and has none.
    pub fn open(source: &Source) -> Result<Self, Error> {
        let gguf = session::open(&source.path)?;
        let name = source.display_name.clone();
        let names = [gguf.str("general.name"), gguf.str("general.basename"), Some(name.as_str())];
        let names: Vec<&str> = names.into_iter().flatten().map(file_name).collect();
        let template = session::template(&gguf);
        let kind = JudgeKind::detect(&names.join("\n"), template);
        if kind.template(template).is_none() {
            return Err(Error::NoTemplate { path: gguf.path });
        }
        Ok(Self { gguf, kind, name })
    }

    /// Returns hash and kind.
    ///
    /// # Errors
    /// Returns [`Error::Io`] if the file cannot be read.
    pub fn facts(&self, printer: &Printer) -> Result<JudgeFacts, Error> {
        let file = FileFacts { path: self.name.clone(), ..file_facts(&self.gguf, printer)? };
        Ok(JudgeFacts { file, kind: self.kind })
    }

    /// Asks the judge about every answer. Returns one verdict per answer, or `None` for a kind of prompts that it cannot
    /// judge.
    ///
    /// # Errors
    /// Returns [`Error`] if the judge cannot be run.
    pub fn verdicts(
        &self,
        answered: &[Answered<'_>],
        run: &RunOptions,
        printer: &Printer,
    ) -> Result<Vec<Option<Vec<Verdict>>>, Error> {
        let template = self.kind.template(session::template(&self.gguf));
        let mut engine = session::load(&self.gguf, template, run, printer)?;
        let judged = |group: &Answered<'_>| self.kind.judges(group.kind);
        let total: usize = answered.iter().filter(|group| judged(group)).map(|g| g.exchanges.len()).sum();
        let bar = printer.bar("asking the judge", total as u64);
        let (mut before, mut not_shown, mut why) = (0, 0, None);
        let mut all = Vec::with_capacity(answered.len());
        for group in answered {
            if !judged(group) {
                all.push(None);
                continue;
            }
            let mut done = |n| bar.set((before + n) as u64);
            let found = judge(&mut engine, self.kind, &group.exchanges, &mut done)?;
            before += group.exchanges.len();
            not_shown += found.not_shown;
            why = why.or(found.why);
            all.push(Some(found.verdicts));
        }
        if let Some(why) = why {
            printer.warn(format!(
                "{not_shown} of {total} answers could not be sent to the judge: no verdict (first: {why})"
            ));
        }
        Ok(all)
    }
}

/// Returns the last component of a path, or `text` unchanged if it has none.
fn file_name(text: &str) -> &str {
    Path::new(text).file_name().and_then(|name| name.to_str()).unwrap_or(text)
}
