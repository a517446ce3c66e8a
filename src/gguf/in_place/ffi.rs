//! The lock that tells a running change from one that was killed: the system drops it with the process.
#![allow(unsafe_code)]

use std::fs::File;

/// Whether nobody else holds the lock of `file`; then this handle holds it until it is closed.
#[cfg(unix)]
pub(super) fn try_lock(file: &File, shared: bool) -> bool {
    use std::os::fd::AsRawFd;
    let kind = if shared { libc::LOCK_SH } else { libc::LOCK_EX };
    // SAFETY: the descriptor is open for as long as `file` is borrowed; flock touches no memory.
    let failed = unsafe { libc::flock(file.as_raw_fd(), kind | libc::LOCK_NB) } != 0;
    // A filesystem without locks must not forbid everything: only "somebody has it" counts.
    !(failed && std::io::Error::last_os_error().kind() == std::io::ErrorKind::WouldBlock)
}

/// Without flock nobody can tell; the journal's own name still keeps two changes apart.
#[cfg(not(unix))]
pub(super) fn try_lock(_: &File, _: bool) -> bool {
    true
}
