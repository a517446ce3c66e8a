//! `direction`: what `inject` does up to its choice, which is stored in a file of its own; and how
//! `inject` takes up such a file.

use std::io::Write;
use std::path::Path;

use crate::commands::inject::{check_input, edit_facts, file_facts, load_prompts};
use crate::commands::journal;
use crate::commands::levers::Levers;
use crate::commands::material::Material;
use crate::commands::session::{self, Opened};
use crate::commands::study::{Chosen, Study};
use crate::direction::{Directions, SafetyDirection};
use crate::error::{Error, ExitStatus};
use crate::gguf::{AtomicFile, sha256_hex};
use crate::llama::llama_version;
use crate::options::InjectOptions;
use crate::output::{Printer, percent};
use crate::prompts::PromptSet;
use crate::report::FileFacts;
use crate::search::SearchResult;
use crate::search::journal::Journal;
use crate::stored::fingerprint::{Fingerprint, Shape};
use crate::stored::{FORMAT, Facts, Problem, StoredEdit, StoredError};

/// Searches and stores.
///
/// # Errors
/// [`Error`]; then nothing bears the output's name that did not before.
pub fn run(options: &InjectOptions, printer: &Printer) -> Result<ExitStatus, Error> {
    let opened = Opened::new(&options.source.path, options.run.patches.as_deref())?;
    check_input(&opened, options, printer)?;
    let prompts = load_prompts(&options.prompts, printer)?;
    // Taken now, so that an output that cannot be written is known before the work.
    let file = AtomicFile::create(&options.output, options.force)?;
    let input = file_facts(&opened.gguf, printer)?;
    let mut journal = journal::open(&opened, options, &prompts, &input, printer)?;
    let found = search(&opened, options, (&prompts, &input), &mut journal, printer);
    let done = found.and_then(|(stored, search)| {
        let bytes = stored.to_bytes().map_err(|problem| at(&options.output, problem))?;
        // What `inject --direction` would refuse is not stored.
        StoredEdit::from_bytes(&bytes).map_err(|problem| at(&options.output, problem))?;
        write(file, &bytes)?;
        tell(&stored, &search, (options, bytes.len()), printer);
        Ok(ExitStatus::Done)
    });
    journal::close(journal, done.is_ok(), printer);
    done
}

fn at(path: &Path, problem: Problem) -> StoredError {
    StoredError { path: path.to_path_buf(), problem }
}

fn write(mut file: AtomicFile, bytes: &[u8]) -> Result<(), Error> {
    let path = file.path().to_path_buf();
    file.write_all(bytes).map_err(|source| Error::Io { path, source })?;
    Ok(file.commit()?)
}

/// Runs the study, and puts its choice together.
fn search(
    opened: &Opened,
    options: &InjectOptions,
    (prompts, input): (&PromptSet, &FileFacts),
    journal: &mut Journal,
    printer: &Printer,
) -> Result<(StoredEdit, SearchResult), Error> {
    let mut engine = session::load(&opened.gguf, Some(opened.template()?), &options.run, printer)?;
    let study = Study::new(opened, (&mut engine, journal), prompts, options, printer)?;
    drop(engine);
    let edits = study.edits(&opened.plan)?;
    let chosen = study.chosen.candidate;
    let directions = study.along().distinct(chosen.layer);
    let facts = Facts {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        llama_cpp: llama_version(),
        method: options.method,
        system_prompt: study.system_prompt.into(),
        chosen,
        strength: study.chosen.strength,
        norms: directions.iter().map(SafetyDirection::norm).collect(),
        push: edit_facts(&study, &edits, options).push,
        prompts_sha256: prompts.sha256(),
        input_sha256: input.sha256.clone(),
        separation: study.levers.separation(chosen.lever).to_vec(),
        model: Fingerprint::of(&opened.gguf, &opened.plan)?,
    };
    let writers = study.material.stored_writers(&opened.plan, &edits);
    Ok((StoredEdit { facts, directions, writers }, study.search))
}

fn tell(
    stored: &StoredEdit,
    search: &SearchResult,
    (options, bytes): (&InjectOptions, usize),
    printer: &Printer,
) {
    let facts = &stored.facts;
    printer.say(format!(
        "{} edit along {}, strength {} in {} matrices, push {:.1}: wrote {} ({} KB)",
        facts.method.name(),
        facts.along(),
        percent(facts.strength),
        stored.writers.len(),
        facts.push,
        options.output.display(),
        bytes / 1000
    ));
    printer.say(format!(
        "inject any quantization of the model with it: rosi-gguf inject MODEL.gguf --direction {}",
        options.output.display()
    ));
    if options.json {
        let told = serde_json::json!({ "edit": facts, "search": search });
        printer.data(serde_json::to_string_pretty(&told).unwrap_or_default());
    }
}

/// A stored edit that fits the model at hand, and its file.
pub struct Taken {
    /// The edit.
    pub edit: StoredEdit,
    /// Path, hash and size.
    pub file: FileFacts,
}

/// Opens the edit of `--direction` and checks that it is for this model.
///
/// # Errors
/// [`Error::Stored`] when the file is damaged, or the edit is for a model of another shape or, without
/// `--force`, with other weights.
pub fn take(path: &Path, opened: &Opened, force: bool, printer: &Printer) -> Result<Taken, Error> {
    let (edit, bytes) = StoredEdit::open(path)?;
    let model = &edit.facts.model;
    if let Some(difference) = model.shape.difference(&Shape::of(&opened.plan)) {
        return Err(at(path, Problem::Shape(difference)).into());
    }
    let _bar = printer.bar("comparing the weights", 1);
    if let Some(difference) = model.difference(&Fingerprint::of(&opened.gguf, &opened.plan)?) {
        let error = at(path, Problem::Weights(difference));
        if !force {
            return Err(error.into());
        }
        printer.warn(format!("{error}; --force applies it all the same"));
    }
    let facts = &edit.facts;
    printer.say(format!(
        "stored {} edit along {}, strength {} where it was found",
        facts.method.name(),
        facts.along(),
        percent(facts.strength)
    ));
    let file =
        FileFacts { path: path.display().to_string(), sha256: sha256_hex(&bytes), bytes: bytes.len() as u64 };
    Ok(Taken { edit, file })
}

/// The study that stands in for one of this model: what the file says, at its strength or the user's, with
/// an importance matrix if there is one.
///
/// # Errors
/// [`Error`] when the weights cannot be read.
pub fn study(
    taken: &Taken,
    opened: &Opened,
    (imatrix, strength): (Option<&Path>, Option<f64>),
    printer: &Printer,
) -> Result<Study, Error> {
    let facts = &taken.edit.facts;
    let directions =
        Directions { by_layer: taken.edit.directions.clone(), separation: facts.separation.clone() };
    let mut material = Material::from_stored(opened, &taken.edit, printer)?;
    if let Some(path) = imatrix {
        material.mix(path, &opened.plan, printer)?;
    }
    Ok(Study {
        material,
        levers: Levers::stored(facts.chosen.lever, directions),
        scar: None, // the weights are not looked at
        search: SearchResult::default(),
        chosen: Chosen { candidate: facts.chosen, strength: strength.unwrap_or(facts.strength) },
        system_prompt: match facts.system_prompt.as_str() {
            "safety" => "safety",
            "user" => "user",
            _ => "none",
        },
    })
}
