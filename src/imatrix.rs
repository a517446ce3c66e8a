//! Importance matrices of `llama-imatrix`: statistics of each weight's inputs on a calibration text, used instead of
//! those collected on the prompts.
//!
//! There are two formats, distinguished by the first four bytes:
//!
//! ```text
//! GGUF, general.type = "imatrix"; per weight W, F32:
//!   W.in_sum2 [n_in, n_mat]   Σ x_j² per expert
//!   W.in_sum  [n_in, n_mat]   Σ x_j, in newer files only
//!   W.counts  [1, n_mat]      number of x
//! legacy .dat, little-endian:
//!   i32 n_entries
//!   n_entries × i32 length, name W, i32 n_call, i32 n_val, n_val × f32   (mean of x_j²) · n_call
//!   the rest (chunks, name of the text) is not read
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::gguf::{GgmlType, Gguf, GgufError, TensorInfo};
use crate::quant::preserve::InputModel;
use crate::util::hint::Hint;

mod importance;
mod legacy;
#[cfg(test)]
mod tests;

/// Minimum share of an input's second moment that stays on the diagonal: real inputs are never constant.
const LEAST_OWN: f64 = 0.01;

/// Why an importance matrix could not be read or used.
#[derive(Debug, thiserror::Error)]
pub enum ImatrixError {
    /// The file could not be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// The file is GGUF, but it is malformed or could not be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The file is not an importance matrix.
    #[error("{} is not an importance matrix: {found}", path.display())]
    NotImatrix {
        /// The file.
        path: PathBuf,
        /// What was found instead.
        found: String,
    },
    /// An entry is malformed.
    #[error("{}: {entry}: {problem}", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// Name of the entry, or its index if the name is not known yet.
        entry: String,
        /// What is wrong with the entry.
        problem: String,
    },
    /// The matrix belongs to another model.
    #[error("{}: {tensor}: expected {expected}, as in the model, found {found}", path.display())]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// The weight.
        tensor: String,
        /// Inputs and experts of the model's tensor.
        expected: String,
        /// Inputs and experts in the file.
        found: String,
    },
}

impl Hint for ImatrixError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Gguf(error) => error.hint(),
            Self::Read { .. } => None,
            Self::NotImatrix { .. } | Self::Entry { .. } => {
                Some("create one with llama-imatrix, or omit --imatrix".into())
            }
            Self::OtherModel { .. } => Some("create one for this model with llama-imatrix".into()),
        }
    }
}

/// Statistics of the inputs x of one weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    /// Number of inputs.
    pub n_in: usize,
    /// Number of x that each expert saw, `[n_mat]`. The legacy format contains neither these counts nor the number of
    /// experts: for it this is `[1]`, and `n_in` covers the inputs of all experts.
    pub counts: Vec<f32>,
    /// Σ x_j² over these x, `[n_mat][n_in]`; for the legacy format, their mean.
    pub sum_squares: Vec<f32>,
    /// Σ x_j, `[n_mat][n_in]`, if known.
    pub sums: Option<Vec<f32>>,
}

impl Inputs {
    /// Checks sizes and values; the error describes the problem.
    fn checked(self) -> Result<Self, String> {
        let expected = self.n_in.saturating_mul(self.counts.len());
        let found = [Some(self.sum_squares.len()), self.sums.as_ref().map(Vec::len)];
        if let Some(found) = found.into_iter().flatten().find(|&found| found != expected || found == 0) {
            return Err(format!("expected {} × {} sums, found {found}", self.n_in, self.counts.len()));
        }
        let bad = |values: &[f32]| values.iter().copied().find(|v| !(v.is_finite() && *v >= 0.0));
        if let Some(value) = bad(&self.counts).or_else(|| bad(&self.sum_squares)) {
            return Err(format!("expected finite counts and sums of squares >= 0, found {value}"));
        }
        match self.sums.iter().flatten().find(|v| !v.is_finite()) {
            Some(value) => Err(format!("expected a finite sum, found {value}")),
            None => Ok(self),
        }
    }

    /// Returns the column sums over all experts, divided by the total number of x, `[n_in]`; `None` if there was no x.
    fn mean(&self, sums: &[f32]) -> Option<Vec<f64>> {
        let count: f64 = self.counts.iter().map(|&c| f64::from(c)).sum();
        let mut mean = vec![0.0; self.n_in];
        let experts = sums.chunks_exact(self.n_in).zip(&self.counts);
        for (expert, _) in experts.filter(|(_, count)| **count > 0.0) {
            mean.iter_mut().zip(expert).for_each(|(m, &v)| *m += f64::from(v));
        }
        mean.iter_mut().for_each(|m| *m /= count);
        (count > 0.0).then_some(mean)
    }

    /// Returns `E[x_j²]` over all experts, `[n_in]`; `None` if no expert saw an x.
    pub fn mean_square(&self) -> Option<Vec<f64>> {
        self.mean(&self.sum_squares)
    }

    /// Returns the model `E[x xᵀ] ≈ diag(E[x_j²] − m_j²) + m mᵀ`, with `m = E[x]`, or 0 if unknown. Experts are
    /// weighted by the number of x that they saw. Returns `None` if no expert saw an x.
    pub fn model(&self) -> Option<InputModel> {
        let square = self.mean_square()?;
        let mean = self.sums.as_ref().and_then(|sums| self.mean(sums));
        let own = |j: usize| {
            let known = mean.as_ref().map_or(0.0, |m| m[j] * m[j]);
            (square[j] - known).max(LEAST_OWN * square[j]) as f32
        };
        Some(InputModel {
            diagonal: (0..self.n_in).map(own).collect(),
            principal: mean.iter().map(|m| m.iter().map(|&v| v as f32).collect()).collect(),
        })
    }
}

/// An importance matrix in memory.
#[derive(Debug, Clone)]
pub struct Imatrix {
    path: PathBuf,
    entries: BTreeMap<String, Inputs>,
}

impl Imatrix {
    /// Reads an importance matrix in either format.
    ///
    /// # Errors
    /// Returns [`ImatrixError`] if the file cannot be read, is not an importance matrix, or has a malformed entry.
    pub fn open(path: &Path) -> Result<Self, ImatrixError> {
        let unreadable = |source| ImatrixError::Read { path: path.into(), source };
        // Checked before opening, because opening a named pipe would wait for a writer.
        let facts = std::fs::metadata(path).map_err(unreadable)?;
        if !facts.is_file() {
            return Err(ImatrixError::NotImatrix { path: path.into(), found: "not a regular file".into() });
        }
        let mut magic = [0; 4];
        let mut file = File::open(path).map_err(unreadable)?;
        let entries = match file.read_exact(&mut magic) {
            Ok(()) if magic == *b"GGUF" => from_gguf(&Gguf::open(path)?, path)?,
            Ok(()) => legacy::read(path, facts.len())?,
            Err(_) => {
                let found = format!("only {} bytes long", facts.len());
                return Err(ImatrixError::NotImatrix { path: path.into(), found });
            }
        };
        Ok(Self { path: path.into(), entries })
    }

    /// Returns the number of weights in the matrix.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether the matrix contains no weights.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the statistics of a weight's inputs, if the matrix contains the weight.
    pub fn get(&self, tensor: &str) -> Option<&Inputs> {
        self.entries.get(tensor)
    }

    /// Returns the input model that [`crate::quant::preserve::preserve`] takes, for a weight of `n_expert` (1 if dense)
    /// matrices of `n_in` inputs; `None` if the file lacks the weight or no expert saw an x.
    ///
    /// # Errors
    /// Returns [`ImatrixError::OtherModel`] if the weight has another size in the file.
    pub fn input_model(
        &self,
        tensor: &str,
        n_in: usize,
        n_expert: usize,
    ) -> Result<Option<InputModel>, ImatrixError> {
        let Some(inputs) = self.get(tensor) else { return Ok(None) };
        if (inputs.n_in, inputs.counts.len()) == (n_in, n_expert) {
            return Ok(inputs.model());
        }
        if inputs.counts.len() == 1 && n_in.checked_mul(n_expert) == Some(inputs.n_in) {
            let experts = Inputs { n_in, counts: vec![inputs.counts[0]; n_expert], ..inputs.clone() };
            return Ok(experts.model());
        }
        let size = |n_in, n_expert| format!("{n_expert} × {n_in} inputs");
        Err(ImatrixError::OtherModel {
            path: self.path.clone(),
            tensor: tensor.into(),
            expected: size(n_in, n_expert),
            found: size(inputs.n_in, inputs.counts.len()),
        })
    }
}

fn from_gguf(gguf: &Gguf, path: &Path) -> Result<BTreeMap<String, Inputs>, ImatrixError> {
    if gguf.str("general.type") != Some("imatrix") {
        let kind = gguf.str("general.type").or(gguf.architecture()).unwrap_or("without general.type");
        let found = format!("its general.type is {kind:?}, expected \"imatrix\"");
        return Err(ImatrixError::NotImatrix { path: path.into(), found });
    }
    let mut entries = BTreeMap::new();
    for squares in &gguf.tensors {
        let Some(weight) = squares.name.strip_suffix(".in_sum2") else { continue };
        let broken = |problem| ImatrixError::Entry { path: path.into(), entry: weight.into(), problem };
        let counts =
            gguf.tensor(&format!("{weight}.counts")).ok_or_else(|| broken("counts are missing".into()))?;
        let inputs = Inputs {
            n_in: squares.ne[0] as usize,
            counts: floats(gguf, counts).map_err(|e| e.into_error(&broken))?,
            sum_squares: floats(gguf, squares).map_err(|e| e.into_error(&broken))?,
            sums: gguf
                .tensor(&format!("{weight}.in_sum"))
                .map(|sums| floats(gguf, sums))
                .transpose()
                .map_err(|e| e.into_error(&broken))?,
        };
        entries.insert(weight.to_string(), inputs.checked().map_err(broken)?);
    }
    if entries.is_empty() {
        let found = "it contains no weights".into();
        return Err(ImatrixError::NotImatrix { path: path.into(), found });
    }
    Ok(entries)
}

/// Why a tensor's values could not be read: a GGUF error or an unexpected tensor type.
enum Trouble {
    Gguf(GgufError),
    Type(GgmlType),
}

impl Trouble {
    fn into_error(self, broken: &dyn Fn(String) -> ImatrixError) -> ImatrixError {
        match self {
            Self::Gguf(error) => error.into(),
            Self::Type(found) => broken(format!("expected F32, found {found}")),
        }
    }
}

fn floats(gguf: &Gguf, tensor: &TensorInfo) -> Result<Vec<f32>, Trouble> {
    if tensor.ggml_type != GgmlType::F32 {
        return Err(Trouble::Type(tensor.ggml_type));
    }
    let bytes = gguf.read_tensor(tensor).map_err(Trouble::Gguf)?;
    Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}
