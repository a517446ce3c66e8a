//! Tests on complete, damaged, and hostile edit files, and on fingerprints of equal and different models.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};

use super::fingerprint::{BINS, Difference, Shape};
use super::*;
use crate::arch::window::Window;
use crate::gguf::{GgmlType, Gguf, GgufBuilder, Value};
use crate::method::direction::random;
use crate::method::noise::normal as noise;
use crate::method::search::{DirectionSource, ExtractionPrompt};
use crate::pipeline::plan_of;
use crate::quant;
use crate::util::hint::Hint;

const N_EMBD: usize = 256;
const N_FF: usize = 512;

/// A llama of two blocks.
#[derive(Clone)]
struct Model {
    ggml_type: GgmlType,
    weights: [Vec<f32>; 4],
    norms: [Vec<f32>; 2],
}

const WRITERS: [(&str, usize); 4] = [
    ("blk.0.attn_output.weight", N_EMBD),
    ("blk.0.ffn_down.weight", N_FF),
    ("blk.1.attn_output.weight", N_EMBD),
    ("blk.1.ffn_down.weight", N_FF),
];

impl Model {
    fn new(seed: u64) -> Self {
        let weights = std::array::from_fn(|i| noise(N_EMBD * WRITERS[i].1, seed + i as u64));
        let norms = std::array::from_fn(|i| noise(N_EMBD, seed + 10 + i as u64));
        Self { ggml_type: GgmlType::F32, weights, norms }
    }

    fn of(&self, ggml_type: GgmlType) -> Self {
        Self { ggml_type, ..self.clone() }
    }

    /// Adds noise of `share` times the size of the weights.
    fn tuned(mut self, share: f32) -> Self {
        for (i, weights) in self.weights.iter_mut().enumerate() {
            let change = noise(weights.len(), 1000 + i as u64);
            weights.iter_mut().zip(change).for_each(|(w, c)| *w += share * c);
        }
        self
    }

    fn fingerprint(&self) -> Fingerprint {
        let mut file = GgufBuilder::new()
            .string("general.architecture", "llama")
            .kv("llama.block_count", Value::U32(2))
            .kv("llama.embedding_length", Value::U32(N_EMBD as u32))
            .f32_tensor("token_embd.weight", &[N_EMBD as u64, 2], &[0.5; 2 * N_EMBD]);
        for ((name, n_in), values) in WRITERS.iter().zip(&self.weights) {
            let row = self.ggml_type.row_bytes(*n_in as u64).unwrap() as usize;
            let mut bytes = vec![0; row * N_EMBD];
            quant::quantize(self.ggml_type, *n_in, values, &mut bytes).unwrap();
            file = file.tensor(name, &[*n_in as u64, N_EMBD as u64], self.ggml_type, bytes);
        }
        for (i, gain) in self.norms.iter().enumerate() {
            file = file.f32_tensor(&format!("blk.{i}.attn_norm.weight"), &[N_EMBD as u64], gain);
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        file.write_to(&mut std::fs::File::create(&path).unwrap()).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        Fingerprint::of(&gguf, &plan_of(&gguf).unwrap()).unwrap()
    }
}

fn edit() -> StoredEdit {
    let direction = random(1, N_EMBD, 5).unwrap();
    let inputs = |n: usize| InputModel {
        diagonal: noise(n, 6).iter().map(|v| v.abs()).collect(),
        principal: vec![noise(n, 7), noise(n, 8)],
    };
    let writer = |i: usize, inputs| StoredWriter {
        tensor: WRITERS[i].0.into(),
        right: noise(WRITERS[i].1, 3),
        mean: noise(WRITERS[i].1, 4),
        inputs,
    };
    let separation = Separation { layer: 0, norm: 1.0, relative_norm: 0.1, auroc: 1.0 / 3.0, d_prime: 2.0 };
    StoredEdit {
        facts: Facts {
            format: FORMAT,
            version: "0.1.0".into(),
            llama_cpp: "b1".into(),
            method: Method::Contrast,
            system_prompt: ExtractionPrompt::Safety,
            chosen: Candidate {
                direction_source: DirectionSource::Safety,
                layer: 1,
                window: Window { from: 0.3, until: 0.8 },
                contrast: 0.7,
            },
            strength: 0.1 + 0.2,
            norms: vec![direction.norm()],
            push: 1.1,
            prompts_sha256: "00".into(),
            input_sha256: "11".into(),
            separation: vec![separation],
            networks: Vec::new(),
            model: Model::new(1).fingerprint(),
        },
        directions: vec![direction],
        writers: vec![writer(0, inputs(N_EMBD)), writer(3, InputModel::default())],
        networks: Vec::new(),
    }
}

#[test]
fn an_edit_is_read_back_to_the_last_bit() {
    let edit = edit();
    let bytes = edit.to_bytes().unwrap();
    assert_eq!(StoredEdit::from_bytes(&bytes).unwrap(), edit);
    assert_eq!(edit.to_bytes().unwrap(), bytes, "the same edit is the same file");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("edit.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(StoredEdit::open(&path).unwrap(), (edit, bytes));
    let error = StoredEdit::open(Path::new("no such file")).unwrap_err();
    assert!(matches!(error.problem, Problem::Io(_)) && error.to_string().starts_with("no such file: "));
}

/// Changes `edit` to one along an ablated direction with a separate direction for each of the two layers.
fn ablated(edit: &mut StoredEdit) {
    edit.facts.chosen.direction_source = DirectionSource::Ablated;
    edit.directions = (0..2).map(|layer| random(layer, N_EMBD, 20 + layer as u64).unwrap()).collect();
    edit.facts.norms = edit.directions.iter().map(SafetyDirection::norm).collect();
}

#[test]
fn along_an_ablated_direction_every_layer_keeps_its_direction() {
    let mut edit = edit();
    ablated(&mut edit);
    assert_ne!(edit.facts.norms[0], edit.facts.norms[1]);
    let bytes = edit.to_bytes().unwrap();
    assert_eq!(StoredEdit::from_bytes(&bytes).unwrap(), edit);
}

#[test]
fn the_source_is_kept_and_told() {
    let told =
        [DirectionSource::Refusal, DirectionSource::Plain, DirectionSource::Safety, DirectionSource::Ablated]
            .map(|direction_source| {
                let mut edit = edit();
                edit.facts.chosen.direction_source = direction_source;
                let read = StoredEdit::from_bytes(&edit.to_bytes().unwrap()).unwrap();
                assert_eq!(read, edit);
                read.facts.along()
            });
    let safety = "layer 1 (under the safety system prompt)";
    let ablated = "the direction removed from the weights";
    assert_eq!(told, ["layer 1 (refusal)", "layer 1 (plain)", safety, ablated]);
}

/// Returns the error for the edit after `change`.
fn refused(change: impl FnOnce(&mut StoredEdit)) -> String {
    let mut edit = edit();
    change(&mut edit);
    let problem = StoredEdit::from_bytes(&edit.to_bytes().unwrap()).unwrap_err();
    let error = StoredError { path: "f".into(), problem };
    assert!(error.hint().is_some());
    error.to_string()
}

#[test]
fn an_unknown_system_prompt_is_refused() {
    let mut bytes = edit().to_bytes().unwrap();
    let at = bytes.windows(6).position(|name| name == b"safety").unwrap();
    bytes[at..at + 6].copy_from_slice(b"danger");
    let error = StoredEdit::from_bytes(&bytes).unwrap_err().to_string();
    assert!(error.contains("unknown variant `danger`"), "{error}");
}

#[test]
fn hostile_numbers_are_refused_by_name() {
    type Change = fn(&mut StoredEdit);
    let cases: [(Change, &str); 19] = [
        (|e| e.facts.strength = -0.04, "strength: expected a number above 0 and up to 1, found -0.04"),
        (|e| e.facts.strength = 0.0, "strength: "),
        (|e| e.facts.strength = 1.5, "strength: "),
        (|e| e.facts.strength = f64::NAN, "not a stored edit: invalid type: null"),
        (|e| e.facts.norms = vec![0.0], "expected a positive finite number"),
        (|e| e.facts.chosen.layer = 2, "layer: expected 0 to 1, found 2"),
        (|e| e.facts.chosen.window = [0.8, 0.3].into(), "window: "),
        (|e| e.facts.chosen.window = [-1.0, 0.3].into(), "window: "),
        (|e| e.facts.chosen.window = [0.0, 1.5].into(), "window: "),
        (|e| e.facts.chosen.contrast = -0.5, "contrast: "),
        (|e| e.facts.format = 2, "expected a stored edit of format 1, found format 2"),
        (|e| e.writers[0].right[3] = f32::NAN, "right.blk.0.attn_output.weight: expected magnitudes up to"),
        (|e| e.writers[0].right[3] = f32::INFINITY, "right.blk.0.attn_output.weight: "),
        (|e| e.writers[0].right[3] = 1e30, "right.blk.0.attn_output.weight: "),
        (|e| e.writers[0].right.fill(0.0), "right.blk.0.attn_output.weight: expected a length of"),
        (|e| e.writers[0].mean[0] = f32::NAN, "mean.blk.0.attn_output.weight: "),
        (|e| e.writers[0].inputs.diagonal[0] = -1.0, "diagonal.blk.0.attn_output.weight: expected no neg"),
        (|e| e.facts.model.sketches[0].values[0] = f32::NAN, "sketch.blk.0.attn_output.weight: "),
        (
            |e| {
                let unit = vec![255f32.sqrt().recip(); 255];
                e.directions = vec![SafetyDirection::from_unit(1, unit, 1.0).unwrap()];
            },
            "direction: exp",
        ),
    ];
    for (i, (change, expected)) in cases.into_iter().enumerate() {
        let told = refused(change);
        assert!(told.contains(expected), "{i}: {told}");
    }
}

#[test]
fn the_mean_inputs_of_experts_are_kept_where_they_are_known() {
    let (mut edit, n_in) = (edit(), WRITERS[3].1);
    edit.facts.model.shape.writers[3].n_expert = 2;
    edit.writers[1].right = noise(2 * n_in, 3);
    for mean in [noise(2 * n_in, 4), Vec::new()] {
        edit.writers[1].mean = mean;
        assert_eq!(StoredEdit::from_bytes(&edit.to_bytes().unwrap()).unwrap(), edit);
    }
    edit.writers[1].mean = noise(3 * n_in, 4);
    let told = StoredEdit::from_bytes(&edit.to_bytes().unwrap()).unwrap_err().to_string();
    assert!(told.contains(&format!("expected [2, {n_in}], found [3, {n_in}]")), "{told}");
}

#[test]
fn hostile_names_and_shapes_are_refused() {
    type Change = fn(&mut StoredEdit);
    let cases: [(Change, &str); 13] = [
        (|e| e.writers.clear(), "right factors: expected at least one, found none"),
        (|e| e.writers[0].tensor = "output.weight".into(), "arrays: expected names of the model's writers"),
        (|e| e.facts.model.shape.writers[0].n_in = 128, "expected [1, 128], found [2, 128]"),
        (|e| e.writers[0].right.extend(vec![1.0; N_EMBD]), "expected [1, 256], found [2, 256]"),
        (|e| e.writers[0].mean.clear(), "mean.blk.0.attn_output.weight: expected an array of shape [256]"),
        (|e| e.writers[0].inputs.diagonal.truncate(9), "expected [256], found [9]"),
        (|e| e.writers[0].inputs.principal = vec![vec![1.0; N_EMBD]; 65], "expected [1 to 64, 256]"),
        (|e| e.facts.model.sketches[1].values.truncate(9), "expected [512], found [9]"),
        (|e| e.facts.model.shape.n_embd = 255, "direction: expected [255], found [256]"),
        (
            |e| e.facts.norms.clear(),
            "number of norms: expected 1 (or 2 for an ablated direction or detectors), found 0",
        ),
        (
            |e| e.facts.norms.push(1.0),
            "number of norms: expected 1 (or 2 for an ablated direction or detectors), found 2",
        ),
        (
            |e| {
                ablated(e);
                e.facts.norms.truncate(1);
            },
            "direction: expected [256], found [2, 256]",
        ),
        (
            |e| {
                ablated(e);
                e.directions.truncate(1);
            },
            "direction: expected [2, 256], found [256]",
        ),
    ];
    for (i, (change, expected)) in cases.into_iter().enumerate() {
        let told = refused(change);
        assert!(told.contains(expected), "{i}: {told}");
    }
}

#[test]
fn damaged_files_and_other_ones_are_refused() {
    let bytes = edit().to_bytes().unwrap();
    for len in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        assert!(matches!(StoredEdit::from_bytes(&bytes[..len]), Err(Problem::Format { .. })), "{len}");
    }
    let mut huge = bytes.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(StoredEdit::from_bytes(&huge), Err(Problem::Format { .. })));
    assert!(matches!(StoredEdit::from_bytes(&[bytes, vec![0; 4]].concat()), Err(Problem::Format { .. })));
    let other = |key: &str, text: &str, dtype| {
        let view =
            TensorView::new(dtype, vec![N_EMBD], &[0; 4 * N_EMBD][..dtype.bitsize() / 8 * N_EMBD]).unwrap();
        let metadata = HashMap::from([(key.to_owned(), text.to_owned())]);
        let bytes = safetensors::serialize([("direction", view)], Some(metadata)).unwrap();
        StoredEdit::from_bytes(&bytes).unwrap_err().to_string()
    };
    assert!(other("format", "pt", Dtype::F32).contains("its metadata has no key \"rosi\""));
    assert!(other("rosi", "{}", Dtype::F32).contains("missing field `format`"));
    assert!(other("rosi", "{\"format\":99999}", Dtype::F32).contains("format 99999"));
    let mut facts = edit().facts;
    facts.model.sketches.clear();
    let facts = serde_json::to_string(&facts).unwrap();
    assert!(other("rosi", &facts, Dtype::F16).contains("direction: expected F32, found F16"));
    assert!(other("rosi", &facts, Dtype::F32).contains("has length 0, expected 1"));
}

#[test]
fn shapes_are_told_apart_by_what_differs() {
    let shape = Model::new(1).fingerprint().shape;
    assert_eq!(shape.difference(&shape.clone()), None);
    let told = |change: fn(&mut Shape)| {
        let mut other = shape.clone();
        change(&mut other);
        let Difference { what, expected, found } = shape.difference(&other).unwrap();
        format!("{what}: {expected}, {found}")
    };
    assert_eq!(told(|s| s.architecture = "qwen2".into()), "architecture: llama, qwen2");
    assert_eq!(told(|s| s.n_layer = 3), "number of layers: 2, 3");
    assert_eq!(told(|s| s.n_embd = 8), "width of the residual stream: 256, 8");
    assert_eq!(told(|s| s.writers.truncate(3)), "number of residual writers: 4, 3");
    assert_eq!(told(|s| s.writers[1].n_in = 9), "shape of blk.0.ffn_down.weight: [512, 256, 1], [9, 256, 1]");
    assert!(told(|s| s.writers[1].tensor = "x".into()).starts_with("name of a residual writer: blk.0.ffn"));
}

#[test]
fn quantizations_of_a_model_are_the_same_and_other_weights_are_not() {
    let model = Model::new(1);
    let plain = model.fingerprint();
    assert_eq!(plain.sketches.iter().map(|s| s.values.len()).collect::<Vec<_>>(), [BINS; 4]);
    // These types are only used for weights trained for them; the rounding error of other weights follows another law.
    let few = [GgmlType::TQ1_0, GgmlType::TQ2_0, GgmlType::Q1_0, GgmlType::Q2_0];
    let types = GgmlType::all().filter(|&t| t.can_quantize() && !t.needs_imatrix() && !few.contains(&t));
    for ggml_type in types {
        let other = model.of(ggml_type).fingerprint();
        let worst = |found: &Fingerprint| {
            plain.distances(found).into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
        };
        let (distance, allowed) = worst(&other);
        eprintln!("{ggml_type}: distance {distance:.4}, allowed {allowed:.4}");
        assert_eq!(plain.difference(&other), None, "{ggml_type}");
        let tuned = model.of(ggml_type).tuned(2.0 * allowed as f32).fingerprint();
        if allowed < 0.5 {
            let difference = plain.difference(&tuned).unwrap();
            assert!(difference.what.contains("4 of 4 compared writers"), "{difference:?}");
        }
    }
    let other = Model { norms: model.norms.clone(), ..Model::new(100) }.fingerprint();
    let difference = plain.difference(&other).unwrap();
    assert!(difference.what.starts_with("4 of 4 compared writers, most of all blk."), "{difference:?}");
}

#[test]
fn one_changed_gain_is_another_model() {
    let mut model = Model::new(1);
    let plain = model.fingerprint();
    model.norms[1][7] *= 1.001;
    let difference = plain.difference(&model.fingerprint()).unwrap();
    assert_eq!(difference.what, "1 of 2 norms and biases, first blk.1.attn_norm.weight");
    assert!(difference.expected.starts_with("hash ") && difference.expected != difference.found);
    let nothing = Fingerprint { small: Default::default(), sketches: vec![], ..plain.clone() };
    assert!(plain.difference(&nothing).is_some(), "a model without anything to compare must differ");
}
