//! Collecting hidden states, compared with decoding the same tokens.

use std::process::Command;

use rosi_gguf::eval::prompts::{PromptKind, PromptSet, Split};
use rosi_gguf::llama::activations::Part;
use rosi_gguf::llama::engine::groups;
use rosi_gguf::llama::{Arithmetic, Capture, Chat, Engine, LlamaEngine};
use rosi_gguf::util::linalg;

use crate::clock::{Spent, medians};
use crate::model::{Model, threads};
use crate::{Effort, Failure, table};

/// Sampled tokens whose inputs `inject` keeps.
const SAMPLE: usize = 256;
/// Distance before the last token of the additional token that `inject` keeps.
const TAIL: usize = 1;
/// Batch size for llama-bench, in tokens: our maximum batch size.
const BATCH: &str = "1024";

const HEADER: [&str; 5] = ["work", "wall, s", "CPU, s", "tokens/s", "relative to decoding alone"];

/// Prints the tables.
pub fn run(effort: Effort) -> Result<(), Failure> {
    effort.models().iter().try_for_each(|name| measure(&Model::named(name)?, effort))
}

fn measure(model: &Model, effort: Effort) -> Result<(), Failure> {
    let engine = &mut model.engine()?;
    let set = PromptSet::bundled();
    let prompts = set.select(PromptKind::Harmful, Split::Extract);
    let n = if effort == Effort::Short { 8 } else { 96 };
    let chats: Vec<Chat<'_>> = prompts.iter().take(n).map(|p| Chat::of(&p.text)).collect();
    let tokens = decoded(engine, &chats)?;

    let residual = Capture::residual_only(&model.plan);
    let inputs = Capture::new(&model.plan).with_sample(SAMPLE).with_tail(&[TAIL]);
    let shared = std::cell::RefCell::new(engine);
    let collect = |capture: &Capture, products: bool| -> Result<(), Failure> {
        let seen = shared.borrow_mut().collect(&chats, capture, &mut |_, _| ())?;
        for inputs in seen.inputs.iter().filter(|_| products) {
            for part in [Part::Sample, Part::Tail, Part::Last] {
                let rows = inputs.rows(part).x;
                linalg::add_outer(&mut ndarray::Array2::zeros((rows.nrows(), rows.nrows())), rows.view());
            }
        }
        Ok(())
    };
    let alone = |arithmetic: Arithmetic| -> Result<(), Failure> {
        let mut engine = shared.borrow_mut();
        engine.set_arithmetic(arithmetic);
        Ok(engine.answer(&chats, 1, &mut |_, _| ()).map(drop)?)
    };
    let spent = medians(
        effort.rounds(),
        &mut [
            &mut || alone(Arithmetic::Float),
            &mut || alone(Arithmetic::Llama),
            &mut || collect(&residual, false),
            &mut || collect(&inputs, false),
            &mut || collect(&inputs, true),
        ],
    )?;
    let names = [
        "decoding alone (first token of the answer)",
        "decoding alone, with llama.cpp's own matrix products",
        "and capturing the residual of every layer at the last token",
        "and capturing every writer's inputs",
        "and computing the products of the inputs",
    ];
    let mut rows: Vec<Vec<String>> =
        names.iter().zip(&spent).map(|(name, s)| row(name, s, tokens, spent[0].wall)).collect();
    if let Some(rate) = llama_bench(model, effort)? {
        let ours = tokens / spent[0].wall;
        let cells = ["Debian's `llama-bench -p 512`".into(), String::new(), String::new()];
        rows.push([&cells[..], &[format!("{rate:.0}"), format!("{:.2}", rate / ours)]].concat());
    }
    let text = format!(
        "{} prompts in the template of {}, {tokens:.0} tokens (the common prefix is decoded once per batch), \
         {} threads; median of {}. `inject` keeps the inputs of {SAMPLE} sampled tokens and of the last {} \
         of every prompt.",
        chats.len(),
        model.name(),
        threads(),
        effort.rounds(),
        2,
    );
    table::print(&format!("Capture: {}", model.name()), &text, &HEADER, &rows);
    Ok(())
}

fn row(name: &str, spent: &Spent, tokens: f64, alone: f64) -> Vec<String> {
    let Spent { wall, cpu } = spent;
    let numbers = [format!("{wall:.2}"), format!("{cpu:.2}"), format!("{:.0}", tokens / wall)];
    [&[name.to_owned()][..], &numbers, &[format!("{:.2}", alone / wall)]].concat()
}

/// Returns the number of tokens decoded by the model.
fn decoded(engine: &LlamaEngine, chats: &[Chat<'_>]) -> Result<f64, Failure> {
    let prompts = chats.iter().map(|chat| engine.tokens(chat)).collect::<Result<Vec<_>, _>>()?;
    let shared = |group: &[Vec<i32>]| {
        let first = &group[0];
        (0..first.len()).find(|&i| group.iter().any(|p| p.get(i) != first.get(i))).unwrap_or(0)
    };
    let of_group = |group: &[Vec<i32>]| {
        let shared = shared(group);
        shared + group.iter().map(|p| p.len() - shared).sum::<usize>()
    };
    Ok(groups(&prompts, 1).into_iter().map(|range| of_group(&prompts[range])).sum::<usize>() as f64)
}

/// Returns the tokens per second of another llama.cpp build, if `scripts/bench` found one.
pub fn llama_bench(model: &Model, effort: Effort) -> Result<Option<f64>, Failure> {
    let Some(folder) = std::env::var_os("ROSI_BENCH_LLAMA") else { return Ok(None) };
    let output = Command::new(std::path::Path::new(&folder).join("llama-bench"))
        .args(["-p", "512", "-n", "0", "-ngl", "0", "-b", BATCH, "-ub", BATCH, "-o", "json", "-t"])
        .arg(threads().to_string())
        .args(["-r", &effort.rounds().to_string(), "-m"])
        .arg(&model.gguf.path)
        .output()?;
    let told: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    Ok(Some(told[0]["avg_ts"].as_f64().ok_or("llama-bench printed no avg_ts")?))
}
