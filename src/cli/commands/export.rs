//! `export`: writes a stored edit as a separate file, to apply it without changing the model file.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use crate::cli::options::ExportOptions;
use crate::gguf::{AtomicFile, sha256_hex};
use crate::method::Edits;
use crate::method::edit::Method;
use crate::method::mean_push::mean_push;
use crate::method::stored::StoredWriter;
use crate::output::{Printer, shell};
use crate::pipeline::edit_search::EditSearch;
use crate::pipeline::error::{Error, ExitStatus};
use crate::pipeline::session::Opened;
use crate::pipeline::stored::{self, Taken};
use crate::report::FileFacts;
use crate::sources::ollama::modelfile;

/// Description of the written files, printed by `--json`.
#[derive(Debug, Serialize)]
struct Exported {
    /// The stored edit.
    edit: FileFacts,
    /// Strength of the exported edit.
    strength: f64,
    lora: Option<Lora>,
    control_vector: Option<Vector>,
}

#[derive(Debug, Serialize)]
struct Lora {
    #[serde(flatten)]
    file: FileFacts,
    /// Matrices that the adapter changes.
    matrices: usize,
    /// Matrices of the edit that llama.cpp cannot apply an adapter to.
    left_out: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Vector {
    #[serde(flatten)]
    file: FileFacts,
    /// First and last block that the vector pushes.
    layers: (usize, usize),
    /// ‖v‖ of each pushed block, from the first, in units of the residual stream.
    norms: Vec<f64>,
    /// Matrices of the edit whose push is left out, each with the reason.
    left_out: Vec<(String, &'static str)>,
}

/// Writes the requested files.
///
/// # Errors
/// Returns [`Error`] if any stage fails; no output file is created or replaced unless all of them could be made.
pub fn run(options: &ExportOptions, printer: &Printer) -> Result<ExitStatus, Error> {
    let opened = Opened::new(&options.model, options.patches.as_deref())?;
    let taken = stored::take(&options.edit, &opened, options.allow_other_weights, printer)?;
    // Created now, so that an output that cannot be written fails before the work.
    let create =
        |path: &Option<_>| path.as_deref().map(|p| AtomicFile::create(p, options.overwrite)).transpose();
    let (lora, vector) = (create(&options.lora)?, create(&options.control_vector)?);
    let edit_search = stored::edit_search(&taken, &opened, None, options.strength, printer)?;
    let edits = edit_search.exact(&opened)?;
    let export = Export { opened: &opened, taken: &taken, edit_search: &edit_search, edits: &edits, printer };
    // Make both before committing either.
    let lora = lora.map(|file| export.lora(file)).transpose()?;
    let vector = vector.map(|file| export.control_vector(file)).transpose()?;
    let (mut told_lora, mut told_vector) = (None, None);
    if let Some((file, told)) = lora {
        file.commit()?;
        told_lora = Some(told);
    }
    if let Some((file, told)) = vector {
        file.commit()?;
        told_vector = Some(told);
    }
    let strength = edit_search.chosen.strength;
    let told = Exported { edit: taken.file.clone(), strength, lora: told_lora, control_vector: told_vector };
    tell(&told, &taken, &options.model, &edits, printer);
    if options.json {
        printer.json(&told);
    }
    Ok(ExitStatus::Done)
}

struct Export<'a> {
    opened: &'a Opened,
    taken: &'a Taken,
    edit_search: &'a EditSearch,
    edits: &'a Edits,
    printer: &'a Printer,
}

impl Export<'_> {
    fn lora(&self, file: AtomicFile) -> Result<(AtomicFile, Lora), Error> {
        let plan = &self.opened.plan;
        let matrices = self.edits.tensors().len();
        let without = self.edits.linear().iter().filter(|e| !plan.writers[e.writer].lora);
        let left_out: Vec<String> = without.map(|e| e.tensor.clone()).collect();
        if left_out.len() == matrices {
            let problem = "llama.cpp can apply an adapter to none of the edited matrices".to_owned();
            let hint = Some("write the edit into the model: rosi-gguf inject MODEL --edit EDIT".into());
            return Err(Error::Option { flag: "--lora", problem, hint });
        }
        if let Some(first) = left_out.first() {
            self.printer.warn(format!(
                "llama.cpp cannot apply an adapter to {} of the {} edited matrices (first: {first}): the \
                 adapter is weaker than an edited file",
                left_out.len(),
                matrices
            ));
        }
        let (file, facts) = filled(file, &self.edit_search.adapter_file(self.opened)?)?;
        Ok((file, Lora { file: facts, matrices: matrices - left_out.len(), left_out }))
    }

    fn control_vector(&self, file: AtomicFile) -> Result<(AtomicFile, Vector), Error> {
        let plan = &self.opened.plan;
        if self.taken.edit.facts.method == Method::Detector {
            let problem = "a control vector pushes on every prompt, but detectors push on few".to_owned();
            let hint = Some("use --lora, or an edit searched with --method contrast".into());
            return Err(Error::Option { flag: "--control-vector", problem, hint });
        }
        let writers = &self.taken.edit.writers;
        let stored = |tensor: &str| writers.iter().find(|w| w.tensor == tensor);
        let mean = |tensor: &str| stored(tensor).map(|w: &StoredWriter| w.mean.as_slice());
        let vector = mean_push(plan, self.edits.linear(), &mean)?;
        if let Some((first, why)) = vector.left_out.first() {
            self.printer.warn(format!(
                "{} of the {} edited matrices are left out of the control vector (first: {first}): {why}",
                vector.left_out.len(),
                self.edits.linear().len()
            ));
        }
        let norm = |v: &Vec<f32>| v.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let (layers, norms) = (vector.range(), vector.by_layer.values().map(norm).collect());
        let (file, facts) = filled(file, &vector.to_gguf(&plan.architecture)?)?;
        Ok((file, Vector { file: facts, layers, norms, left_out: vector.left_out }))
    }
}

/// Writes `bytes` to `file` without committing it.
fn filled(mut file: AtomicFile, bytes: &[u8]) -> Result<(AtomicFile, FileFacts), Error> {
    let path = file.path().to_path_buf();
    let failed = |source| Error::Io { path: path.clone(), source };
    file.write_all(bytes).map_err(failed)?;
    let (sha256, len) = (sha256_hex(bytes), bytes.len() as u64);
    Ok((file, FileFacts { path: path.display().to_string(), sha256, bytes: len }))
}

fn tell(told: &Exported, taken: &Taken, model: &Path, edits: &Edits, printer: &Printer) {
    let (served, strength) = (shell(model), taken.edit.facts.method.size(told.strength));
    if let Some(Lora { file, matrices, .. }) = &told.lora {
        printer.say(format!(
            "wrote {path} ({} KB): adapter for {matrices} matrices, {strength}\n\
             serve it: llama-server -m {served} --lora {}",
            file.bytes / 1000,
            shell(Path::new(&file.path)),
            path = file.path,
        ));
        let model = model.display().to_string();
        if let (Ok(model), Ok(path)) = (modelfile::path(&model), modelfile::path(&file.path)) {
            printer.say(format!("Modelfile for Ollama: two lines, FROM {model} and ADAPTER {path}"));
        }
    }
    if let Some(Vector { file, layers: (first, last), .. }) = &told.control_vector {
        printer.say(format!(
            "wrote control vector for layers {first}-{last}, {strength} of {} matrices: {path} ({} KB)\n\
             serve it: llama-server -m {served} --control-vector {} --control-vector-layer-range {first} {last}",
            edits.tensors().len(),
            file.bytes / 1000,
            shell(Path::new(&file.path)),
            path = file.path,
        ));
        printer.say("a control vector has no gates and pushes on every prompt; --lora is the exact edit");
    }
}
