//! Conversion of features to and from a stored edit.

use super::{Features, Rights, read_weights};
use crate::arch::plan::Plan;
use crate::method::edit::{self, Edit, Method};
use crate::method::stored::{StoredEdit, StoredWriter};
use crate::output::Printer;
use crate::pipeline::error::Error;
use crate::pipeline::session::Opened;
use crate::quant::preserve::InputModel;

impl Features {
    /// Combines a stored edit with the weights of this model. The right factor of the published method is by
    /// definition computed from the weights it is applied to, so it is not taken from the file.
    pub fn from_stored(opened: &Opened, stored: &StoredEdit, printer: &Printer) -> Result<Self, Error> {
        let plan = &opened.plan;
        let weights = read_weights(opened, printer)?;
        let of = |tensor: &str| stored.writers.iter().find(|w| w.tensor == tensor);
        let found: Vec<Option<&StoredWriter>> = plan.writers.iter().map(|w| of(&w.tensor)).collect();
        let mut rights: edit::RightFactors = found.iter().map(|w| w.map(|w| w.right.clone())).collect();
        if stored.facts.method == Method::Published {
            rights = edit::mean_rows(&weights).into_iter().zip(&found).map(|(r, w)| w.and(r)).collect();
        }
        let inputs = found.iter().map(|w| w.map_or_else(InputModel::default, |w| w.inputs.clone()));
        let mean = |w: &StoredWriter| w.mean.iter().map(|&v| f64::from(v)).collect();
        Ok(Self {
            rights: Rights::Fixed(rights),
            inputs: inputs.collect(),
            mean_harmful: found.iter().map(|w| w.map_or_else(Vec::new, mean)).collect(),
            weights,
        })
    }

    /// Returns the stored form of the writers of `edits`.
    pub fn stored_writers(&self, plan: &Plan, edits: &[Edit]) -> Vec<StoredWriter> {
        let mean = |e: &Edit| -> Vec<f32> {
            let mean: Vec<f32> = self.mean_harmful[e.writer].iter().map(|&v| v as f32).collect();
            // Some experts may have received no tokens.
            let seen = mean.len() == e.right.len() && mean.iter().all(|v| v.is_finite());
            if seen || e.n_expert == 1 { mean } else { Vec::new() }
        };
        let writer = |e: &Edit| StoredWriter {
            tensor: plan.writers[e.writer].tensor.clone(),
            right: e.right.clone(),
            mean: mean(e),
            inputs: self.inputs[e.writer].clone(),
        };
        edits.iter().map(writer).collect()
    }
}
