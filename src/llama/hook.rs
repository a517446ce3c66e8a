//! The eval callback: nodes of the running graph, shown to whoever looks on.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};

use llama_cpp_sys_2 as sys;

use super::LlamaError;

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

    /// Whether the node is `MUL_MAT` or `MUL_MAT_ID`.
    pub fn is_mul_mat(&self) -> bool {
        matches!(self.tensor.op, sys::GGML_OP_MUL_MAT | sys::GGML_OP_MUL_MAT_ID)
    }

    /// Name of the node's operation as ggml spells it, e.g. `ADD`; `NONE` for weights and inputs.
    pub fn op(&self) -> &'a str {
        // SAFETY: ggml answers every operation with a static NUL-terminated string.
        unsafe { CStr::from_ptr(sys::ggml_op_name(self.tensor.op)) }.to_str().unwrap_or("")
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

    /// Copies one row of F32 (`ne[0]` values at index `row` of dimensions 1..3 flattened).
    /// `None` when the node is not F32, not row-contiguous, or has no such row.
    pub fn read_row(&self, row: i64, out: &mut Vec<f32>) -> Option<()> {
        self.read(sys::GGML_TYPE_F32, row, out)
    }

    /// Copies one row of I32, as [`Self::read_row`] does one of F32.
    pub fn read_ids(&self, row: i64, out: &mut Vec<i32>) -> Option<()> {
        self.read(sys::GGML_TYPE_I32, row, out)
    }

    fn read<T: Word>(&self, ggml_type: sys::ggml_type, row: i64, out: &mut Vec<T>) -> Option<()> {
        let t = self.tensor;
        let rows = t.ne[1].checked_mul(t.ne[2])?.checked_mul(t.ne[3])?;
        if t.type_ != ggml_type || t.nb[0] != 4 || row < 0 || row >= rows {
            return None;
        }
        let (i1, i2, i3) = (row % t.ne[1], row / t.ne[1] % t.ne[2], row / t.ne[1] / t.ne[2]);
        let offset = i1 as usize * t.nb[1] + i2 as usize * t.nb[2] + i3 as usize * t.nb[3];
        out.clear();
        out.resize(t.ne[0] as usize, T::default());
        // SAFETY: `offset + 4·ne[0]` lies inside the tensor because each index is below its extent;
        // `out` is writable for that many bytes, of which every pattern is a `T`; the tensor has been
        // computed (`ask` is false).
        unsafe {
            sys::ggml_backend_tensor_get(t, out.as_mut_ptr().cast(), offset, t.ne[0] as usize * 4);
        }
        Some(())
    }
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
}

/// Who looks on, and what went wrong there.
#[derive(Default)]
pub(super) struct HookState {
    pub(super) hook: Option<NonNull<dyn EvalHook>>,
    pub(super) error: Option<LlamaError>,
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
    // `t` a live node of its graph; no other reference to either exists during the call.
    let (state, tensor) = unsafe { (&mut *user.cast::<HookState>(), &*t) };
    let Some(mut hook) = state.hook else { return false };
    if state.error.is_some() {
        return false;
    }
    // SAFETY: `decode` set the pointer from a `&mut` that outlives the decode.
    let hook = unsafe { hook.as_mut() };
    let node = Node { tensor };
    // Unwinding into C is undefined: a panic becomes an error that `decode` raises.
    match catch_unwind(AssertUnwindSafe(|| {
        if ask { Ok(hook.wants(node)) } else { hook.take(node).map(|()| true) }
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
