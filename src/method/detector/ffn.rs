//! The feed-forward network whose neurons are overwritten, and the choice of neurons that contribute least.

use ndarray::{Array2, ArrayView2, Axis, s};
use serde::{Deserialize, Serialize};

use crate::arch::plan::{Ffn, ResidualWriter};
use crate::gguf::{Gguf, TensorInfo};
use crate::method::edit::{CHUNK_VALUES, EditError, for_each_run};
use crate::quant::neuron::{COLUMNS_ALIKE, ColumnBlocks};
use crate::util::spread::spread;

/// Number of experts that are sampled to find the neurons of a mixture that contribute least.
const EXPERTS: usize = 8;

/// The activation function φ of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// x·σ(x).
    Silu,
    /// x·Φ(x), in the tanh approximation that ggml uses.
    Gelu,
    /// x·σ(1.702 x).
    GeluQuick,
    /// max(x, 0).
    Relu,
    /// max(x, 0)².
    ReluSquared,
}

impl Activation {
    /// All known activation functions.
    pub const ALL: [Self; 5] = [Self::Silu, Self::Gelu, Self::GeluQuick, Self::Relu, Self::ReluSquared];

    /// Returns φ(x).
    pub fn at(self, x: f64) -> f64 {
        const ROOT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match self {
            Self::Silu => x * sigmoid(x),
            Self::Gelu => 0.5 * x * (1.0 + (ROOT_2_OVER_PI * x * (1.0 + 0.044_715 * x * x)).tanh()),
            Self::GeluQuick => x * sigmoid(1.702 * x),
            Self::Relu => x.max(0.0),
            Self::ReluSquared => x.max(0.0).powi(2),
        }
    }

    /// Returns the name used in provenance keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::GeluQuick => "gelu-quick",
            Self::Relu => "relu",
            Self::ReluSquared => "relu-squared",
        }
    }
}

/// A row or a column of a tensor that belongs to a neuron; in a mixture, that of every expert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name of the tensor.
    pub tensor: String,
    /// Index of the row or column within one expert.
    pub index: usize,
}

impl Place {
    /// Returns the indices of this row in `info`, one for each expert.
    pub fn rows_in(&self, info: &TensorInfo) -> impl Iterator<Item = usize> + use<> {
        let (index, per_expert) = (self.index, info.ne[1] as usize);
        (0..info.ne[2] as usize).map(move |expert| expert * per_expert + index)
    }
}

/// A feed-forward network with its activation function.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// The network's tensors and place in the model.
    pub ffn: Ffn,
    /// Activation function φ.
    pub activation: Activation,
    /// Whether the gate's rows are the second half of a fused tensor.
    pub gate_second: bool,
    /// Bias of each neuron's gate, f32 `[n_ff]`; empty if there is none.
    pub gate_bias: Vec<f32>,
    /// Bias of each neuron's other factor, f32 `[n_ff]`; empty if there is none.
    pub up_bias: Vec<f32>,
    /// Mean sum of the router weights of a token's experts, over the tokens used to identify φ; 1 for a dense network.
    pub routed: f64,
}

impl Network {
    /// Creates a network whose φ and layout of a fused tensor are known.
    ///
    /// # Errors
    /// Returns [`EditError`] if a bias cannot be read.
    pub fn known(
        gguf: &Gguf,
        ffn: &Ffn,
        activation: Activation,
        gate_second: bool,
    ) -> Result<Self, EditError> {
        let gate_bias = ffn.gate.as_ref().map(|gate| bias(gguf, gate)).transpose()?.unwrap_or_default();
        let up_bias = if ffn.fused { Vec::new() } else { bias(gguf, &ffn.up)? };
        Ok(Self { ffn: ffn.clone(), activation, gate_second, gate_bias, up_bias, routed: 1.0 })
    }

    /// Returns whether a neuron is a product of two factors.
    pub fn is_gated(&self) -> bool {
        self.ffn.fused || self.ffn.gate.is_some()
    }

    /// Returns the row of neuron `j` to which φ is applied.
    pub fn gate_place(&self, j: usize) -> Place {
        let offset = if self.ffn.fused && self.gate_second { self.ffn.n_ff } else { 0 };
        Place { tensor: self.ffn.gate.as_ref().unwrap_or(&self.ffn.up).clone(), index: j + offset }
    }

    /// Returns the row of the other factor of neuron `j`, if there is one.
    pub fn up_place(&self, j: usize) -> Option<Place> {
        let offset = if self.ffn.fused && !self.gate_second { self.ffn.n_ff } else { 0 };
        self.is_gated().then(|| Place { tensor: self.ffn.up.clone(), index: j + offset })
    }

    /// Returns the biases of the gate and of the other factor of neuron `j`.
    pub fn biases(&self, j: usize) -> (f32, f32) {
        let at = |bias: &[f32]| bias.get(j).copied().unwrap_or(0.0);
        match self.is_gated() {
            true => (at(&self.gate_bias), at(&self.up_bias)),
            false => (at(&self.up_bias), 0.0),
        }
    }

    /// Computes the hidden values of every neuron of one expert at the rows of `x`: f32 `[n][n_ff]`.
    ///
    /// # Errors
    /// Returns [`EditError`] if a tensor cannot be read.
    pub fn hidden(
        &self,
        gguf: &Gguf,
        expert: usize,
        x: ArrayView2<'_, f32>,
    ) -> Result<Array2<f32>, EditError> {
        let product = |place: Place| products(gguf, &place, expert, self.ffn.n_ff, x);
        let mut hidden = product(self.gate_place(0))?;
        for (j, mut column) in hidden.columns_mut().into_iter().enumerate() {
            let bias = self.biases(j).0;
            column.mapv_inplace(|v| self.activation.at(f64::from(v + bias)) as f32);
        }
        if let Some(place) = self.up_place(0) {
            let up = product(place)?;
            for ((j, mut column), up) in hidden.columns_mut().into_iter().enumerate().zip(up.columns()) {
                let bias = self.biases(j).1;
                column.zip_mut_with(&up, |h, &u| *h *= u + bias);
            }
        }
        Ok(hidden)
    }

    /// Returns up to `sets` sets of `count` neurons that contribute least on inputs like those of `x`.
    ///
    /// The contribution is `E[h_j²]·‖W_down e_j‖²`; for a mixture, it is summed over some of the experts. Each set lies
    /// in its own run of [`COLUMNS_ALIKE`] columns, so that its columns share one grid, and is ascending.
    ///
    /// # Errors
    /// Returns [`EditError`] if a tensor cannot be read.
    pub fn idlest(
        &self,
        gguf: &Gguf,
        writer: &ResidualWriter,
        x: ArrayView2<'_, f32>,
        sets: usize,
        count: usize,
    ) -> Result<Vec<Vec<usize>>, EditError> {
        let down = info(gguf, &writer.tensor)?;
        let mut done = vec![0.0f64; self.ffn.n_ff];
        for expert in spread(&(0..self.ffn.n_expert).collect::<Vec<_>>(), EXPERTS) {
            let mut squares = vec![0.0f64; self.ffn.n_ff];
            for_each_run(down, &gguf.read_part(down, bytes_of(down, expert))?, |_, values| {
                for row in values.chunks_exact(self.ffn.n_ff) {
                    squares.iter_mut().zip(row).for_each(|(s, &w)| *s += f64::from(w).powi(2));
                }
            })?;
            let hidden = self.hidden(gguf, expert, x)?;
            for ((done, square), h) in done.iter_mut().zip(squares).zip(hidden.columns()) {
                *done += square * h.iter().map(|&h| f64::from(h).powi(2)).sum::<f64>();
            }
        }
        let runs = done.chunks(COLUMNS_ALIKE).enumerate().filter_map(|(run, squares)| {
            let mut order: Vec<usize> = (0..squares.len()).collect();
            order.sort_by(|&a, &b| squares[a].total_cmp(&squares[b]));
            order.truncate(count);
            let lost: f64 = order.iter().map(|&j| squares[j]).sum();
            order.sort_unstable();
            let neurons = order.into_iter().map(|j| run * COLUMNS_ALIKE + j).collect::<Vec<_>>();
            (neurons.len() == count && lost.is_finite()).then_some((lost, neurons))
        });
        let mut runs: Vec<(f64, Vec<usize>)> = runs.collect();
        runs.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(runs.into_iter().take(sets).map(|(_, neurons)| neurons).collect())
    }

    /// Returns the root mean square of the output of a dense network at the rows of `x`, before any norm that follows.
    ///
    /// # Errors
    /// Returns [`EditError`] if a tensor cannot be read.
    pub fn written_rms(
        &self,
        gguf: &Gguf,
        writer: &ResidualWriter,
        x: ArrayView2<'_, f32>,
    ) -> Result<f64, EditError> {
        let place = Place { tensor: writer.tensor.clone(), index: 0 };
        let hidden = self.hidden(gguf, 0, x)?;
        let written = products(gguf, &place, 0, writer.n_out as usize, hidden.view())?;
        let sum: f64 = written.iter().map(|&v| f64::from(v).powi(2)).sum();
        Ok((sum / written.len().max(1) as f64).sqrt())
    }
}

/// Computes `X Wᵀ` for `n` rows of one expert, beginning at `place`, f32 `[rows of x][n]`; decodes run by run.
fn products(
    gguf: &Gguf,
    place: &Place,
    expert: usize,
    n: usize,
    x: ArrayView2<'_, f32>,
) -> Result<Array2<f32>, EditError> {
    let tensor = info(gguf, &place.tensor)?;
    let first = expert * tensor.ne[1] as usize + place.index;
    let n_in = tensor.ne[0] as usize;
    let mut product = Array2::zeros((x.nrows(), n));
    let step = (CHUNK_VALUES / n_in.max(1)).max(1);
    for from in (0..n).step_by(step) {
        let until = (from + step).min(n);
        let (start, end) =
            ((first + from) as u64 * tensor.row_bytes(), (first + until) as u64 * tensor.row_bytes());
        for_each_run(tensor, &gguf.read_part(tensor, start..end)?, |row, values| {
            if let Ok(w) = ArrayView2::from_shape((values.len() / n_in, n_in), values) {
                let mut part = product.slice_mut(s![.., from + row..from + row + w.len_of(Axis(0))]);
                ndarray::linalg::general_mat_mul(1.0, &x, &w.t(), 0.0, &mut part);
            }
        })?;
    }
    Ok(product)
}

fn info<'g>(gguf: &'g Gguf, name: &str) -> Result<&'g TensorInfo, EditError> {
    gguf.tensor(name).ok_or_else(|| EditError::Missing { tensor: name.into() })
}

/// Returns the byte range of one expert's matrix in a tensor.
fn bytes_of(tensor: &TensorInfo, expert: usize) -> std::ops::Range<u64> {
    let bytes = tensor.ne[1] * tensor.row_bytes();
    expert as u64 * bytes..(expert as u64 + 1) * bytes
}

/// Reads and decodes one row of one expert; a dense tensor has only expert 0.
///
/// # Errors
/// Returns [`EditError`] if the row cannot be read.
pub fn read_row(gguf: &Gguf, place: &Place, expert: usize) -> Result<Vec<f32>, EditError> {
    let tensor = info(gguf, &place.tensor)?;
    let start = bytes_of(tensor, expert).start + place.index as u64 * tensor.row_bytes();
    let mut row = Vec::new();
    for_each_run(tensor, &gguf.read_part(tensor, start..start + tensor.row_bytes())?, |_, v| {
        row.extend_from_slice(v);
    })?;
    Ok(row)
}

/// Reads and decodes one column of one expert.
///
/// # Errors
/// Returns [`EditError`] if the column cannot be read.
pub fn read_column(gguf: &Gguf, place: &Place, expert: usize) -> Result<Vec<f32>, EditError> {
    let tensor = info(gguf, &place.tensor)?;
    let bytes = gguf.read_part(tensor, bytes_of(tensor, expert))?;
    let blocks = ColumnBlocks::of(tensor.ggml_type, &bytes, tensor.ne[0] as usize, place.index);
    let failed = |source| EditError::Quant { tensor: place.tensor.clone(), source };
    blocks.values(tensor.ggml_type).map_err(failed)
}

/// Reads the bias that belongs to a weight; empty if there is none.
fn bias(gguf: &Gguf, weight: &str) -> Result<Vec<f32>, EditError> {
    let Some(name) = weight.strip_suffix(".weight").map(|stem| format!("{stem}.bias")) else {
        return Ok(Vec::new());
    };
    match gguf.tensor(&name) {
        None => Ok(Vec::new()),
        Some(_) => read_row(gguf, &Place { tensor: name, index: 0 }, 0),
    }
}
