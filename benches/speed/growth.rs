//! How cost grows with model size, prompt length and number of prompts, on generated models with zero weights, and the
//! resulting predictions for other models.

use std::fs::File;
use std::path::Path;

use rosi_gguf::gguf::{GgmlType, GgufBuilder, Value};
use rosi_gguf::llama::LlamaEngine;

use crate::clock::medians;
use crate::model::Model;
use crate::{Effort, Failure, predict, table};

/// The shape of a llama model.
struct Shape {
    name: &'static str,
    n_embd: u64,
    n_layer: u32,
    n_ff: u64,
    n_head: u32,
    n_head_kv: u32,
}

const SHAPES: [Shape; 4] = [
    Shape { name: "0.1B", n_embd: 768, n_layer: 12, n_ff: 3072, n_head: 12, n_head_kv: 4 },
    Shape { name: "0.3B", n_embd: 1024, n_layer: 20, n_ff: 4096, n_head: 16, n_head_kv: 8 },
    Shape { name: "1B (as Llama 3.2)", n_embd: 2048, n_layer: 16, n_ff: 8192, n_head: 32, n_head_kv: 8 },
    Shape { name: "3B (as Llama 3.2)", n_embd: 3072, n_layer: 28, n_ff: 8192, n_head: 24, n_head_kv: 8 },
];

/// Tokens per prompt, unless the length is varied.
const LENGTH: usize = 32;
/// Number of prompts, unless it is varied.
const PROMPTS: usize = 32;
const LENGTHS: [usize; 4] = [32, 128, 512, 1000];
const COUNTS: [usize; 3] = [32, 64, 128];

/// Prints the tables.
pub fn run(effort: Effort) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let rounds = if effort == Effort::Short { 1 } else { 3 };
    let shapes = if effort == Effort::Short { &SHAPES[..1] } else { &SHAPES[..] };
    let generated = shapes.iter().map(|shape| Ok((shape.name.to_owned(), shape.model(dir.path())?)));
    let generated: Vec<(String, Model)> = generated.collect::<Result<_, Failure>>()?;
    let rate = by_size(&generated, effort, rounds)?;
    let (name, model) = &generated[0];
    let engine = &mut model.engine()?;
    by_length(engine, name, rounds)?;
    by_count(engine, rounds)?;
    predict::run(rate);
    Ok(())
}

/// Prints the table of sizes and returns the rate for [`predict`].
fn by_size(generated: &[(String, Model)], effort: Effort, rounds: usize) -> Result<f64, Failure> {
    let mut sizes = Vec::new();
    for (name, model) in generated {
        let spent = seconds(&mut model.engine()?, &prompts(PROMPTS, LENGTH), rounds)?;
        sizes.push((format!("{name}, Q4_K"), model.millions(), spent));
    }
    let exponent = fitted(sizes.iter().map(|(_, millions, spent)| (*millions, *spent)));
    let rate = predict::rate(&sizes, PROMPTS * LENGTH);
    for name in effort.models() {
        let model = Model::named(name)?;
        let spent = seconds(&mut model.engine()?, &prompts(PROMPTS, LENGTH), rounds)?;
        sizes.push((model.name(), model.millions(), spent));
    }
    let tokens = (PROMPTS * LENGTH) as f64;
    let rows = sizes.iter().map(|(name, millions, spent)| {
        let giga = 2e-3 * millions * tokens / spent;
        vec![
            name.clone(),
            format!("{millions:.0}"),
            format!("{spent:.2}"),
            format!("{:.0}", tokens / spent),
            format!("{giga:.0}"),
        ]
    });
    let text = format!(
        "{PROMPTS} prompts of {LENGTH} random tokens, first answer token; median of {rounds}. Generated \
         models have zero weights in Q4_K and a vocabulary of bytes. Fit over the generated models: seconds \
         ~ weights^{exponent:.2}."
    );
    let header = ["model", "million weights in blocks", "s", "tokens/s", "GFLOP/s"];
    table::print("Growth with model size", &text, &header, &rows.collect::<Vec<_>>());
    Ok(rate)
}

fn by_length(engine: &mut LlamaEngine, name: &str, rounds: usize) -> Result<(), Failure> {
    let by_length =
        LENGTHS.iter().map(|&length| Ok((length, seconds(engine, &prompts(1024 / length, length), rounds)?)));
    let by_length: Vec<(usize, f64)> = by_length.collect::<Result<_, Failure>>()?;
    let rows = by_length.iter().map(|&(length, spent)| {
        let tokens = (1024 / length * length) as f64;
        vec![
            length.to_string(),
            (1024 / length).to_string(),
            format!("{spent:.3}"),
            format!("{:.0}", tokens / spent),
        ]
    });
    let text = format!(
        "The generated model {name}. At the length of an instruction, attention is a small part of the work."
    );
    table::print(
        "Growth with prompt length",
        &text,
        &["tokens per prompt", "prompts", "s", "tokens/s"],
        &rows.collect::<Vec<_>>(),
    );
    Ok(())
}

fn by_count(engine: &mut LlamaEngine, rounds: usize) -> Result<(), Failure> {
    let by_count = COUNTS.iter().map(|&count| Ok((count, seconds(engine, &prompts(count, LENGTH), rounds)?)));
    let by_count: Vec<(usize, f64)> = by_count.collect::<Result<_, Failure>>()?;
    let exponent = fitted(by_count.iter().map(|&(count, spent)| (count as f64, spent)));
    let rows = by_count.iter().map(|(count, spent)| vec![count.to_string(), format!("{spent:.3}")]);
    let text = format!(
        "Fit: seconds ~ prompts^{exponent:.2}. Each trial runs the same prompts again, so the cost of trials \
         grows alike."
    );
    table::print("Growth with the number of prompts", &text, &["prompts", "s"], &rows.collect::<Vec<_>>());
    Ok(())
}

/// Returns prompts of `length` tokens without a common prefix.
fn prompts(count: usize, length: usize) -> Vec<Vec<i32>> {
    let token = |i: usize, at: usize| 3 + ((i * 7919 + at * 104_729 + i * at) % 256) as i32;
    (0..count).map(|i| (0..length).map(|at| token(i, at)).collect()).collect()
}

fn seconds(engine: &mut LlamaEngine, prompts: &[Vec<i32>], rounds: usize) -> Result<f64, Failure> {
    let mut work = || Ok(engine.answer_tokens(prompts, 1, &mut |_, _| ()).map(drop)?);
    Ok(medians(rounds, &mut [&mut work])?[0].wall)
}

/// Returns the exponent b of y ~ x^b, by least squares on the logarithms.
fn fitted(points: impl Iterator<Item = (f64, f64)>) -> f64 {
    let points: Vec<(f64, f64)> = points.map(|(x, y)| (x.ln(), y.ln())).collect();
    let n = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.0 / n, sum.1 + p.1 / n));
    let (over, under) =
        points.iter().fold((0.0, 0.0), |sum, p| (sum.0 + (p.0 - x) * (p.1 - y), sum.1 + (p.0 - x).powi(2)));
    over / under
}

impl Shape {
    /// Writes and opens the model.
    fn model(&self, dir: &Path) -> Result<Model, Failure> {
        let path = dir.join(format!("{}.gguf", self.n_embd));
        self.builder().write_to(&mut File::create(&path)?)?;
        Model::open(path)
    }

    fn builder(&self) -> GgufBuilder {
        let head = self.n_embd / u64::from(self.n_head);
        let kv = head * u64::from(self.n_head_kv);
        let (n_embd, n_ff) = (self.n_embd, self.n_ff);
        let mut file = vocabulary(GgufBuilder::new().string("general.architecture", "llama"))
            .kv("llama.context_length", Value::U32(2048))
            .kv("llama.embedding_length", Value::U32(n_embd as u32))
            .kv("llama.block_count", Value::U32(self.n_layer))
            .kv("llama.feed_forward_length", Value::U32(n_ff as u32))
            .kv("llama.attention.head_count", Value::U32(self.n_head))
            .kv("llama.attention.head_count_kv", Value::U32(self.n_head_kv))
            .kv("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
        file = zeros(file, "token_embd.weight", &[n_embd, N_VOCAB]);
        file = file.f32_tensor("output_norm.weight", &[n_embd], &vec![1.0; n_embd as usize]);
        for layer in 0..self.n_layer {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            for norm in ["attn_norm", "ffn_norm"] {
                file = file.f32_tensor(&name(norm), &[n_embd], &vec![1.0; n_embd as usize]);
            }
            let matrices = [
                ("attn_q", [n_embd, n_embd]),
                ("attn_k", [n_embd, kv]),
                ("attn_v", [n_embd, kv]),
                ("attn_output", [n_embd, n_embd]),
                ("ffn_gate", [n_embd, n_ff]),
                ("ffn_up", [n_embd, n_ff]),
                ("ffn_down", [n_ff, n_embd]),
            ];
            for (part, ne) in matrices {
                file = zeros(file, &name(part), &ne);
            }
        }
        file
    }
}

const N_VOCAB: u64 = 259;

/// Adds a vocabulary of all bytes and the unknown, start and end tokens.
fn vocabulary(file: GgufBuilder) -> GgufBuilder {
    let marks = ["<unk>", "<s>", "</s>"].map(String::from);
    let tokens: Vec<String> =
        marks.into_iter().chain((0..256).map(|byte| format!("<0x{byte:02X}>"))).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let kinds: Vec<i32> = [2, 3, 3].into_iter().chain([6; 256]).collect();
    file.string("tokenizer.ggml.model", "llama")
        .string_array("tokenizer.ggml.tokens", &tokens)
        .f32_array("tokenizer.ggml.scores", &[0.0; N_VOCAB as usize])
        .i32_array("tokenizer.ggml.token_type", &kinds)
}

fn zeros(file: GgufBuilder, name: &str, ne: &[u64; 2]) -> GgufBuilder {
    let bytes = GgmlType::Q4_K.row_bytes(ne[0]).unwrap_or(0) * ne[1];
    file.tensor(name, ne, GgmlType::Q4_K, vec![0; bytes as usize])
}
