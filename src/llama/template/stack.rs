//! Where a template runs: on a stack of its own, and for a limited time of the CPU.
//!
//! Fuel limits what the engine counts. It does not count how long it compares or prints a value, and one that holds
//! another twice, sixty times over, is small in memory and endless to walk. So the time that the thread has computed is
//! limited too. How long it had to wait for a busy machine does not count.

mod ffi;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::TemplateError;

/// Longest time of computing for one parsing or rendering; real templates take a millisecond.
const MAX_TIME: Duration = Duration::from_secs(3);
/// How often is looked at it.
const GLANCE: Duration = Duration::from_millis(100);
/// Stack of the thread that parses or renders; only what is used takes memory. Of the source's
/// constructs none was found to take more than 500 bytes of stack per byte (a row of unary operators),
/// of nested values 400 per level at 6 of fuel: 64 MiB and 32 MiB.
const STACK: usize = 256 << 20;

/// Runs `work`, with all that it drops, where recursion as deep as a template can make it has room, and waits for it
/// no longer than it may compute. The engine cannot be stopped: what still runs ends with the process.
pub(super) fn on_own_stack<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TemplateError> + Send + 'static,
) -> Result<T, TemplateError> {
    let (send, receive) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("chat template".into()).stack_size(STACK);
    // The receiver is gone when nobody waits any more.
    let thread = thread.spawn(move || drop(send.send(work())));
    let thread = thread
        .map_err(|error| TemplateError::Jinja(format!("no thread could be started for it: {error}")))?;
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
