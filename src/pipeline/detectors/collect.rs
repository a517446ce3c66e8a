//! Collects the inputs of feed-forward networks: at the ends of prompts, where gates open, and at all other tokens,
//! where gates stay shut.

use std::collections::BTreeMap;

use half::f16;
use ndarray::{Array2, Array4, ArrayView2, Axis, s};

use super::places::Places;
use super::site::{EARLY_RECIPE, not_finite};
use crate::arch::plan::Plan;
use crate::eval::prompts::contexts::{self, Context, Placed, Request};
use crate::eval::prompts::{self, PromptKind, PromptSet, Split};
use crate::eval::{Evaluator, PerKind, Questions, chats};
use crate::llama::activations::{Activations, WriterInputs};
use crate::llama::{Capture, Chat, Engine, LlamaEngine};
use crate::method::detector::Opens;
use crate::method::detector::ffn::Network;
use crate::method::detector::train::{self, Examples, Label, Teacher};
use crate::method::direction::{self, Along, Directions};
use crate::output::Printer;
use crate::pipeline::error::Error;
use crate::pipeline::features::{MIN_REFUSED, Seen, Shown, refusal_directions};
use crate::util::spread::{spread, spread_rows};

/// Maximum number of template tokens after a message to examine.
pub(super) const ENDING: usize = 6;
/// Sampled tokens inside the prompts of one kind.
const INSIDE: usize = 192;
/// Sampled tokens of prose.
const PROSE: usize = 768;
/// Base answers whose tokens are sampled.
pub(in crate::pipeline) const ANSWERED: usize = 48;
/// Requests that are paired in turn with prose as the answer.
const TO_PROSE: usize = 36;
/// Sampled tokens of the base's answers, and of prose as answers.
const WORDS: usize = 256;
/// Prompts of each kind whose other template tokens serve as examples of where gates stay shut.
const OTHER_ENDS: usize = 48;
/// Sampled tokens of the text around the requests of one context.
const AROUND: usize = 144;
/// Prompts of each kind to think about.
const THOUGHT_ABOUT: usize = 96;
/// Maximum tokens of each thought.
const THOUGHT: usize = 96;
/// Tokens outside prompt ends that scores are also trained on, out of all sampled ones.
const OTHER_TOKENS: usize = 768;

/// Returns an upper bound on the bytes of inputs that training keeps.
pub fn inputs_memory(plan: &Plan, layer: Option<usize>, prompts: &PromptSet) -> u64 {
    let more = prompts::training();
    let lookalikes = prompts::lookalikes();
    let extract = Questions::of(prompts, Split::Extract, Questions::ALL).len();
    let n_more = more.prompts().len() + lookalikes.prompts().len();
    let kept = PromptKind::ALL.len() * OTHER_ENDS * (ENDING - 2);
    let placed = Context::ALL.into_iter().flat_map(|context| contexts::place(context, &more));
    let placed: usize = placed.map(|placed| placed.requests.len()).sum();
    // All ending tokens are kept until the token of early gates is chosen.
    let ends = (extract * ENDING).max((extract + n_more + placed) * 2 + kept);
    let rows = ends + PromptKind::ALL.len() * INSIDE + PROSE + 2 * WORDS + Context::ALL.len() * AROUND;
    let n_network = Places::of(plan, layer).networks.len();
    // Training one site needs three more copies of its inputs in F32: original, scaled and weighted.
    let bytes = n_network * size_of::<f16>() + 3 * size_of::<f32>();
    (rows * bytes) as u64 * plan.n_embd
}

/// Inputs at one token of the template ending.
struct Ends {
    /// Label of each prompt.
    labels: Vec<Label>,
    before_last: usize,
    /// Inputs of each network, `[n_prompt][n_embd]`.
    inputs: Vec<Array2<f16>>,
}

/// All collected inputs, in half precision, which is finer than the precision that runtimes round inputs to.
#[derive(Default)]
pub(super) struct Collection {
    ends: Vec<Ends>,
    /// Inputs at tokens of text, per text source and network.
    text: Vec<Vec<Array2<f16>>>,
    /// Difference in means at each ending token except the last, after the layers of early gates: between refused and
    /// answered prompts, or harmful and harmless ones, f64 `[n_tail][n_layer][n_embd]`.
    pub tail: Vec<Vec<Vec<f64>>>,
}

/// Directions of early gates.
pub(super) struct EarlyDirections {
    /// Distance, in tokens, before the last token of a prompt.
    pub before_last: usize,
    /// Direction by block, f32 `[n_embd]`; a block without one gets no early gate.
    pub of_layer: BTreeMap<usize, Vec<f32>>,
}

/// The ending tokens that gates read.
struct Read {
    /// Token of early gates, as a distance before the last; late gates read the last token.
    early_token: Option<usize>,
    /// Whether each network gets early gates.
    early: Vec<bool>,
    /// Whether each network gets late gates.
    late: Vec<bool>,
}

impl Read {
    /// Returns whether a gate of `network` reads the token `before_last` tokens before the last one.
    fn includes(&self, network: usize, before_last: usize) -> bool {
        match before_last {
            0 => self.late[network],
            _ => self.early[network] && self.early_token == Some(before_last),
        }
    }
}

/// Runs prompts and texts through the model and collects inputs.
pub(super) struct Collector<'a> {
    pub capture: Capture,
    /// Template tokens after a message.
    pub n_end: usize,
    /// Blocks of early gates.
    pub early: Vec<usize>,
    /// Blocks of late gates.
    pub late: Vec<usize>,
    /// The user's own system prompts.
    pub own: &'a [String],
    /// Maximum tokens of a thought, if gates are also trained on answers that begin after thinking.
    pub thoughts: Option<usize>,
    pub printer: &'a Printer,
}

impl Collector<'_> {
    /// Collects the ends of all prompts and all kinds of text. Also returns the token of early gates and the directions
    /// from the extract split.
    pub fn all(
        &self,
        engine: &mut LlamaEngine,
        evaluator: &Evaluator,
        prompts: &PromptSet,
        networks: &[Network],
    ) -> Result<(Collection, Option<usize>, Shown), Error> {
        let more = prompts::training();
        let mut collection = Collection::default();
        let tail: Vec<usize> = (1..self.n_end).collect();
        let capture = self.capture.clone().with_sample(INSIDE).with_tail(&tail).with_tail_layers(&self.early);
        let mut seen = PerKind::try_from_fn(|kind| -> Result<Seen, Error> {
            let _bar = self.printer.bar(&format!("collecting hidden states: {kind}"), 1);
            let extract = prompts.texts(kind, Some(Split::Extract));
            let mut of_kind = Seen::collect(engine, evaluator, extract, &capture)?;
            let labels = labels(kind, Context::Plain, 0..of_kind.texts.len());
            collection.add_ends(&of_kind.activations, labels, &tail);
            collection.add_text(std::mem::take(&mut of_kind.activations.inputs));
            Ok(of_kind)
        })?;
        let token = collection.early_token(networks, &self.early, self.n_end)?;
        let [early, late] = [&self.early, &self.late]
            .map(|blocks| networks.iter().map(|network| blocks.contains(&network.ffn.layer)).collect());
        let read = Read { early_token: token, early, late };
        collection.thin_out(&read);
        collection.tail = tail_directions(&seen);
        for kind in PromptKind::ALL {
            seen[kind].activations.residual_tail = Array4::zeros((0, 0, 0, 0));
        }
        self.contexts(engine, &more, &read, &mut collection)?;
        self.behind_thoughts(engine, &more, &mut collection)?;
        self.text(engine, evaluator, &mut collection)?;
        let plain = direction::difference_in_means(&seen.harmful.activations, &seen.harmless.activations)?;
        Ok((collection, token, Shown { plain, refusal: refusal_directions(&seen)? }))
    }

    /// Collects the ends of training prompts, both plain and embedded in contexts, and the contexts' text.
    fn contexts(
        &self,
        engine: &mut LlamaEngine,
        more: &PromptSet,
        read: &Read,
        collection: &mut Collection,
    ) -> Result<(), Error> {
        let tail: Vec<usize> = read.early_token.into_iter().collect();
        let lookalikes = prompts::lookalikes();
        let plain = [(Context::Plain, more, false), (Context::Plain, &lookalikes, true)];
        let others = Context::ALL.into_iter().chain([Context::Own]).map(|context| (context, more, false));
        for (context, prompts, lookalike) in plain.into_iter().chain(others) {
            let mut all = match context {
                Context::Own => contexts::place_under(self.own, prompts),
                bundled => contexts::place(bundled, prompts),
            };
            let left_out = leave_out_unaskable(&mut all, engine);
            if left_out > 0 {
                self.printer
                    .detail(format!("  skipped {left_out} prompts, {}: invalid or too long", context.name()));
            }
            let n_request: usize = all.iter().map(|placed| placed.requests.len()).sum();
            if n_request == 0 {
                continue;
            }
            // Around plain requests there is only the template, which the ends cover.
            let around = if context == Context::Plain { 0 } else { AROUND };
            let capture = self.capture.clone().inputs_only().with_sample(around / all.len()).with_tail(&tail);
            let what = format!("collecting hidden states: more prompts, {}", context.name());
            let bar = self.printer.bar(&what, n_request as u64);
            let mut done = 0;
            for placed in all {
                let seen =
                    engine.collect(&placed.chats(), &capture, &mut |i, _| bar.set((done + i) as u64))?;
                done += placed.requests.len();
                let label = |r: &Request| Label { kind: r.kind, context, request: r.number, lookalike };
                collection.add_ends(&seen, placed.requests.iter().map(label).collect(), &tail);
                collection.add_text(seen.inputs);
            }
            collection.join();
            collection.thin_out(read);
        }
        Ok(())
    }

    /// Collects inputs where answers begin after the model's own thoughts, and the thoughts as text.
    fn behind_thoughts(
        &self,
        engine: &mut LlamaEngine,
        more: &PromptSet,
        collection: &mut Collection,
    ) -> Result<(), Error> {
        let Some(budget) = self.thoughts else { return Ok(()) };
        let _bar = self.printer.bar("collecting hidden states: after thoughts", 1);
        let capture = self.capture.clone().inputs_only().with_sample(WORDS);
        for kind in PromptKind::ALL {
            let numbered: Vec<_> = more.of_kind(kind).into_iter().enumerate().collect();
            let (numbers, texts): (Vec<usize>, Vec<String>) =
                spread(&numbered, THOUGHT_ABOUT).into_iter().map(|(i, p)| (i, p.text.clone())).unzip();
            let (seen, which) =
                engine.collect_thinking(&chats(&texts, None), budget.min(THOUGHT), &capture)?;
            if which.is_empty() {
                continue;
            }
            let requests = which.into_iter().map(|i| numbers[i]);
            collection.add_ends(&seen, labels(kind, Context::Thought, requests), &[]);
            collection.add_text(seen.inputs);
        }
        Ok(())
    }

    /// Collects prose, both as raw text and as answers, and the base's answers to the prompts of `evaluator`.
    fn text(
        &self,
        engine: &mut LlamaEngine,
        evaluator: &Evaluator,
        collection: &mut Collection,
    ) -> Result<(), Error> {
        let _bar = self.printer.bar("collecting hidden states: text", 1);
        let capture = |n| self.capture.clone().inputs_only().with_sample(n);
        let prose = prompts::prose();
        collection.add_text(engine.collect_text(&prose, &capture(PROSE))?.inputs);
        let exchanges: Vec<(&String, &String)> = evaluator.base_answers().collect();
        if exchanges.is_empty() {
            return Ok(());
        }
        let mut answered = |exchanges: &[(&String, &String)], answers: &[String]| -> Result<(), Error> {
            let requests: Vec<Chat<'_>> = exchanges.iter().map(|(request, _)| Chat::of(request)).collect();
            collection.add_text(engine.collect_answers(&requests, answers, &capture(WORDS))?.inputs);
            Ok(())
        };
        let in_turn: Vec<_> = spread(&exchanges, TO_PROSE).into_iter().cycle().take(prose.len()).collect();
        answered(&in_turn, &prose)?;
        let own = spread(&exchanges, ANSWERED);
        answered(&own, &own.iter().map(|(_, answer)| (*answer).clone()).collect::<Vec<_>>())
    }
}

/// Removes requests that the template or the context length cannot hold; returns how many were removed.
fn leave_out_unaskable(all: &mut Vec<Placed>, engine: &LlamaEngine) -> usize {
    let mut left_out = 0;
    for placed in &mut *all {
        let askable: Vec<bool> = placed.chats().iter().map(|chat| engine.tokens(chat).is_ok()).collect();
        let mut askable = askable.into_iter();
        let before = placed.requests.len();
        placed.requests.retain(|_| askable.next().unwrap_or(false));
        left_out += before - placed.requests.len();
    }
    all.retain(|placed| !placed.requests.is_empty());
    left_out
}

/// Returns the difference in means at the tokens before the last: between refused and answered prompts if there are
/// enough of both, otherwise between harmful and harmless ones, f64 `[n_tail][n_layer][n_embd]`.
fn tail_directions(seen: &PerKind<Seen>) -> Vec<Vec<Vec<f64>>> {
    let refused = || seen.values().into_iter().flat_map(|s| &s.refused);
    let (n_refused, n_all) = (refused().filter(|refused| **refused).count(), refused().count());
    let enough = n_refused.min(n_all - n_refused) >= MIN_REFUSED;
    let side = |kind: PromptKind, refused: bool| match (enough, kind) {
        (true, _) => Some(refused),
        (false, PromptKind::Harmful) => Some(true),
        (false, PromptKind::Harmless) => Some(false),
        (false, PromptKind::Borderline) => None,
    };
    let (_, n_tail, n_layer, n_embd) = seen.harmful.activations.residual_tail.dim();
    let mut sums = vec![vec![[vec![0.0f64; n_embd], vec![0.0f64; n_embd]]; n_layer]; n_tail];
    let mut counts = [0usize; 2];
    for (kind, seen) in seen.iter() {
        for (prompt, &refused) in seen.refused.iter().enumerate() {
            let Some(side) = side(kind, refused).map(usize::from) else { continue };
            counts[side] += 1;
            for (t, sums) in sums.iter_mut().enumerate() {
                for (l, sums) in sums.iter_mut().enumerate() {
                    let h = seen.activations.residual_tail.slice(s![prompt, t, l, ..]);
                    sums[side].iter_mut().zip(h).for_each(|(sum, &v)| *sum += f64::from(v));
                }
            }
        }
    }
    let n = counts.map(|n| n.max(1) as f64);
    let difference =
        |[no, yes]: [Vec<f64>; 2]| yes.iter().zip(&no).map(|(y, o)| y / n[1] - o / n[0]).collect();
    sums.into_iter().map(|layers| layers.into_iter().map(difference).collect()).collect()
}

impl Ends {
    fn context(&self) -> Context {
        self.labels.first().map_or(Context::Plain, |label| label.context)
    }
}

/// Returns labels for the requests `numbers`, all of one kind and context.
fn labels(kind: PromptKind, context: Context, numbers: impl IntoIterator<Item = usize>) -> Vec<Label> {
    numbers.into_iter().map(|request| Label { kind, context, request, lookalike: false }).collect()
}

impl Collection {
    /// Adds the inputs at the last token of every prompt, and at the tokens `tail` before it.
    fn add_ends(&mut self, seen: &Activations, labels: Vec<Label>, tail: &[usize]) {
        let inputs = seen.inputs.iter().map(|inputs| halved(inputs.last.view())).collect();
        self.ends.push(Ends { labels: labels.clone(), before_last: 0, inputs });
        for (t, &before_last) in tail.iter().enumerate() {
            let rows = |inputs: &WriterInputs| halved(inputs.tail.slice(s![t..; tail.len(), ..]));
            let inputs = seen.inputs.iter().map(rows).collect();
            self.ends.push(Ends { labels: labels.clone(), before_last, inputs });
        }
    }

    /// Merges the small parts collected for one context at one token.
    fn join(&mut self) {
        let mut joined: Vec<Ends> = Vec::new();
        for ends in std::mem::take(&mut self.ends) {
            let context = ends.context();
            let same = |other: &&mut Ends| {
                context != Context::Plain
                    && (other.context(), other.before_last) == (context, ends.before_last)
            };
            match joined.iter_mut().find(same) {
                Some(other) => {
                    other.labels.extend(ends.labels);
                    for (all, more) in other.inputs.iter_mut().zip(ends.inputs) {
                        *all = below(&[all.view(), more.view()]);
                    }
                }
                None => joined.push(ends),
            }
        }
        self.ends = joined;
    }

    /// Adds the inputs at the sampled tokens of texts.
    fn add_text(&mut self, seen: Vec<WriterInputs>) {
        self.text.push(seen.iter().map(|inputs| halved(inputs.sample.view())).collect());
    }

    /// Returns the training examples of `network` at one token: its inputs there, and its inputs elsewhere.
    pub fn examples(&self, network: usize, before_last: usize) -> Examples {
        let own = || self.ends.iter().filter(|ends| ends.before_last == before_last);
        let whole = |x: &Array2<f16>| x.mapv(f16::to_f32);
        let other_ends = self
            .ends
            .iter()
            .filter(|ends| ends.before_last != before_last)
            .map(|ends| whole(&spread_rows(&ends.inputs[network], OTHER_ENDS)));
        let text = self.text.iter().map(|text| whole(&text[network]));
        let elsewhere = stacked(text.chain(other_ends).collect());
        Examples {
            inputs: stacked(own().map(|ends| whole(&ends.inputs[network])).collect()),
            labels: own().flat_map(|ends| ends.labels.clone()).collect(),
            other_tokens: spread_rows(&elsewhere, OTHER_TOKENS),
            elsewhere,
        }
    }

    /// Returns the directions after the blocks `early`, `before_last` tokens before the last token. Each is scaled to
    /// the length of the last token's direction in `late`, so that pushes are comparable.
    pub fn early_directions(
        &self,
        early: &[usize],
        before_last: usize,
        late: &Directions,
    ) -> EarlyDirections {
        let own = before_last.checked_sub(1).and_then(|token| self.tail.get(token)).into_iter().flatten();
        let direction = |(&layer, own): (&usize, &Vec<f64>)| {
            let norm = own.iter().map(|v| v * v).sum::<f64>().sqrt();
            let scale = Along::Layers(&late.by_layer).at(layer).norm() / norm;
            let as_long = || own.iter().map(|v| (v * scale) as f32).collect();
            (norm > 0.0 && norm.is_finite()).then(|| (layer, as_long()))
        };
        EarlyDirections { before_last, of_layer: early.iter().zip(own).filter_map(direction).collect() }
    }

    /// Drops most of the ends that no gate reads, keeping [`OTHER_ENDS`] of each.
    fn thin_out(&mut self, read: &Read) {
        for ends in &mut self.ends {
            for (network, inputs) in ends.inputs.iter_mut().enumerate() {
                if !read.includes(network, ends.before_last) {
                    *inputs = spread_rows(inputs, OTHER_ENDS);
                }
            }
        }
    }

    /// Returns the token, as a distance before the last, at which a gate best detects harmful prompts; `None` if there
    /// is no such token or no network for early gates.
    fn early_token(
        &self,
        networks: &[Network],
        early: &[usize],
        n_end: usize,
    ) -> Result<Option<usize>, Error> {
        let middle = early.get(early.len() / 2);
        let Some(network) = networks.iter().position(|n| Some(&n.ffn.layer) == middle) else {
            return Ok(None);
        };
        let mut best: Option<(f64, usize)> = None;
        for token in 1..n_end {
            let examples = self.examples(network, token);
            let constant = train::constant(&examples).map_err(not_finite)?;
            let teacher = Teacher::new(&examples, &constant, EARLY_RECIPE);
            let recall = teacher.recall(&teacher.learn(Opens::Harmful).map_err(not_finite)?);
            if best.is_none_or(|(most, _)| recall > most) {
                best = Some((recall, token));
            }
        }
        Ok(best.map(|(_, token)| token))
    }
}

/// Converts to half precision; clamps finite values to its range.
fn halved(x: ArrayView2<'_, f32>) -> Array2<f16> {
    let most = f16::MAX.to_f32();
    x.mapv(|v| f16::from_f32(if v.is_finite() { v.clamp(-most, most) } else { v }))
}

/// Stacks matrices vertically.
pub(super) fn stacked(parts: Vec<Array2<f32>>) -> Array2<f32> {
    below(&parts.iter().map(|x| x.view()).collect::<Vec<_>>())
}

fn below<T: Clone + Default>(parts: &[ArrayView2<'_, T>]) -> Array2<T> {
    let views: Vec<_> = parts.iter().filter(|x| x.nrows() > 0).copied().collect();
    ndarray::concatenate(Axis(0), &views).unwrap_or_default()
}
