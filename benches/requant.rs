//! scratch
use rosi_gguf::activations;
use rosi_gguf::commands::plan_of;
use rosi_gguf::direction;
use rosi_gguf::edit::{self, Edit};
use rosi_gguf::evaluate::fidelity::{Fidelity, Snapshot};
use rosi_gguf::evaluate::{Questions, chats};
use rosi_gguf::gguf::{Gguf, Rewrite};
use rosi_gguf::llama::{Capture, Engine, EngineOptions, LlamaEngine};
use rosi_gguf::prompts::{PromptKind, PromptSet, Split};
use rosi_gguf::quant::preserve::InputModel;
use rosi_gguf::requant::{self, Requant};
use rosi_gguf::verify::verify;
use std::path::Path;

fn load(path: &Path, gguf: &Gguf) -> LlamaEngine {
    let o = EngineOptions { path: path.to_path_buf(), threads: 2, n_gpu_layers: 0 };
    LlamaEngine::load(&o, gguf.str("tokenizer.chat_template"), &mut |_| ()).unwrap()
}

fn main() {
    let path = std::path::PathBuf::from(std::env::var("MODEL").unwrap());
    let strength: f64 = std::env::var("STRENGTH").ok().and_then(|s| s.parse().ok()).unwrap_or(0.03);
    let gguf = Gguf::open(&path).unwrap();
    let plan = plan_of(&gguf).unwrap();
    let prompts = PromptSet::bundled();
    let mut engine = load(&path, &gguf);
    let capture = Capture::new(&plan).with_sample(256);
    let mut of = |kind| {
        let texts: Vec<String> =
            prompts.select(kind, Split::Extract).iter().map(|p| p.text.clone()).collect();
        engine.collect(&chats(&texts, None), &capture).unwrap()
    };
    let (harmful, harmless) = (of(PromptKind::Harmful), of(PromptKind::Harmless));
    let directions = direction::difference_in_means(&harmful, &harmless).unwrap();
    let dir = &directions.by_layer[15];
    let weights: Vec<_> = plan.writers.iter().map(|w| edit::read_weights(&gguf, w).unwrap()).collect();
    let edits = edit::published(&plan, &weights, dir, strength).unwrap();
    let test_kind = |engine: &mut LlamaEngine, kind| {
        let texts: Vec<String> =
            prompts.select(kind, Split::Report).iter().take(32).map(|p| p.text.clone()).collect();
        engine.collect(&chats(&texts, None), &capture).unwrap()
    };
    let tests = [test_kind(&mut engine, PromptKind::Harmful), test_kind(&mut engine, PromptKind::Harmless)];
    drop(engine);
    for spec in std::env::args().skip(1).filter(|a| a != "--bench") {
        let mut parts = spec.split(',');
        let (norm, k, along, least, ex): (u32, usize, f32, f32, f32) = (
            parts.next().unwrap().parse().unwrap(),
            parts.next().unwrap().parse().unwrap(),
            parts.next().unwrap().parse().unwrap(),
            parts.next().unwrap().parse().unwrap(),
            parts.next().unwrap().parse().unwrap(),
        );
        rosi_gguf::quant::preserve::TUNE.lock().unwrap().2 = ex;
        rosi_gguf::quant::preserve::TUNE.lock().unwrap().0 = along;
        rosi_gguf::quant::preserve::TUNE.lock().unwrap().1 = least;
        rosi_gguf::activations::NORM.store(norm, std::sync::atomic::Ordering::SeqCst);
        let mut sums = std::collections::BTreeMap::<String, [f64; 6]>::new();
        let mut spent = 0.0;
        for e in edits.iter().filter(|e| e.writer % 4 < 2) {
            let info = gguf.tensor(&e.tensor).unwrap();
            let bytes = gguf.read_tensor(info).unwrap();
            let (requant, inputs) = if k == 999 {
                (Requant::Nearest, InputModel::default())
            } else if k == 0 {
                (Requant::Preserve, InputModel::default())
            } else {
                (
                    Requant::Preserve,
                    activations::input_model(&[&harmful.inputs[e.writer], &harmless.inputs[e.writer]], k),
                )
            };
            let t = std::time::Instant::now();
            let new = requant::apply(e, (info, bytes.clone()), requant, &inputs).unwrap();
            spent += t.elapsed().as_secs_f64();
            let n_in = info.ne[0] as usize;
            let decode = |b: &[u8]| {
                let mut v = Vec::new();
                edit::for_each_run(info, b, |_, x| v.extend_from_slice(x)).unwrap();
                ndarray::Array2::from_shape_vec((info.ne[1] as usize, n_in), v).unwrap()
            };
            let mut n = decode(&new) - decode(&bytes);
            let mut delta = ndarray::Array2::<f32>::zeros(n.dim());
            for (i, l) in e.left.iter().enumerate() {
                for (j, r) in e.right.iter().enumerate() {
                    delta[[i, j]] = (f64::from(*l) * e.alpha) as f32 * r;
                }
            }
            n -= &delta;
            let entry = sums.entry(format!("{}", info.ggml_type)).or_default();
            entry[0] += n.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / e.norm_sq();
            entry[1] += 1.0;
            for (s, set) in tests.iter().enumerate() {
                let unit = |x: &ndarray::Array2<f32>| {
                    let mut y = x.clone();
                    for mut r in y.rows_mut() {
                        let norm = r.dot(&r).sqrt().max(1e-9);
                        r /= norm;
                    }
                    y
                };
                for (w, rows) in
                    [&set.inputs[e.writer].last, &set.inputs[e.writer].sample].into_iter().enumerate()
                {
                    if rows.nrows() == 0 {
                        continue;
                    }
                    let x = unit(rows);
                    let noise: f64 = n.dot(&x.t()).iter().map(|v| f64::from(*v).powi(2)).sum();
                    let want: f64 = delta.dot(&x.t()).iter().map(|v| f64::from(*v).powi(2)).sum();
                    let _ = s;
                    entry[2 + w] += noise / want / 2.0;
                    let along: f64 = ndarray::Array1::from(e.left.clone())
                        .dot(&n)
                        .dot(&x.t())
                        .iter()
                        .map(|v| f64::from(*v).powi(2))
                        .sum();
                    entry[4 + w] += along / want / 2.0;
                }
            }
        }
        println!("norm {norm} k {k} along {along} least {least} pace {ex}: {spent:.2}s");
        for (t, s) in sums {
            println!(
                "   {t}: noise/edit {:.3} out last {:.4} all {:.4} | along last {:.5} all {:.5}",
                s[0] / s[1],
                s[2] / s[1],
                s[3] / s[1],
                s[4] / s[1],
                s[5] / s[1]
            );
        }
    }
}
