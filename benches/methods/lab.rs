//! The model, its prompts in eighths, and the edits that can be learned from them.

use rosi_gguf::activations::{Activations, WriterInputs};
use rosi_gguf::direction::{self, Directions};
use rosi_gguf::edit::{self, Edit, RightFactors, WriterWeights};
use rosi_gguf::evaluate::{Examiner, FEW, MAX_ODDS, Questions, chats};
use rosi_gguf::gate::effects::{Moved, pushes};
use rosi_gguf::gate::{GateOptions, Kernel, Lessons};
use rosi_gguf::gguf::Gguf;
use rosi_gguf::llama::{Capture, Engine, EngineOptions, LlamaEngine, LowRank, Offload};
use rosi_gguf::pipeline::plan_of;
use rosi_gguf::plan::Plan;
use rosi_gguf::prompts::{PromptKind, PromptSet};
use rosi_gguf::search::KlBudget;

use crate::{Failure, LAYER, MAX_KL};

/// Where the search for a strength begins.
const FIRST_STRENGTH: f64 = 0.01;
/// As `inject` has them.
const WINDOW: (f64, f64) = (0.3, 0.8);
const SAMPLE: usize = 64;
/// Parts of each kind of prompts.
const FOLDS: usize = 8;
/// Of these, parts that are learned from and searched on; the others are reported on.
const EXTRACT: usize = 4;
const SEARCH: usize = 2;

/// How an edit is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Recipe {
    /// Gates with this κ, along what is refused or along what is harmful.
    Contrast { contrast: f64, refusal: bool },
    /// Eq. 6 of arXiv 2508.20766, all layers.
    Published,
    /// The same, each writer turned towards refusal.
    PublishedSigned,
    /// The default's gates, or Eq. 6, along a random direction.
    Random { gates: bool },
}

impl Recipe {
    /// For the tables.
    pub fn name(self) -> String {
        match self {
            Self::Contrast { contrast: 0.0, .. } => "gated (κ = 0)".into(),
            Self::Contrast { contrast, refusal: true } => format!("contrast, κ = {contrast}"),
            Self::Contrast { contrast, refusal: false } => {
                format!("contrast, κ = {contrast}, harmful − harmless")
            }
            Self::Published => "published".into(),
            Self::PublishedSigned => "published-signed".into(),
            Self::Random { gates: true } => "contrast gates along a random direction".into(),
            Self::Random { gates: false } => "published along a random direction".into(),
        }
    }
}

/// One eighth of a kind.
struct Fold {
    texts: Vec<String>,
    activations: Activations,
    odds: Vec<f64>,
    refused: Vec<bool>,
}

/// What was learned from one draw of the folds.
pub struct Learned {
    /// Asks the search split.
    pub examiner: Examiner,
    plain: Directions,
    refusal: Directions,
    contrasts: Vec<(f64, RightFactors)>,
    mean_harmful: Vec<Vec<f64>>,
}

/// All of it but the engine.
pub struct Bench {
    name: String,
    plan: Plan,
    weights: Vec<WriterWeights>,
    folds: [Vec<Fold>; 3],
}

/// The model and what was seen in it.
pub struct Lab {
    engine: LlamaEngine,
    bench: Bench,
}

impl Lab {
    /// Runs all prompts through the model.
    pub fn open() -> Result<Self, Failure> {
        let path = std::env::var("ROSI_TEST_MODEL_QWEN")?;
        let gguf = Gguf::open(path.as_ref())?;
        let plan = plan_of(&gguf)?;
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let options = EngineOptions { path: path.into(), threads, offload: Offload::none() };
        let template = gguf.str("tokenizer.chat_template");
        let mut engine = LlamaEngine::load(&options, template, &mut |_| ())?;
        let weights = plan.writers.iter().map(|w| edit::read_weights(&gguf, w)).collect::<Result<_, _>>()?;
        // The first draw's search split teaches how refusals begin.
        let texts = folds_of(&PromptSet::bundled());
        let (examiner, _) = Examiner::new(&mut engine, questions(&texts, 0).1)?;
        let capture = Capture::new(&plan).with_sample(SAMPLE).with_tail(1);
        let mut see = |texts: Vec<String>| -> Result<Fold, Failure> {
            let (mut odds, mut refused) = (vec![0.0; texts.len()], vec![false; texts.len()]);
            let activations = engine.collect(&chats(&texts, None), &capture, &mut |i, logits| {
                odds[i] = examiner.odds(logits);
                refused[i] = examiner.begins_refusal(logits);
            })?;
            Ok(Fold { texts, activations, odds, refused })
        };
        let mut folds = [const { Vec::new() }; 3];
        for (own, texts) in folds.iter_mut().zip(texts) {
            for texts in texts {
                own.push(see(texts)?);
            }
        }
        let name = gguf.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { engine, bench: Bench { name, plan, weights, folds } })
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        &self.bench.name
    }

    /// The model.
    pub fn engine(&mut self) -> &mut LlamaEngine {
        &mut self.engine
    }

    /// The model, and all else.
    pub fn parts(&mut self) -> (&mut LlamaEngine, &Bench) {
        (&mut self.engine, &self.bench)
    }

    /// Extract, search and report prompts of the draw `seed`.
    pub fn questions(&self, seed: u64) -> (Questions, Questions, Questions) {
        let texts = self.bench.folds.each_ref().map(|f| f.iter().map(|f| f.texts.clone()).collect());
        questions(&texts, seed)
    }

    /// Learns directions and gates from the draw `seed`.
    pub fn learn(&mut self, seed: u64) -> Result<Learned, Failure> {
        let (_, search, _) = self.questions(seed);
        let (examiner, _) = Examiner::new(&mut self.engine, search.part(FEW))?;
        let first = self.bench.learn(seed, examiner, None)?;
        let effects = self.bench.effects(&mut self.engine, &first, seed)?;
        self.bench.learn(seed, first.examiner, Some(&effects))
    }
}

impl Bench {
    fn learn(&self, seed: u64, examiner: Examiner, effects: Option<&[f64]>) -> Result<Learned, Failure> {
        let order = order(seed);
        let chosen = |kind: usize| order[..EXTRACT].iter().map(move |&f| &self.folds[kind][f]);
        let sets: Vec<Activations> =
            (0..3).map(|kind| joined(chosen(kind).map(|f| &f.activations))).collect();
        let odds: Vec<Vec<f64>> = (0..3).map(|k| chosen(k).flat_map(|f| f.odds.clone()).collect()).collect();
        let part = |wanted: bool| {
            let all = (0..3).flat_map(chosen);
            Activations::residuals_of(all.map(|f| {
                let rows = (0..f.refused.len()).filter(|&i| f.refused[i] == wanted).collect();
                (&f.activations, rows)
            }))
        };
        let writers = self.plan.writers_in(WINDOW);
        let lessons = Lessons {
            inputs: [&sets[0].inputs, &sets[1].inputs, &sets[2].inputs],
            odds: [&odds[0], &odds[1], &odds[2]],
        };
        let kernel = Kernel::of(lessons, &writers, effects, &mut || ())?;
        let mut contrasts = Vec::new();
        for contrast in [0.0, 0.5, 1.0] {
            contrasts.push((
                contrast,
                kernel.right_factors(contrast, &GateOptions::default(), self.plan.writers.len())?,
            ));
        }
        Ok(Learned {
            examiner,
            plain: direction::difference_in_means(&sets[0], &sets[1])?,
            refusal: direction::difference_in_means(&part(true), &part(false))?,
            contrasts,
            mean_harmful: sets[0].inputs.iter().map(WriterInputs::mean_last).collect(),
        })
    }

    /// What each writer's push does, seen with the gates of `first`, which know nothing of it.
    fn effects(&self, engine: &mut LlamaEngine, first: &Learned, seed: u64) -> Result<Vec<f64>, Failure> {
        let recipe = Recipe::Contrast { contrast: 1.0, refusal: true };
        let make = |strength: f64| self.edits(first, recipe, strength).unwrap_or_default();
        let budget = KlBudget { engine: &mut *engine, examiner: &first.examiner, max_kl: MAX_KL };
        let strength = budget.strength(&make, FIRST_STRENGTH)?;
        engine.apply(&make(strength))?;
        let rights = &first.contrasts.iter().find(|(c, _)| *c == 1.0).ok_or("no gates")?.1;
        let mut moved = Moved::default();
        for (kind, folds) in self.folds.iter().enumerate() {
            for fold in order(seed)[..EXTRACT].iter().map(|&f| &folds[f]) {
                let mut odds = vec![0.0; fold.texts.len()];
                let mut see = |i: usize, logits: &[f32]| odds[i] = first.examiner.odds(logits);
                engine.answer(&chats(&fold.texts, None), 1, &mut see)?;
                let pushes = pushes(&fold.activations.inputs, rights);
                for (pushes, change) in pushes.rows().into_iter().zip(fold.odds.iter().copied().zip(odds)) {
                    moved.add(pushes, change, (kind == 0, MAX_ODDS));
                }
            }
        }
        engine.apply(&[])?;
        Ok(moved.effects(rights).ok_or("the effects cannot be told")?)
    }

    /// The adapters of `recipe`.
    pub fn edits(&self, learned: &Learned, recipe: Recipe, strength: f64) -> Result<Vec<LowRank>, Failure> {
        let gates = |contrast: f64| {
            let found = learned.contrasts.iter().find(|(c, _)| *c == contrast);
            found.map(|(_, rights)| rights.clone()).ok_or("no gates for this κ")
        };
        let plain = learned.plain.by_layer[LAYER].clone();
        let random = direction::random(LAYER, self.plan.n_embd as usize, 1)?;
        let (along, rights) = match recipe {
            Recipe::Contrast { contrast, refusal: true } => {
                (learned.refusal.by_layer[LAYER].clone(), gates(contrast)?)
            }
            Recipe::Contrast { contrast, refusal: false } => (plain, gates(contrast)?),
            Recipe::Published => (plain, edit::mean_rows(&self.weights)),
            Recipe::PublishedSigned => (plain, self.signed(learned)),
            Recipe::Random { gates: true } => (random, gates(1.0)?),
            Recipe::Random { gates: false } => (random, edit::mean_rows(&self.weights)),
        };
        let edits = edit::edits(&self.plan, &self.weights, &rights, &along, strength)?;
        Ok(edits.iter().map(Edit::to_low_rank).collect())
    }

    fn signed(&self, learned: &Learned) -> RightFactors {
        let mut rights = edit::mean_rows(&self.weights);
        for (right, mean) in rights.iter_mut().zip(&learned.mean_harmful) {
            let Some(right) = right else { continue };
            let push: f64 = right.iter().zip(mean).map(|(&r, m)| f64::from(r) * m).sum();
            if push < 0.0 {
                right.iter_mut().for_each(|r| *r = -*r);
            }
        }
        rights
    }
}

/// Every kind in eighths: topics lie in blocks of twelve, so each has some of each.
fn folds_of(prompts: &PromptSet) -> [Vec<Vec<String>>; 3] {
    PromptKind::ALL.map(|kind| {
        let mut folds = vec![Vec::new(); FOLDS];
        for (i, prompt) in prompts.of_kind(kind).into_iter().enumerate() {
            folds[i % FOLDS].push(prompt.text.clone());
        }
        folds
    })
}

/// The folds in the order of the draw `seed`.
fn order(seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..FOLDS).collect();
    let mut state = seed;
    for i in (1..FOLDS).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(i, (state >> 33) as usize % (i + 1));
    }
    order
}

fn questions(texts: &[Vec<Vec<String>>; 3], seed: u64) -> (Questions, Questions, Questions) {
    let order = order(seed);
    let of = |folds: &[usize]| {
        let kind = |k: usize| folds.iter().flat_map(|&f| texts[k][f].clone()).collect();
        Questions { harmful: kind(0), harmless: kind(1), alarming: kind(2) }
    };
    let (extract, rest) = order.split_at(EXTRACT);
    let (search, report) = rest.split_at(SEARCH);
    (of(extract), of(search), of(report))
}

/// Several sets as one.
fn joined<'a>(parts: impl Iterator<Item = &'a Activations>) -> Activations {
    let parts: Vec<&Activations> = parts.collect();
    let all = parts.iter().map(|p| (*p, (0..p.n_prompt()).collect()));
    let mut joined = Activations::residuals_of(all);
    let n_writer = parts.first().map_or(0, |p| p.inputs.len());
    joined.inputs = (0..n_writer)
        .map(|w| {
            let stack = |of: &dyn Fn(&WriterInputs) -> ndarray::Array2<f32>| {
                let rows: Vec<_> = parts.iter().map(|p| of(&p.inputs[w])).collect();
                let views: Vec<_> = rows.iter().map(|r| r.view()).collect();
                ndarray::concatenate(ndarray::Axis(0), &views).unwrap_or_default()
            };
            WriterInputs {
                last: stack(&|i| i.last.clone()),
                tail: stack(&|i| i.tail.clone()),
                sample: stack(&|i| i.sample.clone()),
                routes: None, // the laboratory has no mixtures
            }
        })
        .collect();
    joined
}
