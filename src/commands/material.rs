//! What edits are made of: directions, right factors, and what is known of the writers' inputs.

mod stored;

use std::path::Path;

use crate::activations::{self, Activations, WriterInputs};
use crate::commands::session::Opened;
use crate::direction::{self, Along, Directions};
use crate::edit::{self, Edit, EditError, Method, RightFactors, WriterWeights};
use crate::error::Error;
use crate::evaluate::{Examiner, chats};
use crate::gate::{GateOptions, Kernel, Lessons};
use crate::imatrix::Imatrix;
use crate::interrupt;
use crate::llama::{Capture, Engine, LlamaEngine};
use crate::output::Printer;
use crate::plan::Plan;
use crate::prompts::{PromptKind, PromptSet, Split};
use crate::quant::preserve::InputModel;
use crate::search::{Candidate, Lever, Space};

/// Tokens of all positions, per kind of prompts, whose inputs are kept.
const SAMPLE: usize = 256;
/// Principal components of a writer's inputs that requantization keeps its noise away from.
const PRINCIPAL: usize = 16;
/// Tokens before a prompt's last one that a gate is taught as well.
const TAIL: usize = 1;
/// Layers that a gated edit changes, as shares of the depth. Wider and narrower ones never were the better
/// choice (docs/method.md).
const WINDOW: (f64, f64) = (0.3, 0.8);
/// κ that a contrast gate tries, the default first.
const CONTRASTS: [f64; 2] = [1.0, 2.0];
/// Fewest prompts that are refused, and that are answered, for a direction between them.
const MIN_REFUSED: usize = 16;

/// The same along a scar, where what was removed is missing from all layers: wider first.
const WINDOWS_SCAR: [(f64, f64); 2] = [(0.2, 0.9), WINDOW];
/// κ along a scar: with none as much refusal comes back at less KL, but that of alarming prompts too.
const CONTRASTS_SCAR: [f64; 1] = [1.0];

/// What `method` tries with `lever`.
pub fn space(method: Method, lever: Lever) -> Space {
    if !method.is_gated() {
        // The useful strengths of the published edit lie at 2-8 % (docs/method.md).
        return Space {
            lever,
            layer: None,
            follows: false,
            windows: vec![(0.0, 1.0)],
            contrasts: vec![0.0],
            first_strength: 0.04,
        };
    }
    let (windows, contrasts) = match lever {
        Lever::Scar => (WINDOWS_SCAR.to_vec(), CONTRASTS_SCAR.to_vec()),
        Lever::Refusal | Lever::Plain | Lever::Safety => (vec![WINDOW], CONTRASTS.to_vec()),
    };
    let contrasts = if method == Method::Contrast { contrasts } else { vec![0.0] };
    Space { lever, layer: None, follows: false, windows, contrasts, first_strength: 0.01 }
}

/// Everything that an edit is made of.
pub struct Material {
    /// Weights of each writer.
    pub weights: Vec<WriterWeights>,
    /// What is known of each writer's inputs, in the plan's order.
    pub inputs: Vec<InputModel>,
    rights: Rights,
    /// Mean input of each writer at the last token of harmful prompts.
    mean_harmful: Vec<Vec<f64>>,
}

/// Right factors in the plan's order.
enum Rights {
    /// The same whatever is tried.
    Fixed(RightFactors),
    /// Gates, for every window and κ that is tried.
    Gates(Vec<Learned>),
}

/// The gates of the writers in a window.
struct Learned {
    window: (f64, f64),
    contrast: f64,
    rights: RightFactors,
}

/// What the extract split showed on its way through the model.
struct Seen {
    activations: Activations,
    /// Log-odds that the answer begins a refusal, per prompt.
    odds: Vec<f64>,
    /// Whether it does.
    refused: Vec<bool>,
}

/// The directions that prompts show as users send them.
pub struct Shown {
    /// From harmless to harmful prompts.
    pub plain: Directions,
    /// From prompts that the model answers to those that it refuses, whatever their kind; `None` where it
    /// does too little of either.
    pub refusal: Option<Directions>,
}

/// Reads w̄ and ‖W‖ of every writer.
pub fn read_weights(opened: &Opened, printer: &Printer) -> Result<Vec<WriterWeights>, Error> {
    let bar = printer.bar("reading the writers", opened.plan.writers.len() as u64);
    let mut weights = Vec::new();
    for (i, writer) in opened.plan.writers.iter().enumerate() {
        interrupt::check()?;
        weights.push(edit::read_weights(&opened.gguf, writer)?);
        bar.set(i as u64 + 1);
    }
    Ok(weights)
}

impl Material {
    /// Collects it on the extract split, with prompts as users send them, and the directions that these
    /// show. With a `scar`, gates for it are learned too.
    pub fn collect(
        opened: &Opened,
        (engine, examiner): (&mut LlamaEngine, &Examiner),
        prompts: &PromptSet,
        (method, scar): (Method, bool),
        printer: &Printer,
    ) -> Result<(Self, Shown), Error> {
        let weights = read_weights(opened, printer)?;
        let collector = Collector { opened, prompts, printer };
        let seen = PromptKind::ALL.map(|kind| collector.collect(engine, examiner, kind));
        let [harmful, harmless, alarming] = seen;
        let seen = [harmful?, harmless?, alarming?];
        let sets = seen.each_ref().map(|s| &s.activations);
        let plain = direction::difference_in_means(sets[0], sets[1])?;
        let shown = Shown { plain, refusal: refusal_directions(&seen)? };
        let mean_harmful: Vec<Vec<f64>> = sets[0].inputs.iter().map(WriterInputs::mean_last).collect();
        let material = Self {
            rights: right_factors(opened, (&weights, &mean_harmful), &seen, (method, scar), printer)?,
            inputs: input_models(sets, printer),
            weights,
            mean_harmful,
        };
        Ok((material, shown))
    }

    /// Mixes what an importance matrix says of the writers' inputs into what the prompts showed.
    ///
    /// # Errors
    /// [`Error::Imatrix`] when it cannot be read or is of another model.
    pub fn mix(&mut self, path: &Path, plan: &Plan, printer: &Printer) -> Result<(), Error> {
        let imatrix = Imatrix::open(path)?;
        let mut known = 0;
        for (writer, model) in plan.writers.iter().zip(&mut self.inputs) {
            let (n_in, n_expert) = (writer.n_in as usize, writer.n_expert as usize);
            if let Some(other) = imatrix.input_model(&writer.tensor, n_in, n_expert)? {
                *model = std::mem::take(model).mixed(other);
                known += 1;
            }
        }
        let total = plan.writers.len();
        printer.say(format!("the importance matrix tells of {known} of {total} writers"));
        Ok(())
    }

    /// The edits of `candidate` along its direction at `strength`.
    ///
    /// # Errors
    /// [`EditError`].
    pub fn edits(
        &self,
        plan: &Plan,
        candidate: &Candidate,
        (along, strength): (Along<'_>, f64),
    ) -> Result<Vec<Edit>, EditError> {
        let none = || vec![None; plan.writers.len()];
        let rights = match &self.rights {
            Rights::Fixed(rights) => {
                let mut inside = none();
                for i in plan.writers_in(candidate.window) {
                    inside[i].clone_from(&rights[i]);
                }
                inside
            }
            Rights::Gates(gates) => {
                let own = |g: &&Learned| g.window == candidate.window && g.contrast == candidate.contrast;
                gates.iter().find(own).map_or_else(none, |g| g.rights.clone())
            }
        };
        edit::edits(plan, &self.weights, &rights, along, strength)
    }

    /// The published edit of every writer.
    ///
    /// # Errors
    /// [`EditError`].
    pub fn published(&self, plan: &Plan, along: Along<'_>, strength: f64) -> Result<Vec<Edit>, EditError> {
        edit::edits(plan, &self.weights, &edit::mean_rows(&self.weights), along, strength)
    }

    /// α·rightᵀ mean(x) of each dense writer over the harmful prompts' last tokens, in units of ‖s‖:
    /// negative where the right factor pushes away from refusal.
    pub fn pushes(&self, edits: &[Edit], norm: f64) -> Vec<f64> {
        let dense = edits.iter().filter(|e| e.n_expert == 1);
        let push = |e: &Edit| {
            let mean = &self.mean_harmful[e.writer];
            let dot: f64 = mean.iter().zip(&e.right).map(|(x, &r)| x * f64::from(r)).sum();
            e.alpha * dot / norm
        };
        dense.map(push).collect()
    }
}

/// The difference in means of the extract split under `system`, without the writers' inputs.
pub fn directions_under(
    opened: &Opened,
    engine: &mut LlamaEngine,
    prompts: &PromptSet,
    system: &str,
    printer: &Printer,
) -> Result<Directions, Error> {
    let collector = Collector { opened, prompts, printer };
    let mut residual = |kind| {
        let _bar = printer.bar(&format!("collecting hidden states under the safety prompt: {kind}"), 1);
        let capture = Capture::residual_only(&opened.plan);
        engine.collect(&chats(&collector.texts(kind), Some(system)), &capture, &mut |_, _| ())
    };
    let (harmful, harmless) = (residual(PromptKind::Harmful)?, residual(PromptKind::Harmless)?);
    Ok(direction::difference_in_means(&harmful, &harmless)?)
}

/// Runs the extract split through the model.
struct Collector<'a> {
    opened: &'a Opened,
    prompts: &'a PromptSet,
    printer: &'a Printer,
}

impl Collector<'_> {
    fn texts(&self, kind: PromptKind) -> Vec<String> {
        self.prompts.select(kind, Split::Extract).iter().map(|p| p.text.clone()).collect()
    }

    /// Hidden states, writers' inputs and the beginnings of answers on the prompts of one kind.
    fn collect(
        &self,
        engine: &mut LlamaEngine,
        examiner: &Examiner,
        kind: PromptKind,
    ) -> Result<Seen, Error> {
        let capture = Capture::new(&self.opened.plan).with_sample(SAMPLE).with_tail(TAIL);
        let _bar = self.printer.bar(&format!("collecting hidden states: {kind}"), 1);
        let texts = self.texts(kind);
        let (mut odds, mut refused) = (vec![0.0; texts.len()], vec![false; texts.len()]);
        let activations = engine.collect(&chats(&texts, None), &capture, &mut |i, logits| {
            odds[i] = examiner.odds(logits);
            refused[i] = examiner.begins_refusal(logits);
        })?;
        Ok(Seen { activations, odds, refused })
    }
}

/// From what is answered to what is refused, if there is enough of both.
fn refusal_directions(seen: &[Seen]) -> Result<Option<Directions>, Error> {
    let part = |wanted: bool| {
        let rows = |s: &Seen| (0..s.refused.len()).filter(|&i| s.refused[i] == wanted).collect::<Vec<_>>();
        Activations::residuals_of(seen.iter().map(|s| (&s.activations, rows(s))))
    };
    let (refused, answered) = (part(true), part(false));
    if refused.n_prompt().min(answered.n_prompt()) < MIN_REFUSED {
        return Ok(None);
    }
    Ok(Some(direction::difference_in_means(&refused, &answered)?))
}

/// Right factors of every writer. One whose inputs the graph does not show (experts) has no gate and is
/// left alone.
fn right_factors(
    opened: &Opened,
    (weights, mean_harmful): (&[WriterWeights], &[Vec<f64>]),
    seen: &[Seen; 3],
    (method, scar): (Method, bool),
    printer: &Printer,
) -> Result<Rights, Error> {
    if !method.is_gated() {
        let mut rights = edit::mean_rows(weights);
        if method == Method::PublishedSigned {
            rights.iter_mut().flatten().zip(mean_harmful).for_each(|(r, mean)| turn_towards(r, mean));
        }
        return Ok(Rights::Fixed(rights));
    }
    let lessons = Lessons {
        inputs: seen.each_ref().map(|s| s.activations.inputs.as_slice()),
        odds: seen.each_ref().map(|s| s.odds.as_slice()),
    };
    let contrasts = space(method, Lever::Plain).contrasts; // those along a scar are among them
    let windows = space(method, if scar { Lever::Scar } else { Lever::Plain }).windows;
    let inside = |window| (window, opened.plan.writers_in(window));
    let windows: Vec<_> = windows.into_iter().map(inside).collect();
    let total: usize = windows.iter().map(|(_, writers)| writers.len() + contrasts.len()).sum();
    let (bar, mut done) = (printer.bar("learning the gates", total as u64), 0);
    let mut learned = Vec::new();
    for (window, writers) in windows {
        let mut step = || {
            done += 1;
            bar.set(done);
        };
        let kernel = Kernel::of(lessons, &writers, &mut step)?;
        for &contrast in &contrasts {
            interrupt::check()?;
            let rights =
                kernel.right_factors(contrast, &GateOptions::default(), opened.plan.writers.len())?;
            learned.push(Learned { window, contrast, rights });
            step();
        }
    }
    Ok(Rights::Gates(learned))
}

/// Turns `right` so that it pushes along ŝ, not against it, on the mean harmful input.
fn turn_towards(right: &mut [f32], mean: &[f64]) {
    let dot: f64 = right.iter().zip(mean).map(|(&r, x)| f64::from(r) * x).sum();
    if dot < 0.0 {
        right.iter_mut().for_each(|r| *r = -*r);
    }
}

/// The second moments of every writer's inputs, which tell requantization where noise does least.
fn input_models([harmful, harmless, alarming]: [&Activations; 3], printer: &Printer) -> Vec<InputModel> {
    let bar = printer.bar("weighing the writers' inputs", harmful.inputs.len() as u64);
    let models = (0..harmful.inputs.len()).map(|i| {
        bar.set(i as u64);
        activations::input_model(&[&harmful.inputs[i], &harmless.inputs[i], &alarming.inputs[i]], PRINCIPAL)
    });
    models.collect()
}
