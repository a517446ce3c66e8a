//! Products with the weights in F32, in place of llama.cpp's own when many tokens are decoded at once.
//!
//! llama.cpp rounds activations to 8 bits and multiplies them by the quantized weights directly. That is best for one
//! token at a time, but on a long batch it reaches only a third of the CPU's throughput. Here, a few rows of the
//! weights at a time are dequantized and multiplied by crate `gemm`:
//!
//! ```text
//! y[token][row] = Σ_i W[row][i] · x[token][i]      W [n_rows][n_in], x [n_tokens][n_in], y [n_tokens][n_rows]
//! ```
//!
//! This is faster (docs/benchmarks.md) and closer to the exact product. Models are still judged with llama.cpp's own
//! products, because those are what users run.
//!
//! ggml has no way to replace a product, but it calls the eval callback for each node just before computing it: there,
//! `MUL_MAT` becomes `CUSTOM`, which ggml runs on its own threads.

pub(super) mod ffi;
mod rows;

pub use ffi::flops;

/// Arithmetic of products with the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arithmetic {
    /// llama.cpp's own, with activations rounded to 8 bits.
    #[default]
    Llama,
    /// F32 where many tokens at once are multiplied by quantized weights on the CPU.
    F32,
}

/// Whether [`Arithmetic::F32`] is faster on this architecture; it was measured only on x86-64.
pub const IS_FASTER: bool = cfg!(target_arch = "x86_64");
