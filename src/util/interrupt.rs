//! Ctrl-C and SIGTERM handling: sets a flag that every long loop checks, so that work unwinds, temporary files
//! are removed, and the process exits with a message instead of dying in the middle of a write.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::output::tell;
use crate::util::leftovers;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// The error of work that the user interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted: nothing was written")]
pub struct Interrupted;

/// Installs the signal handler. A second signal removes unfinished files and exits immediately.
pub fn install() {
    let handler = || {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            // `exit` runs no destructors.
            leftovers::remove_all();
            std::process::exit(130);
        }
        tell("\nstopping; press Ctrl-C again to stop at once");
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        tracing::warn!("could not install the Ctrl-C handler: {error}");
    }
}

/// Returns whether an interrupt was requested.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// Clears the interrupt flag.
pub fn clear() {
    REQUESTED.store(false, Ordering::SeqCst);
}

/// Fails if an interrupt was requested.
///
/// # Errors
/// Returns [`Interrupted`] if the interrupt flag is set.
pub fn check() -> Result<(), Interrupted> {
    if requested() { Err(Interrupted) } else { Ok(()) }
}
