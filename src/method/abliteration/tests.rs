//! Tests on small random weights with decaying spectra like those of real models; `tests/e2e/abliteration.rs` uses real
//! ones.

use ndarray::Array2;

use super::*;
use crate::arch::patches::Patches;
use crate::arch::plan::Plan;
use crate::gguf::{GgmlType, Gguf, GgufBuilder, Value};
use crate::method::direction;
use crate::quant;

const N_EMBD: usize = 96;
const N_LAYER: usize = 8;

struct Memory {
    sites: Vec<Site>,
    weights: Vec<Array2<f32>>,
}

impl Source for Memory {
    fn n_embd(&self) -> usize {
        self.weights[0].nrows()
    }

    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn gram(&self, site: usize) -> Result<Array2<f64>, EditError> {
        let mut gram = Array2::zeros((self.n_embd(), self.n_embd()));
        linalg::add_outer(&mut gram, self.weights[site].view());
        let trace = gram.diag().sum();
        if trace > 0.0 {
            gram *= self.n_embd() as f64 / trace;
        }
        Ok(gram)
    }

    fn energies(&self, site: usize, units: &Array2<f32>) -> Result<Vec<f64>, EditError> {
        let square = |a: &f32| f64::from(*a).powi(2);
        let w = &self.weights[site];
        let total = w.iter().map(square).sum::<f64>().max(f64::MIN_POSITIVE) / self.n_embd() as f64;
        Ok(units.dot(w).rows().into_iter().map(|r| r.iter().map(square).sum::<f64>() / total).collect())
    }
}

fn unit(seed: u64, n: usize) -> Vec<f32> {
    direction::random(0, n, seed).unwrap().unit().to_vec()
}

/// `[rows, columns]` of independent normal values.
fn normal(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
    let values = unit(seed, rows * columns);
    Array2::from_shape_vec((rows, columns), values).unwrap() * ((rows * columns) as f32).sqrt()
}

impl Memory {
    /// Writers `Q D Z`: Z is random, D decays as k^-0.3, Q is a rotation.
    fn honest(seed: u64) -> Self {
        let decay = ndarray::Array1::from_shape_fn(N_EMBD, |k| (k as f32 + 1.0).powf(-0.3));
        let mut mixing = Array2::from_diag(&decay);
        for k in 0..8 {
            let v = Array2::from_shape_vec((N_EMBD, 1), unit(100 * seed + k, N_EMBD)).unwrap();
            mixing = &mixing - v.dot(&v.t().dot(&mixing)) * 2.0;
        }
        let (mut sites, mut weights) = (Vec::new(), Vec::new());
        for layer in 0..N_LAYER {
            for (group, n_in) in [(Group::Mixer, N_EMBD), (Group::FeedForward, 4 * N_EMBD)] {
                let tensor = format!("{layer}.{group:?}");
                sites.push(Site { tensor, layer, group, columns: n_in });
                weights.push(mixing.dot(&normal(N_EMBD, n_in, 1000 * seed + sites.len() as u64)));
            }
        }
        Self { sites, weights }
    }

    /// Applies `W ← W − weight · r rᵀW` to each site for which `unit` returns an r.
    fn without(mut self, weight: f32, unit: impl Fn(&Site) -> Option<Vec<f32>>) -> Self {
        for (site, w) in self.sites.iter().zip(&mut self.weights) {
            if let Some(r) = unit(site) {
                let r = Array2::from_shape_vec((r.len(), 1), r).unwrap();
                let along = r.t().dot(w);
                w.scaled_add(-weight, &r.dot(&along));
            }
        }
        self
    }

    fn ablated(&self) -> Option<AblatedDirection> {
        find(self, &mut |_, _| ()).unwrap().ablated
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>().abs()
}

#[test]
fn honest_weights_have_no_ablated_direction() {
    for seed in 0..24 {
        let findings = find(&Memory::honest(seed), &mut |_, _| ()).unwrap();
        assert_eq!(findings.ablated, None, "{seed}");
        assert!(findings.widest.unwrap().lowest.gap < HONEST_GAP, "{seed}");
    }
}

#[test]
fn an_exact_projection_is_found_with_its_direction() {
    let r = unit(7, N_EMBD);
    let ablated = Memory::honest(1).without(1.0, |_| Some(r.clone())).ablated().unwrap();
    assert!(cosine(&ablated.directions[0], &r) > 0.999_999);
    assert_eq!((ablated.directions.len(), ablated.writers, ablated.layers.len()), (1, (16, 16), N_LAYER));
    assert!(ablated.gap > 8.0 && ablated.remaining < 1e-6 && ablated.agreement == 1.0, "{ablated:?}");
}

#[test]
fn partial_weights_are_found() {
    let r = unit(7, N_EMBD);
    for weight in [0.8, 1.2] {
        let ablated = Memory::honest(2).without(weight, |_| Some(r.clone())).ablated().unwrap();
        assert!(cosine(&ablated.directions[0], &r) > 0.98, "{weight}");
        assert_eq!(ablated.writers, (16, 16), "{weight}");
        assert!((0.01..0.1).contains(&ablated.remaining), "{weight} {}", ablated.remaining);
    }
}

#[test]
fn a_direction_of_its_own_in_each_layer_is_found() {
    let own = |layer: usize| unit(70 + layer as u64, N_EMBD);
    let ablated = Memory::honest(3).without(1.0, |s| Some(own(s.layer))).ablated().unwrap();
    assert_eq!(ablated.layers.len(), N_LAYER);
    for layer in &ablated.layers {
        assert!(cosine(&layer.unit, &own(layer.layer)) > 0.999, "{}", layer.layer);
    }
}

#[test]
fn layers_and_kinds_that_were_left_alone_are_not_named() {
    let r = unit(7, N_EMBD);
    let some = |s: &Site| ((2..6).contains(&s.layer) && s.group == Group::FeedForward).then(|| r.clone());
    let ablated = Memory::honest(4).without(1.0, some).ablated().unwrap();
    let names: Vec<&String> = ablated.layers.iter().flat_map(|l| &l.tensors).collect();
    assert_eq!(names, ["2.FeedForward", "3.FeedForward", "4.FeedForward", "5.FeedForward"]);
    assert!(cosine(&ablated.directions[0], &r) > 0.999);
}

#[test]
fn two_directions_are_told_apart_from_one() {
    let (a, b) = (unit(7, N_EMBD), unit(8, N_EMBD));
    let twice = Memory::honest(5).without(1.0, |_| Some(a.clone()));
    // Orthogonalize b against a, so that exactly their plane is removed.
    let along = b.iter().zip(&a).map(|(x, y)| x * y).sum::<f32>();
    let b: Vec<f32> = b.iter().zip(&a).map(|(x, y)| x - along * y).collect();
    let norm = b.iter().map(|v| v * v).sum::<f32>().sqrt();
    let b: Vec<f32> = b.iter().map(|v| v / norm).collect();
    let ablated = twice.without(1.0, |_| Some(b.clone())).ablated().unwrap();
    assert_eq!(ablated.directions.len(), 2);
    for d in &ablated.directions {
        assert!((cosine(d, &a).powi(2) + cosine(d, &b).powi(2) - 1.0).abs() < 1e-4);
    }
}

#[test]
fn the_mean_that_layer_norm_removes_is_not_ablated() {
    let ones = vec![(N_EMBD as f32).sqrt().recip(); N_EMBD];
    assert_eq!(Memory::honest(6).without(1.0, |_| Some(ones.clone())).ablated(), None);
}

#[test]
fn dead_coordinates_and_dead_writers_are_not_ablated() {
    let mut memory = Memory::honest(7);
    memory.weights.iter_mut().for_each(|w| w.row_mut(5).fill(0.0));
    memory.weights[3].fill(0.0);
    assert_eq!(memory.ablated(), None);
    for w in &mut memory.weights {
        let copy = w.row(9).to_owned();
        w.row_mut(10).assign(&copy);
    }
    assert_eq!(memory.ablated(), None, "two rows alike");
}

#[test]
fn what_is_too_narrow_is_not_judged() {
    let sites = Memory::honest(1).sites;
    let weights = sites.iter().map(|s| normal(32, s.columns, s.layer as u64 + 5)).collect();
    let r = unit(7, 32);
    let memory = Memory { sites, weights }.without(1.0, |_| Some(r.clone()));
    let findings = find(&memory, &mut |_, _| ()).unwrap();
    assert_eq!(findings, Findings { ablated: None, widest: None });
}

#[test]
fn one_line_says_it_all() {
    let layer = |layer| AblatedLayer { layer, tensors: vec![], remaining: 0.04, cosine: 1.0, unit: vec![] };
    let ablated = AblatedDirection {
        gap: 2.5,
        times_honest: 2.5 / HONEST_GAP,
        agreement: 1.0,
        remaining: 0.04,
        writers: (8, 24),
        layers: [3, 4, 5, 9].map(layer).into(),
        directions: vec![vec![1.0]],
    };
    insta::assert_snapshot!(ablated.describe(), @"yes: a direction was removed from 8 of 24 writers, layers 3-5, 9; gap 2.5, 2.3 times the widest in unmodified models; 4.0 % of the usual weight remains");
    let ablated = AblatedDirection { gap: 1.0, times_honest: 1.0 / HONEST_GAP, ..ablated };
    insta::assert_snapshot!(ablated.describe(), @"yes: a direction was removed from 8 of 24 writers, layers 3-5, 9; gap 1.0, which no unmodified model shows in so many layers; 4.0 % of the usual weight remains");
}

#[test]
fn small_gaps_count_where_enough_layers_show_one_and_one_is_clear() {
    let region = |(layer, &gap): (usize, &f64)| {
        let lowest = Lowest { gap, rank: 1, dense: true, basis: vec![vec![1.0]] };
        Some(Region { layers: layer..layer + 1, group: None, lowest })
    };
    let found = |gaps: &[f64]| {
        let layers: Vec<_> = gaps.iter().enumerate().map(region).collect();
        Suspects::of(&layers, &[]).layers.iter().map(|l| l.layers.start).collect::<Vec<_>>()
    };
    assert_eq!(found(&[0.96, 0.1, 1.19, 0.78, 0.5]), [0, 2, 3]);
    assert_eq!(found(&[0.1, 0.1, 1.19, 0.5, 0.5]), [0; 0]);
    assert_eq!(found(&[0.96, 0.8, 0.79, 0.78, 0.5]), [0; 0]);
    // If enough layers are clear, no others are reported: an honest layer may be among them.
    assert_eq!(found(&[0.96, 1.1, 1.19, 0.78, 0.5]), [1, 2]);
    // A tenth of 24 layers is three.
    let mut gaps = [0.1; 24];
    gaps[..2].copy_from_slice(&[1.2, 0.8]);
    assert_eq!(found(&gaps), [0; 0]);
    gaps[9] = 0.76;
    assert_eq!(found(&gaps), [0, 1, 9]);
}

/// Writes a file with one dense writer and one writer of many experts.
fn file_with_experts(dir: &std::path::Path) -> (Gguf, [Array2<f32>; 2]) {
    const N_EXPERT: usize = 24;
    let (n, n_in) = (64, 32);
    let dense = normal(n, n, 3);
    let experts = normal(n * N_EXPERT, n_in, 4);
    let bytes = |w: &Array2<f32>| {
        let mut bytes = vec![0; w.len() * 4];
        quant::quantize(GgmlType::F32, w.ncols(), w.as_slice().unwrap(), &mut bytes).unwrap();
        bytes
    };
    let file = GgufBuilder::new()
        .string("general.architecture", "llama")
        .kv("llama.block_count", Value::U32(1))
        .kv("llama.embedding_length", Value::U32(n as u32))
        .kv("llama.expert_count", Value::U32(N_EXPERT as u32))
        .f32_tensor("token_embd.weight", &[n as u64, 2], &vec![0.5; 2 * n])
        .tensor("blk.0.attn_output.weight", &[n as u64, n as u64], GgmlType::F32, bytes(&dense))
        .tensor(
            "blk.0.ffn_down_exps.weight",
            &[32, n as u64, N_EXPERT as u64],
            GgmlType::F32,
            bytes(&experts),
        );
    let path = dir.join("m.gguf");
    file.write_to(&mut std::fs::File::create(&path).unwrap()).unwrap();
    // 24 experts of 32 columns are 768 columns, more than 8 · 64, so every second one is kept.
    let mut kept = Array2::zeros((n, N_EXPERT * n_in / 2));
    for ((i, j), v) in kept.indexed_iter_mut() {
        let (expert, column) = (2 * j / n_in, 2 * j % n_in);
        *v = experts[[expert * n + i, column]];
    }
    (Gguf::open(&path).unwrap(), [dense, kept])
}

#[test]
fn a_file_gives_the_grams_of_its_weights() {
    let dir = tempfile::tempdir().unwrap();
    let (gguf, weights) = file_with_experts(dir.path());
    let plan = Plan::resolve(&gguf, &Patches::embedded().unwrap()).unwrap();
    let source = FileSource::new(&gguf, &plan);
    assert_eq!(source.sites().iter().map(|s| s.columns).collect::<Vec<_>>(), [64, 384]);
    let r = unit(2, 64);
    let units = Array2::from_shape_vec((1, 64), r.clone()).unwrap();
    for (site, w) in weights.iter().enumerate() {
        let w = w.mapv(f64::from);
        let exact = w.dot(&w.t()) * (64.0 / w.iter().map(|v| v * v).sum::<f64>());
        let gram = source.gram(site).unwrap();
        for i in 0..64 {
            assert!((0..=i).all(|j| (gram[[i, j]] - exact[[i, j]]).abs() < 1e-5), "{site} {i}");
        }
        let r = ndarray::Array1::from(r.clone()).mapv(f64::from);
        let energy = source.energies(site, &units).unwrap()[0];
        assert!((energy - r.dot(&exact.dot(&r))).abs() < 1e-5, "{site}");
    }
}
