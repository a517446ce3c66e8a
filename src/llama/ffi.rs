//! Thin, safe owners of llama.cpp's handles.
//!
//! `llama-cpp-2` dropped `cb_eval`, hides its raw pointers, and always builds llama.cpp's `common/` (half the build),
//! so this module uses `llama-cpp-sys-2`. Every wrapper checks for the conditions on which ggml would call `abort()`.
#![allow(unsafe_code)]

use std::cell::{Cell, OnceCell};
use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::{Mutex, Once};

use llama_cpp_sys_2 as sys;

use super::LlamaError;
use super::abort::ffi::Trying;
use super::abort::{self, Unproven};
use super::batch::Batch;
use super::devices::ffi::Placement;
use super::hook::{EvalHook, HookState, abort_callback, eval_callback};
use super::matmul::{Arithmetic, IS_FASTER};
use super::offload::{FlashAttn, Offload};
use super::vocabulary::Specials;
use crate::util::interrupt;

/// A token id of the model's vocabulary.
pub type Token = i32;

/// Recent errors from llama.cpp's log, kept so that a [`LlamaError`] can include the reason.
static LAST_ERRORS: Mutex<String> = Mutex::new(String::new());

unsafe extern "C" fn log_to_tracing(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives for this call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let text = text.trim_end();
    if level == sys::GGML_LOG_LEVEL_ERROR {
        if let Ok(mut last) = LAST_ERRORS.lock() {
            if last.len() > 2000 {
                last.clear();
            }
            last.push_str(text);
            last.push('\n');
        }
        tracing::debug!(target: "llama.cpp", "error: {text}");
    } else {
        tracing::trace!(target: "llama.cpp", "{text}");
    }
}

/// Returns and clears the errors that llama.cpp has logged since the last call, joined on one line.
pub(crate) fn take_errors() -> String {
    let mut last = LAST_ERRORS.lock().map(|mut l| std::mem::take(&mut *l)).unwrap_or_default();
    if last.is_empty() {
        last.push_str("llama.cpp gave no reason");
    }
    last.trim_end().replace('\n', "; ")
}

/// Initializes llama.cpp once per process and forwards its log to `tracing`.
pub(crate) fn init_backend() {
    static START: Once = Once::new();
    START.call_once(|| {
        // SAFETY: called once, before any other llama.cpp function; the callback is 'static.
        unsafe {
            sys::llama_log_set(Some(log_to_tracing), ptr::null_mut());
            sys::llama_backend_init();
        }
        abort::ffi::install();
    });
}

/// Returns llama.cpp's version string, for reports.
pub fn llama_version() -> String {
    // SAFETY: returns a static NUL-terminated string.
    unsafe { CStr::from_ptr(sys::llama_version()) }.to_string_lossy().into_owned()
}

unsafe extern "C" fn load_progress(progress: f32, user: *mut c_void) -> bool {
    // SAFETY: `user` is the `&mut &mut dyn FnMut` that `Model::load` keeps alive during the load.
    let report = unsafe { &mut *user.cast::<&mut dyn FnMut(f32)>() };
    let _ = catch_unwind(AssertUnwindSafe(|| report(progress)));
    !interrupt::requested()
}

/// A loaded model: weights and vocabulary.
pub struct Model {
    ptr: NonNull<sys::llama_model>,
    file: &'static Unproven,
    /// Whether llama.cpp has already computed with this model.
    proven: Cell<bool>,
    pub(super) specials: OnceCell<Specials>,
}

impl Model {
    /// Loads the GGUF at `path`, whose header must have been checked before (see [`crate::gguf`]).
    ///
    /// # Errors
    /// Returns [`LlamaError::Load`] if llama.cpp cannot load the file, [`LlamaError::NoDevice`] if a named device
    /// does not exist, or [`LlamaError::Interrupted`] if the user stops the run.
    pub fn load(
        path: &Path,
        offload: &Offload,
        mut progress: &mut dyn FnMut(f32),
    ) -> Result<Rc<Self>, LlamaError> {
        init_backend();
        // A signal handler may read it for the rest of the process, and a run loads only a few models.
        let file: &'static Unproven = Box::leak(Box::new(Unproven::new(path)));
        let _trying = Trying::new(file);
        let fail = |reason: String| LlamaError::Load { path: path.to_owned(), reason };
        let c_path = path.to_str().ok_or_else(|| fail("the path is not UTF-8".into()))?;
        let c_path = CString::new(c_path).map_err(|_| fail("the path contains a NUL byte".into()))?;
        let mut placement = Placement::new(offload)?;
        take_errors();
        // SAFETY: the params are plain data; `placement`, `progress` and the path outlive the load.
        let ptr = unsafe {
            let mut params = sys::llama_model_default_params();
            placement.fill(&mut params);
            params.progress_callback = Some(load_progress);
            params.progress_callback_user_data = (&raw mut progress).cast();
            // Repacked weights are a second copy in memory and ran no faster (Q4_K_M, 2 cores).
            params.use_extra_bufts = false;
            sys::llama_model_load_from_file(c_path.as_ptr(), params)
        };
        interrupt::check()?;
        let model = |ptr| Rc::new(Self { ptr, file, proven: Cell::new(false), specials: OnceCell::new() });
        NonNull::new(ptr).map(model).ok_or_else(|| fail(take_errors()))
    }

    /// Returns a guard to hold while llama.cpp tokenizes, which always depends on the file alone.
    pub(super) fn tokenizing(&self) -> Trying {
        Trying::new(self.file)
    }

    /// Returns a guard to hold while llama.cpp computes, until it has done so once.
    fn trying(&self) -> Option<Trying> {
        (!self.proven.get()).then(|| Trying::new(self.file))
    }

    /// Returns the context length that the model was trained for, in tokens.
    pub(super) fn n_ctx_train(&self) -> usize {
        // SAFETY: the model is alive.
        usize::try_from(unsafe { sys::llama_model_n_ctx_train(self.ptr.as_ptr()) }).unwrap_or(0)
    }

    /// Returns the number of positions if the model has learned a vector for each; ggml aborts at any later position.
    pub(super) fn n_positions(&self) -> Option<usize> {
        // SAFETY: the model is alive.
        let rotates = unsafe { sys::llama_model_rope_type(self.ptr.as_ptr()) } != sys::LLAMA_ROPE_TYPE_NONE;
        (!rotates && !self.is_recurrent()).then(|| self.n_ctx_train())
    }

    /// Returns the number of attention heads and the number of key-value heads.
    pub(super) fn n_head(&self) -> (usize, usize) {
        let model = self.ptr.as_ptr();
        // SAFETY: the model is alive.
        let (all, own) = unsafe { (sys::llama_model_n_head(model), sys::llama_model_n_head_kv(model)) };
        (usize::try_from(all).unwrap_or(0), usize::try_from(own).unwrap_or(0))
    }

    pub(super) fn vocab(&self) -> *const sys::llama_vocab {
        // SAFETY: the model is alive, and the vocabulary lives as long as the model.
        unsafe { sys::llama_model_get_vocab(self.ptr.as_ptr()) }
    }

    /// Returns the number of blocks.
    pub fn n_layer(&self) -> usize {
        // SAFETY: the model is alive.
        usize::try_from(unsafe { sys::llama_model_n_layer(self.ptr.as_ptr()) }).unwrap_or(0)
    }

    /// Returns whether blocks keep a recurrent state; if so, llama.cpp splits batches of unequal sequences.
    pub fn is_recurrent(&self) -> bool {
        let model = self.ptr.as_ptr();
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_is_recurrent(model) || sys::llama_model_is_hybrid(model) }
    }

    /// Returns the width of the residual stream.
    pub fn n_embd(&self) -> usize {
        // SAFETY: the model is alive.
        usize::try_from(unsafe { sys::llama_model_n_embd(self.ptr.as_ptr()) }).unwrap_or(0)
    }

    /// Returns `general.architecture` as llama.cpp read it.
    pub fn architecture(&self) -> String {
        let mut text = [0u8; 128];
        // SAFETY: `text` is writable for its length; llama.cpp writes a NUL-terminated string.
        unsafe {
            sys::llama_model_meta_val_str(
                self.ptr.as_ptr(),
                c"general.architecture".as_ptr(),
                text.as_mut_ptr().cast(),
                text.len(),
            );
        }
        CStr::from_bytes_until_nul(&text).map(|t| t.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: contexts and adapters hold an `Rc` of the model, so nothing uses it anymore.
        unsafe { sys::llama_model_free(self.ptr.as_ptr()) }
    }
}

/// A LoRA adapter loaded for a model.
pub struct Adapter {
    ptr: NonNull<sys::llama_adapter_lora>,
    _model: Rc<Model>,
}

impl Adapter {
    /// Loads an adapter from the bytes of a GGUF file. The caller must have checked its shapes against the
    /// model: a wrong expert count or an adapter for a tied `token_embd` ends the process inside C.
    ///
    /// # Errors
    /// Returns [`LlamaError::Adapter`] if llama.cpp cannot load the adapter.
    pub fn from_bytes(model: &Rc<Model>, bytes: &mut [u8]) -> Result<Rc<Self>, LlamaError> {
        take_errors();
        let file = memory_file(bytes)?;
        // SAFETY: `file` is an open stream; the model is alive; the stream is closed right after.
        let ptr = unsafe {
            let ptr = sys::llama_adapter_lora_init_from_file_ptr(model.ptr.as_ptr(), file.cast());
            libc::fclose(file);
            ptr
        };
        NonNull::new(ptr)
            .map(|ptr| Rc::new(Self { ptr, _model: Rc::clone(model) }))
            .ok_or_else(|| LlamaError::Adapter { reason: take_errors() })
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        // SAFETY: a context that uses the adapter holds an `Rc` of it, and the model is alive.
        unsafe { sys::llama_adapter_lora_free(self.ptr.as_ptr()) }
    }
}

/// Opens `bytes` as a C stream.
#[cfg(unix)]
fn memory_file(bytes: &mut [u8]) -> Result<*mut libc::FILE, LlamaError> {
    // SAFETY: the buffer outlives the stream, which the only caller closes before it returns.
    let file = unsafe { libc::fmemopen(bytes.as_mut_ptr().cast(), bytes.len(), c"rb".as_ptr()) };
    if file.is_null() {
        return Err(LlamaError::Adapter { reason: std::io::Error::last_os_error().to_string() });
    }
    Ok(file)
}

/// Writes `bytes` to an unnamed temporary file and opens that as a C stream.
#[cfg(not(unix))]
fn memory_file(bytes: &mut [u8]) -> Result<*mut libc::FILE, LlamaError> {
    // SAFETY: `tmpfile` returns a new stream; `bytes` is readable for its length.
    unsafe {
        let file = libc::tmpfile();
        if file.is_null() || libc::fwrite(bytes.as_ptr().cast(), 1, bytes.len(), file) != bytes.len() {
            return Err(LlamaError::Adapter { reason: std::io::Error::last_os_error().to_string() });
        }
        libc::rewind(file);
        Ok(file)
    }
}

/// Return value of `llama_decode` after `abort_callback` stopped it.
const ABORTED: i32 = 2;

/// Sizes and settings of a [`Context`].
#[derive(Debug, Clone, Copy)]
pub struct ContextSize {
    /// Number of cells of the unified KV cache.
    pub n_ctx: u32,
    /// Maximum tokens per decode; also the size of the micro-batch, so that token order is kept.
    pub n_batch: u32,
    /// Maximum number of sequences, and of rows of logits per decode.
    pub n_seq: u32,
    /// Number of CPU threads.
    pub n_threads: i32,
    /// Whether to use flash attention.
    pub flash_attn: FlashAttn,
}

/// A llama.cpp context: KV cache, scratch memory and the adapter in use.
pub struct Context {
    pub(super) ptr: NonNull<sys::llama_context>,
    size: ContextSize,
    state: Box<HookState>,
    adapter: Option<Rc<Adapter>>,
    /// Factor that the adapter is multiplied by.
    scale: f32,
    model: Rc<Model>,
}

impl Context {
    /// Creates a context of `size` for `model`.
    ///
    /// # Errors
    /// Returns [`LlamaError::Context`] if llama.cpp cannot create it, usually for lack of memory.
    pub fn new(model: &Rc<Model>, size: ContextSize) -> Result<Self, LlamaError> {
        take_errors();
        let mut state = Box::<HookState>::default();
        let _trying = model.trying();
        // SAFETY: default params are plain data; the boxed `state` stays in place; the `Rc` keeps the model alive.
        let ptr = unsafe {
            let mut params = sys::llama_context_default_params();
            params.n_ctx = size.n_ctx;
            params.n_batch = size.n_batch;
            params.n_ubatch = size.n_batch;
            params.n_seq_max = size.n_seq;
            params.n_outputs_max = size.n_seq;
            params.n_threads = size.n_threads;
            params.n_threads_batch = size.n_threads;
            params.flash_attn_type = match size.flash_attn {
                FlashAttn::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
                // With flash attention, results in the last layer differ by up to 4.5 % between batch shapes.
                FlashAttn::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
                FlashAttn::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
            };
            params.kv_unified = true;
            params.no_perf = true;
            params.cb_eval = Some(eval_callback);
            params.cb_eval_user_data = (&raw mut *state).cast();
            params.abort_callback = Some(abort_callback);
            params.abort_callback_data = params.cb_eval_user_data;
            sys::llama_init_from_model(model.ptr.as_ptr(), params)
        };
        NonNull::new(ptr)
            .map(|ptr| Self { ptr, size, state, adapter: None, scale: 0.0, model: Rc::clone(model) })
            .ok_or_else(|| LlamaError::Context { reason: take_errors() })
    }

    /// Applies `adapter`, multiplied by `scale`, to all later decodes; `None` removes the current adapter.
    ///
    /// # Errors
    /// Returns [`LlamaError::Adapter`] if llama.cpp rejects the adapter.
    pub fn set_adapter(&mut self, adapter: Option<Rc<Adapter>>, scale: f32) -> Result<(), LlamaError> {
        let mut list: Vec<_> = adapter.iter().map(|a| a.ptr.as_ptr()).collect();
        let mut scales = [scale];
        // SAFETY: one pointer and one scale (or none); the adapter is kept alive in `self.adapter`.
        let rc = unsafe {
            sys::llama_set_adapters_lora(
                self.ptr.as_ptr(),
                list.as_mut_ptr(),
                list.len(),
                scales.as_mut_ptr(),
            )
        };
        (self.adapter, self.scale) = (adapter, scale);
        if rc == 0 { Ok(()) } else { Err(LlamaError::Adapter { reason: take_errors() }) }
    }

    /// Adds a control vector, values `[n_layer − 1][n_embd]` from block 1 on, to all later decodes; `None` removes it.
    ///
    /// # Errors
    /// Returns [`LlamaError::ControlVector`] if the values do not fit the model's width and number of blocks.
    pub fn set_control_vector(&mut self, values: Option<&[f32]>, n_embd: usize) -> Result<(), LlamaError> {
        let data = values.unwrap_or_default();
        let most = self.model.n_layer().saturating_sub(1) * n_embd;
        if n_embd != self.model.n_embd() || data.len() > most {
            let (w, n) = (self.model.n_embd(), data.len());
            let reason = format!("expected at most {most} values of width {w}, found {n} of width {n_embd}");
            return Err(LlamaError::ControlVector { reason });
        }
        let pointer = values.map_or(ptr::null(), |values| values.as_ptr());
        // SAFETY: `data` is readable for its length, which fits the model; NULL removes the vector. Values are copied.
        let rc = unsafe {
            sys::llama_set_adapter_cvec(
                self.ptr.as_ptr(),
                pointer,
                data.len(),
                n_embd as i32,
                1,
                self.model.n_layer() as i32,
            )
        };
        if rc == 0 { Ok(()) } else { Err(LlamaError::ControlVector { reason: take_errors() }) }
    }

    /// Sets the arithmetic of later decodes and returns the previous one. Uses floating point only where it is faster.
    pub fn set_arithmetic(&mut self, arithmetic: Arithmetic) -> Arithmetic {
        let possible = if IS_FASTER { arithmetic } else { Arithmetic::Llama };
        std::mem::replace(&mut self.state.arithmetic, possible)
    }

    /// Removes all sequences from the cache.
    pub fn clear(&mut self) {
        // SAFETY: the context is alive.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.ptr.as_ptr()), false) }
    }

    /// Removes everything from the cache except the first `n_tokens` of sequence 0. Returns false if the model
    /// cannot forget part of a sequence.
    pub fn keep_beginning(&mut self, n_tokens: usize) -> bool {
        let from = i32::try_from(n_tokens).unwrap_or(i32::MAX);
        // SAFETY: the context is alive and was created for these sequences; −1 means no bound.
        unsafe {
            let memory = sys::llama_get_memory(self.ptr.as_ptr());
            (1..self.size.n_seq as i32).all(|seq| sys::llama_memory_seq_rm(memory, seq, -1, -1))
                && sys::llama_memory_seq_rm(memory, 0, from, -1)
        }
    }

    /// Makes sequence `to` share all cells of sequence `from`.
    pub fn copy_sequence(&mut self, from: i32, to: i32) {
        // SAFETY: the context is alive; the batch that uses the ids checks them.
        unsafe { sys::llama_memory_seq_cp(sys::llama_get_memory(self.ptr.as_ptr()), from, to, -1, -1) }
    }

    /// Returns the number of cells of the KV cache.
    pub fn n_ctx(&self) -> usize {
        self.size.n_ctx as usize
    }

    /// Creates an empty context with `n_ctx` cells and the same model, adapter and arithmetic, but without a control
    /// vector.
    ///
    /// # Errors
    /// Same as [`Self::new`] and [`Self::set_adapter`].
    pub fn resized(&self, n_ctx: u32) -> Result<Self, LlamaError> {
        let mut context = Self::new(&self.model, ContextSize { n_ctx, ..self.size })?;
        context.set_arithmetic(self.state.arithmetic);
        if let Some(adapter) = &self.adapter {
            context.set_adapter(Some(Rc::clone(adapter)), self.scale)?;
        }
        Ok(context)
    }

    /// Decodes one batch; `hook`, if given, observes the nodes of the graph.
    ///
    /// # Errors
    /// Returns [`LlamaError::BatchTooLarge`] or [`LlamaError::Position`] before entering C if the batch does not
    /// fit, [`LlamaError::Interrupted`] if the user stops the run, [`LlamaError::Decode`] if llama.cpp fails, or
    /// the hook's own error.
    pub fn decode(&mut self, batch: &mut Batch, hook: Option<&mut dyn EvalHook>) -> Result<(), LlamaError> {
        batch.check(self.size)?;
        if let Some(n_positions) = self.model.n_positions() {
            batch.check_positions(n_positions)?;
        }
        interrupt::check()?;
        let _trying = self.model.trying();
        take_errors();
        // SAFETY: only the lifetime is erased; the pointer is cleared before the borrow ends.
        self.state.hook = hook.map(|h| unsafe {
            NonNull::new_unchecked(std::mem::transmute::<
                *mut (dyn EvalHook + '_),
                *mut (dyn EvalHook + 'static),
            >(h))
        });
        let mut seq: Vec<*mut i32> = batch.seq.iter_mut().map(ptr::from_mut).collect();
        // SAFETY: all arrays have `n_tokens` entries (`Batch::push` keeps them equal) and outlive the call.
        let rc = unsafe {
            sys::llama_decode(
                self.ptr.as_ptr(),
                sys::llama_batch {
                    n_tokens: batch.tokens.len() as i32,
                    token: batch.tokens.as_mut_ptr(),
                    embd: ptr::null_mut(),
                    pos: batch.pos.as_mut_ptr(),
                    n_seq_id: batch.n_seq.as_mut_ptr(),
                    seq_id: seq.as_mut_ptr(),
                    logits: batch.output.as_mut_ptr(),
                },
            )
        };
        self.state.hook = None;
        let ended = std::mem::take(self.state.ended.get_mut());
        if let Some(error) = self.state.error.take() {
            return Err(error);
        }
        interrupt::check()?;
        if rc == 0 || (ended && rc == ABORTED) {
            self.model.proven.set(true);
            Ok(())
        } else {
            Err(LlamaError::Decode { code: rc, reason: take_errors() })
        }
    }

    /// Returns the logits after token `i` of the last batch, `[n_vocab]`; `None` if they were not requested.
    pub fn logits(&self, i: usize) -> Option<&[f32]> {
        // SAFETY: the row is NULL or holds `n_vocab` values until the next decode, which needs `&mut self`.
        unsafe {
            let row = sys::llama_get_logits_ith(self.ptr.as_ptr(), i32::try_from(i).ok()?);
            (!row.is_null()).then(|| std::slice::from_raw_parts(row, self.model.n_vocab()))
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: nothing else holds the context; the model outlives it through `self.model`.
        unsafe { sys::llama_free(self.ptr.as_ptr()) }
    }
}
