//! `search`: the same search as `inject`, with the chosen edit stored in its own file.

use std::io::Write;

use crate::cli::commands::inject::{check_input, with_method};
use crate::gguf::AtomicFile;
use crate::method::edit::Method;
use crate::method::search::SearchResult;
use crate::method::stored::StoredEdit;
use crate::output::{Printer, shell};
use crate::pipeline::error::{Error, ExitStatus};
use crate::pipeline::facts::{file_facts, load_prompts};
use crate::pipeline::options::InjectOptions;
use crate::pipeline::session::{Opened, Session};
use crate::pipeline::stored::{at, search};
use crate::pipeline::{journal, outputs, types};

/// Searches for the best edit and stores it.
///
/// # Errors
/// Returns [`Error`] if any stage fails; the output file is then not created or replaced.
pub fn run(options: &InjectOptions, printer: &Printer) -> Result<ExitStatus, Error> {
    let opened = Opened::new(&options.source.path, options.run.patches.as_deref())?;
    check_input(&opened, options, printer)?;
    let options = &with_method(options, &opened.plan)?;
    types::check(&opened, options, None)?;
    let prompts = load_prompts(&options.learn.prompts, options.learn.no_bundled_prompts)?;
    // Created now, so that an output that cannot be written fails before the work.
    let file = AtomicFile::create(&options.write.output, options.write.overwrite)?;
    outputs::check([journal::path(options).as_path()], true)?;
    let input = file_facts(&opened.gguf, printer)?;
    let mut journal = journal::open(journal::head(&opened, options, &prompts, &input), options, printer)?;
    let session = Session { opened: &opened, prompts: &prompts, options, printer };
    let found = search(session, &input, &mut journal);
    let done = found.and_then(|(stored, search)| {
        let bytes = stored.to_bytes().map_err(|problem| at(&options.write.output, problem))?;
        // Never store an edit that `inject --edit` would reject.
        StoredEdit::from_bytes(&bytes).map_err(|problem| at(&options.write.output, problem))?;
        write(file, &bytes)?;
        tell(&stored, &search, options, bytes.len(), printer);
        Ok(ExitStatus::Done)
    });
    journal::close(journal, done.is_ok(), printer);
    done
}

fn write(mut file: AtomicFile, bytes: &[u8]) -> Result<(), Error> {
    let path = file.path().to_path_buf();
    file.write_all(bytes).map_err(|source| Error::Io { path, source })?;
    Ok(file.commit()?)
}

fn tell(
    stored: &StoredEdit,
    search: &SearchResult,
    options: &InjectOptions,
    bytes: usize,
    printer: &Printer,
) {
    let facts = &stored.facts;
    printer.say(format!(
        "{} edit along {}, {}{}: wrote {} ({} KB)",
        facts.method.name(),
        facts.along(),
        facts.size(),
        match facts.method {
            Method::Detector => format!(" in {} networks", stored.networks.len()),
            _ => format!(" in {} matrices, push {:.1}", stored.writers.len(), facts.push),
        },
        options.write.output.display(),
        bytes / 1000
    ));
    printer.say(format!(
        "inject any quantization of the model with it: rosi-gguf inject MODEL.gguf --edit {}",
        shell(&options.write.output)
    ));
    if options.report.json {
        let told = serde_json::json!({ "edit": facts, "search": search });
        printer.json(&told);
    }
}
