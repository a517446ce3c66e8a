//! Importance values for llama.cpp's quantizer.

use super::{Imatrix, ImatrixError};
use crate::gguf::Gguf;

impl Imatrix {
    /// Returns `E[x_j²]` per matrix, `[n_mat][n_in]`, of each weight of `gguf` that the importance matrix contains, as
    /// `llama-quantize` takes it. For an expert that saw no x, all values are 1.
    ///
    /// # Errors
    /// Returns [`ImatrixError::OtherModel`] if a weight has another size in the importance matrix.
    pub fn importance(&self, gguf: &Gguf) -> Result<Vec<(String, Vec<f32>)>, ImatrixError> {
        let mut rows = Vec::new();
        for (name, inputs) in &self.entries {
            let Some(tensor) = gguf.tensor(name) else { continue };
            let expected = tensor.ne[0].saturating_mul(tensor.ne[2]);
            if inputs.sum_squares.len() as u64 != expected {
                return Err(ImatrixError::OtherModel {
                    path: self.path.clone(),
                    tensor: name.clone(),
                    expected: format!("{expected} inputs"),
                    found: format!("{} inputs", inputs.sum_squares.len()),
                });
            }
            let matrices = inputs.sum_squares.chunks_exact(inputs.n_in).zip(&inputs.counts);
            let mean = matrices.flat_map(|(sums, &count)| {
                sums.iter().map(move |&s| if count > 0.0 { s / count } else { 1.0 })
            });
            rows.push((name.clone(), mean.collect()));
        }
        Ok(rows)
    }
}
