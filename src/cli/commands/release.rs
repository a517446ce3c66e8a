//! `release`: writes one edit into every quantization of a model.

mod config;
mod writer;

use std::path::{Path, PathBuf};

use crate::cli::commands::{search, session};
use crate::cli::{AllowArgs, ReleaseArgs, RunArgs, SearchArgs, SearchCommandArgs};
use crate::eval::prompts::PromptSet;
use crate::gguf::{self, AtomicFile, Gguf, LockFile, sha256_file, sha256_hex};
use crate::imatrix::Imatrix;
use crate::llama::llama_version;
use crate::method::edit::Method;
use crate::method::search::DirectionSource;
use crate::method::stored::StoredEdit;
use crate::output::{Printer, percent};
use crate::pipeline::error::{Error, ExitStatus};
use crate::pipeline::facts::{file_facts, load_prompts};
use crate::pipeline::options::{InjectOptions, RunOptions};
use crate::pipeline::outputs;
use crate::release::ReleaseError;
use crate::release::card::{self, Card, License};
use crate::release::plan::{ReleasePlan, side_files};
use crate::release::state::{Recipe, Row, Searched, State, same_recipe};
use crate::report::{FileFacts, MIN_SURVIVAL};
use crate::sources::Check;
use config::{Config, Raw, Scoring};
use writer::ReleaseWriter;

/// Name of the temporary folder that bases are quantized into.
const WORK: &str = ".release-work";

/// Makes the release, or resumes it.
///
/// # Errors
/// Returns [`Error`] if a stage fails. Finished files are kept, and the same command resumes from there.
pub fn run(args: ReleaseArgs, printer: &Printer) -> Result<ExitStatus, Error> {
    let waived =
        Waived { overwrite: args.overwrite, allow: args.allow, other_weights: args.allow_other_weights };
    let json = args.json;
    let (config, run) = options(args)?;
    let sources = config.sources.iter().map(|path| session::open(path)).collect::<Result<Vec<_>, _>>()?;
    let imatrix = config.imatrix.as_deref().map(Imatrix::open).transpose()?;
    let plan = ReleasePlan::plan(&sources, &config.types, config.name.as_deref(), imatrix.is_some())?;
    let release = Release { config: &config, sources: &sources, plan: &plan, run: &run, waived, printer };
    let _lock = release.lock()?;
    let mut state = release.begin()?;
    let facts = sources.iter().map(|gguf| file_facts(gguf, printer)).collect::<Result<Vec<_>, _>>()?;
    let edit = release.edit(&mut state, &facts[plan.widest])?;
    let writer = ReleaseWriter {
        release: &release,
        sources: &facts,
        imatrix: imatrix.as_ref().zip(config.imatrix.as_deref().map(hash).transpose()?),
        edit: &edit,
        prompts: &release.prompts()?,
    };
    let unsafe_ones = writer.all(&mut state)?;
    if let Some(error) = unsafe_ones {
        return Err(error);
    }
    let rows = release.finish(&state, &edit)?;
    if json {
        printer.json(&rows);
    }
    let weak = rows.iter().any(|row| row.gain.is_none_or(|gain| gain < MIN_SURVIVAL));
    Ok(if weak { ExitStatus::NotVerified } else { ExitStatus::Done })
}

/// Reads and validates the configuration from the file or the flags.
fn options(args: ReleaseArgs) -> Result<(Config, RunOptions), Error> {
    let run = RunOptions::new(args.run)?;
    let is_config = |path: &PathBuf| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("toml"));
    if let [path] = &args.sources[..]
        && is_config(path)
    {
        let said = !args.types.is_empty() || args.no_score || args.score_prompts.is_some() || args.keep_bases;
        let named = [&args.name, &args.base_model, &args.license].into_iter().any(Option::is_some);
        let searched = args.search != SearchArgs::default();
        if said || named || searched || args.edit.is_some() || args.imatrix.is_some() {
            let problem = "cannot be combined with other flags of the release or the search".into();
            let hint = "set them in the file, except -o, --json, --overwrite, --allow-… and runtime flags";
            return Err(Error::Option { flag: "CONFIG.toml", problem, hint: Some(hint.into()) });
        }
        let mut config = Config::read(path)?;
        config.output = args.output.unwrap_or(config.output);
        return Ok((config, run));
    }
    let missing = || Error::Option {
        flag: "--output",
        problem: "expected an output directory, found none".into(),
        hint: Some("set one with -o DIR".into()),
    };
    let raw = Raw {
        output: args.output.ok_or_else(missing)?,
        sources: args.sources,
        types: args.types,
        name: args.name,
        imatrix: args.imatrix,
        edit: args.edit,
        base_model: args.base_model,
        license: args.license,
        score: !args.no_score,
        score_prompts: args.score_prompts,
        keep_bases: args.keep_bases,
        search: toml::Table::new(),
    };
    let config = Config::new(raw, args.search);
    let config = config.map_err(|problem| Error::Option { flag: "release", problem, hint: None })?;
    Ok((config, run))
}

fn hash(path: &Path) -> Result<String, Error> {
    sha256_file(path, &mut |_, _| Ok(())).map_err(|source| Error::Io { path: path.into(), source })
}

/// Which checks are overridden.
#[derive(Clone, Copy)]
struct Waived {
    /// Whether to replace existing files in the output folder.
    overwrite: bool,
    /// The checks of the search to override.
    allow: AllowArgs,
    /// Whether to accept an edit that was found on different weights.
    other_weights: bool,
}

/// The stored edit that is written into every file.
struct SharedEdit {
    path: PathBuf,
    sha256: String,
}

/// One run of the command.
struct Release<'a> {
    config: &'a Config,
    sources: &'a [Gguf],
    plan: &'a ReleasePlan,
    run: &'a RunOptions,
    waived: Waived,
    printer: &'a Printer,
}

impl Release<'_> {
    fn at(&self, name: &str) -> PathBuf {
        self.config.output.join(name)
    }

    /// Creates the output folder if necessary and locks it against other runs.
    fn lock(&self) -> Result<LockFile, Error> {
        let folder = &self.config.output;
        std::fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.clone(), source })?;
        Ok(LockFile::take(&self.at("release.json"))?)
    }

    /// Checks that every output path can be written. Existing files are checked against the journal instead.
    fn check_names(&self) -> Result<(), Error> {
        let reports = self.at("reports");
        std::fs::create_dir_all(&reports).map_err(|source| Error::Io { path: reports.clone(), source })?;
        let models = self.plan.files.iter();
        let files = models
            .flat_map(|planned| [self.at(&planned.file), reports.join(&planned.file).with_extension("json")]);
        let edit = self.at(&self.edit_name());
        let edits = [edit.with_extension("search.jsonl"), edit];
        let edits = edits.into_iter().filter(|_| self.config.edit.is_none());
        let all: Vec<PathBuf> = files.chain(edits).chain(side_files(&self.config.output)).collect();
        outputs::check(all.iter().map(PathBuf::as_path), true)
    }

    /// Returns the file name of the edit that is searched for this release.
    fn edit_name(&self) -> String {
        format!("{}-edit.safetensors", self.plan.name)
    }

    /// Opens the journal of the folder and removes what a killed run left unfinished.
    fn begin(&self) -> Result<State, Error> {
        let folder = &self.config.output;
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| Error::Io { path, source }
        };
        let state = match State::read(folder)? {
            Some(state) => state,
            None => {
                let new = State::new(folder);
                let models = self.plan.files.iter().map(|planned| self.at(&planned.file));
                let taken = side_files(folder).into_iter().chain(models).find(|path| path.exists());
                if let Some(path) = taken.filter(|_| !self.waived.overwrite) {
                    return Err(ReleaseError::InTheWay { path }.into());
                }
                new
            }
        };
        self.check_names()?;
        state.save()?;
        let work = self.at(WORK);
        if work.exists() {
            std::fs::remove_dir_all(&work).map_err(io(&work))?;
        }
        self.plan.files.iter().for_each(|planned| gguf::sweep(&self.at(&planned.file)));
        Ok(state)
    }

    /// Returns the given edit, or searches for one unless an earlier run stored it.
    fn edit(&self, state: &mut State, widest: &FileFacts) -> Result<SharedEdit, Error> {
        let path = match &self.config.edit {
            Some(path) => path.clone(),
            None => self.searched(state, widest)?,
        };
        let (_, bytes) = StoredEdit::open(&path)?;
        Ok(SharedEdit { path, sha256: sha256_hex(&bytes) })
    }

    fn searched(&self, state: &mut State, widest: &FileFacts) -> Result<PathBuf, Error> {
        let file = self.edit_name();
        let path = self.at(&file);
        let options = self.search_options(&path)?;
        let recipe = self.search_recipe(&options, widest)?;
        let before = state.searched.as_ref().filter(|before| before.file == file);
        let same = before.map(|before| same_recipe(&file, &before.recipe, &recipe));
        if path.exists() {
            match same {
                Some(Ok(())) => {
                    self.printer.say(format!("{file} is up to date"));
                    return Ok(path);
                }
                Some(Err(error)) if !self.waived.overwrite => return Err(error.into()),
                None if !self.waived.overwrite => return Err(ReleaseError::InTheWay { path }.into()),
                _ => {}
            }
        }
        // Saved before the edit: after a killed run, the next one can tell what an existing edit was made from.
        state.searched = Some(Searched { file, recipe });
        state.save()?;
        search::run(&options, self.printer)?;
        Ok(path)
    }

    /// Returns the options of the search, which continues an unfinished one.
    fn search_options(&self, path: &Path) -> Result<InjectOptions, Error> {
        let mut search = self.config.search.clone();
        search.resume = path.with_extension("search.jsonl").exists();
        let args = SearchCommandArgs {
            model: self.sources[self.plan.widest].path.clone().into(),
            output: path.to_path_buf(),
            search,
            json: false,
            overwrite: self.waived.overwrite,
            allow: self.waived.allow,
            run: RunArgs::default(),
        };
        let source = session::find(&args.model, Check::Size, self.printer)?;
        Ok(InjectOptions { run: self.run.clone(), ..InjectOptions::for_search(args, source)? })
    }

    /// Returns what the edit depends on.
    fn search_recipe(&self, options: &InjectOptions, widest: &FileFacts) -> Result<Recipe, Error> {
        fn or_auto<T: ToString>(value: Option<T>) -> String {
            value.map_or_else(|| "auto".into(), |value| value.to_string())
        }
        let search = options.search;
        Ok(Recipe::from([
            ("source".into(), widest.sha256.clone()),
            ("prompts".into(), self.prompts()?.sha256()),
            ("contexts".into(), options.learn.contexts_sha256()),
            ("system prompt".into(), options.learn.system_prompt.identity()),
            ("method".into(), or_auto(options.asked_method.map(Method::name))),
            ("direction source".into(), or_auto(options.learn.direction_source.map(DirectionSource::name))),
            ("layer".into(), or_auto(search.layer)),
            ("strength".into(), or_auto(search.strength)),
            ("contrast".into(), or_auto(search.contrast)),
            ("KL limit".into(), or_auto(search.max_kl)),
            ("false-refusal limit".into(), or_auto(search.max_false_refusal)),
            ("number of trials".into(), search.trials.to_string()),
            ("time budget".into(), or_auto(search.time_budget.map(|budget| budget.as_secs()))),
            ("memory".into(), options.learn.memory.to_string()),
            ("thinking".into(), options.learn.thinking.asked.name().into()),
            ("limit of a thought".into(), options.learn.thinking.budget.to_string()),
            ("version".into(), env!("CARGO_PKG_VERSION").into()),
            ("llama.cpp".into(), llama_version()),
        ]))
    }

    /// Returns the prompts of search and report.
    fn prompts(&self) -> Result<PromptSet, Error> {
        load_prompts(&self.config.search.prompts, self.config.search.no_bundled_prompts)
    }

    /// Writes the checksums and the model card of all finished files, and returns their rows.
    fn finish(&self, state: &State, edit: &SharedEdit) -> Result<Vec<Row>, Error> {
        let rows: Vec<Row> = self.plan.files.iter().filter_map(|r| state.row(&r.file)).cloned().collect();
        let (stored, _) = StoredEdit::open(&edit.path)?;
        let facts = &stored.facts;
        let (along, strength) = (facts.along(), percent(facts.strength));
        let source = &self.sources[self.plan.widest];
        let license = self.config.license.as_deref().map(|text| License::new(text, None));
        let card = Card {
            name: &self.plan.name,
            base_model: self.config.base_model.clone().or_else(|| card::base_model_of(source)),
            license: license.or_else(|| License::of(source)),
            edit: format!("{} edit along {along}, strength {strength}", facts.method.name()),
            edit_sha256: &edit.sha256,
            imatrix: self.config.imatrix.is_some(),
            rows: &rows,
        };
        for (missing, flag) in
            [(card.base_model.is_none(), "base-model"), (card.license.is_none(), "license")]
        {
            if missing {
                self.printer.warn(format!("the model card has no {flag}: set it with --{flag}"));
            }
        }
        let [readme, sums] = side_files(&self.config.output);
        AtomicFile::write_whole(&readme, card.text().as_bytes(), true)?;
        AtomicFile::write_whole(&sums, self.sums(&rows, edit)?.as_bytes(), true)?;
        let folder = self.config.output.display();
        self.printer.say(format!("{} files, SHA256SUMS and README.md in {folder}", rows.len()));
        Ok(rows)
    }

    /// Returns checksums in the format of `sha256sum -c`, including the model card and, if it is in the folder, the
    /// edit.
    fn sums(&self, rows: &[Row], edit: &SharedEdit) -> Result<String, Error> {
        let mut lines: Vec<(String, String)> =
            rows.iter().map(|row| (row.sha256.clone(), row.file.clone())).collect();
        if self.config.edit.is_none() {
            let name = edit.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            lines.push((edit.sha256.clone(), name));
        }
        let [readme, _] = side_files(&self.config.output);
        lines.push((hash(&readme)?, "README.md".into()));
        Ok(lines.iter().map(|(sum, name)| format!("{sum}  {name}\n")).collect())
    }

    /// Describes what is measured, for recipes.
    fn scoring(&self) -> String {
        match self.config.scoring {
            Scoring::Guard => "guard".into(),
            Scoring::Report(None) => "report".into(),
            Scoring::Report(Some(n)) => format!("report, {n} of each kind"),
        }
    }

    fn load(&self, gguf: &Gguf, template: &str) -> Result<crate::llama::LlamaEngine, Error> {
        session::load(gguf, Some(template), self.run, self.printer)
    }
}
