//! What of a model runs on GPUs or RPC workers; names, values and defaults are llama.cpp's.

use std::fmt;
use std::net::{TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use super::LlamaError;

/// How long a worker may take to answer a call.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Layers on devices, as `-ngl` takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GpuLayers {
    /// All where there is a device.
    #[default]
    Auto,
    /// All.
    All,
    /// The last so many, the output matrix being one more.
    Last(u16),
}

impl FromStr for GpuLayers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" | "-1" => Ok(Self::Auto),
            "all" | "-2" => Ok(Self::All),
            n => n.parse().map(Self::Last).map_err(|_| "expected auto, all, or how many layers".into()),
        }
    }
}

/// How a model is spread over several devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum SplitMode {
    /// All on one device.
    None,
    /// Each device takes some layers.
    #[default]
    Layer,
    /// Each device takes some rows of every matrix, where the backend can.
    Row,
}

/// Whether attention is computed in one fused step.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum FlashAttn {
    /// Yes.
    On,
    /// No: results do not depend on the shape of the batch.
    #[default]
    Off,
    /// Where the device can.
    Auto,
}

/// Where an RPC worker listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || format!("expected HOST:PORT, found {text:?}");
        // llama.cpp takes what is before the first colon for the host, and speaks IPv4 only.
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
    /// Checks that somebody listens there: llama.cpp ends the process where nobody does.
    ///
    /// # Errors
    /// [`LlamaError::Worker`].
    pub fn check(&self) -> Result<(), LlamaError> {
        let fail = |reason: String| LlamaError::Worker { endpoint: self.to_string(), reason };
        let found = (self.host.as_str(), self.port).to_socket_addrs();
        let found = found.map_err(|error| fail(error.to_string()))?;
        let address = found.into_iter().find(std::net::SocketAddr::is_ipv4);
        let address = address.ok_or_else(|| fail("it has no IPv4 address".into()))?;
        let connected = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT);
        connected.map(drop).map_err(|error| fail(error.to_string()))
    }
}

/// What of a model runs where.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Offload {
    /// How many layers.
    pub gpu_layers: GpuLayers,
    /// Names of devices; `None` = all that there are, empty = none.
    pub devices: Option<Vec<String>>,
    /// How they share the model.
    pub split_mode: SplitMode,
    /// Which of them takes it without a split, from 0.
    pub main_gpu: u16,
    /// Their shares; empty = by free memory.
    pub tensor_split: Vec<f32>,
    /// How attention is computed.
    pub flash_attn: FlashAttn,
    /// Workers whose devices join those of this machine.
    pub rpc: Vec<Endpoint>,
}

impl Offload {
    /// The CPU alone, also where there are devices.
    pub fn none() -> Self {
        Self { gpu_layers: GpuLayers::Last(0), devices: Some(Vec::new()), ..Self::default() }
    }

    /// The flag that asks for a device, if one does.
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
