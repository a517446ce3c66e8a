//! Facts about files, prompts and edits, for reports and stored edits.

use std::path::{Path, PathBuf};

use crate::arch::plan::Plan;
use crate::eval::PerKind;
use crate::eval::prompts::{PromptKind, PromptSet, Split};
use crate::gguf::{Gguf, sha256_files};
use crate::method::Edits;
use crate::method::edit::experts_spared;
use crate::method::verify::{self, Base, Verification};
use crate::output::Printer;
use crate::pipeline::edit_search::{EditSearch, Found};
use crate::pipeline::error::Error;
use crate::pipeline::session::stoppable;
use crate::report::{EditFacts, FileFacts, PromptFacts};
use crate::util::interrupt;

/// Loads the user's prompts and, unless they are to be used `alone`, adds the bundled ones. Without files, returns the
/// bundled prompts.
///
/// # Errors
/// Returns [`Error::Prompt`] if a file cannot be read or is invalid, or a kind has too few prompts.
pub fn load_prompts(files: &[PathBuf], alone: bool) -> Result<PromptSet, Error> {
    if files.is_empty() {
        return Ok(PromptSet::bundled());
    }
    let mut prompts = PromptSet::load(files)?;
    match alone {
        true => prompts.require(&PromptKind::ALL)?,
        false => prompts.add(&PromptSet::bundled()),
    }
    Ok(prompts)
}

/// Returns the path, SHA-256 and size of the model file. For a split model: the path of the first file, and the
/// hash and size of all files concatenated.
///
/// # Errors
/// Returns [`Error::Io`] if a file cannot be read, [`Error::Interrupted`] if the user stops the run.
pub fn file_facts(gguf: &Gguf, printer: &Printer) -> Result<FileFacts, Error> {
    let bar = printer.bar("hashing", gguf.total_len());
    let paths: Vec<&Path> = gguf.files().map(|file| file.path.as_path()).collect();
    let sha256 = sha256_files(&paths, &mut stoppable(&bar));
    interrupt::check()?;
    let sha256 = sha256.map_err(|source| Error::Io { path: gguf.path.clone(), source })?;
    Ok(FileFacts { path: gguf.path.display().to_string(), sha256, bytes: gguf.total_len() })
}

/// Counts the prompts of each split by kind.
pub fn prompt_facts(prompts: &PromptSet) -> PromptFacts {
    let of = |split| PerKind::from_fn(|kind| prompts.select(kind, split).len());
    PromptFacts {
        source: prompts.source().into(),
        sha256: prompts.sha256(),
        extract: of(Split::Extract),
        search: of(Split::Search),
        report: of(Split::Report),
    }
}

/// Describes `edits`, the edits chosen by `edit_search`.
pub fn edit_facts(edit_search: &EditSearch, edits: &Edits) -> EditFacts {
    let candidate = edit_search.chosen.candidate;
    let linear = edits.linear();
    let pushes = match &edit_search.found {
        Found::Linear(features) => features.pushes(linear, edit_search.direction().norm()),
        Found::Detectors(_) => vec![edit_search.chosen.strength],
    };
    EditFacts {
        method: edit_search.method.name().into(),
        direction_source: candidate.direction_source,
        system_prompt: edit_search.system_prompt,
        layer: candidate.layer,
        window: candidate.window,
        contrast: candidate.contrast,
        strength: edit_search.chosen.strength,
        alpha: linear.first().map_or(0.0, |e| e.alpha),
        writers: edits.tensors().len(),
        writers_against: pushes.iter().filter(|&&p| p < 0.0).count(),
        experts_unrouted: experts_spared(linear.iter().map(|e| (e.n_expert, e.right.as_slice()))).0,
        push: pushes.iter().sum(),
        gates: edit_search.found.detectors().map_or_else(Vec::new, |detectors| detectors.profiles()),
    }
}

/// Returns the last edited layer.
pub fn last_edited(plan: &Plan, edits: &Edits) -> usize {
    let writers = edits.linear().iter().map(|edit| plan.writers[edit.writer].layer);
    writers.chain(edits.planted().iter().map(|planted| planted.layer)).max().unwrap_or(0)
}

/// Verifies the written file against its base.
///
/// # Errors
/// Returns [`Error::Damaged`] if the file differs from its base outside the edit.
pub fn check_written(
    base: Base<'_>,
    written: &Gguf,
    edits: &Edits,
    printer: &Printer,
) -> Result<Verification, Error> {
    let bar = printer.bar("verifying", 1);
    let v = verify::verify_against(base, written, edits, &mut |done, total| {
        bar.set_of(done as u64, total as u64);
    })?;
    if !v.untouched_identical {
        return Err(Error::Damaged { what: v.unexpected.join(", ") });
    }
    if !v.metadata_preserved {
        return Err(Error::Damaged { what: "metadata".into() });
    }
    Ok(v)
}
