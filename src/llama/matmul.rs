//! Products with the weights in F32, in place of llama.cpp's own where many tokens are decoded at once.
//!
//! llama.cpp rounds activations to 8 bits and multiplies them by the quantized weights as they are. That is best for a
//! token at a time; of a long batch it does a third of what the CPU could. Here some rows of the weights at a time are
//! dequantized and multiplied by crate `gemm`:
//!
//! ```text
//! y[token][row] = Σ_i W[row][i] · x[token][i]      W [n_rows][n_in], x [n_tokens][n_in], y [n_tokens][n_rows]
//! ```
//!
//! which is faster (docs/benchmarks.md) and nearer to the exact product. What a user will run rounds, so a model is judged
//! by llama.cpp's own products.
//!
//! ggml cannot be given another product, but it asks the eval callback about each node just before the node is computed:
//! there `MUL_MAT` becomes `CUSTOM`, which ggml runs on its own threads.

pub(super) mod ffi;
mod rows;

pub use ffi::flops;

/// How a batch is multiplied by the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arithmetic {
    /// As llama.cpp does, with activations in 8 bits.
    #[default]
    Llama,
    /// In F32 where many tokens are multiplied at once by quantized weights on the CPU.
    F32,
}

/// Whether F32 is faster: that was measured on this architecture alone.
pub const IS_FASTER: bool = cfg!(target_arch = "x86_64");
