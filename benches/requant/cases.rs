//! The tensors to edit: residual writers of the three test models.

use rosi_gguf::arch::plan::Plan;
use rosi_gguf::gguf::{GgmlType, Gguf};
use rosi_gguf::method::direction;
use rosi_gguf::method::edit::{self, Edit};
use rosi_gguf::pipeline::plan_of;
use rosi_gguf::quant;

use crate::Failure;

/// Models, and the environment variables with their paths, which `scripts/bench` sets.
const MODELS: [(&str, &str); 3] = [
    ("SmolLM2-135M", "ROSI_TEST_MODEL_SMOLLM2"),
    ("Qwen2.5-Coder-0.5B", "ROSI_TEST_MODEL_QWEN"),
    ("gemma-3-270m", "ROSI_TEST_MODEL_GEMMA3"),
];

/// A tensor and the edit to apply to it.
pub struct Case {
    /// Model and tensor.
    pub name: String,
    /// The tensor's type in the file.
    pub own: GgmlType,
    /// The tensor's bytes in that type.
    pub bytes: Vec<u8>,
    /// W, `[n_row][n_in]`.
    pub values: Vec<f32>,
    /// l of the published method, with a random direction instead of the safety direction.
    pub left: Vec<f32>,
    /// m: equal to l or, for a writer followed by a norm, each row's push along the direction.
    pub along: Vec<f32>,
    /// w̄, scaled so that ‖w̄‖ = ‖W‖; multiplied by a strength, it gives r.
    pub right: Vec<f32>,
}

impl Case {
    fn new(gguf: &Gguf, model: &str, edit: &Edit) -> Result<Self, Failure> {
        let info = gguf.tensor(&edit.tensor).ok_or("the plan names a missing tensor")?;
        let bytes = gguf.read_tensor(info)?;
        let values = decoded(info.ggml_type, info.ne[0] as usize, &bytes)?;
        let scale = edit.weight_norm_sq.sqrt() / norm(&edit.right);
        Ok(Self {
            name: format!("{model} `{}`", edit.tensor),
            own: info.ggml_type,
            bytes,
            values,
            left: edit.left.clone(),
            along: edit.along().to_vec(),
            right: edit.right.iter().map(|&r| (f64::from(r) * scale) as f32).collect(),
        })
    }

    /// Values per row.
    pub fn n_in(&self) -> usize {
        self.right.len()
    }

    /// Returns whether the row length is a multiple of the type's block length.
    pub fn fits(&self, ggml_type: GgmlType) -> bool {
        (self.n_in() as u64).is_multiple_of(ggml_type.block_len())
    }

    /// Returns r at a strength.
    pub fn right_at(&self, strength: f64) -> Vec<f32> {
        self.right.iter().map(|&r| (f64::from(r) * strength) as f32).collect()
    }
}

/// Returns `√Σ v²`, computed in f64.
pub fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// Decodes whole rows to f32.
pub fn decoded(ggml_type: GgmlType, n_in: usize, bytes: &[u8]) -> Result<Vec<f32>, Failure> {
    let row = ggml_type.row_bytes(n_in as u64).ok_or("the block does not fit the row")? as usize;
    let mut values = vec![0.0; bytes.len() / row * n_in];
    quant::dequantize(ggml_type, n_in, bytes, &mut values)?;
    Ok(values)
}

/// Encodes whole rows in a type, rounding to nearest; uses uniform importance for types where ggml requires one.
pub fn encoded(ggml_type: GgmlType, n_in: usize, values: &[f32]) -> Result<Vec<u8>, Failure> {
    let row = ggml_type.row_bytes(n_in as u64).ok_or("the block does not fit the row")? as usize;
    let mut bytes = vec![0; values.len() / n_in * row];
    if ggml_type.needs_imatrix() {
        quant::quantize_weighted(ggml_type, n_in, values, &vec![1.0; n_in], &mut bytes)?;
    } else {
        quant::quantize(ggml_type, n_in, values, &mut bytes)?;
    }
    Ok(bytes)
}

/// Opens the model with an index into [`MODELS`].
pub fn open(index: usize) -> Result<(&'static str, Gguf, Plan), Failure> {
    let (name, variable) = MODELS[index];
    let path =
        std::env::var_os(variable).ok_or_else(|| format!("{variable} is not set: run scripts/bench"))?;
    let gguf = Gguf::open(std::path::Path::new(&path))?;
    let plan = plan_of(&gguf)?;
    Ok((name, gguf, plan))
}

/// Returns the cases of one model: the writers that `wanted` selects.
pub fn of_model(index: usize, wanted: impl Fn(&Plan, usize) -> bool) -> Result<Vec<Case>, Failure> {
    let (name, gguf, mut plan) = open(index)?;
    let picked = (0..plan.writers.len()).filter(|&w| wanted(&plan, w)).collect::<Vec<_>>();
    plan.writers = picked.iter().map(|&w| plan.writers[w].clone()).collect();
    let weights = plan.writers.iter().map(|w| edit::read_weights(&gguf, w)).collect::<Result<Vec<_>, _>>()?;
    let direction = direction::random(0, plan.n_embd as usize, 1)?;
    let edits = edit::edits(&plan, &weights, &edit::mean_rows(&weights), &direction, 1.0)?;
    edits.iter().map(|e| Case::new(&gguf, name, e)).collect()
}

/// Returns both writers of a middle block of each model. For models in Q4_K_M, chooses a block whose `ffn_down` is
/// Q6_K, so that some tensors are wider than 4 bits.
pub fn of_middle_blocks() -> Result<Vec<Case>, Failure> {
    let mut cases = Vec::new();
    for (index, layer) in [15, 13, 10].into_iter().enumerate() {
        cases.extend(of_model(index, |plan, w| plan.writers[w].layer == layer)?);
    }
    Ok(cases)
}
