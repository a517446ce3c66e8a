//! Products with the weights in floating point, in place of llama.cpp's own when many tokens are decoded at once.
//!
//! llama.cpp rounds activations to 8 bits and multiplies them by the quantized weights directly. That is best for one
//! token at a time, but on a long batch it reaches only a third of the CPU's throughput. Here, a few rows of the
//! weights at a time are dequantized and multiplied by crate `gemm` in F32 or, on CPUs that multiply BF16, by a kernel
//! of ours in that type, with sums in F32:
//!
//! ```text
//! y[token][row] = Σ_i W[row][i] · x[token][i]      W [n_rows][n_in], x [n_tokens][n_in], y [n_tokens][n_rows]
//! ```
//!
//! This is faster (docs/benchmarks.md) and closer to the exact product: BF16 rounds each value to 8 significant bits,
//! llama.cpp to 8 bits of the largest of 32 values or more. Models are still judged with llama.cpp's own
//! products, because those are what users run.
//!
//! ggml has no way to replace a product, but it calls the eval callback for each node just before computing it: there,
//! `MUL_MAT` becomes `CUSTOM`, which ggml runs on its own threads.

#[cfg_attr(not(target_arch = "x86_64"), path = "matmul/bf16/elsewhere.rs")]
mod bf16;
pub(super) mod ffi;
mod rows;

pub use ffi::Flops;

/// Returns the type in which [`Arithmetic::Float`] multiplies on this CPU.
pub fn kernel() -> &'static str {
    if bf16::Operands::new().is_some() { "products in BF16" } else { "products in F32" }
}

/// Arithmetic of products with the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arithmetic {
    /// llama.cpp's own, with activations rounded to 8 bits.
    #[default]
    Llama,
    /// F32 or BF16 where many tokens at once are multiplied by quantized weights on the CPU.
    Float,
}

/// Whether [`Arithmetic::Float`] is faster on this architecture; it was measured only on x86-64.
pub const IS_FASTER: bool = cfg!(target_arch = "x86_64");
