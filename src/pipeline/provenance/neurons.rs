//! Records of neuron edits: positions, exact target rows and columns, and sample inputs for verification.
//!
//! ```text
//! rosi.neurons              JSON: block, φ and tensor positions of each set of neurons
//! rosi.neuron.S.N.gate      row that φ acts on, F32 [n_embd], of neuron N of set S
//! rosi.neuron.S.N.up        row of the other factor, if the network has one
//! rosi.neuron.S.N.column    column of the residual writer, F32 [n_embd]
//! rosi.inputs.S             sample inputs of the network, F32 [n·n_embd]
//! ```

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::arch::plan::Plan;
use crate::gguf::{Gguf, Value};
use crate::method::detector::ffn::{Activation, Place};
use crate::method::detector::{Piece, PlantedFfn, PlantedNeuron};
use crate::method::edit;
use crate::pipeline::error::Error;
use crate::util::spread::spread_rows;

const NEURONS: &str = "rosi.neurons";
/// Number of sample inputs recorded per set.
const INPUTS: usize = 32;
/// Maximum number of sets to read, far above what this tool writes.
const MAX_SETS: usize = 1024;
/// Maximum number of neurons per set to read, far above what this tool writes.
const MAX_NEURONS: usize = 64;

/// JSON of one set of neurons.
#[derive(Serialize, Deserialize)]
struct SetRow {
    layer: usize,
    activation: Activation,
    neurons: Vec<NeuronRow>,
}

/// JSON of one neuron.
#[derive(Serialize, Deserialize)]
struct NeuronRow {
    gate: PlaceRow,
    #[serde(skip_serializing_if = "Option::is_none")]
    up: Option<PlaceRow>,
    column: PlaceRow,
    biases: (f32, f32),
}

/// JSON of a position: tensor name, and index of the row or column.
#[derive(Serialize, Deserialize)]
struct PlaceRow(String, usize);

fn row(piece: &Piece) -> PlaceRow {
    PlaceRow(piece.place.tensor.clone(), piece.place.index)
}

fn name(set: usize, neuron: usize, part: &str) -> String {
    format!("rosi.neuron.{set}.{neuron}.{part}")
}

/// Returns the record of all positions, or `None` if there are no neurons.
pub fn key(planted: &[PlantedFfn]) -> Option<(String, Value)> {
    let neuron = |n: &PlantedNeuron| NeuronRow {
        gate: row(&n.gate),
        up: n.up.as_ref().map(row),
        column: row(&n.column),
        biases: n.biases,
    };
    let set = |p: &PlantedFfn| SetRow {
        layer: p.layer,
        activation: p.activation,
        neurons: p.neurons.iter().map(neuron).collect(),
    };
    let rows: Vec<SetRow> = planted.iter().map(set).collect();
    let text = serde_json::to_string(&rows).ok().filter(|_| !rows.is_empty())?;
    Some((NEURONS.into(), Value::String(text)))
}

/// Returns the records of rows, columns and sample inputs.
pub fn arrays(planted: &[PlantedFfn]) -> Vec<(String, Vec<f32>)> {
    let mut arrays = Vec::new();
    for (set, PlantedFfn { neurons, inputs, .. }) in planted.iter().enumerate() {
        for (i, neuron) in neurons.iter().enumerate() {
            arrays.push((name(set, i, "gate"), neuron.gate.target.clone()));
            arrays.extend(neuron.up.iter().map(|up| (name(set, i, "up"), up.target.clone())));
            arrays.push((name(set, i, "column"), neuron.column.target.clone()));
        }
        let kept = spread_rows(inputs, INPUTS);
        arrays.push((format!("rosi.inputs.{set}"), kept.iter().copied().collect()));
    }
    arrays
}

/// Returns the neuron edits that `edited` claims were made to `base`. Skips records that cannot be interpreted.
pub fn claimed(base: &Gguf, edited: &Gguf, plan: &Plan) -> Result<Vec<PlantedFfn>, Error> {
    let rows: Vec<SetRow> =
        edited.str(NEURONS).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let mut planted = Vec::new();
    for (set, row) in rows.into_iter().take(MAX_SETS).enumerate() {
        let Some(mut found) = neurons(edited, set, row)? else { continue };
        let column = found.neurons.first().map(|n| &n.column.place.tensor);
        if let Some(writer) = plan.writers.iter().find(|w| Some(&w.tensor) == column) {
            found.post_norm = edit::read_gains(base, writer)?;
        }
        planted.push(found);
    }
    Ok(planted)
}

fn neurons(edited: &Gguf, set: usize, row: SetRow) -> Result<Option<PlantedFfn>, Error> {
    let SetRow { layer, activation, neurons } = row;
    let mut planted = Vec::new();
    for (i, neuron) in neurons.into_iter().take(MAX_NEURONS).enumerate() {
        let gate = piece(edited, neuron.gate, &name(set, i, "gate"), Side::Row)?;
        let up = neuron.up.map(|up| piece(edited, up, &name(set, i, "up"), Side::Row)).transpose()?;
        let column = piece(edited, neuron.column, &name(set, i, "column"), Side::Column)?;
        let (Some(gate), Some(column)) = (gate, column) else { return Ok(None) };
        let up = match up {
            Some(None) => return Ok(None),
            up => up.flatten(),
        };
        planted.push(PlantedNeuron { gate, up, column, biases: neuron.biases });
    }
    let Some(n_embd) = planted.first().map(|n| n.gate.target.len()) else { return Ok(None) };
    if planted
        .iter()
        .any(|n| n.gate.target.len() != n_embd || n.up.as_ref().is_some_and(|u| u.target.len() != n_embd))
    {
        return Ok(None);
    }
    let inputs = match edited.array(&format!("rosi.inputs.{set}")) {
        Some(array) => edited.read_f32_array(array)?,
        None => Vec::new(),
    };
    let inputs = Array2::from_shape_vec((inputs.len() / n_embd.max(1), n_embd), inputs);
    let planted =
        |inputs| PlantedFfn { layer, activation, neurons: planted, inputs, stretch: 1.0, post_norm: None };
    Ok(inputs.ok().map(planted))
}

/// Orientation of a piece in its tensor.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Row,
    Column,
}

/// Reads a piece; returns `None` if its position does not exist, or its values are not finite or of the wrong number.
fn piece(edited: &Gguf, place: PlaceRow, key: &str, side: Side) -> Result<Option<Piece>, Error> {
    let PlaceRow(tensor, index) = place;
    let (Some(info), Some(array)) = (edited.tensor(&tensor), edited.array(key)) else { return Ok(None) };
    let (n_in, n_out) = (info.ne[0], info.ne[1]);
    let (len, most) = if side == Side::Row { (n_in, n_out) } else { (n_out, n_in) };
    let target = edited.read_f32_array(array)?;
    let fits = target.len() as u64 == len && (index as u64) < most && target.iter().all(|v| v.is_finite());
    Ok(fits.then_some(Piece { place: Place { tensor, index }, target }))
}
