//! Hidden states that a model showed on a set of prompts.

use ndarray::{Array2, Array3, ArrayView1, s};

/// Inputs of one residual writer.
#[derive(Debug, Clone)]
pub struct WriterInputs {
    /// Σ x over all tokens that the writer saw, `[n_in]`, f64. In the last layer llama.cpp
    /// computes the FFN for the last tokens only, so there the sum is over those.
    pub sum: Vec<f64>,
    /// How many tokens `sum` covers.
    pub tokens: u64,
    /// x at the last token of each prompt, f32 `[n_kept][n_in]`; `n_kept ≤ n_prompt` where memory
    /// is short.
    pub last: Array2<f32>,
}

impl WriterInputs {
    /// Mean input over the last tokens that were kept, `[n_in]`.
    pub fn mean_last(&self) -> Vec<f64> {
        let n = self.last.nrows().max(1) as f64;
        self.last.columns().into_iter().map(|c| c.iter().map(|&v| f64::from(v)).sum::<f64>() / n).collect()
    }
}

/// What was captured on a set of prompts.
#[derive(Debug, Clone)]
pub struct Activations {
    /// Residual stream after each layer at the last prompt token, f32 `[n_prompt][n_layer][n_embd]`.
    pub residual: Array3<f32>,
    /// Inputs of each writer, in the plan's order.
    pub inputs: Vec<WriterInputs>,
}

impl Activations {
    /// Number of prompts.
    pub fn n_prompt(&self) -> usize {
        self.residual.shape()[0]
    }

    /// Residual of `prompt` after `layer`, `[n_embd]`.
    pub fn at(&self, prompt: usize, layer: usize) -> ArrayView1<'_, f32> {
        self.residual.slice(s![prompt, layer, ..])
    }

    /// Mean residual after `layer` over all prompts, f64 `[n_embd]`.
    pub fn mean(&self, layer: usize) -> Vec<f64> {
        let mut mean = vec![0.0; self.residual.shape()[2]];
        for prompt in 0..self.n_prompt() {
            mean.iter_mut().zip(self.at(prompt, layer)).for_each(|(m, &v)| *m += f64::from(v));
        }
        let n = self.n_prompt().max(1) as f64;
        mean.iter_mut().for_each(|m| *m /= n);
        mean
    }
}
