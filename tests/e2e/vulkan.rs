//! Compares tiny random models on a Vulkan device with the CPU: the captured activations and the direction found.
//! Lavapipe, a software implementation of Vulkan, suffices (`scripts/test vulkan` provides it), but is too slow for
//! trained models. Without a device, these tests fail.

use std::path::Path;
use std::time::Instant;

use crate::common::beside::{cosine, same_direction};
use crate::common::few_prompts::short_prompts;
use crate::common::run::{ended, stderr};
use crate::common::talking::{directing, models};
use rosi_gguf::arch::plan::ResidualWriter;
use rosi_gguf::gguf::Gguf;
use rosi_gguf::llama::activations::Activations;
use rosi_gguf::llama::offload::GpuLayers;
use rosi_gguf::llama::{Capture, Chat, Engine, EngineOptions, LlamaEngine, LowRank, Offload, devices};
use rosi_gguf::pipeline::plan_of;

/// Returns the name of the first Vulkan device, as accepted by `--device`. llama.cpp ignores devices that are CPUs
/// unless `GGML_VK_VISIBLE_DEVICES` names them.
fn device() -> String {
    let found = devices::devices().into_iter().map(|device| device.name).find(|n| n.starts_with("Vulkan"));
    found.unwrap_or_else(|| panic!("no Vulkan device found: run scripts/test vulkan"))
}

fn engine(gguf: &Gguf, offload: Offload) -> LlamaEngine {
    let options = EngineOptions { path: gguf.path.clone(), threads: 2, offload };
    LlamaEngine::load(&options, gguf.str("tokenizer.chat_template"), &mut |_| ()).unwrap()
}

const ASKED: [&str; 3] = ["bake bread", "pick the lock of a door", "write of rain"];

/// Returns the residuals and writer inputs with `edits` applied, and the logits of the first token.
fn seen(engine: &mut LlamaEngine, capture: &Capture, edits: &[LowRank]) -> (Activations, Vec<Vec<f32>>) {
    engine.apply(edits).unwrap();
    let chats = ASKED.map(Chat::of);
    let mut logits = Vec::new();
    let activations = engine.collect(&chats, capture, &mut |_, row| logits.push(row.to_vec())).unwrap();
    (activations, logits)
}

/// Returns an edit that changes the logits: a rank-one update of every writer in the blocks, including experts.
fn edit(gguf: &Gguf) -> Vec<LowRank> {
    let plan = plan_of(gguf).unwrap();
    let rank_one = |writer: &ResidualWriter| {
        let (n_expert, n_embd) = (writer.n_expert as usize, plan.n_embd as usize);
        let a = (0..n_expert * writer.n_in as usize).map(|i| (i as f32).sin());
        let b = (0..n_expert * n_embd).map(|i| (i as f32).cos());
        LowRank {
            tensor: writer.tensor.clone(),
            n_expert: writer.n_expert,
            rank: 1,
            a: a.collect(),
            b: b.collect(),
        }
    };
    plan.writers.iter().filter(|w| w.tensor.starts_with("blk.")).map(rank_one).collect()
}

/// Returns the least cosine of a residual and of a writer's input, over all layers, writers and prompts.
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
    let folder = tempfile::tempdir().unwrap();
    for path in models(folder.path()) {
        let gguf = Gguf::open(&path).unwrap();
        let capture = Capture::new(&plan_of(&gguf).unwrap()).with_sample(24).with_tail(&[1]);
        let edit = edit(&gguf);
        let mut cpu = engine(&gguf, Offload::none());
        let plain = seen(&mut cpu, &capture, &[]);
        let edited = seen(&mut cpu, &capture, &edit);
        let moved = plain.1.iter().zip(&edited.1).map(|(a, b)| cosine(a, b)).fold(1.0, f64::min);
        assert!(moved < 0.995, "the edit does nothing: {moved}");
        // With a single layer on the device, llama.cpp copies matrices of the others there for large batches.
        for layers in [GpuLayers::All, GpuLayers::Last(1)] {
            let devices = Some(vec![device()]);
            let mut gpu = engine(&gguf, Offload { gpu_layers: layers, devices, ..Offload::default() });
            for (what, edits, (shown, logits)) in [("plain", &[][..], &plain), ("edited", &edit[..], &edited)]
            {
                let (on_device, said) = seen(&mut gpu, &capture, edits);
                let [residual, inputs] = agreement(shown, &on_device);
                let said = logits.iter().zip(&said).map(|(a, b)| cosine(a, b)).fold(1.0, f64::min);
                let name = gguf.architecture().unwrap();
                eprintln!(
                    "{name}, {layers:?}, {what}: least cosines: residual {residual:.6}, inputs {inputs:.6}, logits {said:.6}"
                );
                assert!(residual > 0.999 && inputs > 0.999 && said > 0.999, "{name} {layers:?} {what}");
            }
        }
    }
}

#[test]
fn a_device_finds_the_direction_that_the_cpu_finds() {
    let folder = tempfile::tempdir().unwrap();
    let few = short_prompts(folder.path());
    // Only the dense model: a search decodes thousands of tokens, and lavapipe manages a few dozen per second.
    let [model, ..] = models(folder.path());
    let [cpu, gpu] = ["cpu", "gpu"].map(|end| model.with_extension(end));
    let direction = |out: &Path, device: &str| {
        let started = Instant::now();
        let args = [&directing(&model, out, &few)[..], &["-vvv", "--device", device]].concat();
        let told = stderr(&ended(&args, 0));
        eprintln!("--device {device}: {:.0} s", started.elapsed().as_secs_f64());
        told
    };
    direction(&cpu, "none");
    let told = direction(&gpu, &device());
    let offloaded = told.lines().find(|line| line.contains("offloaded") && line.contains("layers to GPU"));
    eprintln!("{}", offloaded.unwrap_or_else(|| panic!("{told}")).trim());
    same_direction(&model.file_stem().unwrap().to_string_lossy(), &cpu, &gpu);
}
