//! Ingredients of linear edits: directions, right factors, and statistics of the writers' inputs.

mod gates;
mod stored;

use std::path::Path;

use crate::arch::plan::Plan;
use crate::arch::window::Window;
use crate::eval::prompts::{self, PromptKind, PromptSet, Split};
use crate::eval::{Evaluator, PerKind, Questions, chats};
use crate::imatrix::Imatrix;
use crate::llama::activations::{self, Activations, WriterInputs};
use crate::llama::{Capture, Engine, LlamaEngine};
use crate::method::direction::{self, Along, Directions};
use crate::method::edit::{self, Edit, EditError, Method, RightFactors, WriterWeights};
use crate::method::search::{Candidate, DirectionSource, Space};
use crate::output::{Printer, percent};
use crate::pipeline::error::Error;
use crate::pipeline::options::InjectOptions;
use crate::pipeline::session::{Opened, Session};
use crate::quant::preserve::InputModel;
use crate::util::interrupt;
use gates::{GateTrainer, LearnedGates};

/// Sampled tokens per prompt kind, at any position, whose inputs are kept.
const SAMPLE: usize = 256;
/// Sampled tokens of prose whose inputs are kept.
const PROSE_SAMPLE: usize = 768;
/// Principal components of a writer's inputs along which requantization avoids adding noise.
const PRINCIPAL: usize = 16;
/// Distance, in tokens, from a prompt's last token to the earlier token that gates are also trained on.
const TAIL: usize = 1;
/// Layers that a gated edit changes. Wider and narrower windows were never better (docs/notebook/linear-gates.md).
const WINDOW: Window = Window { from: 0.3, until: 0.8 };
/// Values of κ that a contrast gate tries, default first.
const CONTRASTS: [f64; 2] = [1.0, 0.5];
/// Minimum number of refused prompts, and of answered prompts, for a direction between the two.
pub(super) const MIN_REFUSED: usize = 16;

/// Windows for an ablated direction: it is missing from all layers, so the wider window comes first.
const WINDOWS_ABLATED: [Window; 2] = [Window { from: 0.2, until: 0.9 }, WINDOW];
/// Values of κ for an ablated direction. κ = 0 restores as much refusal at less KL, but also on borderline prompts.
const CONTRASTS_ABLATED: [f64; 1] = [1.0];

/// Largest relative change of the edited weights that the search tries.
const STRONGEST: f64 = 0.6;

/// Returns the search space of `method` for `direction_source`.
pub fn space(method: Method, direction_source: DirectionSource) -> Space {
    if !method.is_gated() {
        // The useful strengths of the published edit lie at 2-8 % (docs/notebook/linear-gates.md).
        return Space {
            direction_source,
            layer: None,
            windows: vec![Window::WHOLE],
            contrasts: vec![0.0],
            first_strength: 0.04,
            strongest: STRONGEST,
        };
    }
    let (windows, contrasts) = match direction_source {
        DirectionSource::Ablated => (WINDOWS_ABLATED.to_vec(), CONTRASTS_ABLATED.to_vec()),
        DirectionSource::Refusal | DirectionSource::Plain | DirectionSource::Safety => {
            (vec![WINDOW], CONTRASTS.to_vec())
        }
    };
    Space { direction_source, layer: None, windows, contrasts, first_strength: 0.01, strongest: STRONGEST }
}

/// Returns the search space for `direction_source`, restricted by `options`.
pub fn space_of(options: &InjectOptions, direction_source: DirectionSource) -> Space {
    let space = space(options.method, direction_source);
    match options.search.contrast {
        Some(contrast) => Space { contrasts: vec![contrast], ..space },
        None => space,
    }
}

/// Right factors, and the other data that edits of the writers need.
pub struct Features {
    /// Weight statistics of each writer, in the plan's order.
    pub weights: Vec<WriterWeights>,
    /// Input statistics of each writer, in the plan's order.
    pub inputs: Vec<InputModel>,
    rights: Rights,
    /// Mean input of each writer at the last token of harmful prompts.
    mean_harmful: Vec<Vec<f64>>,
}

/// Right factors in the plan's order.
enum Rights {
    /// The same right factors for every candidate.
    Fixed(RightFactors),
    /// Gates for each window and κ of the search space.
    Gates(Vec<LearnedGates>),
}

/// Activations and first-token results for prompts of one kind from the extract split.
pub(super) struct Seen {
    pub texts: Vec<String>,
    pub activations: Activations,
    /// Log-odds that the answer begins a refusal, per prompt.
    pub odds: Vec<f64>,
    /// Whether the answer begins a refusal, per prompt.
    pub refused: Vec<bool>,
}

impl Seen {
    /// Runs `texts` as user messages without a system prompt.
    pub fn collect(
        engine: &mut LlamaEngine,
        evaluator: &Evaluator,
        texts: Vec<String>,
        capture: &Capture,
    ) -> Result<Self, Error> {
        let (mut odds, mut refused) = (vec![0.0; texts.len()], vec![false; texts.len()]);
        let activations = engine.collect(&chats(&texts, None), capture, &mut |i, logits| {
            odds[i] = evaluator.odds(logits);
            refused[i] = evaluator.begins_refusal(logits);
        })?;
        Ok(Self { texts, activations, odds, refused })
    }
}

/// Directions extracted from prompts without a system prompt.
pub struct Shown {
    /// From harmless to harmful prompts.
    pub plain: Directions,
    /// From answered to refused prompts, regardless of kind; `None` if there are too few of either.
    pub refusal: Option<Directions>,
}

impl Shown {
    /// Returns the refusal directions if available, otherwise the plain ones.
    pub(super) fn main(&self) -> &Directions {
        self.refusal.as_ref().unwrap_or(&self.plain)
    }
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

impl Features {
    /// Collects the features and the directions on the extract split, without a system prompt. If `ablated`,
    /// the gates are trained for an ablated direction.
    pub fn collect(
        session: Session<'_>,
        engine: &mut LlamaEngine,
        evaluator: &Evaluator,
        ablated: bool,
    ) -> Result<(Self, Shown), Error> {
        let Session { opened, prompts, options, printer } = session;
        let weights = read_weights(opened, printer)?;
        let collector = Collector { prompts, printer };
        let capture = capture(&opened.plan, options, prompts, ablated);
        if capture.share() < 1.0 {
            printer.say(format!(
                "the writers' inputs exceed {} MiB (--memory): training the gates on {} of the prompts",
                options.learn.memory >> 20,
                percent(capture.share())
            ));
        }
        let mut seen = PerKind::try_from_fn(|kind| collector.collect(engine, evaluator, &capture, kind))?;
        if options.method.is_gated() {
            let prose = collector.prose(engine, &capture)?;
            seen.harmless.activations.add_sample(&prose);
        }
        let sets = seen.as_ref().map(|s| &s.activations);
        let plain = direction::difference_in_means(sets.harmful, sets.harmless)?;
        let shown = Shown { plain, refusal: refusal_directions(&seen)? };
        let mean_harmful: Vec<Vec<f64>> = sets.harmful.inputs.iter().map(WriterInputs::mean_last).collect();
        let rights = if options.method.is_gated() {
            let trainer = GateTrainer { opened, weights: &weights, seen: &seen, options, printer };
            let effects = if ablated { None } else { trainer.effects(engine, evaluator, shown.main())? };
            Rights::Gates(trainer.learn(ablated, effects.as_deref())?)
        } else {
            Rights::Fixed(edit::mean_rows(&weights))
        };
        let features = Self { rights, inputs: input_models(sets, printer), weights, mean_harmful };
        Ok((features, shown))
    }

    /// Blends an importance matrix into the writers' input statistics.
    ///
    /// # Errors
    /// Returns [`Error::Imatrix`] if the file cannot be read or belongs to another model.
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
        printer.say(format!("the importance matrix covers {known} of {total} writers"));
        Ok(())
    }

    /// Returns the edits of `candidate` along its direction at `strength`.
    ///
    /// # Errors
    /// Returns [`EditError`] if no gates were trained for the candidate's window and κ, or an edit cannot be made.
    pub fn edits(
        &self,
        plan: &Plan,
        candidate: &Candidate,
        along: Along<'_>,
        strength: f64,
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
                let own =
                    |g: &&LearnedGates| g.window == candidate.window && g.contrast == candidate.contrast;
                let (window, contrast) = (candidate.window, candidate.contrast);
                gates.iter().find(own).ok_or(EditError::NoGates { window, contrast })?.rights.clone()
            }
        };
        edit::edits(plan, &self.weights, &rights, along, strength)
    }

    /// Returns α·rightᵀ mean(x) of each writer over the harmful prompts' last tokens, in units of ‖s‖: negative
    /// where the right factor pushes away from refusal. Omits writers whose inputs are unknown.
    pub fn pushes(&self, edits: &[Edit], norm: f64) -> Vec<f64> {
        let mean = |e: &Edit| &self.mean_harmful[e.writer];
        let known = edits.iter().filter(|e| mean(e).len() == e.right.len());
        let push = |e: &Edit| {
            let dot: f64 = mean(e).iter().zip(&e.right).map(|(x, &r)| x * f64::from(r)).sum();
            e.alpha * dot / norm
        };
        known.map(push).collect()
    }
}

/// Returns the difference in means of the extract split under the system prompt `system`.
pub fn directions_under(
    session: Session<'_>,
    engine: &mut LlamaEngine,
    system: &str,
) -> Result<Directions, Error> {
    let Session { opened, prompts, printer, .. } = session;
    let mut residual = |kind| {
        let _bar = printer.bar(&format!("collecting hidden states under the safety prompt: {kind}"), 1);
        let capture = Capture::residual_only(&opened.plan);
        let texts = prompts.texts(kind, Some(Split::Extract));
        engine.collect(&chats(&texts, Some(system)), &capture, &mut |_, _| ())
    };
    let (harmful, harmless) = (residual(PromptKind::Harmful)?, residual(PromptKind::Harmless)?);
    Ok(direction::difference_in_means(&harmful, &harmless)?)
}

/// Runs the extract split through the model.
struct Collector<'a> {
    prompts: &'a PromptSet,
    printer: &'a Printer,
}

impl Collector<'_> {
    /// Collects hidden states, writers' inputs and first answer tokens on the prompts of one kind.
    fn collect(
        &self,
        engine: &mut LlamaEngine,
        evaluator: &Evaluator,
        capture: &Capture,
        kind: PromptKind,
    ) -> Result<Seen, Error> {
        let _bar = self.printer.bar(&format!("collecting hidden states: {kind}"), 1);
        let mut texts = self.prompts.texts(kind, Some(Split::Extract));
        if capture.share() < 1.0 {
            // Only the inputs of the first prompts are kept, and the prompts are grouped by topic.
            texts = scattered(texts);
        }
        Seen::collect(engine, evaluator, texts, capture)
    }

    /// Collects inputs at tokens of prose. Gates trained on prompts alone open on some of it, and so change what
    /// the model reads and writes beyond its first answer token.
    fn prose(&self, engine: &mut LlamaEngine, capture: &Capture) -> Result<Activations, Error> {
        let _bar = self.printer.bar("collecting hidden states: prose", 1);
        let capture = capture.clone().with_sample(PROSE_SAMPLE);
        Ok(engine.collect(&chats(&prompts::prose(), None), &capture, &mut |_, _| ())?)
    }
}

/// Returns the directions from answered to refused prompts, or `None` if either has fewer than [`MIN_REFUSED`].
pub(super) fn refusal_directions(seen: &PerKind<Seen>) -> Result<Option<Directions>, Error> {
    let part = |wanted: bool| {
        let rows = |s: &Seen| (0..s.refused.len()).filter(|&i| s.refused[i] == wanted).collect::<Vec<_>>();
        Activations::residuals_of(seen.values().into_iter().map(|s| (&s.activations, rows(s))))
    };
    let (refused, answered) = (part(true), part(false));
    if refused.n_prompt().min(answered.n_prompt()) < MIN_REFUSED {
        return Ok(None);
    }
    Ok(Some(direction::difference_in_means(&refused, &answered)?))
}

/// Returns what to capture: for gated methods, only the inputs of writers that may be edited.
fn capture(plan: &Plan, options: &InjectOptions, prompts: &PromptSet, ablated: bool) -> Capture {
    let mut capture = Capture::new(plan).with_sample(SAMPLE).with_tail(&[TAIL]);
    if options.method.is_gated() {
        let window = if ablated { WINDOWS_ABLATED[0] } else { WINDOW };
        capture = capture.only(&plan.writers_in(window));
    }
    capture.within(options.learn.memory, n_token(options.method, prompts))
}

/// Returns the number of tokens at which the writers' inputs are kept, over all prompt kinds and prose.
fn n_token(method: Method, prompts: &PromptSet) -> u64 {
    let n_prompt = Questions::of(prompts, Split::Extract, Questions::ALL).len();
    let prose = if method.is_gated() { PROSE_SAMPLE } else { 0 };
    (n_prompt * 2 + PromptKind::ALL.len() * SAMPLE + prose) as u64
}

/// Returns the share of `n_prompt` prompts that are run again with the first gates applied.
pub fn effect_share(plan: &Plan, n_prompt: usize) -> f64 {
    gates::effect_share(plan.writers_in(WINDOW).len(), n_prompt)
}

/// Returns the bytes of writers' inputs that training keeps for a model without an ablated direction.
pub fn inputs_memory(plan: &Plan, options: &InjectOptions, prompts: &PromptSet) -> u64 {
    let capture = capture(plan, options, prompts, false);
    capture.token_bytes().saturating_mul(n_token(options.method, prompts)).min(options.learn.memory)
}

/// Reorders `texts` so that every prefix of the result is spread evenly over the input.
fn scattered(texts: Vec<String>) -> Vec<String> {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let mut numbered: Vec<(f64, String)> =
        texts.into_iter().enumerate().map(|(i, text)| ((i as f64 * GOLDEN).fract(), text)).collect();
    numbered.sort_by(|a, b| a.0.total_cmp(&b.0));
    numbered.into_iter().map(|(_, text)| text).collect()
}

/// Computes the second moments of every writer's inputs, which show requantization where noise does least harm.
fn input_models(sets: PerKind<&Activations>, printer: &Printer) -> Vec<InputModel> {
    let n_writer = sets.harmful.inputs.len();
    let bar = printer.bar("computing input statistics of the writers", n_writer as u64);
    let models = (0..n_writer).map(|i| {
        bar.set(i as u64);
        activations::input_model(&sets.values().map(|set| &set.inputs[i]), PRINCIPAL)
    });
    models.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_beginning_of_scattered_texts_is_spread_over_all() {
        let texts: Vec<String> = (0..96).map(|i| i.to_string()).collect();
        let scattered = scattered(texts);
        for n in [12, 24, 48] {
            let mut first: Vec<usize> = scattered[..n].iter().map(|text| text.parse().unwrap()).collect();
            first.sort_unstable();
            let gaps = first.windows(2).map(|pair| pair[1] - pair[0]);
            assert!(gaps.max().unwrap() <= 3 * 96 / n, "{first:?}");
        }
        assert_eq!(scattered.len(), 96);
    }
}
