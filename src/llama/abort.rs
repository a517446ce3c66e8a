//! How the process ends where llama.cpp gives up: its code calls `abort()` and cannot be unwound, a lost
//! worker being the case that users meet. So the reason is told as every other error is, and what is
//! unfinished is removed.

pub(super) mod ffi;

use std::io::{IsTerminal, Write};

use crate::leftovers;
use crate::output::printable;

/// What the user is told, and the exit status.
#[derive(Debug, PartialEq, Eq)]
struct Farewell {
    error: String,
    hint: &'static str,
    status: i32,
}

/// From ggml's message, `FILE:LINE: TEXT`, and what llama.cpp complained about before it.
fn farewell(message: &str, complaints: &str) -> Farewell {
    let said = message.rsplit_once(": ").map_or(message, |(_, said)| said).trim();
    let file = message.split(':').next().unwrap_or_default();
    if !file.ends_with("ggml-rpc.cpp") {
        let error = format!("llama.cpp gave up: {}", message.trim());
        return Farewell { error, hint: "this is a bug: please report it with the command", status: 2 };
    }
    if complaints.contains("version mismatch") {
        let error = format!("an RPC worker cannot be used: {complaints}");
        let hint =
            "workers must speak the protocol of this llama.cpp: start them with `rosi-gguf rpc-server`";
        return Farewell { error, hint, status: 1 };
    }
    Farewell {
        error: format!("an RPC worker was lost: {said}"),
        hint: "see why it ended, and start it and this command again; --resume goes on with a search",
        status: 1,
    }
}

/// Tells why, and cleans up; the caller ends the process with the status.
fn take_leave(message: &str, complaints: &str) -> i32 {
    let farewell = farewell(message, complaints);
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
        let lost = farewell(&format!("/x/ggml/src/ggml-rpc/ggml-rpc.cpp:566: {said}"), "");
        assert_eq!((lost.error, lost.status), (format!("an RPC worker was lost: {said}"), 1));
        let old = farewell(
            "/x/ggml-rpc.cpp:550: RPC handshake failed for w:1\n",
            "RPC server version mismatch: 3.0.0",
        );
        assert_eq!(old.error, "an RPC worker cannot be used: RPC server version mismatch: 3.0.0");
        let bug = farewell("/x/ggml/src/ggml.c:12: GGML_ASSERT(a) failed", "");
        assert_eq!(bug.status, 2);
        assert!(bug.error.ends_with("GGML_ASSERT(a) failed"), "{}", bug.error);
    }
}
