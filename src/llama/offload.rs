//! Placement of a model on GPUs and RPC workers; names, values and defaults are those of llama.cpp.

use std::fmt;
use std::net::{TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use super::LlamaError;

/// Timeout for connecting to a worker.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Number of layers to put on devices, as given with `-ngl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GpuLayers {
    /// All layers if there is a device, none otherwise.
    #[default]
    Auto,
    /// All layers.
    All,
    /// The given number of last layers; the output matrix counts as one more.
    Last(u16),
}

impl FromStr for GpuLayers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" | "-1" => Ok(Self::Auto),
            "all" | "-2" => Ok(Self::All),
            n => n.parse().map(Self::Last).map_err(|_| "expected auto, all, or a number of layers".into()),
        }
    }
}

/// How several devices share a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum SplitMode {
    /// Use a single device.
    None,
    /// Give each device some of the layers.
    #[default]
    Layer,
    /// Give each device some rows of every matrix, if the backend supports it.
    Row,
}

/// Whether to use flash attention, which computes attention in one fused step.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum FlashAttn {
    /// Use flash attention.
    On,
    /// Do not use it: results do not depend on the shape of the batch.
    #[default]
    Off,
    /// Use it if the device supports it.
    Auto,
}

/// Address of an RPC worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || format!("expected HOST:PORT, found {text:?}");
        // llama.cpp takes the text before the first colon as the host and supports only IPv4.
        let (host, port) = text.split_once(':').ok_or_else(expected)?;
        let port = port.parse().ok().filter(|&port| port > 0).ok_or_else(expected)?;
        let named = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
        if named { Ok(Self { host: host.to_owned(), port }) } else { Err(expected()) }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Endpoint {
    /// Checks that a worker listens at this address; otherwise llama.cpp would end the process.
    ///
    /// # Errors
    /// Returns [`LlamaError::Worker`] if the host has no IPv4 address or the connection fails.
    pub fn check(&self) -> Result<(), LlamaError> {
        let fail = |reason: String| LlamaError::Worker { endpoint: self.to_string(), reason };
        let found = (self.host.as_str(), self.port).to_socket_addrs();
        let found = found.map_err(|error| fail(error.to_string()))?;
        let address = found.into_iter().find(std::net::SocketAddr::is_ipv4);
        let address = address.ok_or_else(|| fail("the host has no IPv4 address".into()))?;
        let connected = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT);
        connected.map(drop).map_err(|error| fail(error.to_string()))
    }
}

/// Placement of a model on devices.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Offload {
    /// Number of layers to put on devices.
    pub gpu_layers: GpuLayers,
    /// Names of the devices to use; `None` for all available ones, empty for none.
    pub devices: Option<Vec<String>>,
    /// How the devices share the model.
    pub split_mode: SplitMode,
    /// Index, from 0, of the device that takes the whole model with [`SplitMode::None`].
    pub main_gpu: u16,
    /// Share of each device; empty to split by free memory.
    pub tensor_split: Vec<f32>,
    /// Whether to use flash attention.
    pub flash_attn: FlashAttn,
    /// RPC workers whose devices are used in addition to those of this machine.
    pub rpc: Vec<Endpoint>,
}

impl Offload {
    /// Uses only the CPU, even if there are devices.
    pub fn none() -> Self {
        Self { gpu_layers: GpuLayers::Last(0), devices: Some(Vec::new()), ..Self::default() }
    }

    /// Returns the first flag that asks for a device, if any.
    pub fn asks_for_device(&self) -> Option<&'static str> {
        let flags = [
            ("--gpu-layers", !matches!(self.gpu_layers, GpuLayers::Auto | GpuLayers::Last(0))),
            ("--split-mode", self.split_mode != SplitMode::default()),
            ("--main-gpu", self.main_gpu > 0),
            ("--tensor-split", !self.tensor_split.is_empty()),
        ];
        flags.into_iter().find(|&(_, asks)| asks).map(|(flag, _)| flag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_llama_cpp() {
        let layers = |text: &str| text.parse::<GpuLayers>().ok();
        assert_eq!(layers("auto"), Some(GpuLayers::Auto));
        assert_eq!(layers("-1"), Some(GpuLayers::Auto));
        assert_eq!(layers("all"), Some(GpuLayers::All));
        assert_eq!(layers("99"), Some(GpuLayers::Last(99)));
        for bad in ["", "-3", "x", "1.5"] {
            assert_eq!(layers(bad), None, "{bad}");
        }
    }

    #[test]
    fn workers_are_hosts_with_ports() {
        let shown = |text: &str| text.parse::<Endpoint>().map(|e| e.to_string());
        assert_eq!(shown("127.0.0.1:50052").unwrap(), "127.0.0.1:50052");
        assert_eq!(shown("worker-1.lan:1").unwrap(), "worker-1.lan:1");
        for bad in ["worker", "worker:", ":50052", "worker:0", "worker:70000", "[::1]:50052", "a b:1"] {
            assert!(shown(bad).unwrap_err().contains("expected HOST:PORT"), "{bad}");
        }
    }

    #[test]
    fn a_worker_that_does_not_listen_is_told_before_llama_cpp_calls_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint: Endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
        endpoint.check().unwrap();
        drop(listener);
        let error = endpoint.check().unwrap_err().to_string();
        assert!(error.starts_with(&format!("RPC worker {endpoint}: ")), "{error}");
    }

    #[test]
    fn only_a_wish_for_devices_is_one() {
        let asks = |offload: Offload| offload.asks_for_device();
        assert_eq!(asks(Offload::default()), None);
        assert_eq!(asks(Offload::none()), None);
        let all = Offload { gpu_layers: GpuLayers::All, ..Offload::default() };
        assert_eq!(asks(all), Some("--gpu-layers"));
        let row = Offload { split_mode: SplitMode::Row, ..Offload::default() };
        assert_eq!(asks(row), Some("--split-mode"));
    }
}
