//! The commands: the only place that joins the stages.

pub mod ask;
pub mod chat;
pub mod direction;
mod dry_run;
pub mod eval;
mod exam;
pub mod export;
mod in_place;
pub mod inject;
pub mod inspect;
mod journal;
mod levers;
mod material;
mod ollama;
mod provenance;
pub mod release;
pub mod report;
mod session;
mod study;
pub mod undo;
pub mod verify;
mod write;

use clap::CommandFactory;

use crate::cli::{Cli, Command};
use crate::error::{Error, ExitStatus};
use crate::gguf::Gguf;
use crate::options::{EvalOptions, ExportOptions, InjectOptions, RunOptions};
use crate::output::Printer;
use crate::plan::Plan;
use crate::source::{Check, ModelArg, Source};

/// The plan of a model by the embedded patches, for library users.
///
/// # Errors
/// [`Error`] when the architecture is unknown or a writer is missing.
pub fn plan_of(gguf: &Gguf) -> Result<Plan, Error> {
    Ok(Plan::resolve(gguf, &session::patches(None)?)?)
}

/// The model of that name, all of it checked where its store says what it should be.
fn find(model: &ModelArg, printer: &Printer) -> Result<Source, Error> {
    session::find(model, Check::Content, printer)
}

/// Runs one command.
///
/// # Errors
/// The first stage that failed.
pub fn run(command: Command, printer: &Printer) -> Result<ExitStatus, Error> {
    match command {
        Command::Inject(args) => {
            let source = find(&args.model, printer)?;
            inject::run(&InjectOptions::new(*args, source)?, printer)
        }
        Command::Direction(args) => {
            let source = find(&args.model, printer)?;
            direction::run(&InjectOptions::for_direction(*args, source)?, printer)
        }
        Command::Inspect(args) => inspect::run(&args, printer),
        Command::Verify(args) => verify::run(&args, printer),
        Command::Export(args) => {
            let source = find(&args.model, printer)?;
            export::run(&ExportOptions::new(args, source)?, printer)
        }
        Command::Release(args) => release::run(*args, printer),
        Command::Report(args) => report::run(&args, printer),
        Command::Undo(args) => undo::run(&args, printer),
        Command::Ask(args) => {
            let run = RunOptions::new(args.run)?;
            ask::run(
                &ask::Question {
                    model: find(&args.model, printer)?.path,
                    prompts: args.prompt,
                    tokens: args.tokens,
                    json: args.json,
                },
                &run,
                printer,
            )
        }
        Command::Chat(args) => chat::run(args, &mut |model| find(model, printer), printer),
        Command::Eval(args) => {
            eval::run(&EvalOptions::new(args, &mut |model| find(model, printer))?, printer)
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "rosi-gguf", &mut std::io::stdout());
            Ok(ExitStatus::Done)
        }
    }
}
