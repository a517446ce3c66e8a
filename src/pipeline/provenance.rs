//! The `rosi.*` keys: the provenance recorded in an injected file, and the edits that it describes.

mod neurons;

use std::collections::BTreeSet;

use serde::Serialize;

use crate::arch::plan::Plan;
use crate::gguf::{Gguf, Value};
use crate::method::Edits;
use crate::method::direction::{Along, SafetyDirection};
use crate::method::edit::{self, Edit, EditError, Method, WriterWeights};
use crate::method::verify::KEY_PREFIX;
use crate::pipeline::error::Error;
use crate::pipeline::run_facts::RunFacts;

/// Key of the direction, F32 `[n_embd]`. If each layer has its own, this key holds the direction of the layer
/// `rosi.layer`, and `rosi.direction.LAYER` that of each edited layer.
const DIRECTION: &str = "rosi.direction";

/// Prefix of the keys of right factors, F32 `[n_expert·n_in]`, followed by the tensor's name.
const RIGHT: &str = "rosi.right.";

/// Provenance of an injected file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Provenance {
    /// Version of this tool.
    pub version: String,
    /// [`Method::name`].
    pub method: String,
    /// Layer of the direction.
    pub layer: u32,
    /// Requested relative Frobenius change; for neurons, their push in lengths of the direction.
    pub strength: f64,
    /// SHA-256 of the prompt set.
    pub prompts_sha256: String,
    /// SHA-256 of the input file.
    pub input_sha256: String,
    /// [`DirectionSource::name`](crate::method::search::DirectionSource::name); `plain` in files without the key.
    pub direction_source: String,
    /// The system prompt during extraction: `none`, `safety` or `user`.
    pub system_prompt: String,
    /// SHA-256 of the stored edit, if one was applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edit_sha256: Option<String>,
    /// Facts of the run that wrote the file, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<RunFacts>,
}

impl Provenance {
    /// Reads the keys; returns `None` if the file has no `rosi.version`.
    pub fn read(gguf: &Gguf) -> Option<Self> {
        let text = |key: &str| gguf.str(key).unwrap_or("unknown").to_owned();
        let strength = match gguf.get("rosi.strength") {
            Some(Value::F64(v)) => *v,
            _ => f64::NAN,
        };
        gguf.str("rosi.version")?;
        Some(Self {
            version: text("rosi.version"),
            method: text("rosi.method"),
            layer: gguf.u64("rosi.layer").and_then(|l| u32::try_from(l).ok()).unwrap_or(u32::MAX),
            strength,
            prompts_sha256: text("rosi.prompts_sha256"),
            input_sha256: text("rosi.input_sha256"),
            direction_source: gguf.str("rosi.direction_source").unwrap_or("plain").to_owned(),
            system_prompt: text("rosi.system_prompt"),
            edit_sha256: gguf.str("rosi.edit_sha256").map(str::to_owned),
            run: gguf.str("rosi.run").and_then(|run| serde_json::from_str(run).ok()),
        })
    }

    /// Returns a one-line, human-readable description.
    pub fn describe(&self) -> String {
        format!(
            "by rosi-gguf {}: {}, direction source {}, layer {}, {}",
            self.version,
            self.method,
            self.direction_source,
            self.layer,
            self.size()
        )
    }

    /// Returns the strength for display: `strength 1.2 %`, or `push 5.0` for neurons.
    pub fn size(&self) -> String {
        match self.method == Method::Detector.name() {
            true => format!("push {:.1}", self.strength),
            false => format!("strength {}", crate::output::percent(self.strength)),
        }
    }

    /// Returns the records to add to the file, except arrays.
    pub fn keys(&self, edits: &Edits) -> Vec<(String, Value)> {
        let key = |name: &str, value| (format!("{KEY_PREFIX}{name}"), value);
        let text = |t: &String| Value::String(t.clone());
        let edit = self.edit_sha256.iter().map(|hash| key("edit_sha256", text(hash)));
        let run = self.run.iter().filter_map(|run| serde_json::to_string(run).ok());
        let run = run.map(|run| key("run", Value::String(run)));
        let keys = vec![
            key("version", text(&self.version)),
            key("method", text(&self.method)),
            key("layer", Value::U32(self.layer)),
            key("strength", Value::F64(self.strength)),
            key("prompts_sha256", text(&self.prompts_sha256)),
            key("input_sha256", text(&self.input_sha256)),
            key("direction_source", text(&self.direction_source)),
            key("system_prompt", text(&self.system_prompt)),
        ];
        keys.into_iter().chain(edit).chain(run).chain(neurons::key(edits.planted())).collect()
    }

    /// Returns the array records: the directions and, unless they follow from the base's weights, the right
    /// factors, multiplied by α and as they apply to the file's bytes.
    pub fn arrays(&self, along: Along<'_>, edits: &Edits, plan: &Plan) -> Vec<(String, Vec<f32>)> {
        let mut arrays = vec![(DIRECTION.to_owned(), along.at(self.layer as usize).unit().to_vec())];
        match edits {
            Edits::Linear(edits) => {
                arrays.extend(own_directions(along, edits, plan));
                if self.method != Method::Published.name() {
                    arrays.extend(edits.iter().map(|e| {
                        let right = e.right_in_file();
                        let right = right.iter().map(|&r| (f64::from(r) * e.alpha) as f32);
                        (format!("{RIGHT}{}", e.tensor), right.collect())
                    }));
                }
            }
            Edits::Neurons(planted) => arrays.extend(neurons::arrays(planted)),
        }
        arrays
    }
}

/// Returns one direction record per edited layer, or none if all layers share one direction.
fn own_directions(along: Along<'_>, edits: &[Edit], plan: &Plan) -> Vec<(String, Vec<f32>)> {
    let Along::Layers([first, others @ ..]) = along else { return Vec::new() };
    if others.iter().all(|d| d.unit() == first.unit()) {
        return Vec::new();
    }
    let layers: BTreeSet<usize> = edits.iter().map(|e| plan.writers[e.writer].layer).collect();
    let record = |layer| (format!("{DIRECTION}.{layer}"), along.at(layer).unit().to_vec());
    layers.into_iter().map(record).collect()
}

/// Reads the direction at `key`; returns `None` if it is missing or its length is not `n_embd`.
fn read_direction(
    edited: &Gguf,
    plan: &Plan,
    key: &str,
    layer: usize,
) -> Result<Option<SafetyDirection>, Error> {
    let Some(array) = edited.array(key) else { return Ok(None) };
    let unit = edited.read_f32_array(array)?;
    if unit.len() as u64 != plan.n_embd {
        return Ok(None);
    }
    let unit: Vec<f64> = unit.iter().map(|&v| f64::from(v)).collect();
    Ok(Some(SafetyDirection::new(layer, &unit)?))
}

/// Returns the edits that `edited` claims were made to `base`: along the direction in the edited file, with the
/// right factors recorded there or, for the published method, those of the base's weights. Empty if the file has
/// no provenance or it cannot be interpreted.
pub fn claimed_edits(base: &Gguf, edited: &Gguf, plan: &Plan) -> Result<Edits, Error> {
    let Some(provenance) = Provenance::read(edited) else { return Ok(Edits::default()) };
    if provenance.method == Method::Detector.name() {
        return Ok(Edits::Neurons(neurons::claimed(base, edited, plan)?));
    }
    let layer = provenance.layer as usize;
    let Some(direction) = read_direction(edited, plan, DIRECTION, layer)? else {
        return Ok(Edits::default());
    };
    if provenance.method != Method::Published.name() {
        return Ok(recorded_edits(base, edited, plan, &direction)?.into());
    }
    if !provenance.strength.is_finite() {
        return Ok(Edits::default());
    }
    let layers = layer_directions(edited, plan, &direction)?;
    let weights: Vec<WriterWeights> =
        plan.writers.iter().map(|w| edit::read_weights(base, w)).collect::<Result<_, EditError>>()?;
    let rights = edit::mean_rows(&weights);
    Ok(edit::edits(plan, &weights, &rights, Along::Layers(&layers), provenance.strength)?.into())
}

/// Returns the direction of each layer: its own if the file has one, otherwise `common`.
fn layer_directions(
    edited: &Gguf,
    plan: &Plan,
    common: &SafetyDirection,
) -> Result<Vec<SafetyDirection>, Error> {
    let of = |layer| read_direction(edited, plan, &format!("{DIRECTION}.{layer}"), layer);
    (0..plan.n_layer.max(1)).map(|layer| Ok(of(layer)?.unwrap_or_else(|| common.clone()))).collect()
}

/// Returns the edits whose right factors are recorded in the file.
fn recorded_edits(
    base: &Gguf,
    edited: &Gguf,
    plan: &Plan,
    direction: &SafetyDirection,
) -> Result<Vec<Edit>, Error> {
    let layers = layer_directions(edited, plan, direction)?;
    let mut edits = Vec::new();
    for (index, writer) in plan.writers.iter().enumerate() {
        let Some(array) = edited.array(&format!("{RIGHT}{}", writer.tensor)) else { continue };
        let right = edited.read_f32_array(array)?;
        if right.len() as u64 != writer.n_in * writer.n_expert {
            continue;
        }
        let weights = edit::read_weights(base, writer)?;
        let (left, post_norm) =
            edit::left_factor(Along::Layers(&layers).at(writer.layer), weights.post_norm.as_deref());
        edits.push(Edit {
            writer: index,
            tensor: writer.tensor.clone(),
            n_expert: writer.n_expert,
            left,
            right,
            alpha: 1.0,
            weight_norm_sq: weights.norm_sq,
            // Recorded factors already apply to the file's bytes.
            scale: Vec::new(),
            scales_adapter: false,
            post_norm,
        });
    }
    Ok(edits)
}
