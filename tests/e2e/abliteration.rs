//! Detection of directions that were removed from real weights, and of their absence in unmodified ones. `scripts/test`
//! fetches the models and sets the `ROSI_TEST_MODEL_*` variables. Copies with a direction removed exist only in memory
//! and in a temporary folder.

use std::ops::Range;
use std::path::Path;

use ndarray::{Array2, ArrayView2, Axis, s};
use rosi_gguf::gguf::{GgmlType, Gguf, Rewrite, TensorInfo};
use rosi_gguf::method::abliteration::{
    self, AblatedDirection, FileSource, Findings, Group, HONEST_GAP, Site, Source,
};
use rosi_gguf::method::direction;
use rosi_gguf::method::edit::{self, EditError};
use rosi_gguf::pipeline::plan_of;
use rosi_gguf::quant;
use rosi_gguf::util::linalg;

use crate::common::run::{parsed, ran, text, variable};

const MODELS: [&str; 3] = ["SMOLLM2", "GEMMA3", "QWEN"];

/// The residual writers of one model, decoded.
struct Model {
    name: &'static str,
    n_embd: usize,
    n_layer: usize,
    sites: Vec<Site>,
    /// One f32 matrix `[n_embd, n_in]` per site.
    weights: Vec<Array2<f32>>,
    /// The first 8000 rows of the token embedding, or all if there are fewer.
    embedding: Array2<f32>,
}

fn gguf(name: &str) -> Gguf {
    Gguf::open(&variable(&format!("ROSI_TEST_MODEL_{name}"))).unwrap()
}

fn decode(gguf: &Gguf, name: &str, rows: usize) -> Array2<f32> {
    let info = gguf.tensor(name).unwrap();
    let bytes = gguf.read_tensor(info).unwrap();
    let (n_in, rows) = (info.ne[0] as usize, rows.min(info.n_rows() as usize));
    let bytes = &bytes[..rows * info.row_bytes() as usize];
    let mut values = Vec::new();
    edit::for_each_run(info, bytes, |_, run| values.extend_from_slice(run)).unwrap();
    Array2::from_shape_vec((rows, n_in), values).unwrap()
}

/// Adds uniform noise of up to ±0.15 times the root mean square, which is half a step of a 4-bit block.
fn leave_grid(w: &mut Array2<f32>, seed: usize) {
    let size = 0.15 * (w.iter().map(|v| v * v).sum::<f32>() / w.len() as f32).sqrt();
    let mut state = seed as u64;
    w.iter_mut().for_each(|v| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *v += size * ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0);
    });
}

fn unit(mut v: Vec<f32>) -> Vec<f32> {
    let norm = v.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    v.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    v
}

impl Model {
    /// Opens a model and adds noise of the size of a quantization step. Directions are usually removed from unquantized
    /// weights, while the weights of a 4-bit file would round back to the grid they came from.
    fn open(name: &'static str) -> Self {
        let mut model = Self::on_grid(name);
        model.weights.iter_mut().enumerate().for_each(|(seed, w)| leave_grid(w, seed));
        model
    }

    /// Opens a model with the weights exactly as stored.
    fn on_grid(name: &'static str) -> Self {
        let gguf = gguf(name);
        let plan = plan_of(&gguf).unwrap();
        let sites = FileSource::new(&gguf, &plan).sites().to_vec();
        let weights = sites.iter().map(|s| decode(&gguf, &s.tensor, usize::MAX)).collect();
        let embedding = decode(&gguf, "token_embd.weight", 8000);
        Self { name, n_embd: plan.n_embd as usize, n_layer: plan.n_layer, sites, weights, embedding }
    }

    fn random(&self, seed: u64) -> Vec<f32> {
        direction::random(0, self.n_embd, seed).unwrap().unit().to_vec()
    }

    /// Returns the difference of the means of two sets of token embeddings, as an example of a semantic direction.
    fn meaning(&self) -> Vec<f32> {
        let mean = |from: usize| self.embedding.slice(s![from..from + 64, ..]).mean_axis(Axis(0)).unwrap();
        unit((mean(1000) - mean(5000)).to_vec())
    }

    /// Returns the direction that a middle writer writes most strongly, by power iteration.
    fn strongest(&self) -> Vec<f32> {
        let w = &self.weights[self.weights.len() / 2 + 1];
        (0..60).fold(self.random(1), |v, _| {
            let x = ArrayView2::from_shape((1, self.n_embd), &v).unwrap().dot(w);
            unit(w.dot(&x.t()).into_raw_vec_and_offset().0)
        })
    }

    /// Returns a direction per layer that drifts as refusal does: |cos| between neighbors is about 0.85.
    fn drifting(&self) -> Vec<Vec<f32>> {
        let mut units = vec![self.meaning()];
        for layer in 1..self.n_layer {
            let fresh = self.random(layer as u64);
            units.push(unit(units[layer - 1].iter().zip(&fresh).map(|(a, b)| 0.85 * a + 0.53 * b).collect()));
        }
        units
    }

    /// Returns an unrelated direction per layer.
    fn unrelated(&self) -> Vec<Vec<f32>> {
        (0..self.n_layer).map(|layer| self.random(layer as u64 + 50)).collect()
    }

    /// Returns the weights of a site after `removal`.
    fn without(&self, site: usize, removal: &Removal) -> Array2<f32> {
        let mut w = self.weights[site].clone();
        for r in removal.of(&self.sites[site], self.n_layer) {
            let r = ArrayView2::from_shape((self.n_embd, 1), r).unwrap();
            let along = r.t().dot(&w);
            ndarray::linalg::general_mat_mul(-removal.weight, &r, &along, 1.0, &mut w);
        }
        w
    }

    /// Returns a copy of the model after `removal`, stored as `ggml_type`.
    fn copy(&self, removal: &Removal, ggml_type: GgmlType) -> Copy {
        let gram = |site: usize| {
            let mut w = self.without(site, removal);
            store(&mut w, ggml_type);
            let mut gram = Array2::zeros((self.n_embd, self.n_embd));
            linalg::add_outer(&mut gram, w.view());
            gram *= self.n_embd as f64 / gram.diag().sum();
            gram
        };
        Copy { sites: self.sites.clone(), grams: (0..self.sites.len()).map(gram).collect() }
    }
}

/// Rounds `w` to values that `ggml_type` can represent. Like llama-quantize, falls back to Q5_0 if the row length does
/// not suit the type.
fn store(w: &mut Array2<f32>, ggml_type: GgmlType) {
    if ggml_type == GgmlType::F32 {
        return;
    }
    let n_in = w.ncols();
    let ggml_type = if ggml_type.row_bytes(n_in as u64).is_some() { ggml_type } else { GgmlType::Q5_0 };
    let row = ggml_type.row_bytes(n_in as u64).unwrap() as usize;
    linalg::in_parallel(2, w.as_slice_mut().unwrap().chunks_mut(64 * n_in), |values| {
        let mut bytes = vec![0; row * (values.len() / n_in)];
        quant::quantize(ggml_type, n_in, values, &mut bytes).unwrap();
        quant::dequantize(ggml_type, n_in, &bytes, values).unwrap();
    });
}

/// A removal of directions: `W ← W − weight · Σ r rᵀW` in a share of the layers.
struct Removal {
    weight: f32,
    share: Range<f64>,
    only: Option<Group>,
    /// The directions of each layer; a single entry applies to all layers.
    units: Vec<Vec<Vec<f32>>>,
}

impl Removal {
    fn of_one(weight: f32, share: Range<f64>, unit: &[f32]) -> Self {
        Self { weight, share, only: None, units: vec![vec![unit.to_vec()]] }
    }

    fn per_layer(weight: f32, share: Range<f64>, units: Vec<Vec<f32>>) -> Self {
        Self { weight, share, only: None, units: units.into_iter().map(|u| vec![u]).collect() }
    }

    fn nothing() -> Self {
        Self { weight: 0.0, share: 0.0..0.0, only: None, units: vec![vec![]] }
    }

    fn layers(&self, n_layer: usize) -> Range<usize> {
        let at = |share: f64| (share * n_layer as f64).round() as usize;
        at(self.share.start)..at(self.share.end)
    }

    fn in_layer(&self, layer: usize) -> &[Vec<f32>] {
        &self.units[layer.min(self.units.len() - 1)]
    }

    fn of(&self, site: &Site, n_layer: usize) -> &[Vec<f32>] {
        let here = self.layers(n_layer).contains(&site.layer) && self.only.is_none_or(|g| g == site.group);
        if here { self.in_layer(site.layer) } else { &[] }
    }
}

struct Copy {
    sites: Vec<Site>,
    grams: Vec<Array2<f64>>,
}

impl Source for Copy {
    fn n_embd(&self) -> usize {
        self.grams[0].nrows()
    }

    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn gram(&self, site: usize) -> Result<Array2<f64>, EditError> {
        Ok(self.grams[site].clone())
    }

    fn energies(&self, site: usize, units: &Array2<f32>) -> Result<Vec<f64>, EditError> {
        let gram = &self.grams[site];
        let lower = Array2::from_shape_fn(gram.raw_dim(), |(i, j)| gram[[i.max(j), i.min(j)]]);
        let units = units.mapv(f64::from);
        Ok((&units.dot(&lower) * &units).rows().into_iter().map(|r| r.sum()).collect())
    }
}

/// Returns the length of the projection of `v` onto the orthonormal `units`.
fn cosine(units: &[Vec<f32>], v: &[f32]) -> f64 {
    let dot = |u: &Vec<f32>| u.iter().zip(v).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
    units.iter().map(|u| dot(u).powi(2)).sum::<f64>().sqrt()
}

fn find(source: &dyn Source) -> Findings {
    abliteration::find(source, &mut |_, _| ()).unwrap()
}

/// Scores a finding against the truth: number of layers found correctly, number of layers found in error, least cosine,
/// mean cosine.
fn judge(m: &Model, removal: &Removal, ablated: &AblatedDirection) -> (usize, usize, f64, f64) {
    let truth = removal.layers(m.n_layer);
    let (right, wrong): (Vec<_>, Vec<_>) = ablated.layers.iter().partition(|l| truth.contains(&l.layer));
    let cosines: Vec<f64> = right.iter().map(|l| cosine(removal.in_layer(l.layer), &l.unit)).collect();
    let mean = cosines.iter().sum::<f64>() / cosines.len().max(1) as f64;
    (right.len(), wrong.len(), cosines.into_iter().fold(1.0, f64::min), mean)
}

/// Asserts that the removal is found in exactly its layers, along its directions.
fn expect(m: &Model, removal: &Removal, ggml_type: GgmlType, least_cosine: f64) {
    let what = format!("{} weight {} in {:?} as {ggml_type}", m.name, removal.weight, removal.share);
    let ablated =
        find(&m.copy(removal, ggml_type)).ablated.unwrap_or_else(|| panic!("{what}: nothing found"));
    let (right, wrong, _, mean) = judge(m, removal, &ablated);
    assert_eq!((right, wrong), (removal.layers(m.n_layer).len(), 0), "{what}");
    assert!(mean > least_cosine, "{what}: {mean}");
    if removal.units.len() == 1 {
        let common = cosine(removal.in_layer(0), &ablated.directions[0]);
        assert!(common > least_cosine, "{what}: {common}");
    }
}

#[test]
fn honest_models_have_no_ablated_direction() {
    for name in MODELS {
        let gguf = gguf(name);
        let plan = plan_of(&gguf).unwrap();
        let findings = find(&FileSource::new(&gguf, &plan));
        assert_eq!(findings.ablated, None, "{name}");
        assert!(findings.widest.unwrap().lowest.gap < HONEST_GAP, "{name}");
    }
}

#[test]
fn honest_models_have_none_after_requantization_either() {
    for name in MODELS {
        let model = Model::on_grid(name);
        // Coarse types, which add the most noise.
        for ggml_type in [GgmlType::Q2_K, GgmlType::Q4_0, GgmlType::Q4_K] {
            let findings = find(&model.copy(&Removal::nothing(), ggml_type));
            assert_eq!(findings.ablated, None, "{name} in {ggml_type}");
            assert!(findings.widest.unwrap().lowest.gap < HONEST_GAP, "{name} in {ggml_type}");
        }
    }
}

#[test]
fn ablated_directions_of_smollm2() {
    let m = Model::open("SMOLLM2");
    for (r, share) in [(m.random(7), 0.3..0.7), (m.meaning(), 0.0..1.0), (m.meaning(), 0.3..0.7)] {
        expect(&m, &Removal::of_one(0.8, share.clone(), &r), GgmlType::F32, 0.97);
        expect(&m, &Removal::of_one(1.0, share.clone(), &r), GgmlType::F32, 0.9999);
        expect(&m, &Removal::of_one(1.2, share, &r), GgmlType::F16, 0.97);
    }
    expect(&m, &Removal::of_one(1.0, 0.0..1.0, &m.strongest()), GgmlType::F32, 0.9999);
    expect(&m, &Removal::of_one(1.0, 0.3..0.7, &m.meaning()), GgmlType::Q4_0, 0.999);
    expect(&m, &Removal::of_one(1.0, 0.0..1.0, &m.meaning()), GgmlType::Q4_K, 0.999);
    expect(&m, &Removal::per_layer(1.0, 0.3..0.7, m.drifting()), GgmlType::Q4_0, 0.99);
    expect(&m, &Removal::per_layer(0.8, 0.3..0.7, m.unrelated()), GgmlType::F32, 0.95);
}

#[test]
fn ablated_directions_of_gemma3_with_its_post_norms() {
    let m = Model::open("GEMMA3");
    let one_kind = Removal { only: Some(Group::Mixer), ..Removal::of_one(1.0, 0.0..1.0, &m.meaning()) };
    expect(&m, &one_kind, GgmlType::Q4_0, 0.999);
    expect(&m, &Removal::of_one(0.8, 0.3..0.7, &m.meaning()), GgmlType::Q4_K, 0.96);
    expect(&m, &Removal::of_one(1.2, 0.0..1.0, &m.random(7)), GgmlType::Q4_0, 0.98);
    expect(&m, &Removal::per_layer(1.0, 0.3..0.7, m.drifting()), GgmlType::F32, 0.999);
}

#[test]
fn ablated_directions_of_qwen() {
    let m = Model::open("QWEN");
    expect(&m, &Removal::of_one(0.8, 0.3..0.7, &m.meaning()), GgmlType::F32, 0.96);
    expect(&m, &Removal::of_one(1.0, 0.0..1.0, &m.meaning()), GgmlType::Q4_0, 0.999);
}

#[test]
fn inspect_tells_it_of_a_file() {
    let (m, source) = (Model::open("SMOLLM2"), gguf("SMOLLM2"));
    let removal = Removal::of_one(1.0, 0.3..0.7, &m.meaning());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("copy.gguf");
    let rewrite = Rewrite::copy(&source);
    let mut replace = |tensor: &TensorInfo| {
        let Some(site) = m.sites.iter().position(|s| s.tensor == tensor.name) else { return Ok(None) };
        let w = m.without(site, &removal);
        let mut bytes = vec![0; tensor.n_bytes() as usize];
        quant::quantize(tensor.ggml_type, w.ncols(), w.as_slice().unwrap(), &mut bytes).unwrap();
        Ok(Some(bytes))
    };
    let mut file = std::fs::File::create(&path).unwrap();
    rewrite.write_to(&mut file, &mut replace, &mut |_, _| Ok(())).unwrap();
    let facts = |path: &Path| parsed(&ran(&["inspect", text(path), "--weights", "--json"]));
    let told = &facts(&path)["abliterated"];
    let layers: Vec<u64> =
        told["layers"].as_array().unwrap().iter().map(|l| l["layer"].as_u64().unwrap()).collect();
    assert_eq!(layers, (9..21).collect::<Vec<u64>>());
    assert!(
        told["times_honest"].as_f64().unwrap() > 2.0 && told["agreement"].as_f64().unwrap() > 0.9,
        "{told}"
    );
    assert_eq!(facts(&source.path)["abliterated"], serde_json::Value::Null);
}

/// `ROSI_ABLATION_TABLE="QWEN Q4_K"` prints only the rows that contain these words.
#[test]
#[ignore = "takes half an hour; prints the data behind the table in src/method/abliteration.rs"]
fn print_the_table() {
    for name in MODELS {
        let m = Model::open(name);
        for ggml_type in [GgmlType::F32, GgmlType::Q4_0, GgmlType::Q4_K] {
            row(&m, "honest", ggml_type, &Removal::nothing());
            for (share, weight) in
                [0.0..1.0, 0.3..0.7].into_iter().flat_map(|s| [0.8, 1.0, 1.2, 1.4].map(|w| (s.clone(), w)))
            {
                let one = |r: &[f32]| Removal::of_one(weight, share.clone(), r);
                row(&m, "random", ggml_type, &one(&m.random(7)));
                row(&m, "meaning", ggml_type, &one(&m.meaning()));
                row(&m, "strongest", ggml_type, &one(&m.strongest()));
                row(&m, "drifting", ggml_type, &Removal::per_layer(weight, share.clone(), m.drifting()));
                row(&m, "unrelated", ggml_type, &Removal::per_layer(weight, share.clone(), m.unrelated()));
            }
            for only in [Group::Mixer, Group::FeedForward] {
                let removal = Removal { only: Some(only), ..Removal::of_one(1.0, 0.0..1.0, &m.meaning()) };
                row(&m, "onekind", ggml_type, &removal);
            }
        }
    }
}

fn row(m: &Model, label: &str, ggml_type: GgmlType, removal: &Removal) {
    let Removal { weight, share, .. } = removal;
    let title = format!("{} {ggml_type} {label} {weight:.1} {share:?}", m.name);
    let wanted = std::env::var("ROSI_ABLATION_TABLE").unwrap_or_default();
    if !wanted.split_whitespace().all(|word| title.contains(word)) {
        return;
    }
    let findings = find(&m.copy(removal, ggml_type));
    let widest = findings.widest.unwrap().lowest.gap;
    let said = findings.ablated.map_or("not found".into(), |s| {
        let (right, wrong, least, mean) = judge(m, removal, &s);
        let all = removal.layers(m.n_layer).len();
        format!(
            "gap {:5.2}, agreement {:.2}, remaining {:.4}, layers {right}/{all} +{wrong}, \
             cosine {mean:.4} (least {least:.4})",
            s.gap, s.agreement, s.remaining
        )
    });
    println!("{title}: widest {widest:.2}, {said}");
}
