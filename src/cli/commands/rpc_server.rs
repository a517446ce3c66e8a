//! `rpc-server`: llama.cpp's RPC worker, in the version that this program's `--rpc` talks to.

use std::net::{IpAddr, TcpListener};

use crate::cli::RpcServerArgs;
use crate::cli::options::threads;
use crate::llama::devices;
use crate::llama::offload::Endpoint;
use crate::output::Printer;
use crate::pipeline::error::{Error, ExitStatus};

/// Serves until the process is stopped.
///
/// # Errors
/// Returns [`Error`] if the address cannot be listened on, a device does not exist, or the build lacks the RPC backend.
pub fn run(args: &RpcServerArgs, printer: &Printer) -> Result<ExitStatus, Error> {
    let problem = |problem: String| Error::Option { flag: "--host", problem, hint: None };
    let endpoint: Endpoint = format!("{}:{}", args.host, args.port).parse().map_err(problem)?;
    let threads = threads(args.threads)?;
    // Bind here first, because llama.cpp reports a failure without its reason.
    let free = TcpListener::bind((args.host.as_str(), args.port));
    drop(free.map_err(|error| problem(format!("cannot listen on {endpoint}: {error}")))?);
    let loopback = args.host == "localhost" || args.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    if !loopback {
        printer
            .warn("anyone who can reach this port can use this machine's memory: use a trusted network only");
    }
    devices::ffi::serve(&endpoint, &args.device, threads)?;
    Ok(ExitStatus::Done)
}
