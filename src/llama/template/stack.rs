//! Runs templates on a stack of their own and with limited CPU time.
//!
//! Fuel limits only the steps that the engine counts, which do not include comparing or printing a value. A value that
//! contains another one twice, nested sixty levels deep, is small in memory but takes forever to traverse. The CPU time
//! of the thread is therefore limited too; time spent waiting on a busy machine does not count.

mod ffi;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::TemplateError;

/// Maximum CPU time for parsing or rendering once; real templates take a millisecond.
const MAX_TIME: Duration = Duration::from_secs(3);
/// Interval at which the CPU time is checked.
const GLANCE: Duration = Duration::from_millis(100);
/// Stack size of the thread that parses or renders, in bytes; only the used part takes memory. No construct was found
/// to take more than 500 bytes of stack per byte of source (a sequence of unary operators), and nested values take 400
/// bytes per level, each level costing 6 of fuel: 64 MiB and 32 MiB at most.
const STACK: usize = 256 << 20;

/// Runs `work`, including everything that it drops, on a stack large enough for the deepest recursion that a template
/// can cause, and waits until it finishes or exceeds its CPU time. The engine cannot be stopped: a thread that exceeds
/// its time keeps running until the process ends.
///
/// # Errors
/// Returns the error of `work`, [`TemplateError::TooSlow`] if it exceeds its CPU time, or [`TemplateError::Jinja`] if
/// the thread cannot be started or panics.
pub(super) fn on_own_stack<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TemplateError> + Send + 'static,
) -> Result<T, TemplateError> {
    let (send, receive) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("chat template".into()).stack_size(STACK);
    // Sending fails if the caller no longer waits, which is fine.
    let thread = thread.spawn(move || drop(send.send(work())));
    let thread = thread
        .map_err(|error| TemplateError::Jinja(format!("cannot start a thread for the template: {error}")))?;
    let started = Instant::now();
    loop {
        match receive.recv_timeout(GLANCE) {
            Ok(done) => return done,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(TemplateError::Jinja("the template engine panicked".into()));
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                if ffi::computed(&thread, started).is_some_and(|time| time > MAX_TIME) {
                    return Err(TemplateError::TooSlow { seconds: MAX_TIME.as_secs() });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_does_not_count_as_computing() {
        let waited = on_own_stack(|| {
            std::thread::sleep(MAX_TIME + 2 * GLANCE);
            Ok(7)
        });
        assert_eq!(waited.unwrap(), 7);
        let endless = on_own_stack(|| -> Result<(), TemplateError> {
            loop {
                std::hint::spin_loop();
            }
        });
        assert!(matches!(endless, Err(TemplateError::TooSlow { .. })), "{endless:?}");
    }
}
