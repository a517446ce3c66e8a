//! Ctrl-C and SIGTERM: a flag that every long loop looks at, so that work unwinds, temporary files
//! are removed, and the process ends with a message instead of dying in the middle of a write.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::output::tell;
use crate::util::leftovers;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// The user asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted: nothing was written")]
pub struct Interrupted;

/// Installs the handler; a second signal removes what is unfinished, and ends the process at once.
pub fn install() {
    let handler = || {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            // No destructor runs: what is unfinished goes here.
            leftovers::remove_all();
            std::process::exit(130);
        }
        tell("\nstopping; press Ctrl-C again to stop at once");
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        tracing::warn!("no Ctrl-C handler: {error}");
    }
}

/// Whether a stop was asked for.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// Clears the interrupt flag.
pub fn clear() {
    REQUESTED.store(false, Ordering::SeqCst);
}

/// Fails when a stop was asked for.
///
/// # Errors
/// [`Interrupted`].
pub fn check() -> Result<(), Interrupted> {
    if requested() { Err(Interrupted) } else { Ok(()) }
}
