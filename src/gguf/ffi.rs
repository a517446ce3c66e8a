//! File locks that distinguish running processes from killed ones: the system releases them when a process ends.
#![allow(unsafe_code)]

use std::fs::File;

/// Result of trying to lock a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    /// This handle holds the lock until it is closed.
    Ours,
    /// Another open handle, in this or another live process, holds the lock.
    Theirs,
    /// The filesystem or operating system does not support such locks.
    Unknown,
}

/// Tries to lock `file` without waiting.
#[cfg(unix)]
pub(super) fn try_lock(file: &File, shared: bool) -> Lock {
    use std::os::fd::AsRawFd;
    let kind = if shared { libc::LOCK_SH } else { libc::LOCK_EX };
    // SAFETY: the descriptor is open for as long as `file` is borrowed; flock touches no memory.
    let taken = unsafe { libc::flock(file.as_raw_fd(), kind | libc::LOCK_NB) } == 0;
    match std::io::Error::last_os_error().kind() {
        _ if taken => Lock::Ours,
        std::io::ErrorKind::WouldBlock => Lock::Theirs,
        _ => Lock::Unknown,
    }
}

/// Releases the lock now. Closing the file is not enough: a child process that another thread is starting
/// holds a copy of the descriptor until it calls `exec`.
#[cfg(unix)]
pub(super) fn unlock(file: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: as above.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_UN) };
}

/// Does nothing: there are no locks without `flock`.
#[cfg(not(unix))]
pub(super) fn unlock(_: &File) {}

/// Always returns [`Lock::Unknown`]: there are no locks without `flock`.
#[cfg(not(unix))]
pub(super) fn try_lock(_: &File, _: bool) -> Lock {
    Lock::Unknown
}
