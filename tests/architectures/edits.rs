//! The same edit as an adapter and in the file: do both give the same logits?

use std::path::Path;
use std::rc::Rc;

use rosi_gguf::direction;
use rosi_gguf::edit::{self, Edit};
use rosi_gguf::gguf::Gguf;
use rosi_gguf::llama::adapter::to_gguf;
use rosi_gguf::llama::batch::Batch;
use rosi_gguf::llama::ffi::{Adapter, Context, ContextSize, Model};
use rosi_gguf::llama::hook::EvalHook;
use rosi_gguf::plan::Plan;
use serde::{Deserialize, Serialize};

use super::generate::Random;
use crate::write_edited::write_edited;

/// What is decoded, all with logits.
pub const TOKENS: [i32; 6] = [3, 17, 5, 42, 9, 26];

/// Size of the edit, relative to the weights.
const STRENGTH: f64 = 0.04;

/// How far the logits moved, and how far the two ways differ, both relative to the largest logit.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Agreement {
    pub moved: f64,
    pub differ: f64,
    /// Writers whose edit was tried; the others take no LoRA.
    pub tried: usize,
    pub writers: usize,
}

pub fn context(model: &Rc<Model>) -> Result<Context, String> {
    let n_seq = TOKENS.len() as u32;
    let size = ContextSize { n_ctx: 64, n_batch: 16, n_seq, n_threads: 1 };
    Context::new(model, size).map_err(|error| error.to_string())
}

/// The logits after every token.
pub fn logits(context: &mut Context, hook: Option<&mut dyn EvalHook>) -> Result<Vec<f32>, String> {
    context.clear();
    let mut batch = Batch::default();
    for (pos, token) in TOKENS.into_iter().enumerate() {
        batch.push(token, pos, 0, true);
    }
    context.decode(&mut batch, hook).map_err(|error| error.to_string())?;
    let rows = (0..TOKENS.len()).map(|i| context.logits(i).ok_or("no logits"));
    let rows: Vec<&[f32]> = rows.collect::<Result<_, _>>()?;
    Ok(rows.concat())
}

/// A random edit of every writer that takes a LoRA.
fn random_edits(gguf: &Gguf, plan: &Plan) -> Result<Vec<Edit>, String> {
    let fail = |error: edit::EditError| error.to_string();
    let weights = plan.writers.iter().map(|w| edit::read_weights(gguf, w));
    let weights = weights.collect::<Result<Vec<_>, _>>().map_err(fail)?;
    let direction = direction::random(0, plan.n_embd as usize, 7).map_err(|error| error.to_string())?;
    let mut random = Random(11);
    let rights = plan.writers.iter().map(|w| {
        let n = w.n_in * w.n_expert;
        w.lora.then(|| (0..n).map(|_| random.normal()).collect())
    });
    edit::edits(plan, &weights, &rights.collect(), &direction, STRENGTH).map_err(fail)
}

/// Compares base + adapter with the written file.
pub fn agree(base: &Path, plan: &Plan, model: &Rc<Model>) -> Result<Agreement, String> {
    let gguf = Gguf::open(base).map_err(|error| error.to_string())?;
    let edits = random_edits(&gguf, plan)?;
    let ranks: Vec<_> = edits.iter().map(Edit::to_rank_one).collect();
    let mut bytes = to_gguf(&plan.architecture, &ranks).map_err(|error| error.to_string())?;
    let mut own = context(model)?;
    let before = logits(&mut own, None)?;
    let adapter = Adapter::from_bytes(model, &mut bytes).map_err(|error| error.to_string())?;
    own.set_adapter(Some(adapter), 1.0).map_err(|error| error.to_string())?;
    let with_adapter = logits(&mut own, None)?;
    let out = base.with_extension("edited.gguf");
    write_edited(&gguf, &edits, &out);
    let edited = Model::load(&out, 0, &mut |_| ()).map_err(|error| error.to_string())?;
    let written = logits(&mut context(&edited)?, None)?;
    Ok(Agreement {
        moved: distance(&before, &written),
        differ: distance(&with_adapter, &written),
        tried: edits.len(),
        writers: plan.writers.len(),
    })
}

/// max |a − b| / max |b|; infinite when anything is not finite.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0f32, |m, v| if v.is_nan() { v } else { m.max(v.abs()) });
    let size = largest(&mut b.iter().copied());
    let difference = largest(&mut a.iter().zip(b).map(|(a, b)| a - b));
    let ratio = f64::from(difference) / f64::from(size);
    if ratio.is_finite() { ratio } else { f64::INFINITY }
}
