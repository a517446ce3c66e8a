//! Scars of removed directions in real weights, and none in honest ones. `scripts/test` fetches the models
//! and sets the `ROSI_TEST_MODEL_*` variables. The copies with a direction removed exist in memory only.

use std::path::PathBuf;

use ndarray::{Array2, ArrayView2};
use rosi_gguf::commands::plan_of;
use rosi_gguf::direction;
use rosi_gguf::edit::{self, EditError};
use rosi_gguf::gguf::{GgmlType, Gguf};
use rosi_gguf::linalg;
use rosi_gguf::quant;
use rosi_gguf::scar::{self, FileSource, Findings, Site, Source};

/// The writers of one model, decoded, and taken off the grid of their quantization by noise of its size:
/// directions are removed from full weights, and those of a 4-bit file would fall back on the same grid.
struct Model {
    name: &'static str,
    n_embd: usize,
    n_layer: usize,
    sites: Vec<Site>,
    /// f32 `[n_embd, n_in]` each.
    weights: Vec<Array2<f32>>,
    /// Some thousand rows of the token embedding.
    embedding: Array2<f32>,
}

fn decode(gguf: &Gguf, name: &str, rows: usize) -> Array2<f32> {
    let info = gguf.tensor(name).unwrap();
    let bytes = gguf.read_tensor(info).unwrap();
    let (n_in, rows) = (info.ne[0] as usize, rows.min(info.n_rows() as usize));
    let mut values = Vec::new();
    edit::for_each_run(info, &bytes[..rows * info.row_bytes() as usize], |_, v| values.extend_from_slice(v))
        .unwrap();
    Array2::from_shape_vec((rows, n_in), values).unwrap()
}

fn gguf(name: &str) -> Gguf {
    let name = format!("ROSI_TEST_MODEL_{name}");
    let path = PathBuf::from(std::env::var_os(&name).unwrap_or_else(|| panic!("{name} is not set: run scripts/test")));
    Gguf::open(&path).unwrap()
}

impl Model {
    fn open(name: &'static str) -> Self {
        let gguf = gguf(name);
        let plan = plan_of(&gguf).unwrap();
        let sites = FileSource::new(&gguf, &plan).sites().to_vec();
        let weights = sites.iter().enumerate().map(|(seed, s)| {
            let mut w = decode(&gguf, &s.tensor, usize::MAX);
            let size = 0.15 * (w.iter().map(|v| v * v).sum::<f32>() / w.len() as f32).sqrt();
            let mut state = seed as u64;
            w.iter_mut().for_each(|v| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *v += size * ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2.0;
            });
            w
        }).collect();
        let embedding = decode(&gguf, "token_embd.weight", 8000);
        Self { name, n_embd: plan.n_embd as usize, n_layer: plan.n_layer, sites, weights, embedding }
    }

    /// A copy with directions removed and the result stored as `ggml_type`.
    fn copy(&self, removal: &Removal, ggml_type: GgmlType) -> Copy {
        let mut grams = Vec::new();
        for (site, weight) in self.sites.iter().zip(&self.weights) {
            let mut w = weight.clone();
            for r in removal.of(site, self.n_layer) {
                let r = ArrayView2::from_shape((self.n_embd, 1), &r).unwrap();
                let along = r.t().dot(&w);
                w.scaled_add(-removal.weight, &r.dot(&along));
            }
            store(&mut w, ggml_type);
            let mut gram = Array2::zeros((self.n_embd, self.n_embd));
            linalg::add_outer(&mut gram, w.view());
            gram *= self.n_embd as f64 / gram.diag().sum();
            grams.push(gram);
        }
        Copy { sites: self.sites.clone(), grams }
    }

    fn honest(&self, ggml_type: GgmlType) -> Copy {
        self.copy(&Removal { weight: 0.0, share: 0.0..0.0, only: None, units: vec![] }, ggml_type)
    }

    fn random(&self, seed: u64) -> Vec<f32> {
        direction::random(0, self.n_embd, seed).unwrap().unit().to_vec()
    }

    /// Difference of the means of two sets of token embeddings: what a direction of meaning looks like.
    fn meaning(&self, seed: usize) -> Vec<f32> {
        let mean = |from: usize| {
            let rows = self.embedding.slice(ndarray::s![from..from + 64, ..]);
            rows.mean_axis(ndarray::Axis(0)).unwrap()
        };
        unit((mean(1000 + 97 * seed) - mean(5000 + 31 * seed)).to_vec())
    }

    /// The direction that a middle writer writes most.
    fn strongest(&self) -> Vec<f32> {
        let w = &self.weights[self.weights.len() / 2 + 1];
        let mut v = self.random(1);
        for _ in 0..60 {
            let x = ArrayView2::from_shape((1, self.n_embd), &v).unwrap().dot(w);
            v = unit(w.dot(&x.t()).into_raw_vec_and_offset().0);
        }
        v
    }

    /// A direction per layer that drifts as refusal does: |cos| between neighbours about 0.85.
    fn drifting(&self) -> Vec<Vec<f32>> {
        let mut units = vec![self.meaning(0)];
        for layer in 1..self.n_layer {
            let last = &units[layer - 1];
            let fresh = self.random(layer as u64);
            units.push(unit(last.iter().zip(&fresh).map(|(a, b)| 0.85 * a + 0.53 * b).collect()));
        }
        units
    }
}

fn unit(mut v: Vec<f32>) -> Vec<f32> {
    let norm = v.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    v.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    v
}

/// Rounds `w` to what `ggml_type` can hold, or, where the rows are too short for it, to Q5_0 as
/// llama-quantize does.
fn store(w: &mut Array2<f32>, ggml_type: GgmlType) {
    let n_in = w.ncols();
    let ggml_type = if ggml_type.row_bytes(n_in as u64).is_some() { ggml_type } else { GgmlType::Q5_0 };
    let row = ggml_type.row_bytes(n_in as u64).unwrap() as usize;
    let chunk = 64;
    let values = w.as_slice_mut().unwrap().chunks_mut(chunk * n_in);
    linalg::in_parallel(2, values, |values| {
        let mut bytes = vec![0; row * (values.len() / n_in)];
        quant::quantize(ggml_type, n_in, values, &mut bytes).unwrap();
        quant::dequantize(ggml_type, n_in, &bytes, values).unwrap();
    });
}

/// `W ← W − weight · Σ r rᵀW` in the layers of `share`.
#[derive(Clone)]
struct Removal {
    weight: f32,
    share: std::ops::Range<f64>,
    only: Option<scar::Group>,
    /// Per layer, the directions; one entry for all layers.
    units: Vec<Vec<Vec<f32>>>,
}

impl Removal {
    fn everywhere(weight: f32, unit: &[f32]) -> Self {
        Self { weight, share: 0.0..1.0, only: None, units: vec![vec![unit.to_vec()]] }
    }

    fn per_layer(weight: f32, units: Vec<Vec<f32>>) -> Self {
        Self { weight, share: 0.0..1.0, only: None, units: units.into_iter().map(|u| vec![u]).collect() }
    }

    fn layers(&self, n_layer: usize) -> std::ops::Range<usize> {
        (self.share.start * n_layer as f64).round() as usize..(self.share.end * n_layer as f64).round() as usize
    }

    fn of(&self, site: &Site, n_layer: usize) -> Vec<Vec<f32>> {
        if !self.layers(n_layer).contains(&site.layer) || self.only.is_some_and(|g| g != site.group) {
            return Vec::new();
        }
        self.units[site.layer.min(self.units.len() - 1)].clone()
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

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>().abs()
}

fn find(copy: &Copy) -> Findings {
    scar::find(copy, &mut |_, _| ()).unwrap()
}


fn line(m: &Model, label: &str, removal: &Removal, t: GgmlType) {
    let f = find(&m.copy(removal, t));
    let w = f.widest.unwrap();
    let layers = removal.layers(m.n_layer);
    let s = f.scar.map_or("NOT FOUND".into(), |s| {
        let right: Vec<_> = s.layers.iter().filter(|l| layers.contains(&l.layer)).collect();
        let cos: Vec<f64> = right.iter().map(|l| {
            let truth = &removal.units[l.layer.min(removal.units.len() - 1)];
            truth.iter().map(|u| cosine(u, &l.unit).powi(2)).sum::<f64>().sqrt()
        }).collect();
        let (mean, min) = (cos.iter().sum::<f64>() / cos.len() as f64, cos.iter().copied().fold(1.0, f64::min));
        let truth = &removal.units[0];
        let common = truth.iter().map(|u| cosine(u, &s.directions[0]).powi(2)).sum::<f64>().sqrt();
        format!("gap {:5.2} agree {:.2} left {:.4} layers {}/{} +{} writers {:?} cos common {common:.4} layers {mean:.4} min {min:.4} rank {}", s.gap, s.agreement, s.remaining, right.len(), layers.len(), s.layers.len() - right.len(), s.writers, s.directions.len())
    });
    println!("{:8} {label:24} {:5} widest {:5.2} {}{:?} | {s}", m.name, t.name(), w.lowest.gap, if w.lowest.dense { 'd' } else { 's' }, w.layers);
}

fn measure(name: &'static str, types: &[GgmlType]) {
    let m = Model::open(name);
    for &t in types {
        line(&m, "honest", &Removal { share: 0.0..0.0, ..Removal::everywhere(0.0, &m.random(1)) }, t);
    }
    let units = [("random", m.random(7)), ("meaning", m.meaning(0)), ("strongest", m.strongest())];
    let independent: Vec<_> = (0..m.n_layer).map(|l| m.random(l as u64 + 50)).collect();
    let both = Removal { units: vec![vec![m.meaning(0), orthogonal(&m.random(99), &m.meaning(0))]], ..Removal::everywhere(1.0, &units[1].1) };
    for &t in types {
        for (label, u) in &units {
            for weight in [0.8, 1.0, 1.2, 1.4] {
                if weight == 1.4 && *label != "meaning" { continue; }
                for share in [0.0..1.0, 0.3..0.7] {
                    line(&m, &format!("{label} {weight} {share:?}"), &Removal { share, ..Removal::everywhere(weight, u) }, t);
                }
            }
        }
        for weight in [0.8, 1.0] {
            for share in [0.0..1.0, 0.3..0.7] {
                line(&m, &format!("drifting {weight} {share:?}"), &Removal { share: share.clone(), ..Removal::per_layer(weight, m.drifting()) }, t);
                line(&m, &format!("independent {weight} {share:?}"), &Removal { share, ..Removal::per_layer(weight, independent.clone()) }, t);
            }
        }
        for g in [scar::Group::Mixer, scar::Group::FeedForward] {
            line(&m, &format!("{g:?} only 1.0"), &Removal { only: Some(g), ..Removal::everywhere(1.0, &units[1].1) }, t);
        }
        line(&m, "two directions", &both, t);
    }
}

fn orthogonal(a: &[f32], b: &[f32]) -> Vec<f32> {
    let along: f32 = a.iter().zip(b).map(|(x, y)| x * y).sum();
    unit(a.iter().zip(b).map(|(x, y)| x - along * y).collect())
}

#[test]
#[ignore = "prints"]
fn measure_smollm2() { measure("SMOLLM2", &types()) }
#[test]
#[ignore = "prints"]
fn measure_gemma3() { measure("GEMMA3", &types()) }
#[test]
#[ignore = "prints"]
fn measure_qwen() { measure("QWEN", &types()) }
fn types() -> Vec<GgmlType> {
    let names = std::env::var("TYPES").unwrap_or("F32".into());
    names.split(',').map(|n| GgmlType::all().find(|t| t.name().eq_ignore_ascii_case(n)).unwrap()).collect()
}
