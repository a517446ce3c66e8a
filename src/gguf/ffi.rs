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

/// Gives the lock up now. Closing the file is not enough: a process that another thread is about to start holds a copy of
/// the descriptor until it runs its own program.
#[cfg(unix)]
pub(super) fn unlock(file: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: as above.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_UN) };
}

/// There is no lock to give up.
#[cfg(not(unix))]
pub(super) fn unlock(_: &File) {}

/// Without flock nobody can tell.
#[cfg(not(unix))]
pub(super) fn try_lock(_: &File, _: bool) -> Lock {
    Lock::Unknown
}
