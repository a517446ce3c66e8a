//! `undo`: restores a file that was changed in place.

use crate::cli::UndoArgs;
use crate::gguf::in_place::{self, journal_path};
use crate::output::Printer;
use crate::pipeline::error::{Error, ExitStatus};

/// Restores the original and reports it.
///
/// # Errors
/// Returns [`Error::Undo`] if the file cannot be restored; the journal is then kept.
pub fn run(args: &UndoArgs, printer: &Printer) -> Result<ExitStatus, Error> {
    let bar = printer.bar("restoring the original", 1);
    // The first Ctrl-C does not stop this: a half-restored file is useless. After a second one, `undo` can be rerun.
    let undone = in_place::undo(&args.model, args.keep_journal, &mut |done, total| {
        bar.set_of(done, total);
        Ok(())
    })?;
    drop(bar);
    if args.json {
        printer.json(&undone);
    }
    let change = if undone.was_complete { "in-place edit" } else { "unfinished in-place edit" };
    printer.say(format!(
        "{} is restored to its state before the {change}: {} bytes, sha256 {}",
        args.model.display(),
        undone.bytes,
        undone.sha256
    ));
    if undone.journal_kept {
        printer.say(format!("kept the journal: {}", journal_path(&args.model).display()));
    }
    Ok(ExitStatus::Done)
}
