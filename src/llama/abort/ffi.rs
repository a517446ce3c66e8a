//! Handlers that run before the process ends in C: ggml's callback before `abort()` and, on Unix, handlers for fatal
//! signals. An uncaught C++ exception also ends the process with one of these signals.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};
use std::panic::catch_unwind;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::time::Duration;

use llama_cpp_sys_2 as sys;

use super::Unproven;
use crate::llama::ffi::take_errors;

/// The file that llama.cpp is working on and has not run before; null if there is none.
static TRYING: AtomicPtr<Unproven> = AtomicPtr::new(ptr::null_mut());

/// Whether a thread has already aborted.
static SPEAKING: AtomicBool = AtomicBool::new(false);

/// Guard: while it lives, llama.cpp is working on a file that it has not run before.
pub(in crate::llama) struct Trying {
    before: *mut Unproven,
}

impl Trying {
    pub(in crate::llama) fn new(file: &'static Unproven) -> Self {
        Self { before: TRYING.swap(ptr::from_ref(file).cast_mut(), Ordering::SeqCst) }
    }
}

impl Drop for Trying {
    fn drop(&mut self) {
        TRYING.store(self.before, Ordering::SeqCst);
    }
}

fn tried() -> Option<&'static Unproven> {
    // SAFETY: the pointer is null or came from a `&'static`, through which nothing is ever modified.
    unsafe { TRYING.load(Ordering::SeqCst).as_ref() }
}

/// Callback that ggml calls on the aborting thread.
unsafe extern "C" fn on_abort(message: *const c_char) {
    // The threads of one computation may abort together. The first one reports the error and ends the process.
    while SPEAKING.swap(true, Ordering::SeqCst) {
        std::thread::sleep(Duration::from_secs(1));
    }
    let message = if message.is_null() {
        String::new()
    } else {
        // SAFETY: ggml passes a NUL-terminated string that lives for this call.
        unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
    };
    // Unwinding into C is undefined behavior; after a panic, ggml aborts as it would have without this callback.
    if let Ok(status) = catch_unwind(|| super::take_leave(&message, &take_errors(), tried())) {
        // SAFETY: ends the process at once; C++ destructors would wait for threads that wait for this one.
        unsafe { libc::_exit(status) }
    }
}

/// Makes the process end through [`super::take_leave`] if llama.cpp aborts.
pub(in crate::llama) fn install() {
    // SAFETY: the callback is 'static.
    unsafe { sys::ggml_set_abort_callback(Some(on_abort)) };
    #[cfg(unix)]
    unix::install();
}

#[cfg(unix)]
mod unix {
    use std::ffi::{c_int, c_void};
    use std::mem::MaybeUninit;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
    use std::{ptr, thread};

    use super::tried;
    use crate::util::leftovers;

    /// Signals that a failing computation can raise.
    const SIGNALS: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGABRT];
    /// Seconds that a crashed process waits for unfinished files to be removed.
    const PATIENCE: u32 = 10;
    /// Write end of the pipe that wakes the cleanup thread; -1 if there is no such thread.
    static WAKE: AtomicI32 = AtomicI32::new(-1);
    /// Whether a thread has already crashed.
    static LEAVING: AtomicBool = AtomicBool::new(false);
    /// Previous actions for [`SIGNALS`].
    static BEFORE: OnceLock<[libc::sigaction; SIGNALS.len()]> = OnceLock::new();

    /// Signal handler. It must be async-signal-safe: it allocates no memory and takes no locks.
    extern "C" fn on_signal(signal: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
        let Some(file) = tried() else {
            let at = SIGNALS.iter().position(|&other| other == signal).unwrap_or(0);
            if let Some(before) = BEFORE.get() {
                // SAFETY: the system returned this action at the start. After this handler, the instruction runs again
                // or `abort()` continues.
                unsafe { libc::sigaction(signal, &before[at], ptr::null_mut()) };
            }
            return;
        };
        let words = file.last_words.as_bytes();
        // SAFETY: the buffers are readable for their lengths; failures no longer matter.
        unsafe {
            // The threads of one computation may crash together. Only the first one reports it.
            if !LEAVING.swap(true, Ordering::SeqCst) {
                libc::write(libc::STDERR_FILENO, words.as_ptr().cast(), words.len());
                if libc::write(WAKE.load(Ordering::SeqCst), words.as_ptr().cast(), 1) != 1 {
                    libc::_exit(1);
                }
            }
            libc::sleep(PATIENCE);
            libc::_exit(1)
        }
    }

    pub(super) fn install() {
        start_cleaner();
        // SAFETY: the handler is 'static; the structures are plain data, written before they are read.
        unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_signal;
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            let before = SIGNALS.map(|signal| {
                let mut before = MaybeUninit::zeroed();
                libc::sigaction(signal, ptr::null(), before.as_mut_ptr());
                before.assume_init()
            });
            let _ = BEFORE.set(before);
            for signal in SIGNALS {
                libc::sigaction(signal, &action, ptr::null_mut());
            }
        }
    }

    /// Starts the thread that removes unfinished files after a crash: the crashed thread may hold any lock.
    fn start_cleaner() {
        let mut ends = [-1; 2];
        // SAFETY: `ends` has room for both.
        if unsafe { libc::pipe(ends.as_mut_ptr()) } != 0 {
            return;
        }
        let wait = move || {
            let mut byte = 0u8;
            // SAFETY: `byte` has room for one; the pipe stays open to the end of the process.
            if unsafe { libc::read(ends[0], (&raw mut byte).cast(), 1) } == 1 {
                leftovers::remove_all();
                // SAFETY: ends the process at once.
                unsafe { libc::_exit(1) }
            }
        };
        // Without this thread, a crash leaves unfinished files behind.
        if thread::Builder::new().name("cleaner".into()).spawn(wait).is_ok() {
            WAKE.store(ends[1], Ordering::SeqCst);
        }
    }
}
