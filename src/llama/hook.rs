//! The eval callback, which lets an observer see the nodes of the running graph.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

use super::LlamaError;
use super::matmul::{Arithmetic, ffi as matmul};
use crate::util::interrupt;

/// One node of the running graph, as the eval callback sees it.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    tensor: &'a sys::ggml_tensor,
}

impl<'a> Node<'a> {
    /// Returns the node's name; empty if it is not UTF-8.
    pub fn name(&self) -> &'a str {
        // SAFETY: ggml keeps the name NUL-terminated within its 64 bytes.
        unsafe { CStr::from_ptr(self.tensor.name.as_ptr()) }.to_str().unwrap_or("")
    }

    /// Returns the name of this node, or of the node that it is a copy of. If an input is on a different device than
    /// its reader, ggml's scheduler makes a copy called `DEVICE#NAME#NUMBER`.
    pub fn original_name(&self) -> &'a str {
        original_name(self.name())
    }

    /// Returns whether the node is `MUL_MAT` or `MUL_MAT_ID`.
    pub fn is_mul_mat(&self) -> bool {
        matches!(self.ggml_op(), sys::GGML_OP_MUL_MAT | sys::GGML_OP_MUL_MAT_ID)
    }

    /// Returns the operation that llama.cpp requested, even if [`matmul::choose`] has replaced it.
    fn ggml_op(&self) -> sys::ggml_op {
        if matmul::is_ours(self.tensor) { sys::GGML_OP_MUL_MAT } else { self.tensor.op }
    }

    /// Returns ggml's name of the node's operation, e.g. `ADD`; `NONE` for weights and inputs.
    pub fn op(&self) -> &'a str {
        // SAFETY: ggml returns a static NUL-terminated string for every operation.
        unsafe { CStr::from_ptr(sys::ggml_op_name(self.ggml_op())) }.to_str().unwrap_or("")
    }

    /// Returns an id that is unique among the nodes of a graph.
    pub fn id(&self) -> usize {
        ptr::from_ref(self.tensor).addr()
    }

    /// Returns the factor of a `SCALE` node; `None` for other operations.
    pub fn scale(&self) -> Option<f32> {
        let factor = f32::from_bits(self.tensor.op_params[0].cast_unsigned());
        (self.tensor.op == sys::GGML_OP_SCALE).then_some(factor)
    }

    /// Returns the node's shape, `ne[0]` fastest.
    pub fn ne(&self) -> [i64; 4] {
        self.tensor.ne
    }

    /// Returns input `i` of the node, if it exists.
    pub fn src(&self, i: usize) -> Option<Node<'a>> {
        let src = *self.tensor.src.get(i)?;
        // SAFETY: inputs of a node live as long as the graph that holds both.
        unsafe { src.as_ref() }.map(|tensor| Node { tensor })
    }

    /// Copies F32 rows to `out` in the given order, `[rows][ne[0]]`. A row is `ne[0]` values, indexed by the
    /// flattened dimensions 1 to 3. Returns `None` if the node is not F32, not row-contiguous, or lacks a row.
    pub fn read_rows(&self, rows: &[usize], out: &mut Vec<f32>) -> Option<()> {
        self.read(sys::GGML_TYPE_F32, rows, out)
    }

    /// Like [`Self::read_rows`], for I32 rows.
    pub fn read_ids(&self, rows: &[usize], out: &mut Vec<i32>) -> Option<()> {
        self.read(sys::GGML_TYPE_I32, rows, out)
    }

    /// Copies rows of 4-byte values. Rows that are close together are read with one call, because a call to a GPU or
    /// over a network takes as long as the transfer of some kilobytes.
    fn read<T: Word>(&self, ggml_type: sys::ggml_type, rows: &[usize], out: &mut Vec<T>) -> Option<()> {
        let t = self.tensor;
        let [n_values, ne1, ne2, ne3] = t.ne.map(|n| n as usize);
        if t.type_ != ggml_type || t.nb[0] != 4 {
            return None;
        }
        let n_rows = ne1.checked_mul(ne2)?.checked_mul(ne3)?;
        let offset = |&row: &usize| {
            let strides = row % ne1 * t.nb[1] + row / ne1 % ne2 * t.nb[2] + row / ne1 / ne2 * t.nb[3];
            (row < n_rows).then_some(strides)
        };
        let offsets: Vec<usize> = rows.iter().map(offset).collect::<Option<_>>()?;
        let gap = if self.is_in_memory() { 0 } else { NEAR };
        out.clear();
        out.resize(rows.len() * n_values, T::default());
        let mut bytes: Vec<T> = Vec::new();
        for run in runs(&offsets, n_values * 4, gap) {
            let start = offsets[run[0]];
            let end = run.iter().map(|&i| offsets[i]).max()? + n_values * 4;
            bytes.resize((end - start) / 4, T::default());
            // SAFETY: `start..end` lies inside the tensor because each row index is below the number of rows;
            // `bytes` is writable for its length, and every bit pattern is a valid `T`; the tensor has been
            // computed (`ask` is false).
            unsafe {
                sys::ggml_backend_tensor_get(t, bytes.as_mut_ptr().cast(), start, end - start);
            }
            for i in run {
                let from = (offsets[i] - start) / 4;
                out[i * n_values..][..n_values].copy_from_slice(&bytes[from..][..n_values]);
            }
        }
        Some(())
    }

    /// Returns whether the node's data is in the memory of this process.
    fn is_in_memory(&self) -> bool {
        // SAFETY: the buffer of a node, or of the node that it is a view of, lives as long as the graph.
        unsafe {
            let owner = self.tensor.view_src.as_ref().unwrap_or(self.tensor);
            !owner.buffer.is_null() && sys::ggml_backend_buffer_is_host(owner.buffer)
        }
    }
}

/// Maximum gap between two rows, in bytes, that is read along to avoid a second call.
const NEAR: usize = 64 << 10;

/// Groups the indices of `offsets` (of rows of `len` bytes, in bytes) into runs to be read at once. Each run is sorted
/// by offset, with at most `gap` bytes between neighbors.
fn runs(offsets: &[usize], len: usize, gap: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..offsets.len()).collect();
    order.sort_by_key(|&i| offsets[i]);
    let mut runs: Vec<Vec<usize>> = Vec::new();
    for i in order {
        match runs.last_mut() {
            Some(run) if run.last().is_some_and(|&at| offsets[i] <= offsets[at] + len + gap) => run.push(i),
            _ => runs.push(vec![i]),
        }
    }
    runs
}

fn original_name(name: &str) -> &str {
    name.split('#').nth(1).unwrap_or(name)
}

/// A type that four bytes of a tensor can be read as.
trait Word: Copy + Default {}
impl Word for f32 {}
impl Word for i32 {}

/// An observer of a running graph.
pub trait EvalHook {
    /// Returns whether the data of `node` is wanted once it has been computed.
    fn wants(&mut self, node: Node<'_>) -> bool;
    /// Takes the data of a wanted node.
    ///
    /// # Errors
    /// An error ends the decode and is returned by [`super::ffi::Context::decode`].
    fn take(&mut self, node: Node<'_>) -> Result<(), LlamaError>;
    /// Returns whether the hook needs nothing more. If so, a CPU does not compute the rest of the graph, and the decode
    /// has no logits.
    fn has_all(&self) -> bool {
        false
    }
}

/// State shared with the callbacks of a context.
#[derive(Default)]
pub(super) struct HookState {
    /// Arithmetic of products with the weights.
    pub(super) arithmetic: Arithmetic,
    /// Observer of the current decode.
    pub(super) hook: Option<NonNull<dyn EvalHook>>,
    /// Error of the observer.
    pub(super) error: Option<LlamaError>,
    /// Whether the rest of the graph is not needed.
    pub(super) ended: AtomicBool,
}

/// `abort_callback` of every context. Unlike `cb_eval`, it stops all parts of a split graph.
///
/// # Safety
/// `user` must point to the [`HookState`] of the context that is decoding.
pub(super) unsafe extern "C" fn abort_callback(user: *mut c_void) -> bool {
    // SAFETY: `user` is the boxed `HookState` of the context; only its atomic is read.
    interrupt::requested() || unsafe { &(*user.cast::<HookState>()).ended }.load(Ordering::Relaxed)
}

/// `cb_eval` of every context.
///
/// # Safety
/// `user` must point to the [`HookState`] of the context that is decoding.
pub(super) unsafe extern "C" fn eval_callback(
    t: *mut sys::ggml_tensor,
    ask: bool,
    user: *mut c_void,
) -> bool {
    // SAFETY: `user` is the boxed `HookState` of the context that is decoding on this thread, and `t` is a live node of
    // its graph that is not being computed; no other reference to either exists during the call.
    let (state, tensor) = unsafe { (&mut *user.cast::<HookState>(), &mut *t) };
    if ask {
        matmul::choose(tensor, state.arithmetic);
    }
    let Some(mut hook) = state.hook else { return false };
    if state.error.is_some() {
        return false;
    }
    // SAFETY: `decode` set the pointer from a `&mut` that outlives the decode.
    let hook = unsafe { hook.as_mut() };
    let node = Node { tensor };
    // Unwinding into C is undefined behavior, so a panic becomes an error that `decode` returns.
    match catch_unwind(AssertUnwindSafe(|| {
        if ask {
            return Ok(hook.wants(node));
        }
        hook.take(node)?;
        state.ended.store(hook.has_all(), Ordering::Relaxed);
        Ok(true)
    })) {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            state.error = Some(error);
            false
        }
        Err(_) => {
            state.error = Some(LlamaError::Callback);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_lie_near_are_read_at_once() {
        let offsets = [800, 0, 100, 400, 100];
        assert_eq!(runs(&offsets, 100, 0), [vec![1, 2, 4], vec![3], vec![0]]);
        assert_eq!(runs(&offsets, 100, 200), [vec![1, 2, 4, 3], vec![0]]);
        assert_eq!(runs(&offsets, 100, 300), [vec![1, 2, 4, 3, 0]]);
        assert!(runs(&[], 100, 0).is_empty());
    }

    #[test]
    fn a_copy_for_another_device_is_the_same_weight() {
        assert_eq!(original_name("blk.3.ffn_down.weight"), "blk.3.ffn_down.weight");
        assert_eq!(original_name("Vulkan0#blk.3.ffn_down.weight#0"), "blk.3.ffn_down.weight");
        assert_eq!(original_name("CPU#ffn_moe_down-3#0"), "ffn_moe_down-3");
    }
}
