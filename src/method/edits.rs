//! All that one injection changes, whichever the method.

use super::detector::PlantedFfn;
use crate::method::edit::Edit;

/// The changes to one file.
#[derive(Debug, Clone)]
pub enum Edits {
    /// A rank-one term in each of some writers.
    Linear(Vec<Edit>),
    /// Neurons of some feed-forward networks.
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
    /// Names of the tensors that change.
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

    /// Whether `tensor` changes.
    pub fn touches(&self, tensor: &str) -> bool {
        self.tensors().contains(&tensor)
    }

    /// Whether nothing does.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Linear(edits) => edits.is_empty(),
            Self::Neurons(planted) => planted.is_empty(),
        }
    }

    /// The rank-one terms; none where neurons are changed.
    pub fn linear(&self) -> &[Edit] {
        match self {
            Self::Linear(edits) => edits,
            Self::Neurons(_) => &[],
        }
    }

    /// The neurons; none where rank-one terms are added.
    pub fn planted(&self) -> &[PlantedFfn] {
        match self {
            Self::Linear(_) => &[],
            Self::Neurons(planted) => planted,
        }
    }
}
