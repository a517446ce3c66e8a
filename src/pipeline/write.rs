//! Writes an edited copy, under a temporary name until it is verified.

use std::collections::HashMap;

use crate::arch::plan::Plan;
use crate::gguf::{AtomicModel, GgmlType, Gguf, Rewrite, TensorInfo};
use crate::method::Edits;
use crate::method::detector::PlantedFfn;
use crate::method::direction::Along;
use crate::method::edit::EditError;
use crate::method::requant::{self, Requant};
use crate::method::verify::KEY_PREFIX;
use crate::output::Printer;
use crate::pipeline::error::Error;
use crate::pipeline::provenance::Provenance;
use crate::pipeline::session::stoppable;
use crate::quant::preserve::InputModel;
use crate::util::interrupt;

/// How the tensors of the edit are written.
#[derive(Clone, Copy)]
pub enum Change<'a> {
    /// With the edit, and the `rosi.*` keys that describe it.
    Edit(&'a Provenance, Along<'a>),
    /// Requantized without an edit, as a control.
    RequantizeOnly,
}

/// A change to write.
#[derive(Clone, Copy)]
pub struct Write<'a> {
    /// The source file.
    pub source: &'a Gguf,
    /// The source's residual writers.
    pub plan: &'a Plan,
    /// The edits; they determine which tensors change.
    pub edits: &'a Edits,
    /// Input statistics of each writer, indexed by [`Edit::writer`](crate::method::edit::Edit::writer).
    pub inputs: &'a [InputModel],
    /// How edited tensors are quantized.
    pub requant: Requant,
    /// Whether to apply the edit or only requantize.
    pub change: Change<'a>,
}

impl Write<'_> {
    /// Writes the changed copy to `model`, whose files keep their temporary names, and flushes it so that it can be
    /// read back.
    pub fn write(&self, model: &mut AtomicModel, printer: &Printer) -> Result<(), Error> {
        let bar = printer.bar("writing", self.source.total_len());
        let mut before = 0;
        for (source, file) in self.source.files().zip(model.files_mut()) {
            let rewrite = self.rewrite(source);
            let replace = &mut |tensor: &TensorInfo| {
                if !self.edits.touches(&tensor.name) {
                    return Ok(None);
                }
                Ok(Some(self.new_data(tensor, self.source.read_tensor(tensor)?)?))
            };
            let mut progress = stoppable(&bar);
            let progress = &mut |done, _| progress(before + done, self.source.total_len());
            let written = rewrite.write_to(file, replace, progress);
            interrupt::check()?;
            before += written?;
        }
        Ok(())
    }

    /// Returns the rewrite of one source file, without tensor data. In a split model, only the first file gets
    /// `rosi.*` keys.
    pub fn rewrite<'s>(&self, source: &'s Gguf) -> Rewrite<'s> {
        let mut rewrite = Rewrite { drop_prefix: Some(KEY_PREFIX), ..Rewrite::copy(source) };
        if let Change::Edit(provenance, along) = self.change {
            if std::ptr::eq(source, self.source) {
                rewrite.added = provenance.keys(self.edits);
                rewrite.added_f32 = provenance.arrays(along, self.edits, self.plan);
            }
            rewrite.types = self.types(source);
        }
        rewrite
    }

    /// Computes the new data of `tensor` from its original data, `bytes`.
    pub fn new_data(&self, tensor: &TensorInfo, bytes: Vec<u8>) -> Result<Vec<u8>, EditError> {
        if matches!(self.change, Change::RequantizeOnly) {
            return requant::requantize_only(tensor, &bytes);
        }
        match self.edits {
            Edits::Linear(edits) => {
                let Some(edit) = edits.iter().find(|e| e.tensor == tensor.name) else { return Ok(bytes) };
                let nothing = InputModel::default();
                let inputs = self.inputs.get(edit.writer).unwrap_or(&nothing);
                requant::apply(edit, tensor, bytes, self.requant, inputs)
            }
            Edits::Neurons(planted) => PlantedFfn::apply_all(planted, tensor, bytes, self.requant),
        }
    }

    /// Returns the new types of the edited tensors in `source` that change type.
    fn types(&self, source: &Gguf) -> HashMap<String, GgmlType> {
        let is_edited = |t: &&TensorInfo| self.edits.touches(&t.name);
        let edited = source.own_tensors().iter().filter(is_edited);
        let typed = edited.map(|t| (t, self.requant.type_for(t.ggml_type)));
        typed.filter(|(t, new)| *new != t.ggml_type).map(|(t, new)| (t.name.clone(), new)).collect()
    }
}
