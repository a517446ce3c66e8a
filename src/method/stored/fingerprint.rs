//! Recognizes whether two files are quantizations of the same model.
//!
//! Three properties are compared, from coarse to fine:
//!
//! 1. the **shape**: architecture, depth, width, and the name and size of every writer. An edit for another shape
//!    cannot be applied;
//! 2. the **small tensors** (gains of norms, biases), which stay F32 in every quantization: if their hashes differ, the
//!    weights are different;
//! 3. a **sketch** of up to 16 writers: every weight is added, with a random sign, to one of [`BINS`] sums; sign and
//!    sum are derived from its position. Sketches are linear and preserve distances, so `‖a − b‖/‖b‖` of two sketches
//!    estimates that of the weights to within about a twentieth, from 2 KiB per writer.
//!
//! Two quantizations of the same weights differ by their rounding errors, `√(r_a² + r_b²)`, where the relative error of
//! a type with b bits per value is about `r = 1.6·2⁻ᵇ`. The table shows the distance between each type and F32,
//! measured on the 16 sketched writers of Qwen2.5-Coder-0.5B (most distant writer; absolute, and divided by r):
//!
//! | type | distance | over r |   | type | distance | over r |
//! |---|---|---|---|---|---|---|
//! | F16 | .0002 | .1 | | Q4_K | .075 | 1.1 |
//! | BF16 | .0017 | .6 | | Q4_0 | .093 | 1.3 |
//! | Q8_0 | .0058 | 1.2 | | Q4_1 | .075 | 1.5 |
//! | Q6_K | .018 | 1.1 | | IQ4_NL | .083 | 1.2 |
//! | Q5_K | .038 | 1.1 | | Q3_K | .153 | 1.0 |
//! | Q5_0 | .048 | 1.4 | | IQ3_XXS | .200 | 1.1 |
//! | Q5_1 | .037 | 1.5 | | Q2_K | .284 | 1.1 |
//!
//! The limit is therefore twice the rounding errors; standard normal weights in Q4_1 reach 1.6. Unrelated weights have
//! a distance of 1.41.
//!
//! For fine-tunes, this means that a change of any norm or bias, even of a single bit, is detected by the second test.
//! A fine-tune that leaves all of them unchanged (a merged LoRA) must change the writers by more than about 1.7 times
//! the rounding errors. Measured by adding noise of full rank or of rank 16 to every writer:
//!
//! | copy | compared with F32: distance, detected | compared with the Q4_K_M file: detected |
//! |---|---|---|
//! | F32, changed by 0.3 % / 1 % | .003 no / .010 yes | no / no |
//! | Q8_0, changed by 0.5 % / 1 % / 2 % | .008 no / .012 yes / .021 yes | no / no / no |
//! | Q4_0, changed by 5 % / 15 % / 20 % | .10 no / .18 yes / .22 yes | no / yes / yes |
//!
//! A smaller change cannot be distinguished from rounding; the scores of the edited model show whether the edit still
//! works.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::arch::plan::Plan;
use crate::gguf::{GgmlType, Gguf, TensorInfo, sha256_hex};
use crate::method::edit::{self, EditError};
use crate::output::percent;

/// Number of sums in a sketch.
pub const BINS: usize = 512;
/// Number of writers to sketch, spread evenly over the plan.
const SKETCHED: usize = 16;
/// Number of hexadecimal digits of a hash to keep.
const HASH_DIGITS: usize = 16;
/// Relative error of rounding to `b` bits per value, in units of 2⁻ᵇ.
const ROUNDING: f64 = 1.6;
/// Minimum relative error, for formats finer than the one in which the model was released (BF16).
const LEAST_ROUNDING: f64 = 2e-3;
/// Maximum distance of equal weights, in units of their combined rounding errors.
const TOLERANCE: f64 = 2.0;
/// Upper limit of the allowed distance; unrelated weights have a distance of 1.4.
const MOST_ALLOWED: f64 = 0.9;

/// The properties of a model that determine the sizes of an edit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Value of `general.architecture`.
    pub architecture: String,
    /// Number of blocks.
    pub n_layer: usize,
    /// Width of the residual stream.
    pub n_embd: u64,
    /// The writers in the plan's order.
    pub writers: Vec<WriterShape>,
}

/// Name and shape of one writer, `[n_expert][n_out][n_in]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterShape {
    /// Name of the tensor.
    pub tensor: String,
    /// Length of its input.
    pub n_in: u64,
    /// Length of its output.
    pub n_out: u64,
    /// Number of experts; 1 for a dense matrix.
    pub n_expert: u64,
}

/// Sketch of one writer's weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sketch {
    /// Name of the tensor.
    pub tensor: String,
    /// [`GgmlType::name`] of the tensor's type, which determines the rounding error.
    #[serde(rename = "type")]
    pub ggml_type: String,
    /// The sums, f32 `[BINS]`; stored in the file as a separate array.
    #[serde(skip)]
    pub values: Vec<f32>,
}

/// The fingerprint of one model file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Architecture and sizes.
    #[serde(flatten)]
    pub shape: Shape,
    /// First digits of the SHA-256 of each small F32 tensor, by name.
    pub small: BTreeMap<String, String>,
    /// Sketches of up to 16 writers.
    pub sketches: Vec<Sketch>,
}

/// A difference between two models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Name of the property that differs.
    pub what: String,
    /// Value for which the edit was made.
    pub expected: String,
    /// Value of the model found.
    pub found: String,
}

impl Difference {
    fn new(what: impl Into<String>, expected: impl ToString, found: impl ToString) -> Self {
        Self { what: what.into(), expected: expected.to_string(), found: found.to_string() }
    }
}

impl Shape {
    /// Returns the shape of a plan.
    pub fn of(plan: &Plan) -> Self {
        let writer = |w: &crate::arch::plan::ResidualWriter| WriterShape {
            tensor: w.tensor.clone(),
            n_in: w.n_in,
            n_out: w.n_out,
            n_expert: w.n_expert,
        };
        Self {
            architecture: plan.architecture.clone(),
            n_layer: plan.n_layer,
            n_embd: plan.n_embd,
            writers: plan.writers.iter().map(writer).collect(),
        }
    }

    /// Returns the first difference between this shape and `found`.
    pub fn difference(&self, found: &Self) -> Option<Difference> {
        if self.architecture != found.architecture {
            return Some(Difference::new("architecture", &self.architecture, &found.architecture));
        }
        let counts = [
            ("number of layers", self.n_layer as u64, found.n_layer as u64),
            ("width of the residual stream", self.n_embd, found.n_embd),
            ("number of residual writers", self.writers.len() as u64, found.writers.len() as u64),
        ];
        if let Some((what, expected, found)) = counts.into_iter().find(|(_, a, b)| a != b) {
            return Some(Difference::new(what, expected, found));
        }
        let mut pairs = self.writers.iter().zip(&found.writers);
        let (a, b) = pairs.find(|(a, b)| a != b)?;
        if a.tensor != b.tensor {
            return Some(Difference::new("name of a residual writer", &a.tensor, &b.tensor));
        }
        let shape = |w: &WriterShape| format!("[{}, {}, {}]", w.n_in, w.n_out, w.n_expert);
        Some(Difference::new(format!("shape of {}", a.tensor), shape(a), shape(b)))
    }
}

impl Fingerprint {
    /// Computes the fingerprint of a file.
    ///
    /// # Errors
    /// Returns [`EditError`] if a tensor cannot be read.
    pub fn of(gguf: &Gguf, plan: &Plan) -> Result<Self, EditError> {
        let mut small = BTreeMap::new();
        for tensor in gguf.tensors.iter().filter(|t| is_small(t)) {
            let mut hash = sha256_hex(&gguf.read_tensor(tensor)?);
            hash.truncate(HASH_DIGITS);
            small.insert(tensor.name.clone(), hash);
        }
        let n = plan.writers.len();
        let chosen = (0..n.min(SKETCHED)).map(|i| &plan.writers[i * n / n.min(SKETCHED)].tensor);
        let sketches = chosen.map(|name| sketch(gguf, name)).collect::<Result<_, _>>()?;
        Ok(Self { shape: Shape::of(plan), small, sketches })
    }

    /// Returns a difference between the weights and those of `found`, a file of the same shape, that is larger than
    /// rounding.
    pub fn difference(&self, found: &Self) -> Option<Difference> {
        self.small_difference(found).or_else(|| self.sketch_difference(found))
    }

    /// Returns the difference of small tensors that both files have in F32.
    fn small_difference(&self, found: &Self) -> Option<Difference> {
        let both = self.small.iter().filter_map(|(name, a)| Some((name, a, found.small.get(name)?)));
        let both: Vec<_> = both.collect();
        let differ: Vec<_> = both.iter().filter(|(_, a, b)| a != b).collect();
        let (name, expected, found) = differ.first()?;
        let what = format!("{} of {} norms and biases, first {name}", differ.len(), both.len());
        Some(Difference::new(what, format!("hash {expected}"), format!("hash {found}")))
    }

    /// Returns the difference of the sketched writer that most exceeds its rounding error.
    fn sketch_difference(&self, found: &Self) -> Option<Difference> {
        let compared: Vec<_> = self.sketches.iter().map(|a| (a, a.beside(found))).collect();
        let excess = |(_, c): &(&Sketch, Comparison)| c.distance / c.allowed;
        let beyond = compared.iter().filter(|c| !(0.0..=1.0).contains(&excess(c))).count();
        let worst = compared.iter().max_by(|a, b| excess(a).total_cmp(&excess(b)));
        let (sketch, worst) = worst.filter(|_| beyond > 0)?;
        let what = format!("{beyond} of {} compared writers, most of all {}", compared.len(), sketch.tensor);
        let expected = format!("a distance of at most {} (rounding)", percent(worst.allowed));
        Some(Difference::new(what, expected, percent(worst.distance)))
    }

    /// Returns the distance of each sketched writer and the distance that rounding explains, in the plan's order.
    pub fn distances(&self, found: &Self) -> Vec<(f64, f64)> {
        let compared = self.sketches.iter().map(|sketch| sketch.beside(found));
        compared.map(|c| (c.distance, c.allowed)).collect()
    }
}

/// The distance of two sketches.
struct Comparison {
    /// `‖a − b‖ / max(‖a‖, ‖b‖)`; infinite if there is no sketch to compare with.
    distance: f64,
    /// Largest distance that rounding explains.
    allowed: f64,
}

impl Sketch {
    fn beside(&self, found: &Fingerprint) -> Comparison {
        let other = found.sketches.iter().find(|s| s.tensor == self.tensor);
        let distance = other.map_or(f64::INFINITY, |other| distance(&self.values, &other.values));
        let roundings = [Some(self), other].map(|s| s.map_or(0.0, |s| rounding(&s.ggml_type)));
        let allowed = (TOLERANCE * roundings[0].hypot(roundings[1])).min(MOST_ALLOWED);
        Comparison { distance, allowed }
    }
}

/// Returns the relative error of rounding to a type, `‖W − Q(W)‖/‖W‖`, estimated from its bits per value.
fn rounding(name: &str) -> f64 {
    let bits = GgmlType::all()
        .find(|t| t.name() == name)
        .map_or(32.0, |t| 8.0 * t.block_bytes() as f64 / t.block_len() as f64);
    (ROUNDING * (-bits).exp2()).max(LEAST_ROUNDING)
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let norm = |x: &[f32]| x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
    let apart: f64 = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    (apart / norm(a).max(norm(b))).sqrt()
}

/// Returns whether a tensor is a gain or a bias in F32.
fn is_small(tensor: &TensorInfo) -> bool {
    let named = tensor.name.contains("norm") || tensor.name.ends_with(".bias");
    named && tensor.ggml_type == GgmlType::F32 && tensor.n_rows() == 1
}

/// Computes `sketch[bin(i)] += sign(i)·w_i` over all weights of a tensor in the file's order, with f64 accumulators.
fn sketch(gguf: &Gguf, name: &str) -> Result<Sketch, EditError> {
    let tensor = gguf.tensor(name).ok_or_else(|| EditError::Missing { tensor: name.into() })?;
    let mut sums = vec![0.0f64; BINS];
    let n_in = tensor.ne[0] as usize;
    edit::for_each_run(tensor, &gguf.read_tensor(tensor)?, |first_row, values| {
        for (i, &w) in values.iter().enumerate() {
            let bits = mix((first_row * n_in + i) as u64);
            let w = if bits & 1 == 0 { f64::from(w) } else { -f64::from(w) };
            sums[(bits >> 32) as usize % BINS] += w;
        }
    })?;
    Ok(Sketch {
        tensor: name.into(),
        ggml_type: tensor.ggml_type.name().into(),
        values: sums.into_iter().map(|s| s as f32).collect(),
    })
}

/// Mixes a position into pseudorandom bits, as in SplitMix64.
fn mix(position: u64) -> u64 {
    let mut z = position.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
