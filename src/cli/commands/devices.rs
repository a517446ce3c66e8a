//! `devices`: what models can run on beside the CPU.

use crate::cli::DevicesArgs;
use crate::llama::devices;
use crate::output::Printer;
use crate::pipeline::error::{Error, ExitStatus};
use crate::pipeline::session;

/// Lists GPUs and the devices of workers.
///
/// # Errors
/// [`Error`] when a worker cannot be reached.
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
        [] => "built without a GPU backend: --features cuda, metal, rocm or vulkan add one".to_owned(),
        names => format!("built with {}", names.join(", ")),
    });
    Ok(ExitStatus::Done)
}
