//! `rpc-server`: llama.cpp's own worker, of the very version that `--rpc` of this program speaks with.

use std::net::{IpAddr, TcpListener};

use crate::cli::RpcServerArgs;
use crate::cli::options::threads;
use crate::llama::devices;
use crate::llama::offload::Endpoint;
use crate::output::Printer;
use crate::pipeline::error::{Error, ExitStatus};

/// Serves until it is stopped.
///
/// # Errors
/// [`Error`] when the address cannot be listened at, a device is not there, or the build lacks the RPC backend.
pub fn run(args: &RpcServerArgs, printer: &Printer) -> Result<ExitStatus, Error> {
    let problem = |problem: String| Error::Option { flag: "--host", problem, hint: None };
    let endpoint: Endpoint = format!("{}:{}", args.host, args.port).parse().map_err(problem)?;
    let threads = threads(args.threads)?;
    // llama.cpp says no more than that it could not.
    let free = TcpListener::bind((args.host.as_str(), args.port));
    drop(free.map_err(|error| problem(format!("cannot listen at {endpoint}: {error}")))?);
    let loopback = args.host == "localhost" || args.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    if !loopback {
        printer
            .warn("whoever reaches this port can use this machine's memory: keep it in a network you trust");
    }
    devices::ffi::serve(&endpoint, &args.device, threads)?;
    Ok(ExitStatus::Done)
}
