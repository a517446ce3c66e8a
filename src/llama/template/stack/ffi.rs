//! CPU time of a thread.
#![allow(unsafe_code)]

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Returns the CPU time of `thread`; `None` if it cannot be read, as after the thread has ended.
#[cfg(target_os = "linux")]
pub(super) fn computed<T>(thread: &JoinHandle<T>, _: Instant) -> Option<Duration> {
    use std::os::unix::thread::JoinHandleExt;

    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the handle keeps the thread's id valid until it is joined, and both out-pointers point to live values.
    let known = unsafe {
        libc::pthread_getcpuclockid(thread.as_pthread_t(), &raw mut clock) == 0
            && libc::clock_gettime(clock, &raw mut time) == 0
    };
    let seconds = u64::try_from(time.tv_sec).ok()?;
    known.then(|| Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0)))
}

/// Returns the time since `started`: other systems have no common way to read the CPU time of another thread.
#[cfg(not(target_os = "linux"))]
pub(super) fn computed<T>(_: &JoinHandle<T>, started: Instant) -> Option<Duration> {
    Some(started.elapsed())
}
