//! `report`: shows a stored report in the terminal or as an HTML page.

use crate::cli::ReportArgs;
use crate::cli::options::apart;
use crate::gguf::AtomicFile;
use crate::output::Printer;
use crate::pipeline::error::{Error, ExitStatus};
use crate::pipeline::outputs;
use crate::report::Report;

/// Prints the summary, or writes the page.
///
/// # Errors
/// Returns [`Error`] if the report cannot be read or the page cannot be written.
pub fn run(args: &ReportArgs, printer: &Printer) -> Result<ExitStatus, Error> {
    let Some(path) = &args.html else {
        printer.data(Report::open(&args.report)?.summary().trim());
        return Ok(ExitStatus::Done);
    };
    apart(&[("--html", &args.html)], &[&args.report])?;
    // Check the output path before reading the report, like `inject`.
    outputs::check([path.as_path()], args.overwrite)?;
    let page = Report::open(&args.report)?.page()?;
    AtomicFile::write_whole(path, page.as_bytes(), args.overwrite)?;
    printer.say(format!("wrote {}", path.display()));
    Ok(ExitStatus::Done)
}
