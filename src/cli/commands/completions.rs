//! `completions`: the completion script for a shell to source.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::cli::Cli;

const NAME: &str = "rosi-gguf";
/// Name used in the functions of the bash script.
const BASH_NAME: &str = "rosi_gguf";

/// Writes the completions for `shell` to `out`.
///
/// # Errors
/// Returns an error if `out` cannot be written to.
pub fn write(shell: Shell, out: &mut impl Write) -> io::Result<()> {
    let mut script = Vec::new();
    match shell {
        Shell::Bash => bash(&mut script),
        _ => generate(shell, &mut Cli::command(), NAME, &mut script),
    }
    out.write_all(&script)
}

/// Generates the bash script for a name without a hyphen and registers it for the real name: clap_complete 4.6 escapes
/// the hyphen of a program's name in two different ways in one bash script, which then completes nothing after a
/// command (clap-rs/clap#6421).
fn bash(out: &mut Vec<u8>) {
    let mut script = Vec::new();
    generate(Shell::Bash, &mut Cli::command(), BASH_NAME, &mut script);
    for line in String::from_utf8_lossy(&script).lines() {
        let registered = line.trim_start().starts_with("complete ").then(|| line.strip_suffix(BASH_NAME));
        match registered.flatten() {
            Some(options) => out.extend([options, NAME, "\n"].concat().into_bytes()),
            None => out.extend([line, "\n"].concat().into_bytes()),
        }
    }
}
