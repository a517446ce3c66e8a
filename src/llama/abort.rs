//! How the process ends where llama.cpp gives up: its code calls `abort()`, throws what Rust cannot catch, or makes
//! the system end the process, and cannot be unwound. So the reason is told as every other error is, and what is
//! unfinished is removed.
//!
//! Until a model has been run once, the file is what is wrong: nothing else is new to llama.cpp. Afterwards it is a bug,
//! or a worker that was lost.

pub(super) mod ffi;

use std::io::{IsTerminal, Write};
use std::path::Path;

use crate::output::printable;
use crate::util::leftovers;

/// What is said of a file at which llama.cpp gives up.
const FILE_HINT: &str =
    "the file is damaged, or made for another llama.cpp: see whether llama.cpp's own tools run it";

/// A file that llama.cpp has not run yet, and what a handler of signals says of it, which may not allocate.
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

/// What the user is told, and the exit status.
#[derive(Debug, PartialEq, Eq)]
struct Farewell {
    error: String,
    hint: &'static str,
    status: i32,
}

/// From ggml's message, `FILE:LINE: TEXT`, what llama.cpp complained about before it, and the file that it was trying.
fn farewell(message: &str, complaints: &str, file: Option<&Unproven>) -> Farewell {
    let said = message.rsplit_once(": ").map_or(message, |(_, said)| said).trim();
    let source = message.split(':').next().unwrap_or_default();
    if source.ends_with("ggml-rpc.cpp") && complaints.contains("version mismatch") {
        let error = format!("an RPC worker cannot be used: {complaints}");
        let hint =
            "workers must speak the protocol of this llama.cpp: start them with `rosi-gguf rpc-server`";
        return Farewell { error, hint, status: 1 };
    }
    if source.ends_with("ggml-rpc.cpp") {
        return Farewell {
            error: format!("an RPC worker was lost: {said}"),
            hint: "see why it ended, and start it and this command again; --resume goes on with a search",
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
            let error = format!("llama.cpp gave up: {}", message.trim());
            Farewell { error, hint: "this is a bug: please report it with the command", status: 2 }
        }
    }
}

/// Tells why, and cleans up; the caller ends the process with the status.
fn take_leave(message: &str, complaints: &str, file: Option<&Unproven>) -> i32 {
    let farewell = farewell(message, complaints, file);
    let mut out = std::io::stderr();
    // A progress bar may stand on this line.
    let clear = if out.is_terminal() { "\r\x1b[2K" } else { "" };
    let Farewell { error, hint, status } = farewell;
    // Nobody can be told if stderr is gone.
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

    /// Runs an ignored test of this module by itself, which is to leave `path`.
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
        // A crash of anything else is none of ours.
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
