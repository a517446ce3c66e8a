//! `undo`: a file that was changed in place becomes what it was.

use crate::cli::UndoArgs;
use crate::gguf::in_place::{self, journal_path};
use crate::output::Printer;
use crate::pipeline::error::{Error, ExitStatus};

/// Puts the original back and says so.
///
/// # Errors
/// [`Error::Undo`]; then the journal is still there.
pub fn run(args: &UndoArgs, printer: &Printer) -> Result<ExitStatus, Error> {
    let bar = printer.bar("putting the original back", 1);
    // A first Ctrl-C does not stop this: half of it is worth nothing. After a second one it can be run again.
    let undone = in_place::undo(&args.model, args.keep_journal, &mut |done, total| {
        bar.set_of(done, total);
        Ok(())
    })?;
    drop(bar);
    if args.json {
        printer.json(&undone);
    }
    let change = if undone.was_complete { "its change in place" } else { "a change that was not finished" };
    printer.say(format!(
        "{} is what it was before {change}: {} bytes, sha256 {}",
        args.model.display(),
        undone.bytes,
        undone.sha256
    ));
    if undone.journal_kept {
        printer.say(format!("the journal is kept: {}", journal_path(&args.model).display()));
    }
    Ok(ExitStatus::Done)
}
