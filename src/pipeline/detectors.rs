//! Detector neurons from prompts: collects the inputs of the feed-forward networks, trains gates on them, and chooses
//! the neurons to overwrite.

mod collect;
mod places;
mod site;

use ndarray::Array2;

use crate::arch::plan::{Ffn, Plan};
use crate::eval::prompts::{self, PromptKind, Split};
use crate::eval::{Evaluator, chats};
use crate::llama::activations::Part;
use crate::llama::{Capture, Engine, LlamaEngine, LowRank};
use crate::method::Edits;
use crate::method::detector::ffn::Network;
use crate::method::detector::train::Profile;
use crate::method::detector::{Bank, Gate, Opens, PlantedFfn, neurons_per_gate};
use crate::method::direction::{Along, SafetyDirection};
use crate::method::edit::EditError;
use crate::method::requant::Requant;
use crate::method::search::SearchError;
use crate::output::Printer;
use crate::pipeline::error::Error;
use crate::pipeline::features::Shown;
use crate::pipeline::session::{Opened, Session};
use crate::util::interrupt;
use crate::util::linalg::mean_row;
use crate::util::spread::spread;
use collect::{Collection, Collector, ENDING, EarlyDirections};
use places::{PULL, Places, push};

pub(super) use collect::ANSWERED;
pub use collect::inputs_memory;
pub(super) use places::{DEEPEST, PUSH};
pub use places::{networks, settings, space, tensors};
pub use site::Site;

/// Share of the push for each late gate, in block order: later gates get less, as less computation follows them.
const LATE_SHARES: [f64; 4] = [0.3, 0.25, 0.25, 0.2];
/// Push of the early gates, as a multiple of the push of the late ones.
const EARLY_PUSH: f64 = 1.8;

/// Texts for identifying the function that a network computes.
const SHOWING: usize = 3;
/// Sampled tokens of these texts.
const SHOWN: usize = 48;
/// Harmful prompts for measuring how gates shift the inputs of later gates.
const MOVED: usize = 32;

/// Trained gates, and the other data that neurons need.
pub struct Detectors {
    /// Sites in block order; within a block, early before late.
    pub sites: Vec<Site>,
    /// Default push, in lengths of the direction.
    pub push: f64,
}

/// The direction that gates push along.
#[derive(Clone, Copy)]
pub enum Toward<'a> {
    /// Early gates push along their own directions, late gates along these.
    Refusal(Along<'a>),
    /// All gates push along one direction, as a control.
    Same(&'a SafetyDirection),
}

/// A place to train gates: a network at a token. Training inputs are gathered for one spot at a time.
struct Spot {
    /// Index of the network among those whose inputs are collected.
    network: usize,
    /// As [`Site::before_last`].
    before_last: usize,
    /// As [`Site::direction`].
    direction: Vec<f32>,
}

impl Detectors {
    /// Collects inputs on the prompts and the bundled training prompts, and trains the gates on them.
    ///
    /// # Errors
    /// Returns [`Error::NoNetwork`] if no network computes a known function.
    pub fn learn(
        session: Session<'_>,
        engine: &mut LlamaEngine,
        evaluator: &Evaluator,
    ) -> Result<(Self, Shown), Error> {
        let Session { opened, prompts, options, printer } = session;
        let plan = &opened.plan;
        let Places { early, late, networks } = Places::of(plan, options.search.layer);
        let networks = identify(opened, engine, &networks, printer)?;
        let mut harmful = prompts.texts(PromptKind::Harmful, Some(Split::Extract));
        harmful.extend(prompts::training().texts(PromptKind::Harmful, None));
        let n_end = engine.shared_ending(&chats(&spread(&harmful, SHOWN), None))?.clamp(1, ENDING);
        let input = |network: &Network| {
            let [input, _] = plan.readers(&network.ffn);
            input
        };
        let sites: Vec<(String, usize)> = networks.iter().map(input).collect();
        let thoughts = options.learn.thinking.beside_answers().filter(|_| engine.thinking().is_some());
        let collector = Collector {
            capture: Capture::of_inputs(plan, &sites),
            n_end,
            early,
            late,
            own: &options.learn.contexts,
            thoughts,
            printer,
        };
        let (collection, token, shown) = collector.all(engine, evaluator, prompts, &networks)?;
        let bar = printer.bar("training the detectors", 4);
        let early = token.map(|token| collection.early_directions(&collector.early, token, shown.main()));
        let spots = spots(&networks, early.as_ref(), &collector.late);
        let push = push(evaluator.base_refused().rate());
        let mut detectors = Self { sites: taught(opened, &networks, &spots, &collection)?, push };
        bar.set(2);
        // A gate's push shifts the inputs of all later gates, so train again on inputs without that component.
        let texts = spread(&harmful, MOVED);
        let adapters = low_rank(opened, &detectors.by_default(plan, &shown))?;
        let moved = moved(engine, &adapters, &collector.capture, &texts, &spots)?;
        bar.set(3);
        detectors.learn_blind(&collection, &spots, &moved)?;
        if detectors.sites.is_empty() {
            let (architecture, tried) = (plan.architecture.clone(), networks.len());
            return Err(Error::NoNetwork { architecture, tried });
        }
        Ok((detectors, shown))
    }

    /// Retrains the gates on inputs without the component along `moved`, the shift at each spot, f32
    /// `[n_site][n_embd]`.
    fn learn_blind(
        &mut self,
        collection: &Collection,
        spots: &[Spot],
        moved: &[Vec<f32>],
    ) -> Result<(), Error> {
        for ((site, spot), moved) in self.sites.iter_mut().zip(spots).zip(moved) {
            interrupt::check()?;
            let examples = collection.examples(spot.network, spot.before_last);
            site.learn(&examples.blind_to(moved))?;
        }
        Ok(())
    }

    /// Returns the exact neurons of the default edit along the directions in `shown`.
    fn by_default(&self, plan: &Plan, shown: &Shown) -> Vec<PlantedFfn> {
        let toward = Toward::Refusal(Along::Layers(&shown.main().by_layer));
        self.exact(plan, &self.banks(toward, self.push, self.push * PULL))
    }

    /// Returns the gates with strengths. Pushes of either sort add up to `push` over the late gates, and to `EARLY_PUSH`
    /// times as much over the early ones; pulls add up to `pull` over each.
    pub fn banks(&self, toward: Toward<'_>, push: f64, pull: f64) -> Vec<Bank> {
        let shares = self.shares();
        let bank = |(site, share): (&Site, f64)| {
            let early = site.is_early();
            let amount = |gate: &Gate| match gate.opens {
                Opens::Harmful | Opens::Lookalike => push * share * if early { EARLY_PUSH } else { 1.0 },
                Opens::Borderline => -pull * share,
            };
            Bank {
                network: site.network.clone(),
                slots: site.slots.clone(),
                constant: site.constant.clone(),
                column: site.column(&site.toward(toward)),
                post_norm: site.post_norm.clone(),
                gates: site.gates.iter().map(|gate| (gate.clone(), amount(gate))).collect(),
            }
        };
        self.sites.iter().zip(shares).map(bank).collect()
    }

    /// Returns the share of the push for each site: [`LATE_SHARES`], normalized, for late sites; equal for early ones.
    fn shares(&self) -> Vec<f64> {
        let n_early = self.sites.iter().filter(|site| site.is_early()).count();
        let n_late = self.sites.len() - n_early;
        let late: f64 = LATE_SHARES.iter().take(n_late).sum();
        let mut next = 0;
        let share = |site: &Site| {
            if site.is_early() {
                return 1.0 / n_early as f64;
            }
            next += 1;
            LATE_SHARES.get(next - 1).copied().unwrap_or(0.0) / late
        };
        self.sites.iter().map(share).collect()
    }

    /// Returns `banks` as exact neurons, without rounding to the file's types.
    pub fn exact(&self, plan: &Plan, banks: &[Bank]) -> Vec<PlantedFfn> {
        banks.iter().map(|bank| PlantedFfn::exact(bank, &plan.writers[bank.network.ffn.writer])).collect()
    }

    /// Returns `banks` as neurons fitted to the quantization types of the opened file.
    ///
    /// # Errors
    /// Returns [`EditError`] if the neurons cannot be fitted.
    pub fn fitted(&self, opened: &Opened, banks: &[Bank], requant: Requant) -> Result<Edits, EditError> {
        let fit = |(bank, site): (&Bank, &Site)| {
            let writer = &opened.plan.writers[bank.network.ffn.writer];
            PlantedFfn::fit(bank, &opened.gguf, writer, requant, site.inputs.clone())
        };
        Ok(Edits::Neurons(banks.iter().zip(&self.sites).map(fit).collect::<Result<_, _>>()?))
    }

    /// Returns the profiles of all gates on their training inputs.
    pub fn profiles(&self) -> Vec<Profile> {
        self.sites.iter().flat_map(|site| site.profiles.clone()).collect()
    }
}

/// Returns the mean shift of the inputs at each spot under `adapters`, over the prompts `texts`, f32
/// `[n_site][n_embd]`.
fn moved(
    engine: &mut LlamaEngine,
    adapters: &[LowRank],
    capture: &Capture,
    texts: &[String],
    spots: &[Spot],
) -> Result<Vec<Vec<f32>>, Error> {
    let tail = spots.iter().map(|spot| spot.before_last).find(|&before_last| before_last > 0);
    let capture = capture.clone().inputs_only().with_tail(tail.as_slice());
    let means = |engine: &mut LlamaEngine| -> Result<Vec<[Vec<f64>; 2]>, Error> {
        let seen = engine.collect(&chats(texts, None), &capture, &mut |_, _| ())?;
        let mean = |x: &Array2<f32>| mean_row(x.view()).to_vec();
        Ok(seen.inputs.iter().map(|inputs| [mean(&inputs.last), mean(&inputs.tail)]).collect())
    };
    let before = means(engine)?;
    engine.apply(adapters)?;
    let after = means(engine);
    engine.apply(&[])?;
    let after = after?;
    let moved = |spot: &Spot| {
        let token = usize::from(spot.before_last > 0);
        let pairs = after[spot.network][token].iter().zip(&before[spot.network][token]);
        pairs.map(|(a, b)| (a - b) as f32).collect()
    };
    Ok(spots.iter().map(moved).collect())
}

/// Trains the gates of all `spots`.
fn taught(
    opened: &Opened,
    networks: &[Network],
    spots: &[Spot],
    collection: &Collection,
) -> Result<Vec<Site>, Error> {
    let mut sites: Vec<Site> = Vec::new();
    for (index, network) in networks.iter().enumerate() {
        let own: Vec<&Spot> = spots.iter().filter(|spot| spot.network == index).collect();
        let count = Opens::ALL.len() * neurons_per_gate(network.activation);
        let writer = &opened.plan.writers[network.ffn.writer];
        let mut slots = Vec::new().into_iter();
        for (i, spot) in own.iter().enumerate() {
            interrupt::check()?;
            let examples = collection.examples(index, spot.before_last);
            if i == 0 {
                let inputs = examples.sample();
                let idlest = network.idlest(&opened.gguf, writer, inputs.view(), own.len(), count)?;
                slots = idlest.into_iter();
            }
            let slots = slots.next().unwrap_or_default();
            sites.push(Site::new(opened, network, slots, spot, &examples)?);
        }
    }
    Ok(sites)
}

/// Returns the neurons as adapters, checked against the tensors' shapes. Networks with several sites yield one joined
/// term per tensor.
///
/// # Errors
/// Returns [`SearchError`] if a tensor cannot be read or an adapter does not fit it.
pub fn low_rank(opened: &Opened, planted: &[PlantedFfn]) -> Result<Vec<LowRank>, SearchError> {
    let mut all: Vec<LowRank> = Vec::new();
    for planted in planted {
        for term in planted.low_rank(&opened.gguf)? {
            let shape = opened.gguf.tensor(&term.tensor).map_or((0, 0), |t| (t.ne[0], t.ne[1]));
            term.check(shape.0, shape.1)?;
            match all.iter_mut().find(|other| other.tensor == term.tensor) {
                Some(other) => other.join(term),
                None => all.push(term),
            }
        }
    }
    Ok(all)
}

/// Identifies the functions that the networks compute, from their inputs and outputs on a few texts.
fn identify(
    opened: &Opened,
    engine: &mut LlamaEngine,
    ffns: &[Ffn],
    printer: &Printer,
) -> Result<Vec<Network>, Error> {
    let _bar = printer.bar("identifying the feed-forward networks", 1);
    let sites: Vec<(String, usize)> = ffns.iter().flat_map(|ffn| opened.plan.readers(ffn)).collect();
    let mut capture = Capture::of_inputs(&opened.plan, &sites).with_sample(SHOWN);
    // In a mixture of experts, the graph applies the router's weights after the last captured input.
    if ffns.iter().all(|ffn| ffn.n_expert == 1) {
        capture = capture.inputs_only();
    }
    let texts: Vec<String> = prompts::prose().into_iter().take(SHOWING).collect();
    let seen = engine.collect_text(&texts, &capture)?;
    let mut found = Vec::new();
    for (ffn, inputs) in ffns.iter().zip(seen.inputs.chunks(2)) {
        let [x, h] = inputs else { continue };
        match Network::identify(&opened.gguf, ffn, x.sample.view(), &h.rows(Part::Sample))? {
            Some(network) => {
                printer.detail(format!("  block {}: φ is {}", ffn.layer, network.activation.name()));
                found.push(network);
            }
            None => printer.detail(format!("  block {}: unknown function", ffn.layer)),
        }
    }
    if found.is_empty() {
        return Err(Error::NoNetwork { architecture: opened.plan.architecture.clone(), tried: ffns.len() });
    }
    Ok(found)
}

/// Returns the spots for gates: early ones at the token and along the directions of `early`, late ones at the last
/// token. In block order; within a block, early before late.
fn spots(networks: &[Network], early: Option<&EarlyDirections>, late: &[usize]) -> Vec<Spot> {
    let mut spots = Vec::new();
    for (network, Network { ffn, .. }) in networks.iter().enumerate() {
        if let Some(early) = early
            && let Some(direction) = early.of_layer.get(&ffn.layer)
        {
            spots.push(Spot { network, before_last: early.before_last, direction: direction.clone() });
        }
        if late.contains(&ffn.layer) {
            spots.push(Spot { network, before_last: 0, direction: Vec::new() });
        }
    }
    spots
}
