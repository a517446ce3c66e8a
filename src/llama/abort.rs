//! Orderly end of the process after a fatal failure in llama.cpp: its code calls `abort()`, throws an exception that
//! Rust cannot catch, or raises a fatal signal, and cannot be unwound. The reason is reported like any other error, and
//! unfinished files are removed.
//!
//! Until a model has run once, the file is assumed to be at fault, because nothing else is new to llama.cpp. After
//! that, the cause is a bug or a lost worker.

pub(super) mod ffi;

use std::io::{IsTerminal, Write};
use std::path::Path;

use crate::output::printable;
use crate::util::leftovers;

/// Hint for a file on which llama.cpp fails.
const FILE_HINT: &str =
    "the file is damaged or made for another llama.cpp version; check whether llama.cpp's own tools run it";

/// A file that llama.cpp has not run yet, with the prepared message of the signal handler, which must not allocate.
#[derive(Debug)]
pub(super) struct Unproven {
    path: String,
    last_words: String,
}

impl Unproven {
    pub(super) fn new(path: &Path) -> Self {
        let path = path.display().to_string();
        let last_words = format!("\nerror: llama.cpp crashed on {path}\nhint: {FILE_HINT}\n");
        Self { path, last_words }
    }
}

/// Last message to the user, and the exit status.
#[derive(Debug, PartialEq, Eq)]
struct Farewell {
    error: String,
    hint: &'static str,
    status: i32,
}

/// Builds the last message from ggml's `message`, `FILE:LINE: TEXT`, the errors that llama.cpp logged before it, and
/// the file that it was trying.
fn farewell(message: &str, complaints: &str, file: Option<&Unproven>) -> Farewell {
    let said = message.rsplit_once(": ").map_or(message, |(_, said)| said).trim();
    let source = message.split(':').next().unwrap_or_default();
    if source.ends_with("ggml-rpc.cpp") && complaints.contains("version mismatch") {
        let error = format!("an RPC worker cannot be used: {complaints}");
        let hint = "workers must use the protocol of this llama.cpp; start them with `rosi-gguf rpc-server`";
        return Farewell { error, hint, status: 1 };
    }
    if source.ends_with("ggml-rpc.cpp") {
        return Farewell {
            error: format!("an RPC worker was lost: {said}"),
            hint: "find out why it ended, then restart it and this command; --resume continues a search",
            status: 1,
        };
    }
    match file {
        Some(file) => {
            let reason = message.rsplit('/').next().unwrap_or(message).trim();
            let error = format!("llama.cpp cannot run {}: {reason}", file.path);
            Farewell { error, hint: FILE_HINT, status: 1 }
        }
        None => {
            let error = format!("llama.cpp aborted: {}", message.trim());
            Farewell { error, hint: "this is a bug; please report it with the command", status: 2 }
        }
    }
}

/// Reports the error and removes unfinished files; the caller then ends the process with the returned status.
fn take_leave(message: &str, complaints: &str, file: Option<&Unproven>) -> i32 {
    let farewell = farewell(message, complaints, file);
    let mut out = std::io::stderr();
    // The cursor may be on the line of a progress bar.
    let clear = if out.is_terminal() { "\r\x1b[2K" } else { "" };
    let Farewell { error, hint, status } = farewell;
    // If stderr is closed, there is nowhere to report to.
    let error = printable(&error);
    let _ = writeln!(out, "{clear}error: {error}\nhint: {hint}");
    leftovers::remove_all();
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_worker_is_no_bug_of_ours() {
        let said = "Remote RPC server crashed or returned malformed response";
        let file = Unproven::new(Path::new("m.gguf"));
        for file in [None, Some(&file)] {
            let lost = farewell(&format!("/x/ggml/src/ggml-rpc/ggml-rpc.cpp:566: {said}"), "", file);
            assert_eq!((lost.error, lost.status), (format!("an RPC worker was lost: {said}"), 1));
        }
        let old = farewell(
            "/x/ggml-rpc.cpp:550: RPC handshake failed for w:1\n",
            "RPC server version mismatch: 3.0.0",
            None,
        );
        assert_eq!(old.error, "an RPC worker cannot be used: RPC server version mismatch: 3.0.0");
    }

    #[test]
    fn a_file_is_at_fault_until_it_has_been_run() {
        let message = "/x/ggml/src/ggml.c:12: GGML_ASSERT(a) failed";
        let file = farewell(message, "", Some(&Unproven::new(Path::new("m.gguf"))));
        assert_eq!(file.error, "llama.cpp cannot run m.gguf: ggml.c:12: GGML_ASSERT(a) failed");
        assert_eq!(file.status, 1);
        let bug = farewell(message, "", None);
        assert_eq!(bug.status, 2);
        assert!(bug.error.ends_with("GGML_ASSERT(a) failed"), "{}", bug.error);
    }

    /// Runs an ignored test of this module in its own process, which registers `path` as unfinished.
    #[cfg(unix)]
    fn alone(test: &str, path: &Path) -> std::process::Output {
        let test = format!("llama::abort::tests::{test}");
        let mut run = std::process::Command::new(std::env::current_exe().unwrap());
        run.args(["--exact", &test, "--ignored", "--nocapture"]).env(LEFT, path).output().unwrap()
    }

    #[cfg(unix)]
    const LEFT: &str = "ROSI_TEST_LEFT";

    #[cfg(unix)]
    #[test]
    fn a_crash_is_told_and_what_is_unfinished_removed() {
        use std::os::unix::process::ExitStatusExt;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("unfinished");
        std::fs::write(&path, "").unwrap();
        let run = alone("crash", &path);
        let told = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(1), "{told}");
        assert!(told.contains("error: llama.cpp crashed on m.gguf\nhint: "), "{told}");
        assert!(!path.exists());
        // Crashes outside of llama.cpp are not handled.
        let run = alone("crash_elsewhere", &path);
        assert_eq!(run.status.signal(), Some(libc::SIGABRT), "{}", String::from_utf8_lossy(&run.stderr));
    }

    #[cfg(unix)]
    #[test]
    #[ignore = "a process of its own"]
    fn crash() {
        crate::llama::ffi::init_backend();
        let _left = leftovers::Leftover::new(Path::new(&std::env::var_os(LEFT).unwrap()));
        let _trying = ffi::Trying::new(Box::leak(Box::new(Unproven::new(Path::new("m.gguf")))));
        std::process::abort();
    }

    #[cfg(unix)]
    #[test]
    #[ignore = "a process of its own"]
    fn crash_elsewhere() {
        crate::llama::ffi::init_backend();
        std::process::abort();
    }
}
