//! Checks that an edit gives the same logits as an adapter and in the file.

use std::path::Path;
use std::rc::Rc;

use rosi_gguf::arch::plan::{Plan, ResidualWriter};
use rosi_gguf::gguf::Gguf;
use rosi_gguf::llama::adapter::to_gguf;
use rosi_gguf::llama::batch::Batch;
use rosi_gguf::llama::capture::{Capture, CaptureHook, Keep};
use rosi_gguf::llama::ffi::{Adapter, Context, ContextSize, Model};
use rosi_gguf::llama::hook::EvalHook;
use rosi_gguf::llama::offload::{FlashAttn, Offload};
use rosi_gguf::method::direction;
use rosi_gguf::method::edit::{self, Edit};
use serde::{Deserialize, Serialize};

use crate::common::generated::generate::Random;
use crate::common::write_edited::write_edited;

/// The tokens to decode, all with logits.
pub const TOKENS: [i32; 6] = [3, 17, 5, 42, 9, 26];

/// Error message for a token without logits.
pub const NO_LOGITS: &str = "no logits";

/// Strength of the edit, relative to the weights.
const STRENGTH: f64 = 0.04;

/// Largest relative difference between the logits of the written file and of the adapter.
pub const MOST_DIFFER: f64 = 1e-4;

/// Maximum number of edits to try until one is within [`MOST_DIFFER`]. llama.cpp rounds K, V and the argument of GELU
/// to F16, so a difference of 1e-7 may grow a thousandfold where it changes the rounding. A bug would show in every
/// edit.
const MOST_EDITS: u64 = 6;

/// How far an edit moves the logits, and how far adapter and file differ, both relative to the largest logit.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Agreement {
    pub moved: f64,
    pub differ: f64,
    /// How far an edit in the file moves the logits, for the writers that do not support LoRA.
    pub moved_without: Option<f64>,
    /// How far a LoRA of those writers moves the logits, if llama.cpp loads it. It should not move them.
    pub lora_without: Option<f64>,
    /// Number of writers whose edit was tried; the others do not support LoRA.
    pub tried: usize,
    pub writers: usize,
}

pub fn context(model: &Rc<Model>) -> Result<Context, String> {
    let n_seq = TOKENS.len() as u32;
    let size = ContextSize { n_ctx: 64, n_batch: 16, n_seq, n_threads: 1, flash_attn: FlashAttn::Off };
    Context::new(model, size).map_err(|error| error.to_string())
}

/// Returns the logits after every token, concatenated.
pub fn logits(context: &mut Context, hook: Option<&mut dyn EvalHook>) -> Result<Vec<f32>, String> {
    context.clear();
    let mut batch = Batch::default();
    for (pos, token) in TOKENS.into_iter().enumerate() {
        batch.push(token, pos, 0, true);
    }
    context.decode(&mut batch, hook).map_err(|error| error.to_string())?;
    let rows = (0..TOKENS.len()).map(|i| context.logits(i).ok_or(NO_LOGITS));
    let rows: Vec<&[f32]> = rows.collect::<Result<_, _>>()?;
    Ok(rows.concat())
}

/// Returns a random edit of every writer for which `chosen` returns true.
fn random_edits(
    gguf: &Gguf,
    plan: &Plan,
    chosen: fn(&ResidualWriter) -> bool,
    seed: u64,
) -> Result<Vec<Edit>, String> {
    let fail = |error: edit::EditError| error.to_string();
    let weights = plan.writers.iter().map(|w| edit::read_weights(gguf, w));
    let weights = weights.collect::<Result<Vec<_>, _>>().map_err(fail)?;
    let direction = direction::random(0, plan.n_embd as usize, seed).map_err(|error| error.to_string())?;
    let mut random = Random(seed);
    let rights = plan.writers.iter().map(|w| {
        let n = w.n_in * w.n_expert;
        chosen(w).then(|| (0..n).map(|_| random.normal()).collect())
    });
    edit::edits(plan, &weights, &rights.collect(), &direction, STRENGTH).map_err(fail)
}

/// Compares base and adapter with the written file, and tests whether a LoRA has no effect where the plan says so.
pub fn agree(base: &Path, plan: &Plan, model: &Rc<Model>) -> Result<Agreement, String> {
    let gguf = Gguf::open(base).map_err(|error| error.to_string())?;
    let mut own = context(model)?;
    let before = logits(&mut own, None)?;
    let mut agreement = Agreement { writers: plan.writers.len(), ..Agreement::default() };
    agreement.tried = plan.writers.iter().filter(|w| w.lora).count();
    for seed in (0..MOST_EDITS).take_while(|_| agreement.tried > 0) {
        let edits = random_edits(&gguf, plan, |w| w.lora, seed)?;
        let with_adapter = adapted(plan, model, &mut own, &edits)?;
        let written = rewritten(&gguf, &edits)?;
        agreement.moved = distance(&before, &written);
        agreement.differ = distance(&with_adapter, &written);
        if agreement.differ <= MOST_DIFFER.min(agreement.moved / 50.0) {
            break;
        }
    }
    if plan.writers.iter().any(|w| !w.lora) {
        let edits = random_edits(&gguf, plan, |w| !w.lora, 0)?;
        agreement.moved_without = Some(distance(&before, &rewritten(&gguf, &edits)?));
        agreement.lora_without = adapted(plan, model, &mut own, &edits).ok().map(|l| distance(&before, &l));
    }
    Ok(agreement)
}

/// Returns the logits with `edits` applied as an adapter.
fn adapted(
    plan: &Plan,
    model: &Rc<Model>,
    context: &mut Context,
    edits: &[Edit],
) -> Result<Vec<f32>, String> {
    let ranks: Vec<_> = edits.iter().map(Edit::to_low_rank).collect();
    let mut bytes = to_gguf(&plan.architecture, &ranks).map_err(|error| error.to_string())?;
    let adapter = Adapter::from_bytes(model, &mut bytes).map_err(|error| error.to_string())?;
    context.set_adapter(Some(adapter), 1.0).map_err(|error| error.to_string())?;
    logits(context, None)
}

/// Returns the logits of a file with `edits` in its weights.
fn rewritten(gguf: &Gguf, edits: &[Edit]) -> Result<Vec<f32>, String> {
    let out = gguf.path.with_extension("edited.gguf");
    write_edited(gguf, edits, &out);
    let edited = Model::load(&out, &Offload::none(), &mut |_| ()).map_err(|error| error.to_string())?;
    logits(&mut context(&edited)?, None)
}

/// Returns messages about the residuals and writer inputs that the library's capture misses.
pub fn uncaptured(plan: &Plan, model: &Rc<Model>) -> Result<Vec<String>, String> {
    let capture = Capture::new(plan);
    let mut activations = capture.allocate(1, 0);
    let keep = Keep { n_tokens: TOKENS.len(), last: vec![TOKENS.len() - 1], ..Keep::default() };
    let mut hook = CaptureHook::new(&capture, &mut activations, keep);
    logits(&mut context(model)?, Some(&mut hook))?;
    let mut missing: Vec<String> = hook.finish().err().iter().map(ToString::to_string).collect();
    // Skips experts with a scale, which the capture would mistake for the router's weights.
    let looked_at = |w: &ResidualWriter| w.n_expert == 1 || w.scale.is_none();
    let seen = plan.writers.iter().zip(&activations.inputs).filter(|(w, _)| looked_at(w));
    let unseen = seen.filter(|(_, inputs)| inputs.last.iter().any(|v| v.is_nan()));
    missing.extend(unseen.map(|(w, _)| format!("the input of {} is never captured", w.tensor)));
    Ok(missing)
}

/// Returns max |a − b| / max |b| over the entries that are not masked, or [`f64::MAX`] if that is not finite, since
/// JSON has no infinity.
pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    const MASKED: f32 = -1e30;
    let seen = || a.iter().zip(b).filter(|(_, b)| **b > MASKED || !b.is_finite());
    let largest = |m: f32, v: f32| if m.is_nan() || v.is_nan() { f32::NAN } else { m.max(v.abs()) };
    let size = seen().map(|(_, b)| *b).fold(0.0, largest);
    let difference = seen().map(|(a, b)| a - b).fold(0.0, largest);
    let ratio = f64::from(difference) / f64::from(size);
    if ratio.is_finite() { ratio } else { f64::MAX }
}
