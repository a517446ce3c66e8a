//! A model that is measured.

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

/// Relative Frobenius change of the edit that is written: what `inject` uses is of that size.
const STRENGTH: f64 = 0.01;

/// The file and what writes into its residual stream.
pub struct Model {
    /// The file.
    pub gguf: Gguf,
    /// Its writers.
    pub plan: Plan,
}

/// CPU threads of everything that is measured.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

impl Model {
    /// The model whose path is in the environment variable `name`.
    pub fn named(name: &str) -> Result<Self, Failure> {
        Self::open(
            std::env::var_os(name).ok_or_else(|| format!("{name} is not set: run scripts/bench"))?.into(),
        )
    }

    /// The model at `path`.
    pub fn open(path: PathBuf) -> Result<Self, Failure> {
        let gguf = Gguf::open(&path)?;
        let plan = plan_of(&gguf)?;
        Ok(Self { gguf, plan })
    }

    /// The file's name.
    pub fn name(&self) -> String {
        self.gguf.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Loads it.
    pub fn engine(&self) -> Result<LlamaEngine, Failure> {
        let options =
            EngineOptions { path: self.gguf.path.clone(), threads: threads(), offload: Offload::none() };
        Ok(LlamaEngine::load(&options, self.gguf.str("tokenizer.chat_template"), &mut |_| ())?)
    }

    /// An edit of every writer, along a random direction.
    pub fn edits(&self) -> Result<Vec<Edit>, Failure> {
        let weights = self.plan.writers.iter().map(|writer| edit::read_weights(&self.gguf, writer));
        let weights = weights.collect::<Result<Vec<_>, _>>()?;
        let along = direction::random(self.plan.n_layer / 2, self.plan.n_embd as usize, 1)?;
        Ok(edit::edits(&self.plan, &weights, &edit::mean_rows(&weights), &along, STRENGTH)?)
    }

    /// Writes a copy with `edits`, or with none, flushed to the disk.
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

    /// Millions of weights that a token is multiplied with in the blocks of a dense model.
    pub fn millions(&self) -> f64 {
        let matrices = self.gguf.tensors.iter().filter(|t| t.n_rows() > 1 && t.name.starts_with("blk."));
        matrices.map(rosi_gguf::open::TensorInfo::n_elements).sum::<u64>() as f64 / 1e6
    }
}
