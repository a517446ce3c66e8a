//! `devices`: the devices other than the CPU that models can run on.

use crate::cli::DevicesArgs;
use crate::llama::devices;
use crate::output::Printer;
use crate::pipeline::error::{Error, ExitStatus};
use crate::pipeline::session;

/// Lists GPUs and the devices of RPC workers.
///
/// # Errors
/// Returns [`Error`] if a worker cannot be reached.
pub fn run(args: &DevicesArgs, printer: &Printer) -> Result<ExitStatus, Error> {
    session::call_workers(&args.rpc, printer)?;
    let (found, backends) = (devices::devices(), devices::backends());
    if args.json {
        let all = serde_json::json!({ "backends": backends, "devices": found });
        printer.json(&all);
        return Ok(ExitStatus::Done);
    }
    printer.data("Available devices:");
    match found.as_slice() {
        [] => printer.data("  (none)"),
        found => found.iter().for_each(|device| printer.data(format!("  {device}"))),
    }
    printer.say(match backends.as_slice() {
        [] => "built without a GPU backend; rebuild with --features cuda, metal, rocm or vulkan".to_owned(),
        names => format!("GPU backends: {}", names.join(", ")),
    });
    Ok(ExitStatus::Done)
}
