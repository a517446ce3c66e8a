//! `completions`: a script that a shell sources.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::cli::Cli;

const NAME: &str = "rosi-gguf";
/// What the functions of the bash script are called.
const BASH_NAME: &str = "rosi_gguf";

/// Writes the completions for `shell` to `out`.
///
/// # Errors
/// Those of `out`.
pub fn write(shell: Shell, out: &mut impl Write) -> io::Result<()> {
    let mut script = Vec::new();
    match shell {
        Shell::Bash => bash(&mut script),
        _ => generate(shell, &mut Cli::command(), NAME, &mut script),
    }
    out.write_all(&script)
}

/// clap_complete 4.6 spells the hyphen of a program's name in two ways in one script for bash, which then completes
/// nothing after a command (clap-rs/clap#6421). So the script is made for a name without one, and registered for ours.
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
