//! What edits are made of: directions, right factors, and what is known of the writers' inputs.

mod stored;

use std::path::Path;

use crate::activations::{self, Activations, WriterInputs};
use crate::commands::session::Opened;
use crate::direction::{self, Directions, SafetyDirection};
use crate::edit::{self, Edit, EditError, Method, RightFactors, WriterWeights};
use crate::error::Error;
use crate::evaluate::chats;
use crate::gate::{self, Gate, GateInputs, GateOptions};
use crate::imatrix::Imatrix;
use crate::interrupt;
use crate::llama::{Capture, Engine, LlamaEngine};
use crate::output::Printer;
use crate::plan::{Plan, ResidualWriter};
use crate::prompts::{PromptKind, PromptSet, Split};
use crate::quant::preserve::InputModel;
use crate::search::{Candidate, Space};

/// Tokens of all positions, per kind of prompts, whose inputs are kept.
const SAMPLE: usize = 256;
/// Principal components of a writer's inputs that requantization keeps its noise away from.
const PRINCIPAL: usize = 16;
/// λ and τ of the gate (docs/method.md: neither matters much within a factor of four).
const GATE: GateOptions = GateOptions { ridge: 0.01, tokens: 1.0 };
/// Layers that a gated edit tries, as shares of the depth, the default first.
const WINDOWS: [(f64, f64); 3] = [(0.3, 0.8), (0.2, 0.9), (0.4, 0.7)];
/// κ that a contrast gate tries, the default first.
const CONTRASTS: [f64; 2] = [0.7, 1.5];

/// What `method` tries.
pub fn space(method: Method) -> Space {
    match method {
        Method::Contrast => {
            Space { windows: WINDOWS.to_vec(), contrasts: CONTRASTS.to_vec(), first_strength: 0.05 }
        }
        Method::Gated => Space { windows: WINDOWS.to_vec(), contrasts: vec![0.0], first_strength: 0.05 },
        // The useful strengths of the published edit lie at 2-8 % (docs/method.md).
        Method::Published | Method::PublishedSigned => {
            Space { windows: vec![(0.0, 1.0)], contrasts: vec![0.0], first_strength: 0.04 }
        }
    }
}

/// Everything that an edit is made of.
pub struct Material {
    /// Directions and separation per layer.
    pub directions: Directions,
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
    /// A gate each, where there is one.
    Gates(Vec<Option<Gate>>),
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
    /// Collects it on the extract split. `system` is the safety prompt under which the direction is
    /// taken, if any; gates always see prompts as users send them.
    pub fn collect(
        opened: &Opened,
        engine: &mut LlamaEngine,
        prompts: &PromptSet,
        (method, system): (Method, Option<&str>),
        printer: &Printer,
    ) -> Result<Self, Error> {
        let weights = read_weights(opened, printer)?;
        let collector = Collector { opened, prompts, printer };
        let plain = PromptKind::ALL.map(|kind| collector.collect(engine, (kind, None)));
        let [harmful, harmless, alarming] = plain;
        let (harmful, harmless, alarming) = (harmful?, harmless?, alarming?);
        let directions = match system {
            None => direction::difference_in_means(&harmful, &harmless)?,
            Some(_) => direction::difference_in_means(
                &collector.collect(engine, (PromptKind::Harmful, system))?,
                &collector.collect(engine, (PromptKind::Harmless, system))?,
            )?,
        };
        let sets = [&harmful, &harmless, &alarming];
        let mean_harmful: Vec<Vec<f64>> = harmful.inputs.iter().map(WriterInputs::mean_last).collect();
        Ok(Self {
            rights: right_factors(opened, &weights, (method, &mean_harmful), (sets, printer))?,
            inputs: input_models(sets, printer),
            directions,
            weights,
            mean_harmful,
        })
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

    /// The edits of `candidate` along `direction` at `strength`.
    ///
    /// # Errors
    /// [`EditError`].
    pub fn edits(
        &self,
        plan: &Plan,
        candidate: &Candidate,
        (direction, strength): (&SafetyDirection, f64),
    ) -> Result<Vec<Edit>, EditError> {
        let n_layer = plan.n_layer as f64;
        let (from, until) = candidate.window;
        let inside =
            |writer: &ResidualWriter| (from..until).contains(&((writer.layer as f64 + 0.5) / n_layer));
        let right = |i: usize| match &self.rights {
            Rights::Fixed(rights) => rights[i].clone(),
            Rights::Gates(gates) => gates[i].as_ref()?.right_factor(candidate.contrast),
        };
        let writers = plan.writers.iter().enumerate();
        let rights = writers.map(|(i, writer)| if inside(writer) { right(i) } else { None });
        edit::edits(plan, &self.weights, &rights.collect(), direction, strength)
    }

    /// The published edit of every writer along `direction`.
    ///
    /// # Errors
    /// [`EditError`].
    pub fn published(
        &self,
        plan: &Plan,
        direction: &SafetyDirection,
        strength: f64,
    ) -> Result<Vec<Edit>, EditError> {
        edit::edits(plan, &self.weights, &edit::mean_rows(&self.weights), direction, strength)
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

/// Runs the extract split through the model.
struct Collector<'a> {
    opened: &'a Opened,
    prompts: &'a PromptSet,
    printer: &'a Printer,
}

impl Collector<'_> {
    /// Hidden states and writers' inputs on the prompts of one kind.
    fn collect(
        &self,
        engine: &mut LlamaEngine,
        (kind, system): (PromptKind, Option<&str>),
    ) -> Result<Activations, Error> {
        let capture = Capture::new(&self.opened.plan).with_sample(SAMPLE);
        let _bar = self.printer.bar(&format!("collecting hidden states: {kind}"), 1);
        let selected = self.prompts.select(kind, Split::Extract);
        let texts: Vec<String> = selected.iter().map(|p| p.text.clone()).collect();
        Ok(engine.collect(&chats(&texts, system), &capture)?)
    }
}

/// Right factors of every writer. One whose inputs the graph does not show (experts) has no gate and is
/// left alone.
fn right_factors(
    opened: &Opened,
    weights: &[WriterWeights],
    (method, mean_harmful): (Method, &[Vec<f64>]),
    ([harmful, harmless, alarming], printer): ([&Activations; 3], &Printer),
) -> Result<Rights, Error> {
    if !method.is_gated() {
        let mut rights = edit::mean_rows(weights);
        if method == Method::PublishedSigned {
            rights.iter_mut().flatten().zip(mean_harmful).for_each(|(r, mean)| turn_towards(r, mean));
        }
        return Ok(Rights::Fixed(rights));
    }
    let writers = &opened.plan.writers;
    let bar = printer.bar("learning the gates", writers.len() as u64);
    let mut gates = Vec::new();
    for (i, writer) in writers.iter().enumerate() {
        interrupt::check()?;
        let sets = GateInputs {
            harmful: &harmful.inputs[i],
            harmless: &harmless.inputs[i],
            alarming: &alarming.inputs[i],
        };
        let gate = (writer.n_expert == 1).then(|| gate::gate(&writer.tensor, &sets, &GATE));
        gates.push(gate.transpose()?);
        bar.set(i as u64 + 1);
    }
    Ok(Rights::Gates(gates))
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
