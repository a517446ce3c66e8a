//! Replacement of ggml's products by products in floating point.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::slice;
use std::time::Instant;

use llama_cpp_sys_2 as sys;

use super::bf16::Operands;
use super::{Arithmetic, rows};
use crate::gguf::GgmlType;

/// Divisor of the lengths of rows that the kernel in BF16 multiplies: the block size of ggml's smallest quantized types.
const ROW_MULTIPLE: i64 = 32;
/// Minimum number of tokens of a product; at 64, dequantizing takes as long as the product saves.
const MIN_TOKENS: i64 = 96;
/// Number of dequantized values that are multiplied at a time (1 MiB), so that they stay in a core's cache.
const BLOCK_VALUES: usize = 1 << 18;
/// Minimum and maximum rows of a block; multiples of the number that `gemm` multiplies at a time.
const BLOCK_ROWS: (usize, usize) = (64, 128);

/// ggml's parameters of a `CUSTOM` operation, laid out as in `ggml-impl.h`.
#[repr(C)]
struct CustomParams {
    function: sys::ggml_custom_op_t,
    n_tasks: c_int,
    user: *mut c_void,
}

const _: () = assert!(size_of::<CustomParams>() <= size_of::<[i32; 16]>());

/// ggml's value for "as many tasks as threads" (`GGML_N_TASKS_MAX`).
const N_TASKS_MAX: c_int = -1;

/// Turns `node` into a product in floating point if `arithmetic` asks for it and the node is suitable; otherwise
/// restores llama.cpp's own product.
pub(in crate::llama) fn choose(node: &mut sys::ggml_tensor, arithmetic: Arithmetic) {
    if is_ours(node) {
        node.op = sys::GGML_OP_MUL_MAT;
        node.op_params = [0; 16];
    }
    if arithmetic == Arithmetic::Float && fits(node) {
        let (function, user) = (Some(multiply as _), std::ptr::null_mut());
        let params = CustomParams { function, n_tasks: N_TASKS_MAX, user };
        node.op = sys::GGML_OP_CUSTOM;
        // SAFETY: `op_params` is large enough (asserted above), and the write needs no alignment.
        unsafe { node.op_params.as_mut_ptr().cast::<CustomParams>().write_unaligned(params) };
    }
}

/// Returns whether `node` is a product that [`choose`] has replaced.
pub(in crate::llama) fn is_ours(node: &sys::ggml_tensor) -> bool {
    // SAFETY: `op_params` is larger than a `usize`. Those of a CUSTOM node begin with the address of its function
    // (ggml-impl.h), which is only compared.
    let function = unsafe { node.op_params.as_ptr().cast::<usize>().read_unaligned() };
    node.op == sys::GGML_OP_CUSTOM && function == (multiply as *const ()).addr()
}

/// Returns whether `node` multiplies many tokens by a quantized matrix at default precision, with all data in memory.
fn fits(node: &sys::ggml_tensor) -> bool {
    // SAFETY: inputs of a node live as long as its graph.
    let (weights, x) = unsafe { (node.src[0].as_ref(), node.src[1].as_ref()) };
    let (Some(weights), Some(x)) = (weights, x) else { return false };
    let is_matrix = weights.ne[2] == 1 && weights.ne[3] == 1 && weights.nb[1] == row_bytes(weights);
    node.op == sys::GGML_OP_MUL_MAT
        && node.op_params[0] == 0
        && is_matrix
        && weights.ne[0] > 0
        && weights.ne[0] % ROW_MULTIPLE == 0
        && is_quantized(weights)
        && to_float(weights).is_some()
        && x.type_ == sys::GGML_TYPE_F32
        && node.type_ == sys::GGML_TYPE_F32
        && n_tokens(node) >= MIN_TOKENS
        && [x, node].into_iter().all(is_contiguous)
        && is_in_memory(weights)
        && is_computed_on_the_cpu(node)
}

fn n_tokens(node: &sys::ggml_tensor) -> i64 {
    node.ne[1].saturating_mul(node.ne[2]).saturating_mul(node.ne[3])
}

fn row_bytes(tensor: &sys::ggml_tensor) -> usize {
    // SAFETY: type and width are those of a tensor that llama.cpp created.
    unsafe { sys::ggml_row_size(tensor.type_, tensor.ne[0]) }
}

fn is_quantized(tensor: &sys::ggml_tensor) -> bool {
    // SAFETY: the type is that of a tensor that llama.cpp created.
    unsafe { sys::ggml_is_quantized(tensor.type_) }
}

fn is_contiguous(tensor: &sys::ggml_tensor) -> bool {
    // SAFETY: the call only reads shape and strides.
    unsafe { sys::ggml_is_contiguous(tensor) }
}

fn to_float(tensor: &sys::ggml_tensor) -> sys::ggml_to_float_t {
    // SAFETY: ggml has traits for every type that a tensor can have.
    unsafe { (*sys::ggml_get_type_traits(tensor.type_)).to_float }
}

/// Returns the buffer that holds `tensor` or the tensor that it is a view of.
fn buffer(tensor: &sys::ggml_tensor) -> sys::ggml_backend_buffer_t {
    // SAFETY: the tensor behind a view lives as long as the view.
    unsafe { tensor.view_src.as_ref() }.unwrap_or(tensor).buffer
}

fn is_in_memory(tensor: &sys::ggml_tensor) -> bool {
    let buffer = buffer(tensor);
    // SAFETY: a tensor's buffer lives as long as its graph.
    !buffer.is_null() && unsafe { sys::ggml_backend_buffer_is_host(buffer) }
}

/// Returns whether the CPU computes `node`: a node is computed by the backend whose buffer holds it.
fn is_computed_on_the_cpu(node: &sys::ggml_tensor) -> bool {
    let buffer = buffer(node);
    // SAFETY: as above; the CPU's buffer type is static.
    !buffer.is_null()
        && unsafe { sys::ggml_backend_buffer_get_type(buffer) == sys::ggml_backend_cpu_buffer_type() }
}

thread_local! {
    /// Buffers of the current ggml thread.
    static MULTIPLIER: RefCell<Multiplier> = RefCell::new(Multiplier::new(Operands::new()));
}

/// Multiplies blocks of rows by the same tokens.
struct Multiplier {
    /// The dequantized rows.
    block: Vec<f32>,
    /// The operands in BF16, if the CPU multiplies these.
    bf16: Option<Operands>,
}

impl Multiplier {
    fn new(bf16: Option<Operands>) -> Self {
        Self { block: Vec::new(), bf16 }
    }

    /// Prepares the tokens `x` `[n_tokens][n_in]`.
    fn set_tokens(&mut self, x: &[f32], n_in: usize) {
        if let Some(operands) = &mut self.bf16 {
            operands.set_tokens(x, n_in);
        }
    }

    /// Multiplies the first `n_rows` rows of the block by the tokens `x` of [`Self::set_tokens`], for sizes `[n_rows,
    /// n_tokens, n_in]`: `y[token][row] = Σ_i block[row][i] · x[token][i]`. The outputs of successive tokens are
    /// `stride` values apart.
    ///
    /// # Safety
    /// `y` must be writable for `n_rows` values at each of `n_tokens` strides.
    unsafe fn product(&mut self, sizes: [usize; 3], x: &[f32], y: *mut f32, stride: usize) {
        let [n_rows, n_tokens, n_in] = sizes;
        assert!(x.len() == n_tokens * n_in && self.block.len() >= n_rows * n_in);
        // SAFETY: upheld by the caller and the assertion.
        unsafe {
            match &mut self.bf16 {
                Some(operands) => {
                    operands.set_rows(&self.block[..n_rows * n_in], n_in);
                    operands.product(sizes, y, stride);
                }
                None => product(sizes, self.block.as_ptr(), x.as_ptr(), y, stride),
            }
        }
    }
}

/// The custom operation. Thread `ith` of `nth` multiplies every `nth` block of rows, so the result does not depend on
/// `nth`.
unsafe extern "C" fn multiply(node: *mut sys::ggml_tensor, ith: c_int, nth: c_int, _: *mut c_void) {
    // SAFETY: ggml passes the node that `choose` changed, with its inputs computed. `fits` checked the types, that x
    // and the node are contiguous, and that the CPU computes the node from weights in memory.
    let (node, weights, x) = unsafe { (&*node, &*(*node).src[0], &*(*node).src[1]) };
    let Some(to_float) = to_float(weights) else { return };
    let decode = GgmlType::from_id(weights.type_).and_then(rows::decoder);
    let [n_in, n_rows] = [weights.ne[0] as usize, weights.ne[1] as usize];
    let (n_tokens, row_bytes) = (n_tokens(node) as usize, row_bytes(weights));
    let [ith, nth] = [ith, nth].map(|n| n as usize);
    let (least, most) = BLOCK_ROWS;
    let block_rows = (BLOCK_VALUES / n_in.max(1) / least * least).clamp(least, most);
    if ith * block_rows >= n_rows {
        // No block is left for this thread.
        return;
    }
    // SAFETY: x is contiguous, `[n_tokens][n_in]`.
    let x = unsafe { slice::from_raw_parts(x.data.cast_const().cast::<f32>(), n_tokens * n_in) };
    MULTIPLIER.with_borrow_mut(|multiplier| {
        multiplier.set_tokens(x, n_in);
        let n_values = multiplier.block.len().max(block_rows * n_in);
        multiplier.block.resize(n_values, 0.0);
        for start in (0..n_rows).step_by(block_rows).skip(ith).step_by(nth) {
            let rows = block_rows.min(n_rows - start);
            for (row, out) in multiplier.block.chunks_exact_mut(n_in).take(rows).enumerate() {
                // SAFETY: the row lies inside the weights.
                let bytes = unsafe {
                    let at = weights.data.cast_const().cast::<u8>().add((start + row) * row_bytes);
                    slice::from_raw_parts(at, row_bytes)
                };
                match decode {
                    Some(decode) => decode(bytes, out),
                    // SAFETY: `bytes` is a whole row, and `out` has room for its values.
                    None => unsafe { to_float(bytes.as_ptr().cast(), out.as_mut_ptr(), n_in as i64) },
                }
            }
            // SAFETY: the call writes columns `start..start + rows` of y `[n_tokens][n_rows]`, which no other thread
            // writes.
            unsafe {
                let y = node.data.cast::<f32>().add(start);
                multiplier.product([rows, n_tokens, n_in], x, y, n_rows);
            }
        }
    });
}

/// Computes [`Multiplier::product`] in F32.
///
/// # Safety
/// `w` must hold `[n_rows][n_in]` and `x` `[n_tokens][n_in]` values, and `y` must be writable for `n_rows` values at
/// each of `n_tokens` strides.
unsafe fn product(
    [n_rows, n_tokens, n_in]: [usize; 3],
    w: *const f32,
    x: *const f32,
    y: *mut f32,
    stride: usize,
) {
    let (one_in, one_row) = (n_in as isize, stride as isize);
    // SAFETY: upheld by the caller.
    unsafe {
        #[rustfmt::skip]
        gemm::gemm(
            n_rows, n_tokens, n_in, y, one_row, 1, false, w, 1, one_in, x, one_in, 1, 0.0, 1.0,
            false, false, false, gemm::Parallelism::None,
        );
    }
}

/// Floating-point operations per second of one thread.
#[derive(Debug, Clone, Copy)]
pub struct Flops {
    /// In F32.
    pub f32: f64,
    /// In the type in which [`Arithmetic::Float`] multiplies.
    pub float: f64,
}

impl Flops {
    /// Measures them within some hundredths of a second.
    pub fn measure() -> Self {
        let f32 = flops(None);
        Self { f32, float: Operands::new().map_or(f32, |operands| flops(Some(operands))) }
    }
}

fn flops(bf16: Option<Operands>) -> f64 {
    const N: usize = 512;
    let mut multiplier = Multiplier::new(bf16);
    multiplier.block = vec![1.0; N * N];
    let (x, mut y) = (vec![1f32; N * N], vec![0f32; N * N]);
    let mut seconds = || {
        let start = Instant::now();
        multiplier.set_tokens(&x, N);
        // SAFETY: y is a matrix of N × N values.
        unsafe { multiplier.product([N; 3], &x, y.as_mut_ptr(), N) };
        start.elapsed().as_secs_f64()
    };
    // Other load only makes a run slower, so the fastest run counts.
    let best = (0..16).map(|_| seconds()).fold(f64::INFINITY, f64::min);
    2.0 * (N as f64).powi(3) / best
}

#[cfg(test)]
mod tests;
