//! Opening a model: header checks and plan before any C code sees the file.

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
    /// The header.
    pub gguf: Gguf,
    /// Its writers.
    pub plan: Plan,
}

/// A model at hand, and what is wanted of it: what every step of a run is given.
#[derive(Clone, Copy)]
pub struct Session<'a> {
    /// The model.
    pub opened: &'a Opened,
    /// What it is asked.
    pub prompts: &'a PromptSet,
    /// What the user asked for.
    pub options: &'a InjectOptions,
    /// Where people are told.
    pub printer: &'a Printer,
}

/// The embedded patches, with those of `dir` over them.
pub fn patches(dir: Option<&Path>) -> Result<Patches, Error> {
    Ok(match dir {
        Some(dir) => Patches::with_dir(dir)?,
        None => Patches::embedded()?,
    })
}

/// The writers of a model, by the embedded patches and those of `patch_dir`.
///
/// # Errors
/// [`Error::Patch`] or [`Error::Plan`].
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

    /// The chat template, without which prompts cannot be put as users put them.
    pub fn template(&self) -> Result<&str, Error> {
        let template = self.gguf.str("tokenizer.chat_template").filter(|t| !t.trim().is_empty());
        template.ok_or_else(|| Error::NoTemplate { path: self.gguf.path.clone() })
    }
}

/// Opens a model that llama.cpp is to run: what it cannot load is told by the header.
pub fn open(path: &Path) -> Result<Gguf, Error> {
    let gguf = Gguf::open(path)?;
    gguf.refuse_non_model()?;
    gguf.refuse_siblings()?;
    Ok(gguf)
}

/// The model of that name; shows what takes time.
pub fn find(model: &ModelArg, check: Check, printer: &Printer) -> Result<Source, Error> {
    let mut shown: Option<(String, Bar)> = None;
    let mut watch = |what: &str, done, total| {
        let bar = match &shown {
            Some((of, bar)) if of == what => bar,
            _ => {
                // Before the next one is drawn.
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

/// Shows on `bar` how far long work is, and ends it with an error when the user asked to stop (not of the
/// kind `Interrupted`, at which readers and writers try again).
pub fn stoppable(bar: &Bar) -> impl FnMut(u64, u64) -> io::Result<()> + '_ {
    |done, total| {
        bar.set_of(done, total);
        interrupt::check().map_err(io::Error::other)
    }
}

/// Joins the workers' devices to those of this machine.
pub fn call_workers(rpc: &[Endpoint], printer: &Printer) -> Result<(), Error> {
    Ok(devices::join(rpc, &mut |worker| printer.say(format!("calling the RPC worker {worker} …")))?)
}

/// Calls the workers, and checks that there is what the flags ask for; says once what has no effect.
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

/// Loads a model into llama.cpp, when its header shows nothing that would end the process there.
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

/// Most tokens of the thoughts before each answer, where the user wants them; by default answers begin at once.
///
/// # Errors
/// [`LlamaError::NoThoughts`] where a model is asked for them that does not think.
pub fn thoughts(engine: &LlamaEngine, options: ThinkingOptions) -> Result<Option<usize>, LlamaError> {
    match options.before_answers() {
        Some(_) if engine.thinking().is_none() => Err(LlamaError::NoThoughts),
        budget => Ok(budget),
    }
}

/// Puts `prompts` into tokens, with `system` before each: what is wrong with one is told before the model works.
///
/// # Errors
/// [`Error::Unaskable`].
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

/// As [`check_prompts`], of all that an injection asks: plain, and under the user's own system prompt. A model that is to
/// think first must be one that does.
///
/// # Errors
/// [`Error::Unaskable`], or [`LlamaError::NoThoughts`].
pub fn check_all(
    engine: &LlamaEngine,
    prompts: &PromptSet,
    options: &InjectOptions,
    printer: &Printer,
) -> Result<(), Error> {
    thoughts(engine, options.thinking)?;
    let _bar = printer.bar("reading the prompts", 1);
    let all = || PromptKind::ALL.into_iter().flat_map(|kind| prompts.of_kind(kind));
    let all = || all().map(|prompt| (prompt.kind, prompt.text.as_str()));
    check_prompts(engine, None, all())?;
    for context in &options.contexts {
        check_prompts(engine, Some(context), all())?;
    }
    match &options.system_prompt {
        SystemPrompt::Text(text) => check_prompts(engine, Some(text), all()),
        SystemPrompt::Auto | SystemPrompt::Off => Ok(()),
    }
}
