//! The model under test.

use std::path::{Path, PathBuf};

use rosi_gguf::arch::plan::Plan;
use rosi_gguf::gguf::{AtomicFile, Gguf, Rewrite, TensorInfo};
use rosi_gguf::llama::{EngineOptions, LlamaEngine, Offload};
use rosi_gguf::method::direction;
use rosi_gguf::method::edit::{self, Edit};
use rosi_gguf::method::requant::{self, Requant};
use rosi_gguf::pipeline::plan_of;
use rosi_gguf::quant::preserve::InputModel;

use crate::Failure;

/// Relative Frobenius change of the edit to write, similar to what `inject` uses.
const STRENGTH: f64 = 0.01;

/// A model file and its plan.
pub struct Model {
    /// The file and its header.
    pub gguf: Gguf,
    /// The editable parts of the model.
    pub plan: Plan,
}

/// Returns the number of CPU threads for all measurements.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

impl Model {
    /// Opens the model whose path is in the environment variable `name`.
    pub fn named(name: &str) -> Result<Self, Failure> {
        Self::open(
            std::env::var_os(name).ok_or_else(|| format!("{name} is not set: run scripts/bench"))?.into(),
        )
    }

    /// Opens the model at `path`.
    pub fn open(path: PathBuf) -> Result<Self, Failure> {
        let gguf = Gguf::open(&path)?;
        let plan = plan_of(&gguf)?;
        Ok(Self { gguf, plan })
    }

    /// Returns the file name without its extension.
    pub fn name(&self) -> String {
        self.gguf.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Loads the model into llama.cpp.
    pub fn engine(&self) -> Result<LlamaEngine, Failure> {
        let options =
            EngineOptions { path: self.gguf.path.clone(), threads: threads(), offload: Offload::none() };
        Ok(LlamaEngine::load(&options, self.gguf.str("tokenizer.chat_template"), &mut |_| ())?)
    }

    /// Returns edits of all writers along a random direction.
    pub fn edits(&self) -> Result<Vec<Edit>, Failure> {
        let weights = self.plan.writers.iter().map(|writer| edit::read_weights(&self.gguf, writer));
        let weights = weights.collect::<Result<Vec<_>, _>>()?;
        let along = direction::random(self.plan.n_layer / 2, self.plan.n_embd as usize, 1)?;
        Ok(edit::edits(&self.plan, &weights, &edit::mean_rows(&weights), &along, STRENGTH)?)
    }

    /// Writes a copy, with `edits` if `how` is given, and flushes it to disk.
    pub fn write(&self, edits: &[Edit], how: Option<Requant>, path: &Path) -> Result<(), Failure> {
        let mut file = AtomicFile::create(path, true)?;
        let mut replace = |tensor: &TensorInfo| {
            let edit = edits.iter().find(|edit| edit.tensor == tensor.name);
            let Some((edit, how)) = edit.zip(how) else { return Ok(None) };
            let bytes = self.gguf.read_tensor(tensor)?;
            Ok(Some(requant::apply(edit, tensor, bytes, how, &InputModel::default())?))
        };
        Rewrite::copy(&self.gguf).write_to(&mut file, &mut replace, &mut |_, _| Ok(()))?;
        Ok(file.commit()?)
    }

    /// Returns the millions of matrix weights in the blocks, which every token of a dense model is multiplied with.
    pub fn millions(&self) -> f64 {
        let matrices = self.gguf.tensors.iter().filter(|t| t.n_rows() > 1 && t.name.starts_with("blk."));
        matrices.map(rosi_gguf::open::TensorInfo::n_elements).sum::<u64>() as f64 / 1e6
    }
}
