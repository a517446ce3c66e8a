//! Importance matrices of `llama-imatrix`: what the inputs of each weight were like on other people's
//! texts, in place of what the prompts showed.
//!
//! Two formats, told apart by the first four bytes:
//!
//! ```text
//! GGUF, general.type = "imatrix"; per weight W, F32:
//!   W.in_sum2 [n_in, n_mat]   Σ x_j² per expert
//!   W.in_sum  [n_in, n_mat]   Σ x_j, in newer files only
//!   W.counts  [1, n_mat]      number of x
//! legacy .dat, little-endian:
//!   i32 n_entries
//!   n_entries × i32 length, name W, i32 n_call, i32 n_val, n_val × f32   (mean of x_j²) · n_call
//!   what follows (chunks, name of the text) is not read
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

/// Least share of an input's second moment that stays on the diagonal: its mean alone is never all
/// that it does.
const LEAST_OWN: f64 = 0.01;

/// Why an importance matrix could not be read or used.
#[derive(Debug, thiserror::Error)]
pub enum ImatrixError {
    /// The file could not be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is GGUF, but broken.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// It is something else.
    #[error("{} is not an importance matrix: {found}", path.display())]
    NotImatrix {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// One of its entries is broken.
    #[error("{}: {entry}: {problem}", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// Name of the entry, or its number where it has no name yet.
        entry: String,
        /// What is wrong with it.
        problem: String,
    },
    /// It belongs to another model.
    #[error("{}: {tensor} has {found} there, in the model {expected}", path.display())]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// The weight.
        tensor: String,
        /// Inputs and experts of the model's tensor.
        expected: String,
        /// Those in the file.
        found: String,
    },
}

impl Hint for ImatrixError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Gguf(error) => error.hint(),
            Self::Read { .. } => None,
            Self::NotImatrix { .. } | Self::Entry { .. } => {
                Some("make one with llama-imatrix, or leave --imatrix out".into())
            }
            Self::OtherModel { .. } => Some("make one for this very model with llama-imatrix".into()),
        }
    }
}

/// What is known of the inputs of one weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    /// Number of inputs.
    pub n_in: usize,
    /// Number of x that each expert saw, `[n_mat]`. The legacy format does not say, nor how many experts
    /// there are: there it is 1, and `n_in` the inputs of all experts together.
    pub counts: Vec<f32>,
    /// Σ x_j² over those, `[n_mat][n_in]`.
    pub sum_squares: Vec<f32>,
    /// Σ x_j, `[n_mat][n_in]`, where known.
    pub sums: Option<Vec<f32>>,
}

impl Inputs {
    /// Checks sizes and values; the error says what is wrong.
    fn checked(self) -> Result<Self, String> {
        let expected = self.n_in.saturating_mul(self.counts.len());
        let found = [Some(self.sum_squares.len()), self.sums.as_ref().map(Vec::len)];
        if let Some(found) = found.into_iter().flatten().find(|&found| found != expected || found == 0) {
            return Err(format!("{found} sums, expected {} × {}", self.n_in, self.counts.len()));
        }
        let bad = |values: &[f32]| values.iter().copied().find(|v| !(v.is_finite() && *v >= 0.0));
        if let Some(value) = bad(&self.counts).or_else(|| bad(&self.sum_squares)) {
            return Err(format!("{value} where a count or a sum of squares belongs"));
        }
        match self.sums.iter().flatten().find(|v| !v.is_finite()) {
            Some(value) => Err(format!("{value} where a sum belongs")),
            None => Ok(self),
        }
    }

    /// Column sums over all experts, over the number of all x: `[n_in]`.
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

    /// `E[x_j²]` over all experts, `[n_in]`; `None` when no x was seen.
    pub fn mean_square(&self) -> Option<Vec<f64>> {
        self.mean(&self.sum_squares)
    }

    /// `E[x xᵀ] ≈ diag(E[x_j²] − m_j²) + m mᵀ`, `m = E[x]`, or 0 where it is not known. Experts count as
    /// often as they saw an x. `None` when none did.
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
    /// Reads either format.
    ///
    /// # Errors
    /// [`ImatrixError`] naming the entry that is broken.
    pub fn open(path: &Path) -> Result<Self, ImatrixError> {
        let unreadable = |source| ImatrixError::Read { path: path.into(), source };
        // Asked before opening, because opening a named pipe would wait for a writer.
        let facts = std::fs::metadata(path).map_err(unreadable)?;
        if !facts.is_file() {
            return Err(ImatrixError::NotImatrix { path: path.into(), found: "it is not a file".into() });
        }
        let mut magic = [0; 4];
        let mut file = File::open(path).map_err(unreadable)?;
        let entries = match file.read_exact(&mut magic) {
            Ok(()) if magic == *b"GGUF" => from_gguf(&Gguf::open(path)?, path)?,
            Ok(()) => legacy::read(path, facts.len())?,
            Err(_) => {
                let found = format!("it has only {} bytes", facts.len());
                return Err(ImatrixError::NotImatrix { path: path.into(), found });
            }
        };
        Ok(Self { path: path.into(), entries })
    }

    /// Number of weights that it tells of.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it tells of none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What is known of a weight's inputs.
    pub fn get(&self, tensor: &str) -> Option<&Inputs> {
        self.entries.get(tensor)
    }

    /// What [`crate::quant::preserve::preserve`] wants to know of a weight of `n_expert` (1 when dense)
    /// matrices of `n_in` inputs; `None` when the file does not tell.
    ///
    /// # Errors
    /// [`ImatrixError::OtherModel`] when the weight has another size there.
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
        let found = format!("its general.type is {kind:?}, not \"imatrix\"");
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
        let found = "it tells of no weight".into();
        return Err(ImatrixError::NotImatrix { path: path.into(), found });
    }
    Ok(entries)
}

/// The file could not be read, or the tensor is not what it should be.
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
