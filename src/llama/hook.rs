//! The eval callback: nodes of the running graph, shown to whoever looks on.
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
    /// The node's name; empty when it is not UTF-8.
    pub fn name(&self) -> &'a str {
        // SAFETY: ggml keeps the name NUL-terminated within its 64 bytes.
        unsafe { CStr::from_ptr(self.tensor.name.as_ptr()) }.to_str().unwrap_or("")
    }

    /// The name of what this is, or is a copy of. Where an input is on another device than what reads it, ggml's scheduler
    /// makes a copy for it, called `DEVICE#NAME#NUMBER`.
    pub fn original_name(&self) -> &'a str {
        original_name(self.name())
    }

    /// Whether the node is `MUL_MAT` or `MUL_MAT_ID`.
    pub fn is_mul_mat(&self) -> bool {
        matches!(self.ggml_op(), sys::GGML_OP_MUL_MAT | sys::GGML_OP_MUL_MAT_ID)
    }

    /// The operation that llama.cpp asked for.
    fn ggml_op(&self) -> sys::ggml_op {
        if matmul::is_ours(self.tensor) { sys::GGML_OP_MUL_MAT } else { self.tensor.op }
    }

    /// Name of the node's operation as ggml spells it, e.g. `ADD`; `NONE` for weights and inputs.
    pub fn op(&self) -> &'a str {
        // SAFETY: ggml answers every operation with a static NUL-terminated string.
        unsafe { CStr::from_ptr(sys::ggml_op_name(self.ggml_op())) }.to_str().unwrap_or("")
    }

    /// What tells the node from every other one of the same graph.
    pub fn id(&self) -> usize {
        ptr::from_ref(self.tensor).addr()
    }

    /// The factor of a `SCALE`.
    pub fn scale(&self) -> Option<f32> {
        let factor = f32::from_bits(self.tensor.op_params[0].cast_unsigned());
        (self.tensor.op == sys::GGML_OP_SCALE).then_some(factor)
    }

    /// The node's shape, `ne[0]` fastest.
    pub fn ne(&self) -> [i64; 4] {
        self.tensor.ne
    }

    /// Input `i` of the node.
    pub fn src(&self, i: usize) -> Option<Node<'a>> {
        let src = *self.tensor.src.get(i)?;
        // SAFETY: inputs of a node live as long as the graph that holds both.
        unsafe { src.as_ref() }.map(|tensor| Node { tensor })
    }

    /// Copies rows of F32 in the order that is asked for, `[rows][ne[0]]`: each `ne[0]` values at its index in
    /// dimensions 1..3 flattened. `None` when the node is not F32, not row-contiguous, or has no such row.
    pub fn read_rows(&self, rows: &[usize], out: &mut Vec<f32>) -> Option<()> {
        self.read(sys::GGML_TYPE_F32, rows, out)
    }

    /// Copies rows of I32, as [`Self::read_rows`] does of F32.
    pub fn read_ids(&self, rows: &[usize], out: &mut Vec<i32>) -> Option<()> {
        self.read(sys::GGML_TYPE_I32, rows, out)
    }

    /// Rows that lie near each other come with one call: from a GPU, or over a network, a call takes as long
    /// as some kilobytes.
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
            // SAFETY: `start..end` lies inside the tensor because each row's index is below its extent; `bytes`
            // is writable for its length, and every pattern of bytes is a `T`; the tensor has been computed
            // (`ask` is false).
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

    /// Whether its data is in the memory of this process.
    fn is_in_memory(&self) -> bool {
        // SAFETY: a node's buffer, or that of what it is a view of, lives as long as its graph.
        unsafe {
            let owner = self.tensor.view_src.as_ref().unwrap_or(self.tensor);
            !owner.buffer.is_null() && sys::ggml_backend_buffer_is_host(owner.buffer)
        }
    }
}

/// Bytes that are read along rather than left out by a second call.
const NEAR: usize = 64 << 10;

/// Indices of `offsets` (bytes, of rows of `len` bytes) in runs that are read at once, each in rising order of
/// its offsets: no two neighbours of a run have more than `gap` bytes between them.
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

/// What four bytes of a tensor are read as.
trait Word: Copy + Default {}
impl Word for f32 {}
impl Word for i32 {}

/// What looks on while a graph runs.
pub trait EvalHook {
    /// Whether the data of `node` is wanted once it has been computed.
    fn wants(&mut self, node: Node<'_>) -> bool;
    /// Takes the data of a wanted node.
    ///
    /// # Errors
    /// Ends the decode; the error comes back from [`super::ffi::Context::decode`].
    fn take(&mut self, node: Node<'_>) -> Result<(), LlamaError>;
    /// Whether everything was seen that is looked for: what is left of the graph is not computed on a CPU, and the decode has no
    /// logits.
    fn has_all(&self) -> bool {
        false
    }
}

/// Who looks on, and what went wrong there.
#[derive(Default)]
pub(super) struct HookState {
    /// How products are computed.
    pub(super) arithmetic: Arithmetic,
    pub(super) hook: Option<NonNull<dyn EvalHook>>,
    pub(super) error: Option<LlamaError>,
    /// Whether the rest of the graph is not wanted.
    pub(super) ended: AtomicBool,
}

/// `abort_callback` of every context. Ending through it, unlike through `cb_eval`, ends all parts of a graph that is split.
///
/// # Safety
/// `user` must point to the [`HookState`] of the context that is decoding.
pub(super) unsafe extern "C" fn abort_callback(user: *mut c_void) -> bool {
    // SAFETY: `user` is the boxed `HookState` of the context, of which only the atomic is read.
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
    // SAFETY: `user` is the boxed `HookState` of the context that is decoding on this thread, and
    // `t` a live node of its graph that is not being computed; no other reference to either exists during the call.
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
    // Unwinding into C is undefined: a panic becomes an error that `decode` raises.
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
