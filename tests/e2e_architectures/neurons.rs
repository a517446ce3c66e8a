//! Planted neurons: identifies what each feed-forward network computes, then compares neurons planted as an adapter,
//! planted in the file, and computed by hand.

use std::path::Path;
use std::rc::Rc;

use ndarray::{Array2, ArrayView1, Axis};
use rosi_gguf::arch::plan::Plan;
use rosi_gguf::gguf::{Gguf, Rewrite, TensorInfo};
use rosi_gguf::llama::LowRank;
use rosi_gguf::llama::activations::WriterInputs;
use rosi_gguf::llama::activations::rows::{Route, Rows};
use rosi_gguf::llama::adapter::to_gguf;
use rosi_gguf::llama::capture::{Capture, CaptureHook, Keep};
use rosi_gguf::llama::ffi::{Adapter, Model};
use rosi_gguf::llama::offload::Offload;
use rosi_gguf::method::detector::ffn::Network;
use rosi_gguf::method::detector::logistic::Score;
use rosi_gguf::method::detector::{Bank, Gate, Opens, PlantedFfn, PlantedNeuron, neurons_per_gate};
use rosi_gguf::method::edit;
use rosi_gguf::method::requant::Requant;
use serde::{Deserialize, Serialize};

use super::edits::{NO_LOGITS, TOKENS, context, distance, logits};
use crate::common::generated::generate::Random;

/// Result for the networks of one model.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Neurons {
    /// Number of networks in which neurons can be planted, according to the plan.
    pub networks: usize,
    /// Activation functions φ of the networks for which one was identified.
    pub activations: Vec<String>,
    /// How far the planted neurons move the logits, relative to the largest.
    pub moved: f64,
    /// How far the logits of file and adapter differ, relative to the largest.
    pub differ: f64,
    /// How far hidden values of planted neurons in the running graph are from computed ones, relative to the largest.
    pub off: f64,
}

/// The captured values of a network at every token.
#[derive(PartialEq)]
struct Seen {
    /// Inputs `[n_token][n_embd]`.
    x: Array2<f32>,
    /// Hidden values `[n_token][n_ff]`; for a mixture, those of all experts of a token times their routing weights.
    h: Array2<f32>,
    /// Chosen experts `[n_token][n_used]`.
    experts: Option<Array2<u32>>,
}

impl Seen {
    fn of(inputs: &WriterInputs, hidden: &WriterInputs) -> Result<Self, String> {
        // In the last block, llama.cpp computes only tokens with logits; here all tokens have logits.
        let joined = |inputs: &WriterInputs| {
            ndarray::concatenate(Axis(0), &[inputs.last.view(), inputs.tail.view()])
                .map_err(|error| error.to_string())
        };
        let experts = hidden.routes.as_ref().map(|routes| {
            ndarray::concatenate(Axis(0), &[routes.last.view(), routes.tail.view()])
                .map_err(|error| error.to_string())
        });
        Ok(Self { x: joined(inputs)?, h: joined(hidden)?, experts: experts.transpose()? })
    }

    fn rows(&self, n_expert: usize) -> Rows<'_> {
        let route = self.experts.as_ref().map(|e| Route { experts: e.view().into(), n_expert });
        Rows { x: self.h.view().into(), route }
    }
}

/// Captures the inputs and hidden values of every network.
fn captured(plan: &Plan, model: &Rc<Model>) -> Result<Vec<Seen>, String> {
    let sites: Vec<(String, usize)> = plan.ffns.iter().flat_map(|ffn| plan.readers(ffn)).collect();
    seen_by(&Capture::of_inputs(plan, &sites), |hook| logits(&mut context(model)?, Some(hook)).map(drop))
}

/// Runs `decode` with the hook of `capture`, whose sites are pairs of matrices that read inputs and hidden values.
fn seen_by(
    capture: &Capture,
    decode: impl FnOnce(&mut CaptureHook<'_>) -> Result<(), String>,
) -> Result<Vec<Seen>, String> {
    let last = TOKENS.len() - 1;
    let tail: Vec<usize> = (1..=last).collect();
    let capture = capture.clone().with_tail(&tail);
    let mut activations = capture.allocate(1, 0);
    let keep = Keep {
        n_tokens: TOKENS.len(),
        last: vec![last],
        tail: tail.iter().map(|before| (last - before, before - 1)).collect(),
        ..Keep::default()
    };
    let mut hook = CaptureHook::new(&capture, &mut activations, keep);
    decode(&mut hook)?;
    hook.finish().map_err(|error| error.to_string())?;
    activations.inputs.chunks(2).map(|pair| Seen::of(&pair[0], &pair[1])).collect()
}

/// Captures only the first network. Checks that the values equal those of a `whole` run, that the graph ends there, and
/// that the next run in the same context is complete.
fn ends_early(plan: &Plan, model: &Rc<Model>, whole: &Seen) -> Result<(), String> {
    let mut own = context(model)?;
    let capture = Capture::of_inputs(plan, &plan.readers(&plan.ffns[0])).inputs_only();
    let seen = seen_by(&capture, |hook| match logits(&mut own, Some(hook)) {
        Err(told) if told == NO_LOGITS => Ok(()),
        Err(told) => Err(told),
        Ok(_) => Err("a graph that should end early has logits".into()),
    })?;
    if seen.first() != Some(whole) {
        return Err("a graph that ends early gives different inputs".into());
    }
    match logits(&mut own, None)? == logits(&mut context(model)?, None)? {
        true => Ok(()),
        false => Err("a run after one that ended early gives different logits".into()),
    }
}

/// Returns a bank with one gate of random weights, whose ramp spans the scores of the inputs `x`.
fn bank(gguf: &Gguf, plan: &Plan, network: Network, x: &Array2<f32>) -> Result<Bank, String> {
    let n_embd = plan.n_embd as usize;
    let mut random = Random(network.ffn.layer as u64 + 7);
    let mut noise = |n: usize| -> Vec<f32> { (0..n).map(|_| random.normal()).collect() };
    let weights = noise(n_embd);
    let scores = Score { weights: weights.clone(), bias: 0.0 }.of(x.view());
    let (least, most) = scores.iter().fold((f64::MAX, f64::MIN), |(l, m), &s| (l.min(s), m.max(s)));
    let score = Score { weights, bias: 0.0 };
    let gate =
        Gate { opens: Opens::Harmful, score, threshold: 0.5 * (least + most), width: 0.5 * (most - least) };
    let count = neurons_per_gate(network.activation);
    let writer = &plan.writers[network.ffn.writer];
    let slots = network.idlest(gguf, writer, x.view(), 1, count).map_err(|error| error.to_string())?;
    let slots = slots.into_iter().next().ok_or("fewer neurons than a gate needs")?;
    let mean = x.mean_axis(Axis(0)).ok_or("no inputs")?;
    let constant = (&mean / mean.dot(&mean)).to_vec();
    let column: Vec<f32> = noise(n_embd).iter().map(|v| v * 0.2).collect();
    let post_norm = edit::read_gains(gguf, writer).map_err(|error| error.to_string())?;
    Ok(Bank { network, slots, constant, column, post_norm, gates: vec![(gate, 1.0)] })
}

/// Plants neurons in every network whose activation function is identified, and compares file and adapter.
pub fn agree(path: &Path, plan: &Plan, model: &Rc<Model>) -> Result<Neurons, String> {
    let mut found = Neurons { networks: plan.ffns.len(), ..Neurons::default() };
    if plan.ffns.is_empty() {
        return Ok(found);
    }
    let gguf = Gguf::open(path).map_err(|error| error.to_string())?;
    let mut banks = Vec::new();
    let seen = captured(plan, model)?;
    if plan.ffns[0].n_expert == 1 {
        ends_early(plan, model, &seen[0])?;
    }
    for (ffn, seen) in plan.ffns.iter().zip(seen) {
        let network = Network::identify(&gguf, ffn, seen.x.view(), &seen.rows(ffn.n_expert));
        let Some(network) = network.map_err(|error| error.to_string())? else { continue };
        found.activations.push(network.activation.name().to_owned());
        banks.push(bank(&gguf, plan, network, &seen.x)?);
    }
    if banks.is_empty() {
        return Ok(found);
    }
    let planted: Vec<PlantedFfn> =
        banks.iter().map(|bank| PlantedFfn::exact(bank, &plan.writers[bank.network.ffn.writer])).collect();
    let mut own = context(model)?;
    let before = logits(&mut own, None)?;
    let terms = planted.iter().map(|planted| planted.low_rank(&gguf));
    let terms: Vec<Vec<LowRank>> = terms.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    let mut bytes = to_gguf(&plan.architecture, &terms.concat()).map_err(|error| error.to_string())?;
    let adapter = Adapter::from_bytes(model, &mut bytes).map_err(|error| error.to_string())?;
    own.set_adapter(Some(adapter), 1.0).map_err(|error| error.to_string())?;
    let adapted = logits(&mut own, None)?;
    let edited = written(&gguf, &planted)?;
    let there = logits(&mut context(&edited)?, None)?;
    found.moved = distance(&before, &there);
    found.differ = distance(&adapted, &there);
    found.off = off(plan, &edited, &planted)?;
    Ok(found)
}

/// Writes a file with the planted neurons and loads it.
fn written(gguf: &Gguf, planted: &[PlantedFfn]) -> Result<Rc<Model>, String> {
    let out = gguf.path.with_extension("neurons.gguf");
    let mut replace = |tensor: &TensorInfo| {
        if !planted.iter().any(|planted| planted.tensors().contains(&tensor.name.as_str())) {
            return Ok(None);
        }
        let bytes = gguf.read_tensor(tensor)?;
        Ok(Some(PlantedFfn::apply_all(planted, tensor, bytes, Requant::Preserve)?))
    };
    let mut file = std::fs::File::create(&out).map_err(|error| error.to_string())?;
    let done = Rewrite::copy(gguf).write_to(&mut file, &mut replace, &mut |_, _| Ok(()));
    done.map_err(|error| error.to_string())?;
    Model::load(&out, &Offload::none(), &mut |_| ()).map_err(|error| error.to_string())
}

/// Returns how far the hidden values of planted neurons in the running graph are from those computed from their rows
/// and the captured inputs, relative to the largest.
fn off(plan: &Plan, edited: &Rc<Model>, planted: &[PlantedFfn]) -> Result<f64, String> {
    let seen = captured(plan, edited)?;
    let (mut off, mut most) = (0.0f64, f64::MIN_POSITIVE);
    for planted in planted {
        let first = &planted.neurons[0].column.place.tensor;
        let at = plan.ffns.iter().position(|ffn| plan.writers[ffn.writer].tensor == *first);
        let at = at.ok_or("the plan has no network for a planted neuron")?;
        let (seen, n_ff) = (&seen[at], plan.ffns[at].n_ff);
        let computed: Vec<Vec<f64>> = planted.neurons.iter().map(|n| hidden(planted, n, &seen.x)).collect();
        for i in 0..seen.x.nrows() {
            for slot in 0..seen.h.ncols() / n_ff {
                let found = |n: &PlantedNeuron| f64::from(seen.h[[i, slot * n_ff + n.column.place.index]]);
                let pairs: Vec<(f64, f64)> =
                    planted.neurons.iter().zip(&computed).map(|(n, c)| (found(n), c[i])).collect();
                // The routing weight, which all neurons of an expert share, fitted by least squares.
                let dot: f64 = pairs.iter().map(|(h, c)| h * c).sum();
                let square: f64 = pairs.iter().map(|(_, c)| c * c).sum();
                let p = if seen.experts.is_some() { dot / square.max(f64::MIN_POSITIVE) } else { 1.0 };
                for (h, c) in pairs {
                    off = off.max((p * c - h).abs());
                    most = most.max((p * c).abs());
                }
            }
        }
    }
    Ok(off / most)
}

/// Returns the hidden value of a planted neuron for every row of `x`.
fn hidden(planted: &PlantedFfn, neuron: &PlantedNeuron, x: &Array2<f32>) -> Vec<f64> {
    let product = |row: &[f32]| x.dot(&ArrayView1::from(row));
    let gate = product(&neuron.gate.target);
    let up = neuron.up.as_ref().map(|up| product(&up.target));
    let at = |i: usize| {
        let up = up.as_ref().map_or(1.0, |up| f64::from(up[i] + neuron.biases.1));
        planted.activation.at(f64::from(gate[i] + neuron.biases.0)) * up
    };
    (0..x.nrows()).map(at).collect()
}
