//! What this program can run a model on beside the CPU: GPUs of this machine, and those of RPC workers.

pub(crate) mod ffi;

pub use ffi::cpu_features;

use std::fmt;
use std::sync::Mutex;

use super::LlamaError;
use super::offload::{Endpoint, GpuLayers, Offload};

/// A GPU, or the device of a worker.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Device {
    /// As `--device` takes it, e.g. `Vulkan0`.
    pub name: String,
    /// The product, or the worker.
    pub description: String,
    /// Its memory, bytes.
    pub total: u64,
    /// What is free of it, bytes.
    pub free: u64,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [total, free] = [self.total, self.free].map(|bytes| bytes >> 20);
        write!(f, "{}: {} ({total} MiB, {free} MiB free)", self.name, self.description)
    }
}

/// The workers that were called, in order: their devices are numbered by it.
static WORKERS: Mutex<Vec<Endpoint>> = Mutex::new(Vec::new());

/// Joins the workers' devices to those of this machine, for as long as the process lives; `calling` is told
/// before each is called.
///
/// # Errors
/// [`LlamaError::NoRpc`]; [`LlamaError::Worker`] when one does not listen.
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

/// The devices there are, in llama.cpp's order.
pub fn devices() -> Vec<Device> {
    ffi::devices().iter().map(ffi::Handle::describe).collect()
}

/// The GPU backends that this program was built with, e.g. `Vulkan`.
pub fn backends() -> Vec<String> {
    let mut backends = ffi::backends();
    // Each worker is a backend of its own to ggml, called RPC[HOST:PORT].
    backends.retain(|name| !matches!(name.as_str(), "CPU" | "BLAS") && !name.starts_with("RPC"));
    backends
}

/// Why a wish for devices is not fulfilled, if it is not: the model runs on the CPU then.
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
            "{flag} has no effect: this program was built for the CPU alone; build it with \
             --features cuda, metal, rocm or vulkan, or name workers with --rpc"
        ),
        found => format!("{flag} has no effect: {} finds no device on this machine", found.join(", ")),
    })
}

/// Names of the devices that layers are put on.
pub fn in_use(offload: &Offload) -> Vec<String> {
    let names = || ffi::devices().iter().map(ffi::Handle::name).collect();
    match offload.gpu_layers {
        GpuLayers::Last(0) => Vec::new(),
        _ => offload.devices.clone().unwrap_or_else(names),
    }
}

/// Layers that are put on devices, -1 = all; 0 where there is none.
pub fn n_layers(offload: &Offload) -> i32 {
    match (in_use(offload).is_empty(), offload.gpu_layers) {
        (true, _) => 0,
        (_, GpuLayers::Last(n)) => i32::from(n),
        (_, GpuLayers::Auto | GpuLayers::All) => -1,
    }
}

/// The devices of those names.
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

/// Checks that the devices that are named exist, and the numbers fit them.
///
/// # Errors
/// [`LlamaError::NoDevice`], [`LlamaError::TooManyDevices`].
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
        assert_eq!(error, format!("there is no device Nonsense7; there are: {there}"));
    }

    #[test]
    fn the_cpu_needs_no_device() {
        check(&Offload::none()).unwrap();
        assert_eq!(unfulfilled(&Offload::none()), None);
        assert_eq!(unfulfilled(&Offload::default()), None);
    }
}
