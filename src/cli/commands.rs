//! The commands: validate arguments, run the pipeline, print the results.

pub mod ask;
pub mod chat;
pub mod completions;
pub mod devices;
pub mod eval;
pub mod export;
pub mod inject;
pub mod inspect;
pub mod man;
mod ollama;
pub mod release;
pub mod report;
pub mod reproduce;
pub mod rpc_server;
pub mod search;
pub mod undo;
pub mod verify;

use std::path::{Path, PathBuf};

use crate::cli::options::{EvalOptions, ExportOptions};
use crate::cli::{Command, InjectArgs};
use crate::output::Printer;
use crate::pipeline::error::{Error, ExitStatus};
use crate::pipeline::options::{InjectOptions, RunOptions};
use crate::pipeline::{outputs, session};
use crate::sources::{Check, ModelArg, Source};

/// Finds a model, and verifies its full contents if its store records a hash.
fn find(model: &ModelArg, printer: &Printer) -> Result<Source, Error> {
    session::find(model, Check::Content, printer)
}

/// Checks the output paths before a model is downloaded or hashed. An existing file at the output path of a model file
/// passes: only later is it known whether that is the model itself.
fn check_outputs(args: &InjectArgs) -> Result<(), Error> {
    if args.dry_run {
        return Ok(());
    }
    let sides = [&args.report, &args.html, &args.save_adapter].into_iter().flatten();
    outputs::check(sides.map(PathBuf::as_path), args.overwrite)?;
    let overwrite = args.overwrite || matches!(args.model, ModelArg::File(_));
    outputs::check(args.output.as_deref(), overwrite)
}

/// Runs one command.
///
/// # Errors
/// Returns the error of the first stage that failed.
pub fn run(command: Command, printer: &Printer) -> Result<ExitStatus, Error> {
    match command {
        Command::Inject(args) => {
            check_outputs(&args)?;
            let source = find(&args.model, printer)?;
            let judge = args.judge.as_ref().map(|judge| find(judge, printer)).transpose()?;
            let options = InjectOptions::new(*args, source, judge)?;
            if !options.dry_run {
                // Before hashing the model, which takes minutes for a large one.
                session::devices(&options.run, printer)?;
            }
            inject::run(&options, printer)
        }
        Command::Search(args) => {
            outputs::check([args.output.as_path()], args.overwrite)?;
            let source = find(&args.model, printer)?;
            let options = InjectOptions::for_search(*args, source)?;
            session::devices(&options.run, printer)?;
            search::run(&options, printer)
        }
        Command::Inspect(args) => inspect::run(&args, printer),
        Command::Verify(args) => verify::run(&args, printer),
        Command::Export(args) => {
            let paths = [&args.lora, &args.control_vector].into_iter().flatten();
            outputs::check(paths.map(PathBuf::as_path), args.overwrite)?;
            let source = find(&args.model, printer)?;
            export::run(&ExportOptions::new(args, source)?, printer)
        }
        Command::Release(args) => release::run(*args, printer),
        Command::Report(args) => report::run(&args, printer),
        Command::Reproduce(args) => reproduce::run(*args, printer),
        Command::Undo(args) => undo::run(&args, printer),
        Command::Ask(args) => {
            let run = RunOptions::new(args.run)?;
            ask::run(
                &ask::Question {
                    model: find(&args.model, printer)?.path,
                    prompts: args.prompt,
                    tokens: args.tokens,
                    thinking: args.thinking.into(),
                    json: args.json,
                },
                &run,
                printer,
            )
        }
        Command::Chat(args) => chat::run(args, &mut |model| find(model, printer), printer),
        Command::Eval(args) => {
            outputs::check(args.report.as_deref(), args.overwrite)?;
            eval::run(&EvalOptions::new(args, &mut |model| find(model, printer))?, printer)
        }
        Command::Devices(args) => devices::run(&args, printer),
        Command::RpcServer(args) => rpc_server::run(&args, printer),
        Command::Completions { shell } => {
            let written = completions::write(shell, &mut std::io::stdout().lock());
            written.map_err(|source| Error::Io { path: Path::new("stdout").into(), source })?;
            Ok(ExitStatus::Done)
        }
        Command::Man(args) => {
            man::run(&args, &mut std::io::stdout().lock())?;
            Ok(ExitStatus::Done)
        }
    }
}
