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
        // SAFETY: devices are never removed, and each returns a NUL-terminated string that it owns.
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
        // Accelerators (BLAS) assist the CPU and hold no layers.
        matches!(kind, sys::GGML_BACKEND_DEVICE_TYPE_CPU | sys::GGML_BACKEND_DEVICE_TYPE_ACCEL)
    }
}

fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: ggml's names are NUL-terminated and static, or owned by entries that the registry keeps.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

fn all() -> Vec<Handle> {
    init_backend();
    // SAFETY: the registry was filled by `init_backend`; indices are below its count.
    unsafe { (0..sys::ggml_backend_dev_count()).map(|i| Handle(sys::ggml_backend_dev_get(i))).collect() }
}

/// Returns all devices that can hold layers, without the CPU.
pub(super) fn devices() -> Vec<Handle> {
    let mut devices = all();
    devices.retain(|device| !device.is_cpu());
    devices
}

/// Returns the names of all backends.
pub(super) fn backends() -> Vec<String> {
    init_backend();
    // SAFETY: as in `all`.
    let name = |i| unsafe { text(sys::ggml_backend_reg_name(sys::ggml_backend_reg_get(i))) };
    // SAFETY: as in `all`.
    (0..unsafe { sys::ggml_backend_reg_count() }).map(name).collect()
}

/// Looks up a function of the RPC backend at run time; it cannot be linked because a build may lack the backend.
fn rpc_function(name: &CStr) -> Result<ptr::NonNull<std::ffi::c_void>, LlamaError> {
    init_backend();
    // SAFETY: both names are C strings; the backend is used only if it is not NULL.
    let function = unsafe {
        let rpc = sys::ggml_backend_reg_by_name(c"RPC".as_ptr());
        if rpc.is_null() {
            return Err(LlamaError::NoRpc);
        }
        sys::ggml_backend_reg_get_proc_address(rpc, name.as_ptr())
    };
    ptr::NonNull::new(function).ok_or(LlamaError::NoRpc)
}

/// Adds the devices of a worker to the registry. If no worker listens at `endpoint`, the process ends, so call
/// [`Endpoint::check`] first.
pub(super) fn join(endpoint: &Endpoint) -> Result<(), LlamaError> {
    type AddServer = unsafe extern "C" fn(*const c_char) -> sys::ggml_backend_reg_t;
    let function = rpc_function(c"ggml_backend_rpc_add_server")?;
    let fail = |reason: &str| LlamaError::Worker { endpoint: endpoint.to_string(), reason: reason.into() };
    let name = CString::new(endpoint.to_string()).map_err(|_| fail("the address contains a NUL byte"))?;
    // SAFETY: the RPC backend exports a function of this type under this name (ggml-rpc.h); it copies the name.
    let reg =
        unsafe { std::mem::transmute::<*mut std::ffi::c_void, AddServer>(function.as_ptr())(name.as_ptr()) };
    if reg.is_null() {
        return Err(fail("the worker offers no devices"));
    }
    // SAFETY: `reg` was just created and is never freed.
    unsafe { sys::ggml_backend_register(reg) };
    Ok(())
}

/// Serves devices of this machine to one client at a time until the process ends. If `names` is empty, serves all
/// GPUs, or the CPU if there is no GPU.
///
/// # Errors
/// Returns [`LlamaError::NoRpc`] if the build lacks the RPC backend, [`LlamaError::NoDevice`] if a named device does
/// not exist, or [`LlamaError::Worker`] if the server stops, for example because it cannot listen at `endpoint`.
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
    let name = CString::new(endpoint.to_string()).map_err(|_| fail("the address contains a NUL byte"))?;
    end_when_interrupted();
    // SAFETY: the RPC backend exports a function of this type under this name (ggml-rpc.h); NULL means no cache
    // folder; the array has the given length, and all arguments outlive the call.
    unsafe {
        let start = std::mem::transmute::<*mut std::ffi::c_void, StartServer>(function.as_ptr());
        start(name.as_ptr(), ptr::null(), threads, served.len(), served.as_mut_ptr());
    }
    Err(fail("llama.cpp's server stopped"))
}

/// Starts a thread that ends the process when the user stops it: llama.cpp's server only waits for its next client.
fn end_when_interrupted() {
    std::thread::spawn(|| {
        while !interrupt::requested() {
            std::thread::sleep(Duration::from_millis(100));
        }
        // SAFETY: ends the process at once; the server has no state to save.
        unsafe { libc::_exit(0) }
    });
}

/// An [`Offload`] in llama.cpp's types; its arrays must live until the model is loaded.
pub(in crate::llama) struct Placement {
    n_gpu_layers: i32,
    devices: Option<Vec<sys::ggml_backend_dev_t>>,
    split_mode: sys::llama_split_mode,
    main_gpu: i32,
    tensor_split: Vec<f32>,
}

impl Placement {
    /// Converts `offload`, looking up its devices.
    ///
    /// # Errors
    /// Returns [`LlamaError::NoDevice`] if a named device does not exist.
    pub(in crate::llama) fn new(offload: &Offload) -> Result<Self, LlamaError> {
        let devices = offload.devices.as_ref().map(|names| chosen(names)).transpose()?;
        let devices = devices.map(|d| d.iter().map(|device| device.0).chain([ptr::null_mut()]).collect());
        let mut tensor_split = offload.tensor_split.clone();
        if !tensor_split.is_empty() {
            // SAFETY: the function returns a constant.
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

    /// Writes the placement to `params`, which then points into `self`.
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

/// Returns the CPU features that llama.cpp uses, under llama.cpp's names.
pub fn cpu_features() -> String {
    // Each call to llama.cpp overwrites the same buffer, so the text is read only once.
    static TOLD: OnceLock<String> = OnceLock::new();
    let ask = || {
        // SAFETY: the function returns a NUL-terminated string in that buffer.
        let told = unsafe { CStr::from_ptr(sys::llama_print_system_info()) }.to_string_lossy();
        let features = told.split('|').map(str::trim).filter(|feature| !feature.is_empty());
        features.collect::<Vec<_>>().join(" | ")
    };
    TOLD.get_or_init(ask).clone()
}
