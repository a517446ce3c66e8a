//! Validated options: what the commands take. The only place that reads the text of a flag.

use std::path::{Path, PathBuf};

use crate::cli::{
    AllowArgs, DirectionArgs, EvalArgs, ExportArgs, InjectArgs, OffloadArgs, RunArgs, SearchArgs,
    ThinkingArg, ThinkingArgs,
};
use crate::edit::Method;
use crate::error::Error;
use crate::evaluate::perplexity::ChunkOptions;
use crate::llama::Offload;
use crate::ollama::Name;
use crate::requant::Requant;
use crate::search::{Lever, SearchOptions};
use crate::source::{ModelArg, Source};

/// Largest κ that is taken: beyond it hardly anything but harmless and alarming prompts is pushed.
pub const MAX_CONTRAST: f64 = 100.0;

/// Whether a safety system prompt is used while the direction is extracted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SystemPrompt {
    /// Only when the model hardly refuses without it.
    Auto,
    /// Never.
    Off,
    /// Always this text.
    Text(String),
}

/// What a model that can think before it answers does, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThinkingOptions {
    /// What was asked for.
    pub asked: ThinkingArg,
    /// Most tokens of thoughts about one prompt.
    pub budget: usize,
}

impl ThinkingOptions {
    /// Most tokens of thoughts from which `inject` learns and of which it reports; `None` where the user wants none.
    pub fn beside_answers(&self) -> Option<usize> {
        (self.asked != ThinkingArg::Off).then_some(self.budget)
    }

    /// Most tokens of thoughts before every answer; `None` where answers begin at once.
    pub fn before_answers(&self) -> Option<usize> {
        (self.asked == ThinkingArg::On).then_some(self.budget)
    }
}

impl From<ThinkingArgs> for ThinkingOptions {
    fn from(args: ThinkingArgs) -> Self {
        Self { asked: args.thinking, budget: args.think as usize }
    }
}

/// How to run a model.
#[derive(Debug, Clone, PartialEq)]
pub struct RunOptions {
    /// CPU threads.
    pub threads: usize,
    /// What runs on GPUs or RPC workers.
    pub offload: Offload,
    /// Folder of further patches.
    pub patches: Option<PathBuf>,
}

/// Options of `inject`, and of `direction`, which is the same up to the search.
#[derive(Debug, Clone)]
pub struct InjectOptions {
    /// The model.
    pub source: Source,
    /// Where to write; in place the model itself.
    pub output: PathBuf,
    /// Whether the model itself is changed.
    pub in_place: bool,
    /// What is done to the weights, where the user says so.
    pub asked_method: Option<Method>,
    /// What is done to the weights: what the user says or, once the model is known, what it allows.
    pub method: Method,
    /// Layer, strength and budget.
    pub search: SearchOptions,
    /// The stored edit that is applied in place of a search.
    pub direction: Option<PathBuf>,
    /// Whether a stopped search goes on.
    pub resume: bool,
    /// Most bytes of the writers' inputs.
    pub memory: u64,
    /// How edited tensors are quantized.
    pub requant: Requant,
    /// Importance matrix of the model's weights.
    pub imatrix: Option<PathBuf>,
    /// The user's prompt files; empty = bundled.
    pub prompts: Vec<PathBuf>,
    /// Safety system prompt.
    pub system_prompt: SystemPrompt,
    /// System prompts under which the model will run.
    pub contexts: Vec<String>,
    /// Thoughts before answers.
    pub thinking: ThinkingOptions,
    /// Only this lever.
    pub lever: Option<Lever>,
    /// Where the JSON report goes.
    pub report: Option<PathBuf>,
    /// Where the report goes as a page.
    pub html: Option<PathBuf>,
    /// Whether the JSON report goes to stdout.
    pub json: bool,
    /// Whether nothing is run or written.
    pub dry_run: bool,
    /// Whether to overwrite what is written.
    pub overwrite: bool,
    /// Which checks are waived.
    pub allow: AllowArgs,
    /// Whether a stored edit of other weights is applied.
    pub allow_other_weights: bool,
    /// Where the adapter goes.
    pub save_adapter: Option<PathBuf>,
    /// What the Ollama server is to call it.
    pub ollama_create: Option<Name>,
    /// Whether the controls are run.
    pub controls: bool,
    /// Whether the report keeps whole answers.
    pub full_answers: bool,
    /// Seed of the random control.
    pub seed: u64,
    /// How to run the model.
    pub run: RunOptions,
}

impl RunOptions {
    /// Checks the flags.
    ///
    /// # Errors
    /// [`Error::Option`] for zero threads, and shares of devices that are none.
    pub fn new(args: RunArgs) -> Result<Self, Error> {
        Ok(Self { threads: threads(args.threads)?, offload: offload(args.offload)?, patches: args.patches })
    }
}

/// CPU threads, all cores by default.
pub(crate) fn threads(threads: Option<usize>) -> Result<usize, Error> {
    let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
    match threads.unwrap_or_else(cores) {
        threads @ 1..=1024 => Ok(threads),
        threads => Err(option("--threads", format!("expected 1 to 1024, found {threads}"), None)),
    }
}

fn offload(args: OffloadArgs) -> Result<Offload, Error> {
    let shares = &args.tensor_split;
    let no_share = |&share: &f32| !(share.is_finite() && share >= 0.0);
    if shares.iter().any(no_share) || (!shares.is_empty() && shares.iter().sum::<f32>() <= 0.0) {
        let problem = format!("expected shares from 0, not all of them 0, found {shares:?}");
        return Err(option("--tensor-split", problem, None));
    }
    let devices = (!args.device.is_empty()).then_some(args.device);
    Ok(Offload {
        gpu_layers: args.gpu_layers.unwrap_or_default(),
        devices: devices.map(|names| if names == ["none"] { Vec::new() } else { names }),
        split_mode: args.split_mode.unwrap_or_default(),
        main_gpu: args.main_gpu,
        tensor_split: args.tensor_split,
        flash_attn: args.flash_attn.unwrap_or_default(),
        rpc: args.rpc,
    })
}

impl InjectOptions {
    /// Checks the flags; `source` is what the model's name led to.
    ///
    /// # Errors
    /// [`Error::Option`] naming the flag; [`Error::Io`] for a system prompt that cannot be read;
    /// [`Error::Ollama`] for a name that Ollama would not take.
    pub fn new(args: InjectArgs, source: Source) -> Result<Self, Error> {
        let requant = parse_requant(&args.requant, args.promote.as_deref())?;
        let output = output(&args, &source, requant)?;
        let sides =
            [("--report", &args.report), ("--html", &args.html), ("--save-adapter", &args.save_adapter)];
        apart(&sides, &[&source.path, &output])?;
        Ok(Self {
            output,
            in_place: args.in_place,
            search: search_options(&args.search, args.allow.allow_over_limits)?,
            lever: args.search.lever,
            contexts: contexts(&args.search.context, &source)?,
            thinking: args.search.thinking.into(),
            direction: args.direction,
            resume: args.search.resume,
            memory: args.search.memory << 20,
            system_prompt: system_prompt(&args.search)?,
            requant,
            source,
            asked_method: args.search.method,
            method: args.search.method.unwrap_or(Method::Detector),
            imatrix: args.imatrix,
            prompts: args.search.prompts,
            report: args.report,
            html: args.html,
            json: args.json,
            dry_run: args.dry_run,
            overwrite: args.overwrite,
            allow: args.allow,
            allow_other_weights: args.allow_other_weights,
            save_adapter: args.save_adapter,
            ollama_create: args.ollama_create.as_deref().map(Name::parse).transpose()?,
            controls: !args.no_controls,
            full_answers: args.full_answers,
            seed: args.seed,
            run: RunOptions::new(args.run)?,
        })
    }

    /// The same with a method that was not asked for, and all that goes with it.
    ///
    /// # Errors
    /// [`Error::Option`] for a strength or a κ that the method does not know.
    pub fn with_method(&self, method: Method) -> Result<Self, Error> {
        check_strength(self.search.strength, method)?;
        check_contrast(self.search.contrast, method)?;
        // The published edit buys refusals with false ones at every strength (docs/method.md), so it has no limit unless
        // one is given.
        let max_false_refusal =
            self.search.max_false_refusal.or((method == Method::Published).then_some(1.0));
        let search = SearchOptions { max_false_refusal, ..self.search };
        Ok(Self { method, search, ..self.clone() })
    }

    /// Those of `direction`: a run that ends with the search.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn for_direction(args: DirectionArgs, source: Source) -> Result<Self, Error> {
        let args = InjectArgs {
            model: args.model,
            output: Some(args.output),
            in_place: false,
            search: args.search,
            direction: None,
            requant: "preserve".into(),
            promote: None,
            imatrix: None,
            report: None,
            html: None,
            json: args.json,
            dry_run: false,
            overwrite: args.overwrite,
            allow: args.allow,
            allow_other_weights: false,
            save_adapter: None,
            ollama_create: None,
            no_controls: true,
            full_answers: false,
            seed: 0,
            run: args.run,
        };
        Self::new(args, source)
    }
}

/// Options of `export`.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// The stored edit.
    pub edit: PathBuf,
    /// The model.
    pub model: PathBuf,
    /// Where the adapter goes.
    pub lora: Option<PathBuf>,
    /// Where the control vector goes.
    pub control_vector: Option<PathBuf>,
    /// Strength in place of the stored one.
    pub strength: Option<f64>,
    /// Whether to print JSON.
    pub json: bool,
    /// Whether to overwrite.
    pub overwrite: bool,
    /// Whether an edit of other weights is taken.
    pub allow_other_weights: bool,
    /// Folder of further patches.
    pub patches: Option<PathBuf>,
}

impl ExportOptions {
    /// Checks the flags.
    ///
    /// # Errors
    /// [`Error::Option`] naming the flag.
    pub fn new(args: ExportArgs, source: Source) -> Result<Self, Error> {
        let outputs = [("--control-vector", &args.control_vector), ("--lora", &args.lora)];
        apart(&outputs, &[&args.edit, &source.path])?;
        Ok(Self {
            strength: parse_strength(&args.strength)?,
            edit: args.edit,
            model: source.path,
            lora: args.lora,
            control_vector: args.control_vector,
            json: args.json,
            overwrite: args.overwrite,
            allow_other_weights: args.allow_other_weights,
            patches: args.patches,
        })
    }
}

/// Most tokens of an answer that is judged: with the longest prompt it still fits the cache.
const MAX_TOKENS: usize = 512;
/// Tokens of a chunk of text: four, so that one is scored after one that is read; one batch at most.
const CTX_SIZE: std::ops::RangeInclusive<usize> = 4..=1024;

/// Options of `eval`.
#[derive(Debug, Clone)]
pub struct EvalOptions {
    /// The models.
    pub models: Vec<Source>,
    /// What they are compared with.
    pub base: Option<Source>,
    /// The user's prompt files; empty = the bundled report split.
    pub sets: Vec<PathBuf>,
    /// The judge.
    pub judge: Option<Source>,
    /// Most tokens of an answer.
    pub tokens: usize,
    /// The text for perplexity.
    pub perplexity: Option<PathBuf>,
    /// How that text is cut.
    pub chunks: ChunkOptions,
    /// The multiple-choice questions.
    pub choice: Option<PathBuf>,
    /// Whether harmful prompts are also put in other ways.
    pub jailbreak: bool,
    /// Thoughts before answers.
    pub thinking: ThinkingOptions,
    /// Where the JSON report goes.
    pub report: Option<PathBuf>,
    /// Whether the JSON report goes to stdout.
    pub json: bool,
    /// Whether to overwrite the report.
    pub overwrite: bool,
    /// How to run the models.
    pub run: RunOptions,
}

impl EvalOptions {
    /// Checks the flags; `find` leads from a model's name to the model.
    ///
    /// # Errors
    /// [`Error::Option`] naming the flag; what `find` fails with.
    pub fn new(
        args: EvalArgs,
        find: &mut dyn FnMut(&ModelArg) -> Result<Source, Error>,
    ) -> Result<Self, Error> {
        if !(1..=MAX_TOKENS).contains(&args.tokens) {
            let problem = format!("expected 1 to {MAX_TOKENS}, found {}", args.tokens);
            return Err(option("--tokens", problem, None));
        }
        if !CTX_SIZE.contains(&args.ctx_size) {
            let problem =
                format!("expected {} to {}, found {}", CTX_SIZE.start(), CTX_SIZE.end(), args.ctx_size);
            return Err(option("--ctx-size", problem, None));
        }
        let chunks = if args.chunks == 0 { usize::MAX } else { args.chunks };
        Ok(Self {
            models: args.models.iter().map(&mut *find).collect::<Result<_, _>>()?,
            base: args.base.as_ref().map(&mut *find).transpose()?,
            sets: args.sets,
            judge: args.judge.as_ref().map(&mut *find).transpose()?,
            tokens: args.tokens,
            perplexity: args.perplexity,
            chunks: ChunkOptions { n_ctx: args.ctx_size, chunks },
            choice: args.choice,
            jailbreak: args.jailbreak,
            thinking: args.thinking.into(),
            report: args.report,
            json: args.json,
            overwrite: args.overwrite,
            run: RunOptions::new(args.run)?,
        })
    }

    /// What the user called the model at `path`.
    pub fn display_name(&self, path: &Path) -> String {
        let mut all = self.models.iter().chain(&self.base).chain(&self.judge);
        let found = all.find(|source| source.path == path);
        found.map_or_else(|| path.display().to_string(), |source| source.display_name.clone())
    }
}

fn option(flag: &'static str, problem: String, hint: Option<String>) -> Error {
    Error::Option { flag, problem, hint }
}

fn search_options(args: &SearchArgs, over_limits: bool) -> Result<SearchOptions, Error> {
    if let Some(kl) = args.max_kl.filter(|&kl| !(kl > 0.0 && kl.is_finite())) {
        let problem = format!("expected a positive number of nats, found {kl}");
        return Err(option("--max-kl", problem, None));
    }
    Ok(SearchOptions {
        layer: parse_layer(&args.layer)?,
        strength: parse_strength(&args.strength)?,
        contrast: parse_contrast(&args.contrast)?,
        max_kl: args.max_kl,
        max_false_refusal: max_false_refusal(args)?,
        trials: trials(args.trials)?,
        time_budget: args.time_budget.map(std::time::Duration::from_secs),
        to_the_end: over_limits,
    })
}

fn max_false_refusal(args: &SearchArgs) -> Result<Option<f64>, Error> {
    match args.max_false_refusal {
        None => Ok(None),
        Some(share) if (0.0..=1.0).contains(&share) => Ok(Some(share)),
        Some(share) => {
            Err(option("--max-false-refusal", format!("expected a share from 0 to 1, found {share}"), None))
        }
    }
}

fn trials(trials: usize) -> Result<usize, Error> {
    match trials {
        1..=1000 => Ok(trials),
        _ => Err(option("--trials", format!("expected 1 to 1000, found {trials}"), None)),
    }
}

/// The file that is written. What another program keeps is never changed, nor added to.
fn output(args: &InjectArgs, source: &Source, requant: Requant) -> Result<PathBuf, Error> {
    if args.in_place {
        if let Some(store) = &source.store {
            let problem =
                format!("{} is a file of {}, named by its content", source.display_name, store.display());
            return Err(option("--in-place", problem, Some("write a copy: leave out --in-place".into())));
        }
        return match requant {
            Requant::Promote(_) => {
                let hint = Some("write a copy, or leave the types as they are".into());
                Err(option("--requant", "promote does not go with --in-place: the file grows".into(), hint))
            }
            _ => Ok(source.path.clone()),
        };
    }
    let output = args.output.clone().unwrap_or_else(|| source.default_output.clone());
    if same_file(&output, &source.path) {
        let hint = "give another name with -o; only --in-place changes the input".to_owned();
        return Err(option("--output", format!("{} is the input itself", output.display()), Some(hint)));
    }
    if source.is_in_store(&output) {
        let problem = format!("{} lies in the folder that another program keeps models in", output.display());
        return Err(option("--output", problem, Some("give a path elsewhere with -o".into())));
    }
    Ok(output)
}

/// Refuses an output that is one of the `taken` files or a former output: it would take its place.
fn apart(outputs: &[(&'static str, &Option<PathBuf>)], taken: &[&Path]) -> Result<(), Error> {
    let mut taken = taken.to_vec();
    for (flag, path) in outputs.iter().filter_map(|(flag, path)| Some((*flag, path.as_deref()?))) {
        if taken.iter().any(|other| same_file(other, path)) {
            let problem = format!("{} is another file of this command", path.display());
            return Err(option(flag, problem, Some("give each output a name of its own".into())));
        }
        taken.push(path);
    }
    Ok(())
}

/// Whether two paths lead to one file.
pub(crate) fn same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

fn parse_layer(text: &str) -> Result<Option<usize>, Error> {
    if text == "auto" {
        return Ok(None);
    }
    let problem = || option("--layer", format!("expected auto or a layer from 0, found {text:?}"), None);
    text.parse().map(Some).map_err(|_| problem())
}

fn parse_strength(text: &str) -> Result<Option<f64>, Error> {
    if text == "auto" {
        return Ok(None);
    }
    match text.parse::<f64>() {
        Ok(value) if value < 0.0 => Err(option(
            "--strength",
            format!("{text} is negative, and this tool only makes models safer"),
            Some(format!("strength is positive: {STRENGTHS}")),
        )),
        Ok(value) if value > 0.0 && value <= Method::Detector.max_strength() => Ok(Some(value)),
        _ => Err(option(
            "--strength",
            format!("expected auto or a number above 0, found {text:?}"),
            Some(STRENGTHS.into()),
        )),
    }
}

/// What strengths mean.
const STRENGTHS: &str = "detectors push by so many lengths of the direction (5); of the other methods 0.04 changes the edited weights by 4 %";

/// Refuses a strength beyond the largest of the method.
fn check_strength(strength: Option<f64>, method: Method) -> Result<(), Error> {
    let most = method.max_strength();
    match strength {
        Some(strength) if strength > most => {
            let problem = format!("expected up to {most} with --method {}, found {strength}", method.name());
            Err(option("--strength", problem, Some(STRENGTHS.into())))
        }
        _ => Ok(()),
    }
}

/// Refuses a κ where nothing has one.
fn check_contrast(contrast: Option<f64>, method: Method) -> Result<(), Error> {
    match contrast {
        Some(_) if method == Method::Published => {
            let problem = "goes with --method detector or contrast, found published".to_owned();
            Err(option("--contrast", problem, Some("the published edit has no gates".into())))
        }
        _ => Ok(()),
    }
}

fn parse_contrast(text: &str) -> Result<Option<f64>, Error> {
    if text == "auto" {
        return Ok(None);
    }
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= MAX_CONTRAST => Ok(Some(value)),
        _ => {
            let problem =
                format!("expected auto or a number above 0 and up to {MAX_CONTRAST}, found {text:?}");
            Err(option("--contrast", problem, None))
        }
    }
}

/// `--promote TYPE` is short for `--requant promote=TYPE`.
fn parse_requant(text: &str, promote: Option<&str>) -> Result<Requant, Error> {
    let (flag, text) = match promote {
        Some(name) => ("--promote", format!("promote={name}")),
        None => ("--requant", text.to_owned()),
    };
    text.parse().map_err(|problem| option(flag, problem, None))
}

/// `--lever safety` needs the prompt that `--system-prompt off` forbids.
fn system_prompt(args: &SearchArgs) -> Result<SystemPrompt, Error> {
    let prompt = parse_system_prompt(&args.system_prompt)?;
    if args.lever == Some(Lever::Safety) && prompt == SystemPrompt::Off {
        return Err(option(
            "--lever",
            "safety needs a system prompt, and --system-prompt is off".into(),
            None,
        ));
    }
    Ok(prompt)
}

/// The system prompts in `files`, and that of an Ollama model.
fn contexts(files: &[PathBuf], source: &Source) -> Result<Vec<String>, Error> {
    let own = source.companions.as_ref().and_then(|companions| companions.system.clone());
    let read = files.iter().map(|path| read_text(path)).collect::<Result<Vec<_>, _>>()?;
    let empty = |text: &String| text.trim().is_empty();
    if let Some(i) = read.iter().position(empty) {
        let problem = format!("{} is empty, expected a system prompt", files[i].display());
        return Err(option("--context", problem, None));
    }
    Ok(read.into_iter().chain(own.filter(|text| !empty(text))).collect())
}

fn parse_system_prompt(text: &str) -> Result<SystemPrompt, Error> {
    match text {
        "auto" => Ok(SystemPrompt::Auto),
        "off" => Ok(SystemPrompt::Off),
        path => read_text(Path::new(path)).map(SystemPrompt::Text),
    }
}

fn read_text(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strength_is_positive_or_auto() {
        assert_eq!(parse_strength("auto").unwrap(), None);
        assert_eq!(parse_strength("0.04").unwrap(), Some(0.04));
        for bad in ["0", "-0.04", "nan", "inf", "65", "x", ""] {
            assert!(parse_strength(bad).is_err(), "{bad}");
        }
        assert!(parse_strength("-1").unwrap_err().to_string().contains("only makes models safer"));
    }

    #[test]
    fn strength_and_contrast_are_those_of_the_method() {
        assert_eq!(parse_contrast("auto").unwrap(), None);
        assert_eq!(parse_contrast("0.5").unwrap(), Some(0.5));
        for bad in ["0", "-1", "nan", "inf", "101", "x", ""] {
            assert!(parse_contrast(bad).is_err(), "{bad}");
        }
        assert!(check_contrast(Some(0.5), Method::Contrast).is_ok());
        assert!(check_contrast(Some(0.5), Method::Published).is_err());
        assert!(check_strength(Some(5.0), Method::Detector).is_ok());
        let error = check_strength(Some(5.0), Method::Contrast).unwrap_err().to_string();
        assert!(error.contains("expected up to 1 with --method contrast, found 5"), "{error}");
    }
}
