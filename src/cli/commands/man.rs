//! `man`: the manual pages, generated from the `--help` texts.

use std::io::{self, Write};
use std::path::Path;

use clap::CommandFactory;
use clap_mangen::Man;

use crate::cli::{Cli, ManArgs};
use crate::pipeline::error::Error;

/// Writes one page to `out`, or all of them as files.
///
/// # Errors
/// Returns [`Error::Option`] for an unknown command, or [`Error::Io`] if a page cannot be written.
pub fn run(args: &ManArgs, out: &mut impl Write) -> Result<(), Error> {
    let failed = |path: &Path, source| Error::Io { path: path.to_path_buf(), source };
    match &args.dir {
        Some(dir) => {
            let all = || {
                std::fs::create_dir_all(dir)?;
                clap_mangen::generate_to(Cli::command(), dir)
            };
            all().map_err(|error| failed(dir, error))
        }
        None => {
            let page = page(args.command.as_deref())?;
            write(page, out).map_err(|error| failed(Path::new("stdout"), error))
        }
    }
}

fn write(page: clap::Command, out: &mut impl Write) -> io::Result<()> {
    let mut text = Vec::new();
    Man::new(page).render(&mut text)?;
    out.write_all(&text)
}

/// Returns the clap command of the program, or of one of its commands.
fn page(command: Option<&str>) -> Result<clap::Command, Error> {
    let mut program = Cli::command().disable_help_subcommand(true);
    // Prefixes the names of command pages with the program's, and adds the global options to them.
    program.build();
    let Some(name) = command else { return Ok(program) };
    program.find_subcommand(name).cloned().ok_or_else(|| Error::Option {
        flag: "man",
        problem: format!("unknown command `{name}`"),
        hint: Some("`rosi-gguf --help` lists the commands".into()),
    })
}
