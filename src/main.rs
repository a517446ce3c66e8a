//! `rosi-gguf`: parse, run, print, exit.

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use rosi_gguf::cli::{Cli, arguments};
use rosi_gguf::output::{Printer, tell};
use rosi_gguf::{commands, interrupt};
use tracing::level_filters::LevelFilter;

fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(arguments()) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let level = match cli.verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).without_time();
    // It would tell of a stderr that nobody reads on that stderr, and panic.
    log.log_internal_errors(false).init();
    interrupt::install();
    let printer = Printer::new(cli.quiet, cli.verbose);
    match commands::run(cli.command, &printer) {
        Ok(status) => status.into(),
        Err(error) => {
            tell(format_args!("error: {error}"));
            if let Some(hint) = error.hint() {
                tell(format_args!("hint: {hint}"));
            }
            error.exit_code()
        }
    }
}

/// Help and version are answers (0); a wrong flag is the user's to mend (1).
fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(1),
    }
}
