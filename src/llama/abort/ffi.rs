//! What runs before the process ends in C: ggml's callback before `abort()`, and on Unix handlers of the signals that end
//! a process. An exception of C++ that nobody catches ends it by one of them too.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};
use std::panic::catch_unwind;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::time::Duration;

use llama_cpp_sys_2 as sys;

use super::Unproven;
use crate::llama::ffi::take_errors;

/// The file that llama.cpp is at, while it has not run it yet.
static TRYING: AtomicPtr<Unproven> = AtomicPtr::new(ptr::null_mut());

/// Whether a thread has given up already.
static SPEAKING: AtomicBool = AtomicBool::new(false);

/// As long as it lives, what llama.cpp does is done to a file that it has not run yet.
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
    // SAFETY: it is null, or came from a `&'static`, through which nothing is ever changed.
    unsafe { TRYING.load(Ordering::SeqCst).as_ref() }
}

/// Runs on whichever thread gave up.
unsafe extern "C" fn on_abort(message: *const c_char) {
    // Threads of one computation give up together. The first of them speaks, and ends the process.
    while SPEAKING.swap(true, Ordering::SeqCst) {
        std::thread::sleep(Duration::from_secs(1));
    }
    let message = if message.is_null() {
        String::new()
    } else {
        // SAFETY: ggml passes a NUL-terminated string that lives for this call.
        unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
    };
    // Unwinding into C is undefined; after a panic ggml aborts, as it would have.
    if let Ok(status) = catch_unwind(|| super::take_leave(&message, &take_errors(), tried())) {
        // SAFETY: ends the process at once: destructors of C++ would wait for threads that wait for this one.
        unsafe { libc::_exit(status) }
    }
}

/// From now on the process ends by [`super::take_leave`] where llama.cpp gives up.
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

    /// What ends a process in the middle of a computation.
    const SIGNALS: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGABRT];
    /// Seconds that a crash waits for what is unfinished to be removed.
    const PATIENCE: u32 = 10;
    /// The end of a pipe that wakes the thread which removes it.
    static WAKE: AtomicI32 = AtomicI32::new(-1);
    /// Whether a thread has crashed already.
    static LEAVING: AtomicBool = AtomicBool::new(false);
    /// What was done about each of [`SIGNALS`] before.
    static BEFORE: OnceLock<[libc::sigaction; SIGNALS.len()]> = OnceLock::new();

    /// Only what may be called in a handler of signals: no memory is allocated, and nothing is locked.
    extern "C" fn on_signal(signal: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
        let Some(file) = tried() else {
            let at = SIGNALS.iter().position(|&other| other == signal).unwrap_or(0);
            if let Some(before) = BEFORE.get() {
                // SAFETY: what the system gave at the start. On return the instruction runs again, or `abort()` goes on.
                unsafe { libc::sigaction(signal, &before[at], ptr::null_mut()) };
            }
            return;
        };
        let words = file.last_words.as_bytes();
        // SAFETY: the buffers are readable for their lengths; what fails is no matter any more.
        unsafe {
            // Threads of one computation crash together, and the first of them speaks.
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

    /// Starts the thread that removes what is unfinished after a crash: the one that crashed may hold any lock.
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
        // Without it a crash leaves what is unfinished.
        if thread::Builder::new().name("cleaner".into()).spawn(wait).is_ok() {
            WAKE.store(ends[1], Ordering::SeqCst);
        }
    }
}
