//! Devices other than the CPU that can run a model: GPUs of this machine and devices of RPC workers.

pub(crate) mod ffi;

pub use ffi::cpu_features;

use std::fmt;
use std::sync::Mutex;

use super::LlamaError;
use super::offload::{Endpoint, GpuLayers, Offload};

/// A GPU of this machine or a device of an RPC worker.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Device {
    /// Name for `--device`, e.g. `Vulkan0`.
    pub name: String,
    /// Name of the product, or address of the worker.
    pub description: String,
    /// Total memory, in bytes.
    pub total: u64,
    /// Free memory, in bytes.
    pub free: u64,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [total, free] = [self.total, self.free].map(|bytes| bytes >> 20);
        write!(f, "{}: {} ({total} MiB, {free} MiB free)", self.name, self.description)
    }
}

/// Workers that have been added, in the order that numbers their devices.
static WORKERS: Mutex<Vec<Endpoint>> = Mutex::new(Vec::new());

/// Adds the workers' devices to those of this machine for the rest of the process. `calling` is called before each
/// worker is contacted.
///
/// # Errors
/// Returns [`LlamaError::NoRpc`] if the build lacks the RPC backend, or [`LlamaError::Worker`] if a worker cannot be
/// reached or has no devices.
pub fn join(rpc: &[Endpoint], calling: &mut dyn FnMut(&Endpoint)) -> Result<(), LlamaError> {
    let mut workers = WORKERS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for endpoint in rpc {
        if !workers.contains(endpoint) {
            calling(endpoint);
            endpoint.check()?;
            ffi::join(endpoint)?;
            workers.push(endpoint.clone());
        }
    }
    Ok(())
}

/// Returns the available devices, in llama.cpp's order.
pub fn devices() -> Vec<Device> {
    ffi::devices().iter().map(ffi::Handle::describe).collect()
}

/// Returns the GPU backends that this program was built with, e.g. `Vulkan`.
pub fn backends() -> Vec<String> {
    let mut backends = ffi::backends();
    // ggml treats each worker as a separate backend named RPC[HOST:PORT].
    backends.retain(|name| !matches!(name.as_str(), "CPU" | "BLAS") && !name.starts_with("RPC"));
    backends
}

/// Returns a warning if `offload` asks for a device but the model will run on the CPU; otherwise `None`.
pub fn unfulfilled(offload: &Offload) -> Option<String> {
    let flag = offload.asks_for_device()?;
    if offload.devices.as_ref().is_some_and(Vec::is_empty) {
        return Some(format!("{flag} has no effect with --device none"));
    }
    if !ffi::devices().is_empty() {
        return None;
    }
    Some(match backends().as_slice() {
        [] => format!(
            "{flag} has no effect: this program was built for the CPU only; rebuild it with \
             --features cuda, metal, rocm or vulkan, or name workers with --rpc"
        ),
        found => format!("{flag} has no effect: {} found no device on this machine", found.join(", ")),
    })
}

/// Returns the names of the devices that layers are put on.
pub fn in_use(offload: &Offload) -> Vec<String> {
    let names = || ffi::devices().iter().map(ffi::Handle::name).collect();
    match offload.gpu_layers {
        GpuLayers::Last(0) => Vec::new(),
        _ => offload.devices.clone().unwrap_or_else(names),
    }
}

/// Returns the number of layers to put on devices: -1 for all, 0 if there are no devices.
pub fn n_layers(offload: &Offload) -> i32 {
    match (in_use(offload).is_empty(), offload.gpu_layers) {
        (true, _) => 0,
        (_, GpuLayers::Last(n)) => i32::from(n),
        (_, GpuLayers::Auto | GpuLayers::All) => -1,
    }
}

/// Returns the devices with the given names, ignoring case.
fn chosen(names: &[String]) -> Result<Vec<ffi::Handle>, LlamaError> {
    let all = ffi::devices();
    let find = |name: &String| {
        let found = all.iter().find(|device| device.name().eq_ignore_ascii_case(name));
        found.copied().ok_or_else(|| LlamaError::NoDevice {
            name: name.clone(),
            available: all.iter().map(ffi::Handle::name).collect(),
        })
    };
    names.iter().map(find).collect()
}

/// Checks that the named devices exist and that `--main-gpu` and `--tensor-split` fit their number.
///
/// # Errors
/// Returns [`LlamaError::NoDevice`] if a named device does not exist, or [`LlamaError::TooManyDevices`] if a flag
/// needs more devices than there are.
pub fn check(offload: &Offload) -> Result<(), LlamaError> {
    let n_devices = match &offload.devices {
        Some(names) => chosen(names)?.len(),
        None => ffi::devices().len(),
    };
    let [main, shares] = [usize::from(offload.main_gpu) + 1, offload.tensor_split.len()];
    for (flag, asked, least) in [("--main-gpu", main, 2), ("--tensor-split", shares, 1)] {
        if asked >= least && asked > n_devices && n_devices > 0 {
            return Err(LlamaError::TooManyDevices { flag, asked, n_devices });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_told_with_those_that_are() {
        let offload = Offload { devices: Some(vec!["Nonsense7".into()]), ..Offload::default() };
        let error = check(&offload).unwrap_err().to_string();
        let names: Vec<String> = devices().into_iter().map(|device| device.name).collect();
        let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        assert_eq!(error, format!("no device named Nonsense7; available: {there}"));
    }

    #[test]
    fn the_cpu_needs_no_device() {
        check(&Offload::none()).unwrap();
        assert_eq!(unfulfilled(&Offload::none()), None);
        assert_eq!(unfulfilled(&Offload::default()), None);
    }
}
