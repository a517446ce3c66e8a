//! All weight changes of one injection, for any method.

use super::detector::PlantedFfn;
use crate::method::edit::Edit;

/// The changes to one file.
#[derive(Debug, Clone)]
pub enum Edits {
    /// Rank-one terms, one for each edited writer.
    Linear(Vec<Edit>),
    /// Overwritten neurons, grouped by feed-forward network.
    Neurons(Vec<PlantedFfn>),
}

impl Default for Edits {
    fn default() -> Self {
        Self::Linear(Vec::new())
    }
}

impl From<Vec<Edit>> for Edits {
    fn from(edits: Vec<Edit>) -> Self {
        Self::Linear(edits)
    }
}

impl Edits {
    /// Returns the names of the tensors that change.
    pub fn tensors(&self) -> Vec<&str> {
        match self {
            Self::Linear(edits) => edits.iter().map(|edit| edit.tensor.as_str()).collect(),
            Self::Neurons(planted) => {
                let mut names: Vec<&str> = Vec::new();
                for name in planted.iter().flat_map(PlantedFfn::tensors) {
                    if !names.contains(&name) {
                        names.push(name);
                    }
                }
                names
            }
        }
    }

    /// Returns whether `tensor` changes.
    pub fn touches(&self, tensor: &str) -> bool {
        self.tensors().contains(&tensor)
    }

    /// Returns whether nothing changes.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Linear(edits) => edits.is_empty(),
            Self::Neurons(planted) => planted.is_empty(),
        }
    }

    /// Returns the rank-one terms; empty for [`Self::Neurons`].
    pub fn linear(&self) -> &[Edit] {
        match self {
            Self::Linear(edits) => edits,
            Self::Neurons(_) => &[],
        }
    }

    /// Returns the neurons; empty for [`Self::Linear`].
    pub fn planted(&self) -> &[PlantedFfn] {
        match self {
            Self::Linear(_) => &[],
            Self::Neurons(planted) => planted,
        }
    }
}
