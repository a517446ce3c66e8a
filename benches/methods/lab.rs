//! The model under test, its prompts in shuffled orders, and what the pipeline learns from them.

use std::io::Write;

use clap::Parser;
use rosi_gguf::cli::{Cli, Command};
use rosi_gguf::eval::prompts::{PromptKind, PromptSet, Split};
use rosi_gguf::eval::{Evaluator, PerKind, Questions};
use rosi_gguf::llama::{Engine, LlamaEngine, LowRank};
use rosi_gguf::method::direction::{Along, Directions, SafetyDirection};
use rosi_gguf::method::edit::Method;
use rosi_gguf::method::search::{Candidate, DirectionSource, KlBudget, SearchError, Space};
use rosi_gguf::output::Printer;
use rosi_gguf::pipeline::detectors::Toward;
use rosi_gguf::pipeline::edit_search::{Found, search_prompts};
use rosi_gguf::pipeline::options::InjectOptions;
use rosi_gguf::pipeline::session::{self, Opened, Session};
use rosi_gguf::sources::Check;

use crate::Failure;

/// Number of folds of each prompt kind. The splits repeat every four folds: two for extract, one for search, one for
/// report.
const FOLDS: usize = 8;

/// A recipe for an edit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Recipe {
    /// `--method detector` with its defaults.
    Detector,
    /// Detector gates along a random direction.
    RandomDetector,
    /// `--method contrast` with its first κ, at the KL of the detectors.
    Contrast,
    /// `--method published`, at the KL of the detectors.
    Published,
}

impl Recipe {
    /// Returns the name for the tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Detector => "detector",
            Self::RandomDetector => "detector, random direction",
            Self::Contrast => "contrast",
            Self::Published => "published",
        }
    }

    /// Returns the method whose pipeline makes the edit.
    pub fn method(self) -> &'static str {
        match self {
            Self::Detector | Self::RandomDetector => "detector",
            Self::Contrast => "contrast",
            Self::Published => "published",
        }
    }
}

/// The loaded model, with a directory for temporary files.
pub struct Lab {
    engine: LlamaEngine,
    opened: Opened,
    printer: Printer,
    folder: tempfile::TempDir,
}

/// What one method learned from one order of the prompts.
pub struct Learned {
    found: Found,
    directions: Directions,
    space: Space,
}

/// One order of the prompts.
pub struct Draw {
    prompts: PromptSet,
    /// Evaluator for the search split, which holds the base's answers.
    evaluator: Evaluator,
    /// Evaluator for the harmless prompts of the report split, on which all methods have the same KL.
    report_kl: Evaluator,
}

impl Draw {
    /// Returns the report split, which influenced no choice.
    pub fn report(&self) -> Questions {
        Questions::of(&self.prompts, Split::Report, Questions::ALL)
    }

    /// Returns the mean first-token KL from the base on the harmless prompts of the report split, in nats.
    pub fn kl(&self, engine: &mut dyn Engine) -> Result<f64, Failure> {
        Ok(self.report_kl.kl(engine)?)
    }
}

impl Lab {
    /// Loads the model.
    pub fn open() -> Result<Self, Failure> {
        let printer = Printer::new(true, 0);
        let options = options("published", &printer)?;
        let opened = Opened::new(&options.source.path, None)?;
        let engine = session::load(&opened.gguf, Some(opened.template()?), &options.run, &printer)?;
        Ok(Self { engine, opened, printer, folder: tempfile::tempdir()? })
    }

    /// Returns the model's name.
    pub fn name(&self) -> String {
        self.opened.gguf.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Returns the engine with the loaded model.
    pub fn engine(&mut self) -> &mut LlamaEngine {
        &mut self.engine
    }

    /// Returns the prompts in the order given by `seed`; 0 is the bundled order.
    pub fn draw(&mut self, seed: u64) -> Result<Draw, Failure> {
        let prompts = if seed == 0 { PromptSet::bundled() } else { self.reordered(seed)? };
        let questions = Questions::of(&prompts, Split::Search, search_prompts(Method::Detector));
        let (evaluator, _) = Evaluator::new(&mut self.engine, questions)?;
        let harmless = PerKind { harmful: 0, borderline: 0, ..Questions::ALL };
        let (report_kl, _) =
            Evaluator::new(&mut self.engine, Questions::of(&prompts, Split::Report, harmless))?;
        Ok(Draw { prompts, evaluator, report_kl })
    }

    fn reordered(&self, seed: u64) -> Result<PromptSet, Failure> {
        let path = self.folder.path().join(format!("{seed}.jsonl"));
        let mut file = std::fs::File::create(&path)?;
        let order = order(seed);
        for kind in PromptKind::ALL {
            let all = PromptSet::bundled();
            let all = all.of_kind(kind);
            for first in (0..all.len()).step_by(FOLDS) {
                for prompt in order.iter().filter_map(|&fold| all.get(first + fold)) {
                    writeln!(file, "{}", serde_json::to_string(prompt)?)?;
                }
            }
        }
        Ok(PromptSet::load(&[path])?)
    }

    /// Runs the pipeline's training of `method` on the extract split.
    pub fn learn(&mut self, draw: &Draw, method: &str) -> Result<Learned, Failure> {
        let options = options(method, &self.printer)?;
        let (opened, prompts, options, printer) = (&self.opened, &draw.prompts, &options, &self.printer);
        let session = Session { opened, prompts, options, printer };
        let (found, shown) = Found::learn(session, &mut self.engine, &draw.evaluator, false)?;
        let (direction_source, directions) = match (method, shown.refusal) {
            ("published", _) | (_, None) => (DirectionSource::Plain, shown.plain),
            (_, Some(refusal)) => (DirectionSource::Refusal, refusal),
        };
        Ok(Learned { space: found.space(opened, options, direction_source), found, directions })
    }

    /// Applies `recipe` at its default strength or, if `kl` is given, at the strength that spends `kl`, as
    /// [`Draw::kl`] measures it. Returns the strength.
    pub fn apply(
        &mut self,
        draw: &Draw,
        learned: &Learned,
        recipe: Recipe,
        kl: Option<f64>,
    ) -> Result<f64, Failure> {
        let Learned { found, directions, space } = learned;
        let n_layer = self.opened.plan.n_layer;
        let (window, contrast) = (space.windows[0], space.contrasts[0]);
        let layer = space.layer.unwrap_or(n_layer * 2 / 3);
        let candidate = Candidate { direction_source: space.direction_source, layer, window, contrast };
        let random = rosi_gguf::method::direction::random(layer, self.opened.plan.n_embd as usize, 1)?;
        let norm = directions.by_layer[layer].norm();
        let random: Vec<f64> = random.unit().iter().map(|&v| f64::from(v) * norm).collect();
        let random = SafetyDirection::new(layer, &random)?;
        let toward = match recipe {
            Recipe::RandomDetector => Toward::Same(&random),
            Recipe::Detector => Toward::Refusal(Along::Layers(&directions.by_layer)),
            Recipe::Contrast | Recipe::Published => {
                Toward::Refusal(Along::One(Along::Layers(&directions.by_layer).at(layer)))
            }
        };
        let opened = &self.opened;
        let make = |strength: f64| -> Result<Vec<LowRank>, SearchError> {
            found.adapters(opened, &candidate, strength, toward)
        };
        let strength = match kl {
            None => space.first_strength,
            Some(kl) => {
                let max_kl = KlBudget::spending(kl);
                let (engine, evaluator, strongest) = (&mut self.engine, &draw.report_kl, space.strongest);
                KlBudget { engine, evaluator, max_kl, strongest }.strength(&make, space.first_strength)?
            }
        };
        self.engine.apply(&make(strength)?)?;
        Ok(strength)
    }
}

/// Returns the options of `inject` with `method`.
fn options(method: &str, printer: &Printer) -> Result<InjectOptions, Failure> {
    let path = std::env::var("ROSI_TEST_MODEL_QWEN")?;
    let cli = Cli::try_parse_from(["rosi-gguf", "inject", &path, "--method", method])?;
    let Command::Inject(args) = cli.command else { return Err("expected the inject command".into()) };
    let source = session::find(&args.model, Check::Content, printer)?;
    let options = InjectOptions::new(*args, source, None)?;
    Ok(options.with_method(options.method)?)
}

/// Returns the shuffled order of the folds for `seed`.
fn order(seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..FOLDS).collect();
    let mut state = seed;
    for i in (1..FOLDS).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(i, (state >> 33) as usize % (i + 1));
    }
    order
}
