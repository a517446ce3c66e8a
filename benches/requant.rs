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
        let texts: Vec<String> = prompts.select(kind, Split::Extract).iter().map(|p| p.text.clone()).collect();
        engine.collect(&chats(&texts, None), &capture).unwrap()
    };
    let (harmful, harmless) = (of(PromptKind::Harmful), of(PromptKind::Harmless));
    let directions = direction::difference_in_means(&harmful, &harmless).unwrap();
    let dir = &directions.by_layer[15];
    let weights: Vec<_> = plan.writers.iter().map(|w| edit::read_weights(&gguf, w).unwrap()).collect();
    let edits = edit::published(&plan, &weights, dir, strength).unwrap();
    let q = Questions::of(&prompts, Split::Report, [32, 32, 0]);
    let cap = Capture::new(&plan);
    engine.apply(&[]).unwrap();
    let base = Snapshot::of(&mut engine, &q, &cap).unwrap();
    engine.apply(&edits.iter().map(Edit::to_rank_one).collect::<Vec<_>>()).unwrap();
    let exact = Snapshot::of(&mut engine, &q, &cap).unwrap();
    drop(engine);
    for (name, requant, k) in [("nearest", Requant::Nearest, 0), ("preserve k=0", Requant::Preserve, 0), ("preserve k=1", Requant::Preserve, 1), ("preserve k=4", Requant::Preserve, 4), ("preserve k=8", Requant::Preserve, 8), ("preserve k=16", Requant::Preserve, 16), ("preserve k=32", Requant::Preserve, 32)] {
        let inputs: Vec<InputModel> = harmful.inputs.iter().zip(&harmless.inputs).map(|(a, b)| if k == 0 { InputModel::default() } else { activations::input_model(&[a, b], k) }).collect();
        let out = std::path::PathBuf::from("/tmp/w/bench.gguf");
        let mut file = std::fs::File::create(&out).unwrap();
        let t = std::time::Instant::now();
        Rewrite::copy(&gguf).write_to(&mut file, &mut |t| {
            let Some(e) = edits.iter().find(|e| e.tensor == t.name) else { return Ok(None) };
            Ok(Some(requant::apply(e, (t, gguf.read_tensor(t)?), requant, &inputs[e.writer])?))
        }, &mut |_, _| Ok(())).unwrap();
        drop(file);
        let secs = t.elapsed().as_secs_f64();
        let written = Gguf::open(&out).unwrap();
        let v = verify(&gguf, &written, &edits, &mut |_, _| ()).unwrap();
        let noise = (v.tensors.iter().map(|t| t.noise.unwrap().powi(2)).sum::<f64>() / v.tensors.len() as f64).sqrt();
        let mut engine = load(&out, &gguf);
        let snap = Snapshot::of(&mut engine, &q, &cap).unwrap();
        let f = Fidelity::of(&base, &exact, &snap, dir);
        println!("{name}: {secs:.1}s gain {:.4} cos {:.4} noise {noise:.2} shift {:.4} KL harmful {:.5} harmless {:.5}", v.gain.unwrap(), v.cosine.unwrap(), f.mean_shift, f.kl_harmful, f.kl_harmless);
    }
}
