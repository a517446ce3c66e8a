//! The `rosi-gguf` program: parses arguments, runs the command, prints errors and sets the exit code.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use rosi_gguf::cli::commands;
use rosi_gguf::cli::{Cli, arguments};
use rosi_gguf::output::{LogWriter, Printer, printable, tell};
use rosi_gguf::util::hint::Hint;
use rosi_gguf::util::interrupt;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::format::debug_fn;

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
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(LogWriter::default)
        .with_ansi(std::io::stderr().is_terminal())
        .fmt_fields(debug_fn(|writer, field, value| match field.name() {
            "message" => write!(writer, "{}", printable(&format!("{value:?}"))),
            name => write!(writer, "{name}={}", printable(&format!("{value:?}"))),
        }))
        .without_time()
        // Otherwise, a failed write to stderr would itself be reported on stderr, and panic.
        .log_internal_errors(false)
        .init();
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

/// Prints a clap message. Returns 0 for help and version, 1 for invalid arguments.
fn usage(error: &clap::Error) -> ExitCode {
    let odd = arguments()
        .iter()
        .any(|argument| printable(&argument.to_string_lossy()) != argument.to_string_lossy());
    match odd {
        // Print without color and escape what remains, so that arguments cannot inject terminal escapes.
        true => tell(error.render().to_string().trim_end()),
        false => drop(error.print()),
    }
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(1),
    }
}
