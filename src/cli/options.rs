//! Validated options for the commands. Only this module parses the text of flags.

use std::path::{Path, PathBuf};

use crate::cli::{
    AllowArgs, InjectArgs, OffloadArgs, ReproduceArgs, RunArgs, SearchArgs, SearchCommandArgs, ThinkingArgs,
};
use crate::eval::prompts;
use crate::gguf::suffixed;
use crate::llama::Offload;
use crate::method::edit::Method;
use crate::method::requant::Requant;
use crate::pipeline::error::Error;
use crate::pipeline::options::{
    Allow, InjectOptions, LearnOptions, ReportOptions, RunOptions, ThinkingOptions, WriteOptions,
};
use crate::sources::ollama::Name;
use crate::sources::{ModelArg, Source};
use crate::util::linalg;

mod eval;
mod export;
mod search;

pub use eval::EvalOptions;
pub use export::ExportOptions;
use search::{contexts, search_options, system_prompt};

impl From<AllowArgs> for Allow {
    fn from(args: AllowArgs) -> Self {
        Self {
            injected: args.allow_injected,
            no_refusal: args.allow_no_refusal,
            over_limits: args.allow_over_limits,
        }
    }
}

impl From<ThinkingArgs> for ThinkingOptions {
    fn from(args: ThinkingArgs) -> Self {
        Self { asked: args.thinking, budget: args.think as usize }
    }
}

impl RunOptions {
    /// Validates the flags. The number of threads holds for this whole process, not just for llama.cpp.
    ///
    /// # Errors
    /// Returns [`Error::Option`] for an invalid number of threads or invalid device proportions.
    pub fn new(args: RunArgs) -> Result<Self, Error> {
        let threads = threads(args.threads)?;
        linalg::limit_threads(threads);
        Ok(Self { threads, offload: offload(args.offload)?, patches: args.patches })
    }
}

/// Returns the number of CPU threads, all cores by default.
pub(crate) fn threads(threads: Option<usize>) -> Result<usize, Error> {
    match threads.unwrap_or_else(linalg::cores) {
        threads @ 1..=1024 => Ok(threads),
        threads => Err(option("--threads", format!("expected 1 to 1024, found {threads}"), None)),
    }
}

fn offload(args: OffloadArgs) -> Result<Offload, Error> {
    let shares = &args.tensor_split;
    let no_share = |&share: &f32| !(share.is_finite() && share >= 0.0);
    if shares.iter().any(no_share) || (!shares.is_empty() && shares.iter().sum::<f32>() <= 0.0) {
        let problem = format!("expected non-negative numbers, at least one above 0, found {shares:?}");
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
    /// Validates the flags; `source` is the model that the model argument resolved to, and `judge` the judge.
    ///
    /// # Errors
    /// Returns [`Error::Option`] naming the invalid flag, [`Error::Io`] if a system prompt cannot be read, or
    /// [`Error::Ollama`] for an invalid Ollama model name.
    pub fn new(args: InjectArgs, source: Source, judge: Option<Source>) -> Result<Self, Error> {
        let requant = parse_requant(&args.requant, args.promote.as_deref())?;
        let output = output(&args, &source, requant)?;
        let sides =
            [("--report", &args.report), ("--html", &args.html), ("--save-adapter", &args.save_adapter)];
        let mut taken = inputs(&args);
        taken.extend(judge.iter().map(|judge| judge.path.as_path()));
        apart(&[("--output", &Some(output.clone()).filter(|_| !args.in_place))], &taken)?;
        taken.extend([source.path.as_path(), &output]);
        apart(&sides, &taken)?;
        let search = search_options(&args.search, args.allow.allow_over_limits)?;
        let learn = LearnOptions {
            contexts: contexts(&args.search.context, &source)?,
            system_prompt: system_prompt(&args.search)?,
            thinking: args.search.thinking.into(),
            direction_source: args.search.direction_source,
            memory: args.search.memory << 20,
            prompts: args.search.prompts,
            no_bundled_prompts: args.search.no_bundled_prompts,
        };
        let write = WriteOptions {
            output,
            in_place: args.in_place,
            overwrite: args.overwrite,
            requant,
            imatrix: args.imatrix,
            save_adapter: args.save_adapter,
            ollama_create: args.ollama_create.as_deref().map(Name::parse).transpose()?,
        };
        let report = ReportOptions {
            path: args.report,
            html: args.html,
            json: args.json,
            controls: args.controls,
            judge,
            full_answers: args.full_answers,
            seed: args.seed,
        };
        Ok(Self {
            source,
            asked_method: args.search.method,
            method: args.search.method.unwrap_or(Method::Detector),
            learn,
            search,
            resume: args.search.resume,
            edit: args.edit,
            allow_other_weights: args.allow_other_weights,
            write,
            report,
            allow: args.allow.into(),
            dry_run: args.dry_run,
            run: RunOptions::new(args.run)?,
        })
    }

    /// Returns the options of `search`, a run that ends after the search.
    ///
    /// # Errors
    /// Same as [`Self::new`].
    pub fn for_search(args: SearchCommandArgs, source: Source) -> Result<Self, Error> {
        let SearchCommandArgs { model, output, search, json, overwrite, allow, run } = args;
        let plain = plain(model, output, search, run);
        Self::new(InjectArgs { json, overwrite, allow, ..plain }, source, None)
    }

    /// Returns the options of `reproduce` that are not recorded in the file. The copy is written beside `file`.
    ///
    /// # Errors
    /// Same as [`Self::new`].
    pub fn for_reproduction(args: ReproduceArgs, file: &Path, source: Source) -> Result<Self, Error> {
        let ReproduceArgs { model, prompts, context, system_prompt, edit, imatrix, json, run, .. } = args;
        let system_prompt = system_prompt.unwrap_or_else(|| "auto".into());
        let search = SearchArgs { prompts, context, system_prompt, ..SearchArgs::default() };
        let plain = plain(model, suffixed(file, "-reproduced"), search, run);
        Self::new(InjectArgs { edit, imatrix, json, ..plain }, source, None)
    }
}

/// Returns the arguments of an `inject` run with only these flags set.
fn plain(model: ModelArg, output: PathBuf, search: SearchArgs, run: RunArgs) -> InjectArgs {
    InjectArgs {
        model,
        output: Some(output),
        in_place: false,
        search,
        edit: None,
        requant: "preserve".into(),
        promote: None,
        imatrix: None,
        report: None,
        html: None,
        json: false,
        dry_run: false,
        overwrite: false,
        allow: AllowArgs::default(),
        allow_other_weights: false,
        save_adapter: None,
        ollama_create: None,
        controls: false,
        judge: None,
        full_answers: false,
        seed: 0,
        run,
    }
}

/// Returns the path of the output file. Another program's store is never changed or added to.
fn output(args: &InjectArgs, source: &Source, requant: Requant) -> Result<PathBuf, Error> {
    if args.in_place {
        if let Some(store) = &source.store {
            let problem =
                format!("{} is in {}, which names files by content", source.display_name, store.display());
            return Err(option("--in-place", problem, Some("omit --in-place to write a copy".into())));
        }
        return match requant {
            Requant::Promote(_) => {
                let hint = Some("omit --in-place to write a copy, or omit the promotion".into());
                Err(option("--requant", "promote conflicts with --in-place: the file grows".into(), hint))
            }
            _ => Ok(source.path.clone()),
        };
    }
    let output = args.output.clone().unwrap_or_else(|| source.default_output.clone());
    if same_file(&output, &source.path) {
        let hint = "choose another path with -o; only --in-place changes the input".to_owned();
        return Err(option("--output", format!("{} is the input file", output.display()), Some(hint)));
    }
    if source.is_in_store(&output) {
        let problem = format!("{} is inside another program's model store", output.display());
        return Err(option("--output", problem, Some("choose a path elsewhere with -o".into())));
    }
    Ok(output)
}

/// Returns the files that are read in addition to the model.
fn inputs(args: &InjectArgs) -> Vec<&Path> {
    let one = [&args.edit, &args.imatrix].into_iter().flatten().chain(&args.search.context);
    let prompts = args.search.prompts.iter().map(|path| prompts::without_kind(path));
    one.map(PathBuf::as_path).chain(prompts).collect()
}

/// Rejects an output path that is also one of the `taken` files or an earlier output, which it would overwrite.
pub(crate) fn apart(outputs: &[(&'static str, &Option<PathBuf>)], taken: &[&Path]) -> Result<(), Error> {
    let mut taken = taken.to_vec();
    for (flag, path) in outputs.iter().filter_map(|(flag, path)| Some((*flag, path.as_deref()?))) {
        if taken.iter().any(|other| same_file(other, path)) {
            let problem = format!("{} is already used for another file of this command", path.display());
            return Err(option(flag, problem, Some("give each output its own path".into())));
        }
        taken.push(path);
    }
    Ok(())
}

/// Returns whether two paths refer to the same file, which need not exist yet.
pub(crate) fn same_file(a: &Path, b: &Path) -> bool {
    let place = |path: &Path| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let named = || Some(parent.canonicalize().ok()?.join(path.file_name()?));
        path.canonicalize().ok().or_else(named).unwrap_or_else(|| path.to_path_buf())
    };
    place(a) == place(b)
}

/// `--promote TYPE` is short for `--requant promote=TYPE`.
fn parse_requant(text: &str, promote: Option<&str>) -> Result<Requant, Error> {
    let (flag, text) = match promote {
        Some(name) => ("--promote", format!("promote={name}")),
        None => ("--requant", text.to_owned()),
    };
    text.parse().map_err(|problem| option(flag, problem, None))
}

fn option(flag: &'static str, problem: String, hint: Option<String>) -> Error {
    Error::Option { flag, problem, hint }
}
