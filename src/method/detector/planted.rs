//! Neurons planted in one file: the target of each row and column, the bytes, and how exactly the targets were reached.

use std::borrow::Cow;

use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use super::Bank;
use super::ffn::{Activation, Place, read_column, read_row};
use crate::arch::plan::ResidualWriter;
use crate::gguf::{Gguf, TensorInfo};
use crate::llama::LowRank;
use crate::method::edit::EditError;
use crate::method::requant::Requant;
use crate::quant;
use crate::quant::neuron::{self, ColumnBlocks};
use crate::util::linalg;

/// Sizes of the column to try, as powers of [`SIZE_STEP`] relative to the size of the replaced column.
const SIZES: std::ops::RangeInclusive<i32> = -16..=16;
/// Minimum cosine between the products of a rounded row with the inputs and the exact ones.
const LEAST_ROW: f64 = 0.98;
const SIZE_STEP: f64 = 1.189_207_115_002_721; // ⁴√2

/// A row or a column of one tensor, with its target values.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The row or column.
    pub place: Place,
    /// Target values, f32; one per element of the row or column.
    pub target: Vec<f32>,
}

/// One neuron of one file.
#[derive(Debug, Clone, PartialEq)]
pub struct PlantedNeuron {
    /// The row to which φ is applied.
    pub gate: Piece,
    /// The row of the other factor, if there is one.
    pub up: Option<Piece>,
    /// The column of the writer.
    pub column: Piece,
    /// Biases of the gate and of the other factor.
    pub biases: (f32, f32),
}

/// The neurons of one network of one file.
#[derive(Debug, Clone, PartialEq)]
pub struct PlantedFfn {
    /// Block of the network.
    pub layer: usize,
    /// Activation function φ.
    pub activation: Activation,
    /// The overwritten neurons.
    pub neurons: Vec<PlantedNeuron>,
    /// Sample inputs of the network, f32 `[n][n_embd]`, for which rows are rounded and on which they are checked.
    pub inputs: Array2<f32>,
    /// Factor applied to columns before rounding, which compensates for the length that rounding takes away.
    pub stretch: f64,
    /// Same as [`Bank::post_norm`].
    pub post_norm: Option<Vec<f32>>,
}

/// How exactly a file holds the neurons of one network, measured from its bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    /// Block of the network.
    pub layer: usize,
    /// Number of neurons.
    pub neurons: usize,
    /// Lowest correlation of a neuron's score `gᵀx` in the file with the exact one.
    pub score: f64,
    /// Share of the inputs at which the output of the neurons differs from the exact one by less than a tenth of the
    /// largest push, so that the gates are equally open.
    pub alike: f64,
    /// Σ e ê / Σ e², with the exact output e and the file's output ê of the neurons along their column, as it reaches
    /// the residual stream; 1 means that all of it arrives.
    pub gain: f64,
    /// Cosine between e and ê over the inputs.
    pub cosine: f64,
    /// Output of the file's neurons orthogonal to the column, divided by the exact output along it, both in the
    /// residual stream.
    pub noise: f64,
}

/// Output of neurons at some inputs: along a column, and the squared length of the part orthogonal to it.
struct Written {
    along: Vec<f64>,
    across: f64,
}

impl PlantedFfn {
    /// Fits the neurons of `bank` to the types that `requant` gives to the tensors of `gguf`: the column gets the size
    /// that its grid represents best, and the rows compensate for it. `inputs` is stored as [`Self::inputs`].
    ///
    /// # Errors
    /// Returns [`EditError::NoSingleCodes`] if the writer's type encodes several values in one code or no size fits,
    /// [`EditError::Row`] if the type of another tensor is too coarse for a row, and other [`EditError`]s if a tensor
    /// is missing or cannot be read.
    pub fn fit(
        bank: &Bank,
        gguf: &Gguf,
        writer: &ResidualWriter,
        requant: Requant,
        inputs: Array2<f32>,
    ) -> Result<Self, EditError> {
        let Fitted { size, stretch } = fitted(bank, gguf, writer, requant)?;
        let planted = Self { inputs, stretch, ..Self::of_size(bank, writer, size) };
        planted.check_rows(gguf, requant)?;
        Ok(planted)
    }

    /// Rejects rows for which the types of their tensors are too coarse.
    fn check_rows(&self, gguf: &Gguf, requant: Requant) -> Result<(), EditError> {
        let rows = self.neurons.iter().flat_map(|n| std::iter::once(&n.gate).chain(&n.up));
        for Piece { place, target } in rows.filter(|_| self.inputs.nrows() > 0) {
            let tensor = gguf.tensor(&place.tensor);
            let tensor = tensor.ok_or_else(|| EditError::Missing { tensor: place.tensor.clone() })?;
            let ggml_type = requant.type_for(tensor.ggml_type);
            let failed = |source| EditError::Quant { tensor: place.tensor.clone(), source };
            let bytes = neuron::row(ggml_type, target, self.inputs.view()).map_err(failed)?;
            let mut values = vec![0.0; target.len()];
            quant::dequantize(ggml_type, target.len(), &bytes, &mut values).map_err(failed)?;
            let products = |row: &[f32]| self.inputs.dot(&ndarray::ArrayView1::from(row)).to_vec();
            let cosine = linalg::cosine(&products(target), &products(&values));
            if cosine < LEAST_ROW {
                let tensor = place.tensor.clone();
                return Err(EditError::Row { tensor, ggml_type, cosine, least: LEAST_ROW });
            }
        }
        Ok(())
    }

    /// Returns the neurons of `bank` for a file that holds them exactly, without inputs.
    pub fn exact(bank: &Bank, writer: &ResidualWriter) -> Self {
        Self::of_size(bank, writer, 1.0)
    }

    /// Returns the neurons of `bank` with columns scaled by `size`, without inputs.
    fn of_size(bank: &Bank, writer: &ResidualWriter, size: f64) -> Self {
        let network = &bank.network;
        let planted = |(neuron, &slot): (super::Neuron, &usize)| PlantedNeuron {
            gate: Piece { place: network.gate_place(slot), target: neuron.gate },
            up: network.up_place(slot).zip(neuron.up).map(|(place, target)| Piece { place, target }),
            column: Piece {
                place: Place { tensor: writer.tensor.clone(), index: slot },
                target: neuron.column,
            },
            biases: network.biases(slot),
        };
        Self {
            layer: network.ffn.layer,
            activation: network.activation,
            neurons: bank.neurons(size).into_iter().zip(&bank.slots).map(planted).collect(),
            inputs: Array2::zeros((0, bank.constant.len())),
            stretch: 1.0,
            post_norm: bank.post_norm.clone(),
        }
    }

    /// Returns the replaced rows of `tensor`.
    pub fn rows<'a>(&'a self, tensor: &'a str) -> impl Iterator<Item = &'a Piece> {
        let all = self.neurons.iter().flat_map(|n| std::iter::once(&n.gate).chain(&n.up));
        all.filter(move |piece| piece.place.tensor == tensor)
    }

    /// Returns the replaced columns of `tensor`.
    pub fn columns<'a>(&'a self, tensor: &'a str) -> impl Iterator<Item = &'a Piece> {
        self.neurons.iter().map(|n| &n.column).filter(move |piece| piece.place.tensor == tensor)
    }

    /// Returns the names of the tensors that change.
    pub fn tensors(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for neuron in &self.neurons {
            for piece in [Some(&neuron.gate), neuron.up.as_ref(), Some(&neuron.column)].into_iter().flatten()
            {
                if !names.contains(&piece.place.tensor.as_str()) {
                    names.push(&piece.place.tensor);
                }
            }
        }
        names
    }

    /// Returns the data of `tensor` with the neurons of `all` written into it. Converts the tensor first if `requant`
    /// widens its type. With [`Requant::Nearest`], rows are rounded without regard to their inputs.
    ///
    /// # Errors
    /// Returns [`EditError::Quant`] if a row, a column, or the tensor cannot be converted.
    pub fn apply_all(
        all: &[Self],
        tensor: &TensorInfo,
        mut bytes: Vec<u8>,
        requant: Requant,
    ) -> Result<Vec<u8>, EditError> {
        let ggml_type = requant.type_for(tensor.ggml_type);
        if ggml_type != tensor.ggml_type {
            bytes = crate::method::requant::convert(tensor, &bytes, ggml_type)?;
        }
        let failed = |source| EditError::Quant { tensor: tensor.name.clone(), source };
        let n_in = tensor.ne[0] as usize;
        let row_bytes = bytes.len() / (tensor.n_rows() as usize).max(1);
        for planted in all {
            let met = if requant == Requant::Nearest { 0 } else { planted.inputs.nrows() };
            let inputs = planted.inputs.slice(ndarray::s![..met, ..]);
            for piece in planted.rows(&tensor.name) {
                let row = neuron::row(ggml_type, &piece.target, inputs).map_err(failed)?;
                for index in piece.place.rows_in(tensor) {
                    bytes[index * row_bytes..][..row_bytes].copy_from_slice(&row);
                }
            }
            let stretched = |piece: &Piece| -> (usize, Vec<f32>) {
                let target = piece.target.iter().map(|&v| (f64::from(v) * planted.stretch) as f32);
                (piece.place.index, target.collect::<Vec<_>>().repeat(tensor.ne[2] as usize))
            };
            let columns: Vec<(usize, Vec<f32>)> = planted.columns(&tensor.name).map(stretched).collect();
            let columns: Vec<(usize, &[f32])> =
                columns.iter().map(|(j, column)| (*j, column.as_slice())).collect();
            neuron::set_columns(ggml_type, &mut bytes, n_in, &columns).map_err(failed)?;
        }
        Ok(bytes)
    }

    /// Returns the neurons as low-rank terms to add to the weights of `gguf`, with a one-hot factor for each row and
    /// column.
    ///
    /// # Errors
    /// Returns [`EditError`] if a tensor is missing or cannot be read.
    pub fn low_rank(&self, gguf: &Gguf) -> Result<Vec<LowRank>, EditError> {
        let mut terms = Vec::new();
        for name in self.tensors() {
            let tensor = gguf.tensor(name).ok_or_else(|| EditError::Missing { tensor: name.into() })?;
            let n_expert = tensor.ne[2];
            let mut term =
                LowRank { tensor: name.to_owned(), n_expert, rank: 0, a: Vec::new(), b: Vec::new() };
            for expert in 0..n_expert as usize {
                self.add_factors(gguf, tensor, expert, &mut term)?;
            }
            terms.push(term);
        }
        Ok(terms)
    }

    /// Adds the factors of one expert to `term`.
    fn add_factors(
        &self,
        gguf: &Gguf,
        tensor: &TensorInfo,
        expert: usize,
        term: &mut LowRank,
    ) -> Result<(), EditError> {
        let (n_in, n_out) = (tensor.ne[0] as usize, tensor.ne[1] as usize);
        let mut left: Vec<Vec<f32>> = Vec::new();
        let one_hot =
            |n: usize, index: usize| (0..n).map(|i| f32::from(u8::from(i == index))).collect::<Vec<_>>();
        let change =
            |target: &[f32], old: &[f32]| target.iter().zip(old).map(|(t, o)| t - o).collect::<Vec<_>>();
        for piece in self.rows(&tensor.name) {
            term.a.extend(change(&piece.target, &read_row(gguf, &piece.place, expert)?));
            left.push(one_hot(n_out, piece.place.index));
        }
        for piece in self.columns(&tensor.name) {
            term.a.extend(one_hot(n_in, piece.place.index));
            left.push(change(&piece.target, &read_column(gguf, &piece.place, expert)?));
        }
        term.rank = left.len() as u64;
        term.b.extend((0..n_out).flat_map(|i| left.iter().map(move |l| l[i]).collect::<Vec<_>>()));
        Ok(())
    }

    /// Measures how exactly `gguf` holds the neurons; `None` if there are no inputs or no neurons.
    ///
    /// # Errors
    /// Returns [`EditError`] if a tensor cannot be read.
    pub fn arrival(&self, gguf: &Gguf) -> Result<Option<Arrival>, EditError> {
        if self.inputs.nrows() == 0 || self.neurons.is_empty() {
            return Ok(None);
        }
        let exact = self.in_stream(&self.neurons);
        let unit = unit(&exact[0].column.target);
        // In a mixture, every expert has the same weight.
        let n_expert = gguf.tensor(&self.neurons[0].column.place.tensor).map_or(1, |t| t.ne[2] as usize);
        let exact = self.written(&exact, &unit).along.repeat(n_expert);
        let (mut written, mut score) = (Written { along: Vec::new(), across: 0.0 }, 1.0f64);
        for expert in 0..n_expert {
            let found = self.read(gguf, expert)?;
            for (exact, found) in self.neurons.iter().zip(&found) {
                let (exact, found) = (&exact.gate.target, &found.gate.target);
                score = score.min(neuron::score_correlation(self.inputs.view(), exact, found));
            }
            let Written { along, across } = self.written(&self.in_stream(&found), &unit);
            written.along.extend(along);
            written.across += across;
        }
        let pairs = || exact.iter().zip(&written.along);
        let (dot, own): (f64, f64) = (pairs().map(|(a, b)| a * b).sum(), pairs().map(|(a, _)| a * a).sum());
        let other: f64 = pairs().map(|(_, b)| b * b).sum();
        let most = 0.1 * exact.iter().fold(0.0f64, |most, e| most.max(e.abs()));
        let alike = pairs().filter(|(a, b)| (*a - *b).abs() < most).count();
        Ok(Some(Arrival {
            layer: self.layer,
            neurons: self.neurons.len(),
            score,
            alike: alike as f64 / exact.len() as f64,
            gain: dot / own.max(f64::MIN_POSITIVE),
            cosine: dot / (own * other).sqrt().max(f64::MIN_POSITIVE),
            noise: (written.across / own.max(f64::MIN_POSITIVE)).sqrt(),
        }))
    }

    /// Returns `neurons` with their columns as they reach the residual stream.
    fn in_stream(&self, neurons: &[PlantedNeuron]) -> Vec<PlantedNeuron> {
        let mut neurons = neurons.to_vec();
        for PlantedNeuron { column, .. } in &mut neurons {
            column.target = behind(self.post_norm.as_deref(), &column.target).into_owned();
        }
        neurons
    }

    /// Returns the neurons with the values that `gguf` has at their places in one expert.
    fn read(&self, gguf: &Gguf, expert: usize) -> Result<Vec<PlantedNeuron>, EditError> {
        let row = |piece: &Piece| -> Result<Piece, EditError> {
            Ok(Piece { place: piece.place.clone(), target: read_row(gguf, &piece.place, expert)? })
        };
        let read = |neuron: &PlantedNeuron| -> Result<PlantedNeuron, EditError> {
            let place = neuron.column.place.clone();
            Ok(PlantedNeuron {
                gate: row(&neuron.gate)?,
                up: neuron.up.as_ref().map(row).transpose()?,
                column: Piece { target: read_column(gguf, &place, expert)?, place },
                biases: neuron.biases,
            })
        };
        self.neurons.iter().map(read).collect()
    }

    /// Returns the output of `neurons` at the inputs.
    fn written(&self, neurons: &[PlantedNeuron], unit: &[f64]) -> Written {
        let hidden: Vec<Vec<f64>> =
            neurons.iter().map(|n| hidden(n, self.activation, self.inputs.view())).collect();
        let along = |column: &[f32]| column.iter().zip(unit).map(|(&c, u)| f64::from(c) * u).sum::<f64>();
        let shares: Vec<f64> = neurons.iter().map(|n| along(&n.column.target)).collect();
        // Dot products of the parts of the columns that are orthogonal to the unit vector.
        let gram: Vec<Vec<f64>> = neurons
            .iter()
            .enumerate()
            .map(|(i, a)| {
                let dot = |b: &PlantedNeuron| -> f64 {
                    let pairs = a.column.target.iter().zip(&b.column.target);
                    pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
                };
                neurons.iter().enumerate().map(|(j, b)| dot(b) - shares[i] * shares[j]).collect()
            })
            .collect();
        let n = self.inputs.nrows();
        let mut across = 0.0;
        for i in 0..n {
            for (a, row) in hidden.iter().zip(&gram) {
                across += hidden.iter().zip(row).map(|(b, g)| a[i] * b[i] * g).sum::<f64>();
            }
        }
        let along = (0..n).map(|i| hidden.iter().zip(&shares).map(|(h, s)| h[i] * s).sum());
        Written { along: along.collect(), across: across.max(0.0) }
    }
}

/// Returns a column after the norm, which is treated as a constant times its gain ([`crate::method::post_norm`]).
fn behind<'a>(gain: Option<&[f32]>, column: &'a [f32]) -> Cow<'a, [f32]> {
    match gain {
        None => Cow::Borrowed(column),
        Some(gain) => column.iter().zip(gain).map(|(c, g)| c * g).collect(),
    }
}

/// Returns the unit vector along a column.
fn unit(column: &[f32]) -> Vec<f64> {
    let norm = column.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    column.iter().map(|&v| f64::from(v) / norm).collect()
}

/// Returns the hidden value of a neuron at every row of `x`.
fn hidden(neuron: &PlantedNeuron, activation: Activation, x: ArrayView2<'_, f32>) -> Vec<f64> {
    let product = |piece: &Piece, bias: f32| -> Vec<f64> {
        x.dot(&ndarray::ArrayView1::from(&piece.target)).iter().map(|&v| f64::from(v + bias)).collect()
    };
    let gate = product(&neuron.gate, neuron.biases.0);
    let up = neuron.up.as_ref().map(|up| product(up, neuron.biases.1));
    let up = |i: usize| up.as_ref().map_or(1.0, |up| up[i]);
    gate.iter().enumerate().map(|(i, &g)| activation.at(g) * up(i)).collect()
}

/// How to scale a column before rounding.
struct Fitted {
    /// Size of the column.
    size: f64,
    /// Factor applied before rounding that restores the column's length along itself: a bounded grid with few levels
    /// makes it shorter.
    stretch: f64,
}

/// Finds the size at which a column's grid represents it best: the one with the largest cosine, in the residual stream,
/// between the column and its rounded values.
///
/// A column that is too long is clipped at the ends of the grid; one that is too short suffers from the step size.
/// After a norm, the rows with large gains, whose values are small, matter most.
fn fitted(bank: &Bank, gguf: &Gguf, writer: &ResidualWriter, requant: Requant) -> Result<Fitted, EditError> {
    let missing = || EditError::Missing { tensor: writer.tensor.clone() };
    let tensor = gguf.tensor(&writer.tensor).ok_or_else(missing)?;
    let ggml_type = requant.type_for(tensor.ggml_type);
    if !neuron::has_single_codes(ggml_type) {
        return Err(EditError::NoSingleCodes { tensor: tensor.name.clone(), ggml_type });
    }
    if ggml_type.is_float() {
        return Ok(Fitted { size: 1.0, stretch: 1.0 });
    }
    let slot = bank.slots.first().copied().unwrap_or(0);
    let mut bytes = gguf.read_tensor(tensor)?;
    if ggml_type != tensor.ggml_type {
        bytes = crate::method::requant::convert(tensor, &bytes, ggml_type)?;
    }
    let old = read_column(gguf, &Place { tensor: tensor.name.clone(), index: slot }, 0)?;
    let blocks = ColumnBlocks::of(ggml_type, &bytes, tensor.ne[0] as usize, slot);
    let norm = |v: &[f32]| v.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let in_stream = |column: &[f32]| behind(bank.post_norm.as_deref(), column).into_owned();
    let gated = bank.network.is_gated();
    // Without a second factor, the size changes the sharpness too, so it is not scaled to the replaced column.
    let first = if gated { norm(&old) / norm(&bank.column).max(f64::MIN_POSITIVE) } else { 1.0 };
    let mut best: Option<(f64, Fitted)> = None;
    for power in SIZES {
        for sign in [1.0, -1.0].into_iter().take(if gated { 2 } else { 1 }) {
            let size = sign * first * SIZE_STEP.powi(power);
            let Some(neuron) = bank.neurons(size).into_iter().next() else { continue };
            let target = neuron.column.repeat(tensor.ne[2] as usize);
            let rounded = neuron::nearest_column(ggml_type, &blocks, &target)
                .map_err(|source| EditError::Quant { tensor: tensor.name.clone(), source })?;
            let (target, rounded) = (in_stream(&target), in_stream(&rounded));
            let cosine = linalg::cosine(&target, &rounded);
            let along = cosine * norm(&rounded);
            if along > 0.0 && best.as_ref().is_none_or(|(most, _)| cosine > *most) {
                let stretch = norm(&target) / along;
                best = Some((cosine, Fitted { size: size / stretch, stretch }));
            }
        }
    }
    let none = || EditError::NoSingleCodes { tensor: tensor.name.clone(), ggml_type };
    best.map(|(_, fitted)| fitted).ok_or_else(none)
}
