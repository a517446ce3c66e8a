//! The feed-forward network whose neurons are overwritten: which function it computes, and which of its neurons do least.
//!
//! φ is in no GGUF file, and names mislead, so it is looked up where it cannot be wrong: inputs x and hidden values h are
//! captured in the running graph, and the one φ is taken with which `h = φ(W_gate x + b) ⊙ (W_up x + b)` holds.

use ndarray::{Array2, ArrayView2, Axis, s};
use serde::{Deserialize, Serialize};

use crate::edit::{CHUNK_VALUES, EditError, for_each_run};
use crate::gguf::{Gguf, TensorInfo};
use crate::plan::{Ffn, ResidualWriter};
use crate::quant::neuron::COLUMNS_ALIKE;

/// Neurons that tell φ.
const ASKED: usize = 96;
/// Largest ‖h − φ(…)‖/‖h‖ of the right φ: ggml rounds activations to 8 bits. The wrong ones are .1 and more off.
const MOST_OFF: f64 = 0.06;

/// φ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// x·σ(x).
    Silu,
    /// x·Φ(x), by tanh as in ggml.
    Gelu,
    /// x·σ(1.702 x).
    GeluQuick,
    /// max(x, 0).
    Relu,
    /// max(x, 0)².
    ReluSquared,
}

impl Activation {
    /// All that are known.
    pub const ALL: [Self; 5] = [Self::Silu, Self::Gelu, Self::GeluQuick, Self::Relu, Self::ReluSquared];

    /// φ(x).
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

    /// The name in provenance keys.
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

/// A row of a tensor that a neuron has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The tensor.
    pub tensor: String,
    /// The row.
    pub index: usize,
}

/// A network and its φ.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// Where it is.
    pub ffn: Ffn,
    /// φ.
    pub activation: Activation,
    /// Whether the gate's rows are the second half of a fused tensor.
    pub gate_second: bool,
    /// Of each neuron what is added to its gate; empty = nothing.
    pub gate_bias: Vec<f32>,
    /// The same of the other factor.
    pub up_bias: Vec<f32>,
}

/// What can be tried to explain hidden values.
struct Guess {
    activation: Activation,
    gate_second: bool,
}

impl Network {
    /// Finds φ from inputs `x` `[n][n_embd]` and hidden values `h` `[n][n_ff]` at the same tokens; `None` where no known
    /// one explains them.
    ///
    /// # Errors
    /// [`EditError`] when a tensor cannot be read.
    pub fn identify(
        gguf: &Gguf,
        ffn: &Ffn,
        x: ArrayView2<'_, f32>,
        h: ArrayView2<'_, f32>,
    ) -> Result<Option<Self>, EditError> {
        let n = x.nrows().min(h.nrows());
        if n == 0 || h.ncols() != ffn.n_ff || x.iter().chain(h.iter()).any(|v| !v.is_finite()) {
            return Ok(None);
        }
        let mut network = Self::known(gguf, ffn, Activation::Silu, false)?;
        let asked: Vec<usize> =
            (0..ASKED.min(ffn.n_ff)).map(|i| i * ffn.n_ff / ASKED.min(ffn.n_ff)).collect();
        let mut best: Option<(f64, Guess)> = None;
        for gate_second in [false, true].into_iter().take(if ffn.fused { 2 } else { 1 }) {
            network.gate_second = gate_second;
            let factors =
                asked.iter().map(|&j| network.factors(gguf, j, x)).collect::<Result<Vec<_>, _>>()?;
            for activation in Activation::ALL {
                let (mut off, mut all) = (0.0, 0.0);
                for (&j, (gate, up)) in asked.iter().zip(&factors) {
                    for i in 0..n {
                        let found = f64::from(h[[i, j]]);
                        let up = up.as_ref().map_or(1.0, |up| up[i]);
                        off += (found - activation.at(gate[i]) * up).powi(2);
                        all += found * found;
                    }
                }
                let off = (off / all.max(f64::MIN_POSITIVE)).sqrt();
                if best.as_ref().is_none_or(|(least, _)| off < *least) {
                    best = Some((off, Guess { activation, gate_second }));
                }
            }
        }
        let found = best.filter(|(off, _)| *off <= MOST_OFF);
        Ok(found.map(|(_, Guess { activation, gate_second })| Self { activation, gate_second, ..network }))
    }

    /// A network of which φ, and how a fused tensor is laid out, are known.
    ///
    /// # Errors
    /// [`EditError`] when a bias cannot be read.
    pub fn known(
        gguf: &Gguf,
        ffn: &Ffn,
        activation: Activation,
        gate_second: bool,
    ) -> Result<Self, EditError> {
        let gate_bias = ffn.gate.as_ref().map(|gate| bias(gguf, gate)).transpose()?.unwrap_or_default();
        let up_bias = if ffn.fused { Vec::new() } else { bias(gguf, &ffn.up)? };
        Ok(Self { ffn: ffn.clone(), activation, gate_second, gate_bias, up_bias })
    }

    /// Whether a neuron is a product of two factors.
    pub fn is_gated(&self) -> bool {
        self.ffn.fused || self.ffn.gate.is_some()
    }

    /// The row on which φ acts, of neuron `j`.
    pub fn gate_place(&self, j: usize) -> Place {
        let offset = if self.ffn.fused && self.gate_second { self.ffn.n_ff } else { 0 };
        Place { tensor: self.ffn.gate.as_ref().unwrap_or(&self.ffn.up).clone(), index: j + offset }
    }

    /// The row of the other factor, where there is one.
    pub fn up_place(&self, j: usize) -> Option<Place> {
        let offset = if self.ffn.fused && !self.gate_second { self.ffn.n_ff } else { 0 };
        self.is_gated().then(|| Place { tensor: self.ffn.up.clone(), index: j + offset })
    }

    /// What is added to the gate of neuron `j`, and to its other factor.
    pub fn biases(&self, j: usize) -> (f32, f32) {
        let at = |bias: &[f32]| bias.get(j).copied().unwrap_or(0.0);
        match self.is_gated() {
            true => (at(&self.gate_bias), at(&self.up_bias)),
            false => (at(&self.up_bias), 0.0),
        }
    }

    /// Both factors of neuron `j` at every row of `x`, before φ.
    fn factors(
        &self,
        gguf: &Gguf,
        j: usize,
        x: ArrayView2<'_, f32>,
    ) -> Result<(Vec<f64>, Option<Vec<f64>>), EditError> {
        let (gate_bias, up_bias) = self.biases(j);
        let product = |place: Place, bias: f32| -> Result<Vec<f64>, EditError> {
            let row = ndarray::Array1::from(read_row(gguf, &place)?);
            Ok(x.dot(&row).iter().map(|&v| f64::from(v + bias)).collect())
        };
        let up = self.up_place(j).map(|place| product(place, up_bias)).transpose()?;
        Ok((product(self.gate_place(j), gate_bias)?, up))
    }

    /// Hidden values of every neuron at the rows of `x`: f32 `[n][n_ff]`.
    ///
    /// # Errors
    /// [`EditError`] when a tensor cannot be read.
    pub fn hidden(&self, gguf: &Gguf, x: ArrayView2<'_, f32>) -> Result<Array2<f32>, EditError> {
        let product = |place: Place| products(gguf, &place.tensor, place.index, self.ffn.n_ff, x);
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

    /// `sets` times `count` neurons that do least on inputs like those of `x`, `E[h_j²]·‖W_down e_j‖²`: each set in a run of
    /// [`COLUMNS_ALIKE`] columns of its own, so that their columns have one grid, ascending.
    ///
    /// # Errors
    /// [`EditError`] when a tensor cannot be read.
    pub fn idlest(
        &self,
        gguf: &Gguf,
        writer: &ResidualWriter,
        x: ArrayView2<'_, f32>,
        (sets, count): (usize, usize),
    ) -> Result<Vec<Vec<usize>>, EditError> {
        let down = info(gguf, &writer.tensor)?;
        let mut squares = vec![0.0f64; self.ffn.n_ff];
        for_each_run(down, &gguf.read_tensor(down)?, |_, values| {
            for row in values.chunks_exact(self.ffn.n_ff) {
                squares.iter_mut().zip(row).for_each(|(s, &w)| *s += f64::from(w).powi(2));
            }
        })?;
        let hidden = self.hidden(gguf, x)?;
        for (square, h) in squares.iter_mut().zip(hidden.columns()) {
            *square *= h.iter().map(|&h| f64::from(h).powi(2)).sum::<f64>();
        }
        let runs = squares.chunks(COLUMNS_ALIKE).enumerate().filter_map(|(run, squares)| {
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

    /// Root mean square of what the network writes at the rows of `x`, before any norm that follows.
    ///
    /// # Errors
    /// [`EditError`] when a tensor cannot be read.
    pub fn written_rms(
        &self,
        gguf: &Gguf,
        writer: &ResidualWriter,
        x: ArrayView2<'_, f32>,
    ) -> Result<f64, EditError> {
        let written = products(gguf, &writer.tensor, 0, writer.n_out as usize, self.hidden(gguf, x)?.view())?;
        let sum: f64 = written.iter().map(|&v| f64::from(v).powi(2)).sum();
        Ok((sum / written.len().max(1) as f64).sqrt())
    }
}

/// `X Wᵀ` for the `n` rows of a tensor from `first` on, f32 `[rows of x][n]`, decoded run by run.
fn products(
    gguf: &Gguf,
    tensor: &str,
    first: usize,
    n: usize,
    x: ArrayView2<'_, f32>,
) -> Result<Array2<f32>, EditError> {
    let tensor = info(gguf, tensor)?;
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

/// One row of a tensor, decoded.
///
/// # Errors
/// [`EditError`] when it cannot be read.
pub fn read_row(gguf: &Gguf, place: &Place) -> Result<Vec<f32>, EditError> {
    let tensor = info(gguf, &place.tensor)?;
    let start = place.index as u64 * tensor.row_bytes();
    let mut row = Vec::new();
    for_each_run(tensor, &gguf.read_part(tensor, start..start + tensor.row_bytes())?, |_, v| {
        row.extend_from_slice(v)
    })?;
    Ok(row)
}

/// One column of a tensor, decoded.
///
/// # Errors
/// [`EditError`] when it cannot be read.
pub fn read_column(gguf: &Gguf, place: &Place) -> Result<Vec<f32>, EditError> {
    let tensor = info(gguf, &place.tensor)?;
    let mut column = Vec::new();
    for_each_run(tensor, &gguf.read_tensor(tensor)?, |_, values| {
        column.extend(values.chunks_exact(tensor.ne[0] as usize).map(|row| row[place.index]));
    })?;
    Ok(column)
}

/// The bias beside a weight; empty where there is none.
fn bias(gguf: &Gguf, weight: &str) -> Result<Vec<f32>, EditError> {
    let Some(name) = weight.strip_suffix(".weight").map(|stem| format!("{stem}.bias")) else {
        return Ok(Vec::new());
    };
    match gguf.tensor(&name) {
        None => Ok(Vec::new()),
        Some(_) => read_row(gguf, &Place { tensor: name, index: 0 }),
    }
}
