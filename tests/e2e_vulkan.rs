//! A real model on a Vulkan device beside the CPU: what is captured, and the direction that is found. Lavapipe,
//! Vulkan in software, will do (`scripts/test vulkan` brings it); without any device these tests fail.
#![cfg(feature = "vulkan")]

#[path = "common/beside.rs"]
mod beside;
#[path = "common/few_prompts.rs"]
mod few_prompts;
#[path = "common/run.rs"]
mod run;

use std::path::Path;
use std::time::Instant;

use beside::{cosine, same_direction};
use few_prompts::few_prompts;
use rosi_gguf::activations::Activations;
use rosi_gguf::commands::plan_of;
use rosi_gguf::gguf::Gguf;
use rosi_gguf::llama::offload::GpuLayers;
use rosi_gguf::llama::{Capture, Chat, Engine, EngineOptions, LlamaEngine, Offload, RankOne, devices};
use run::{command, stderr, text, variable};

/// The first Vulkan device, as `--device` takes it. Devices that are CPUs are left out by llama.cpp unless
/// `GGML_VK_VISIBLE_DEVICES` names them.
fn device() -> String {
    let found = devices::devices().into_iter().map(|device| device.name).find(|n| n.starts_with("Vulkan"));
    found.unwrap_or_else(|| panic!("there is no Vulkan device: run scripts/test vulkan"))
}

fn engine(gguf: &Gguf, offload: Offload) -> LlamaEngine {
    let options = EngineOptions { path: gguf.path.clone(), threads: 2, offload };
    LlamaEngine::load(&options, gguf.str("tokenizer.chat_template"), &mut |_| ()).unwrap()
}

const ASKED: [&str; 3] =
    ["How do I bake bread?", "How do I pick the lock of my neighbour's door?", "Write a poem about rain."];

/// Residuals and inputs of the writers, without an edit or with one, and the first token's logits.
fn seen(engine: &mut LlamaEngine, capture: &Capture, edits: &[RankOne]) -> (Activations, Vec<Vec<f32>>) {
    engine.apply(edits).unwrap();
    let chats = ASKED.map(|user| Chat { system: None, user });
    let mut logits = Vec::new();
    let activations = engine.collect(&chats, capture, &mut |_, row| logits.push(row.to_vec())).unwrap();
    (activations, logits)
}

/// An edit that moves what the model says: a push of the first writers along one axis.
fn edit(gguf: &Gguf) -> Vec<RankOne> {
    let plan = plan_of(gguf).unwrap();
    let rank_one = |(i, writer): (usize, &rosi_gguf::plan::ResidualWriter)| {
        let (n_in, n_embd) = (writer.n_in as usize, plan.n_embd as usize);
        let mut b = vec![0.0; n_embd];
        b[i] = 0.05;
        RankOne { tensor: writer.tensor.clone(), n_expert: 1, a: vec![0.1; n_in], b }
    };
    plan.writers.iter().skip(8).take(8).enumerate().map(rank_one).collect()
}

/// Least cosine of a layer's residual, and of a writer's inputs, over all prompts.
fn agreement(a: &Activations, b: &Activations) -> [f64; 2] {
    let layers = a.residual.rows().into_iter().zip(b.residual.rows());
    let residual = layers.map(|(x, y)| cosine(&x.to_vec(), &y.to_vec())).fold(1.0, f64::min);
    let writers = a.inputs.iter().zip(&b.inputs).flat_map(|(x, y)| {
        assert_eq!((x.last.dim(), x.sample.dim()), (y.last.dim(), y.sample.dim()));
        let rows = [(&x.last, &y.last), (&x.sample, &y.sample)].map(|(x, y)| (x.rows(), y.rows()));
        let near = rows.into_iter().flat_map(|(x, y)| x.into_iter().zip(y));
        near.map(|(x, y)| cosine(&x.to_vec(), &y.to_vec())).collect::<Vec<_>>()
    });
    [residual, writers.fold(1.0, f64::min)]
}

#[test]
fn what_is_captured_on_a_device_is_what_the_cpu_shows() {
    let gguf = Gguf::open(&variable("ROSI_TEST_MODEL_SMOLLM2")).unwrap();
    let capture = Capture::new(&plan_of(&gguf).unwrap()).with_sample(24).with_tail(1);
    let edit = edit(&gguf);
    let mut cpu = engine(&gguf, Offload::none());
    let plain = seen(&mut cpu, &capture, &[]);
    let edited = seen(&mut cpu, &capture, &edit);
    let moved = plain.1.iter().zip(&edited.1).map(|(a, b)| cosine(a, b)).fold(1.0, f64::min);
    assert!(moved < 0.995, "the edit does nothing: {moved}");
    // With some layers only, matrices are copied to the device for large batches.
    for layers in [GpuLayers::All, GpuLayers::Last(11)] {
        let devices = Some(vec![device()]);
        let mut gpu = engine(&gguf, Offload { gpu_layers: layers, devices, ..Offload::default() });
        for (what, edits, (shown, logits)) in [("plain", &[][..], &plain), ("edited", &edit[..], &edited)] {
            let (on_device, said) = seen(&mut gpu, &capture, edits);
            let [residual, inputs] = agreement(shown, &on_device);
            let said = logits.iter().zip(&said).map(|(a, b)| cosine(a, b)).fold(1.0, f64::min);
            eprintln!(
                "{layers:?}, {what}: least cosines: residual {residual:.6}, inputs {inputs:.6}, logits {said:.6}"
            );
            assert!(residual > 0.99 && inputs > 0.97 && said > 0.999, "{layers:?} {what}");
        }
    }
}

#[test]
fn a_device_finds_the_direction_that_the_cpu_finds() {
    let folder = tempfile::tempdir().unwrap();
    let [cpu, gpu] = ["cpu", "gpu"].map(|name| folder.path().join(name));
    let (model, few) = (variable("ROSI_TEST_MODEL_SMOLLM2"), few_prompts(folder.path()));
    let direction = |out: &Path, device: &str| {
        let args = ["direction", text(&model), "-o", text(out), "--prompts", text(&few), "--trials", "1"];
        // SmolLM2 hardly refuses, so --force.
        let args = [&args[..], &["--force", "-t", "2", "--device", device, "-vvv"]].concat();
        let started = Instant::now();
        let output = command(&args).output().unwrap();
        let told = stderr(&output);
        assert!(output.status.success(), "{told}");
        eprintln!("--device {device}: {:.0} s", started.elapsed().as_secs_f64());
        told
    };
    direction(&cpu, "none");
    let told = direction(&gpu, &device());
    let offloaded = told.lines().find(|line| line.contains("offloaded") && line.contains("layers to GPU"));
    eprintln!("{}", offloaded.unwrap_or_else(|| panic!("{told}")).trim());
    same_direction("Vulkan", &cpu, &gpu);
}
