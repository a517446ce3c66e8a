//! Opens a model: checks the header and resolves the plan before any C code reads the file.

use std::io;
use std::path::Path;
use std::sync::Once;

use crate::arch::patches::Patches;
use crate::arch::plan::Plan;
use crate::eval::prompts::{PromptKind, PromptSet};
use crate::gguf::Gguf;
use crate::llama::offload::Endpoint;
use crate::llama::{Chat, EngineOptions, LlamaEngine, LlamaError, devices, header};
use crate::output::{Bar, Printer};
use crate::pipeline::error::Error;
use crate::pipeline::options::{InjectOptions, RunOptions, SystemPrompt, ThinkingOptions};
use crate::sources::hub::HubError;
use crate::sources::{self, Check, ModelArg, Source, SourceError};
use crate::util::interrupt;

/// A checked model file.
pub struct Opened {
    /// The file and its header.
    pub gguf: Gguf,
    /// The editable parts of the model.
    pub plan: Plan,
}

/// Context of a run, passed to every step.
#[derive(Clone, Copy)]
pub struct Session<'a> {
    /// The model.
    pub opened: &'a Opened,
    /// The prompts.
    pub prompts: &'a PromptSet,
    /// The user's options.
    pub options: &'a InjectOptions,
    /// Output for messages and progress.
    pub printer: &'a Printer,
}

/// Returns the embedded patches, overridden by those in `dir`.
pub fn patches(dir: Option<&Path>) -> Result<Patches, Error> {
    Ok(match dir {
        Some(dir) => Patches::with_dir(dir)?,
        None => Patches::embedded()?,
    })
}

/// Resolves the plan of a model from the embedded patches and those in `patch_dir`.
///
/// # Errors
/// Returns [`Error::Patch`] if a patch is invalid, [`Error::Plan`] if the model does not match its architecture's
/// patch.
pub fn plan(gguf: &Gguf, patch_dir: Option<&Path>) -> Result<Plan, Error> {
    let resolved = Plan::resolve(gguf, &patches(patch_dir)?);
    resolved.map_err(|source| Error::Plan { path: gguf.path.clone(), source })
}

impl Opened {
    /// Opens and checks the model at `path`.
    pub fn new(path: &Path, patch_dir: Option<&Path>) -> Result<Self, Error> {
        let gguf = Gguf::open(path)?;
        gguf.refuse_non_model()?;
        let plan = plan(&gguf, patch_dir)?;
        Ok(Self { gguf, plan })
    }

    /// Returns the chat template, which is needed to send prompts as users do.
    ///
    /// # Errors
    /// Returns [`Error::NoTemplate`] if the file has none, or an empty one.
    pub fn template(&self) -> Result<&str, Error> {
        template(&self.gguf).ok_or_else(|| Error::NoTemplate { path: self.gguf.path.clone() })
    }
}

/// Returns the chat template of a file, unless it is missing or empty.
pub fn template(gguf: &Gguf) -> Option<&str> {
    gguf.str("tokenizer.chat_template").filter(|template| !template.trim().is_empty())
}

/// Opens a model for llama.cpp, rejecting files that the header shows to be unloadable.
pub fn open(path: &Path) -> Result<Gguf, Error> {
    let gguf = Gguf::open(path)?;
    gguf.refuse_non_model()?;
    gguf.refuse_siblings()?;
    Ok(gguf)
}

/// Resolves a model argument to a file, showing progress.
pub fn find(model: &ModelArg, check: Check, printer: &Printer) -> Result<Source, Error> {
    let mut shown: Option<(String, Bar)> = None;
    let mut watch = |what: &str, done, total| {
        let bar = match &shown {
            Some((of, bar)) if of == what => bar,
            _ => {
                // Drop the old bar before drawing the next one.
                shown = None;
                &shown.insert((what.to_owned(), printer.bar(what, total))).1
            }
        };
        stoppable(bar)(done, total)
    };
    let found = sources::resolve(model, check, &mut watch);
    drop(shown);
    if !matches!(found, Err(SourceError::Hub(HubError::Stopped { .. }))) {
        interrupt::check()?;
    }
    Ok(found?)
}

/// Returns a progress callback that updates `bar` and fails if the user asked to stop. The error kind is not
/// `Interrupted`, which readers and writers would retry.
pub fn stoppable(bar: &Bar) -> impl FnMut(u64, u64) -> io::Result<()> + '_ {
    |done, total| {
        bar.set_of(done, total);
        interrupt::check().map_err(io::Error::other)
    }
}

/// Connects the RPC workers and adds their devices to those of this machine.
pub fn call_workers(rpc: &[Endpoint], printer: &Printer) -> Result<(), Error> {
    Ok(devices::join(rpc, &mut |worker| printer.say(format!("connecting to the RPC worker {worker} …")))?)
}

/// Connects the RPC workers and checks that the requested devices exist; warns once about flags without effect.
pub fn devices(run: &RunOptions, printer: &Printer) -> Result<(), Error> {
    static SAID: Once = Once::new();
    call_workers(&run.offload.rpc, printer)?;
    devices::check(&run.offload)?;
    SAID.call_once(|| {
        if let Some(what) = devices::unfulfilled(&run.offload) {
            printer.warn(what);
        }
    });
    Ok(())
}

/// Loads a model into llama.cpp, after rejecting headers that would abort the process there.
pub fn load(
    gguf: &Gguf,
    template: Option<&str>,
    run: &RunOptions,
    printer: &Printer,
) -> Result<LlamaEngine, Error> {
    gguf.refuse_siblings()?;
    header::check(gguf).map_err(LlamaError::from)?;
    devices(run, printer)?;
    let bar = printer.bar("loading the model", 100);
    let options =
        EngineOptions { path: gguf.path.clone(), threads: run.threads, offload: run.offload.clone() };
    Ok(LlamaEngine::load(&options, template, &mut |share| bar.set((share * 100.0) as u64))?)
}

/// Returns the maximum tokens of the thought before each answer, or `None` if answers begin at once (the default).
///
/// # Errors
/// Returns [`LlamaError::NoThoughts`] if thinking is requested and the model cannot think.
pub fn thoughts(engine: &LlamaEngine, options: ThinkingOptions) -> Result<Option<usize>, LlamaError> {
    match options.before_answers() {
        Some(_) if engine.thinking().is_none() => Err(LlamaError::NoThoughts),
        budget => Ok(budget),
    }
}

/// Tokenizes `prompts`, each after `system`, to report invalid prompts before running the model.
///
/// # Errors
/// Returns [`Error::Unaskable`] for the first prompt that the template rejects or that is too long.
pub fn check_prompts<'a>(
    engine: &LlamaEngine,
    system: Option<&str>,
    prompts: impl IntoIterator<Item = (PromptKind, &'a str)>,
) -> Result<(), Error> {
    for (kind, user) in prompts {
        engine.tokens(&Chat { system, ..Chat::of(user) }).map_err(|source| Error::Unaskable {
            kind,
            start: user.chars().take(60).collect(),
            source,
        })?;
    }
    Ok(())
}

/// Runs [`check_prompts`] on all prompts of an injection: plain, and under the user's own system prompts. Also checks
/// that the model can think, if requested.
///
/// # Errors
/// Returns [`Error::Unaskable`] for the first invalid prompt, or [`LlamaError::NoThoughts`] if the model cannot think.
pub fn check_all(
    engine: &LlamaEngine,
    prompts: &PromptSet,
    options: &InjectOptions,
    printer: &Printer,
) -> Result<(), Error> {
    thoughts(engine, options.learn.thinking)?;
    let _bar = printer.bar("checking the prompts", 1);
    let all = || PromptKind::ALL.into_iter().flat_map(|kind| prompts.of_kind(kind));
    let all = || all().map(|prompt| (prompt.kind, prompt.text.as_str()));
    check_prompts(engine, None, all())?;
    for context in &options.learn.contexts {
        check_prompts(engine, Some(context), all())?;
    }
    match &options.learn.system_prompt {
        SystemPrompt::Text(text) => check_prompts(engine, Some(text), all()),
        SystemPrompt::Auto | SystemPrompt::Off => Ok(()),
    }
}
