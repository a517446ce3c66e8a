//! The lock that tells a running process from one that was killed: the system drops it with the process.
#![allow(unsafe_code)]

use std::fs::File;

/// Who holds the lock of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    /// This handle, until it is closed.
    Ours,
    /// Somebody who is alive.
    Theirs,
    /// Nobody can tell: the filesystem or the system has no such locks.
    Unknown,
}

/// Takes the lock of `file` if nobody has it.
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

/// Without flock nobody can tell.
#[cfg(not(unix))]
pub(super) fn try_lock(_: &File, _: bool) -> Lock {
    Lock::Unknown
}
