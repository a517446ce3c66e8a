//! ggml's registry of backends and devices.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

use llama_cpp_sys_2 as sys;

use super::{Device, Endpoint, chosen, n_layers};
use crate::llama::LlamaError;
use crate::llama::ffi::init_backend;
use crate::llama::offload::{Offload, SplitMode};
use crate::util::interrupt;

/// A device of ggml's registry, which lives as long as the process.
#[derive(Clone, Copy)]
pub(crate) struct Handle(sys::ggml_backend_dev_t);

impl Handle {
    pub(super) fn name(&self) -> String {
        // SAFETY: devices are never removed, and answer with a NUL-terminated string of their own.
        text(unsafe { sys::ggml_backend_dev_name(self.0) })
    }

    pub(super) fn describe(&self) -> Device {
        let (mut free, mut total) = (0, 0);
        // SAFETY: as above; both numbers are writable.
        let description = unsafe {
            sys::ggml_backend_dev_memory(self.0, &raw mut free, &raw mut total);
            text(sys::ggml_backend_dev_description(self.0))
        };
        Device { name: self.name(), description, total: total as u64, free: free as u64 }
    }

    fn is_cpu(&self) -> bool {
        // SAFETY: as above.
        let kind = unsafe { sys::ggml_backend_dev_type(self.0) };
        // Accelerators (BLAS) help the CPU, and hold no layers.
        matches!(kind, sys::GGML_BACKEND_DEVICE_TYPE_CPU | sys::GGML_BACKEND_DEVICE_TYPE_ACCEL)
    }
}

fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: ggml's names are NUL-terminated and static, or owned by what the registry keeps.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

fn all() -> Vec<Handle> {
    init_backend();
    // SAFETY: the registry was filled by `init_backend`; indices are below its count.
    unsafe { (0..sys::ggml_backend_dev_count()).map(|i| Handle(sys::ggml_backend_dev_get(i))).collect() }
}

/// Every device that can hold layers.
pub(super) fn devices() -> Vec<Handle> {
    let mut devices = all();
    devices.retain(|device| !device.is_cpu());
    devices
}

/// Names of all backends.
pub(super) fn backends() -> Vec<String> {
    init_backend();
    // SAFETY: as in `all`.
    let name = |i| unsafe { text(sys::ggml_backend_reg_name(sys::ggml_backend_reg_get(i))) };
    // SAFETY: as in `all`.
    (0..unsafe { sys::ggml_backend_reg_count() }).map(name).collect()
}

/// A function of the RPC backend, which is not linked by name because a build may lack it.
fn rpc_function(name: &CStr) -> Result<ptr::NonNull<std::ffi::c_void>, LlamaError> {
    init_backend();
    // SAFETY: both names are C strings; a backend that is not there is NULL, and is not asked.
    let function = unsafe {
        let rpc = sys::ggml_backend_reg_by_name(c"RPC".as_ptr());
        if rpc.is_null() {
            return Err(LlamaError::NoRpc);
        }
        sys::ggml_backend_reg_get_proc_address(rpc, name.as_ptr())
    };
    ptr::NonNull::new(function).ok_or(LlamaError::NoRpc)
}

/// Adds the devices of a worker to the registry. Where nobody listens the process ends: see
/// [`Endpoint::check`].
pub(super) fn join(endpoint: &Endpoint) -> Result<(), LlamaError> {
    type AddServer = unsafe extern "C" fn(*const c_char) -> sys::ggml_backend_reg_t;
    let function = rpc_function(c"ggml_backend_rpc_add_server")?;
    let fail = |reason: &str| LlamaError::Worker { endpoint: endpoint.to_string(), reason: reason.into() };
    let name = CString::new(endpoint.to_string()).map_err(|_| fail("its name holds a NUL byte"))?;
    // SAFETY: the RPC backend gives a function of this type under this name (ggml-rpc.h); it copies the name.
    let reg =
        unsafe { std::mem::transmute::<*mut std::ffi::c_void, AddServer>(function.as_ptr())(name.as_ptr()) };
    if reg.is_null() {
        return Err(fail("it has no device"));
    }
    // SAFETY: what was just made, and is never freed.
    unsafe { sys::ggml_backend_register(reg) };
    Ok(())
}

/// Serves devices of this machine to one client after the other, until the process ends; all GPUs if `names`
/// are none, the CPU where there is no GPU.
///
/// # Errors
/// [`LlamaError::NoRpc`], [`LlamaError::NoDevice`]; [`LlamaError::Worker`] when it cannot listen.
pub(crate) fn serve(endpoint: &Endpoint, names: &[String], threads: usize) -> Result<(), LlamaError> {
    type StartServer =
        unsafe extern "C" fn(*const c_char, *const c_char, usize, usize, *mut sys::ggml_backend_dev_t);
    let function = rpc_function(c"ggml_backend_rpc_start_server")?;
    let mut served = if names.is_empty() { devices() } else { chosen(names)? };
    if served.is_empty() {
        served = all();
        served.truncate(1);
    }
    let mut served: Vec<_> = served.iter().map(|device| device.0).collect();
    let fail = |reason: &str| LlamaError::Worker { endpoint: endpoint.to_string(), reason: reason.into() };
    let name = CString::new(endpoint.to_string()).map_err(|_| fail("its name holds a NUL byte"))?;
    end_when_interrupted();
    // SAFETY: the RPC backend gives a function of this type under this name (ggml-rpc.h); no cache folder is
    // NULL; the array is as long as told, and all of it outlives the call.
    unsafe {
        let start = std::mem::transmute::<*mut std::ffi::c_void, StartServer>(function.as_ptr());
        start(name.as_ptr(), ptr::null(), threads, served.len(), served.as_mut_ptr());
    }
    Err(fail("llama.cpp's server ended"))
}

/// llama.cpp's server waits for its next client and looks at nothing else.
fn end_when_interrupted() {
    std::thread::spawn(|| {
        while !interrupt::requested() {
            std::thread::sleep(Duration::from_millis(100));
        }
        // SAFETY: ends the process at once, as a server is ended: it keeps nothing.
        unsafe { libc::_exit(0) }
    });
}

/// What [`Offload`] says, as llama.cpp takes it; the arrays must live until the model is loaded.
pub(in crate::llama) struct Placement {
    n_gpu_layers: i32,
    devices: Option<Vec<sys::ggml_backend_dev_t>>,
    split_mode: sys::llama_split_mode,
    main_gpu: i32,
    tensor_split: Vec<f32>,
}

impl Placement {
    /// # Errors
    /// [`LlamaError::NoDevice`].
    pub(in crate::llama) fn new(offload: &Offload) -> Result<Self, LlamaError> {
        let devices = offload.devices.as_ref().map(|names| chosen(names)).transpose()?;
        let devices = devices.map(|d| d.iter().map(|device| device.0).chain([ptr::null_mut()]).collect());
        let mut tensor_split = offload.tensor_split.clone();
        if !tensor_split.is_empty() {
            // SAFETY: answers a constant.
            tensor_split.resize(unsafe { sys::llama_max_devices() }, 0.0);
        }
        Ok(Self {
            n_gpu_layers: n_layers(offload),
            devices,
            split_mode: match offload.split_mode {
                SplitMode::None => sys::LLAMA_SPLIT_MODE_NONE,
                SplitMode::Layer => sys::LLAMA_SPLIT_MODE_LAYER,
                SplitMode::Row => sys::LLAMA_SPLIT_MODE_ROW,
            },
            main_gpu: i32::from(offload.main_gpu),
            tensor_split,
        })
    }

    /// Puts it into `params`, which point into `self` from then on.
    pub(in crate::llama) fn fill(&mut self, params: &mut sys::llama_model_params) {
        params.n_gpu_layers = self.n_gpu_layers;
        params.devices = self.devices.as_mut().map_or(ptr::null_mut(), |devices| devices.as_mut_ptr());
        params.split_mode = self.split_mode;
        params.main_gpu = self.main_gpu;
        if !self.tensor_split.is_empty() {
            params.tensor_split = self.tensor_split.as_ptr();
        }
    }
}

/// What of this CPU llama.cpp uses, in its words.
pub fn cpu_features() -> String {
    // llama.cpp writes into one buffer at each call.
    static TOLD: OnceLock<String> = OnceLock::new();
    let ask = || {
        // SAFETY: returns a NUL-terminated string in that buffer.
        let told = unsafe { CStr::from_ptr(sys::llama_print_system_info()) }.to_string_lossy();
        let features = told.split('|').map(str::trim).filter(|feature| !feature.is_empty());
        features.collect::<Vec<_>>().join(" | ")
    };
    TOLD.get_or_init(ask).clone()
}
