//! CPU time of edit-preserving requantization, compared with quantizing from scratch.

use std::time::Instant;

use ndarray::Array2;
use rosi_gguf::gguf::GgmlType;
use rosi_gguf::llama::activations::{WriterInputs, input_model};
use rosi_gguf::quant::preserve::{InputModel, RankOneTarget, preserve};

use crate::Failure;
use crate::cases::{Case, decoded, encoded, of_model};
use crate::synthetic::types;
use crate::table;

/// Number of principal directions of the inputs, as in `inject`.
const PRINCIPAL: usize = 16;
/// Relative size of the edit, ‖ΔW‖/‖W‖.
const STRENGTH: f64 = 0.01;
/// Number of samples to take the median of.
const SAMPLES: usize = 3;
/// Minimum CPU seconds per sample, which repeats the work as needed, since the kernel's clock is coarse.
const LEAST: f64 = 0.1;
/// Index of Qwen2.5-Coder-0.5B in the list of models.
const QWEN: usize = 1;

/// Returns the CPU seconds used by this thread, which do not depend on other load. Except on Linux, returns the wall
/// time since the first call.
fn cpu_seconds() -> f64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let start = START.get_or_init(Instant::now);
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split_whitespace().next().and_then(|n| n.parse::<f64>().ok());
    nanoseconds.map_or_else(|| start.elapsed().as_secs_f64(), |ns| ns * 1e-9)
}

/// Returns the median CPU seconds of `work`.
fn median(mut work: impl FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    let mut times = Vec::new();
    for _ in 0..SAMPLES {
        let (start, mut runs) = (cpu_seconds(), 0);
        while runs == 0 || cpu_seconds() - start < LEAST {
            work()?;
            runs += 1;
        }
        times.push((cpu_seconds() - start) / f64::from(runs));
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Seconds for one tensor, or summed over several.
#[derive(Clone, Copy, Default)]
struct Times {
    plain: f64,
    modelled: f64,
    quantize: f64,
}

/// Returns inputs with a few strong directions and weak noise, similar to real inputs.
fn inputs(n_in: usize) -> InputModel {
    let entry = |i: usize, j: usize| {
        let strong: f32 =
            (1..=PRINCIPAL).map(|p| ((i * p) as f32).sin() * ((j * p * p) as f32).cos() / p as f32).sum();
        strong + ((i * 31 + j * 17) % 13) as f32 * 0.05
    };
    let sample = Array2::from_shape_fn((128, n_in), |(i, j)| entry(i, j));
    input_model(
        &[&WriterInputs {
            sample,
            last: Array2::zeros((0, n_in)),
            tail: Array2::zeros((0, n_in)),
            routes: None,
        }],
        PRINCIPAL,
    )
}

fn times(case: &Case, ggml_type: GgmlType, bytes: &[u8]) -> Result<Times, Failure> {
    let right = case.right_at(STRENGTH);
    let target = RankOneTarget { left: &case.left, along: &case.along, right: &right };
    let time = |inputs: &InputModel| {
        median(|| {
            let mut new = bytes.to_vec();
            Ok(preserve(ggml_type, &mut new, target, inputs, 1)?)
        })
    };
    let values = decoded(ggml_type, case.n_in(), bytes)?;
    Ok(Times {
        plain: time(&InputModel::default())?,
        modelled: time(&inputs(case.n_in()))?,
        quantize: median(|| encoded(ggml_type, case.n_in(), &values).map(drop))?,
    })
}

fn row(name: String, values: usize, times: Times) -> Vec<String> {
    let Times { plain, modelled, quantize } = times;
    let seconds = [plain, modelled, quantize].map(|s| format!("{s:.3}"));
    let faster = [quantize / plain, quantize / modelled].map(|f| format!("{f:.1} ×"));
    let size = format!("{:.2}", values as f64 / 1e6);
    [name, size].into_iter().chain(seconds).chain(faster).collect()
}

const HEADER: [&str; 7] = [
    "type",
    "million values",
    "preserve, s",
    "with inputs, s",
    "`ggml_quantize_chunk`, s",
    "speedup of preserve",
    "speedup with inputs",
];

/// Prints the tables.
pub fn run() -> Result<(), Failure> {
    let writers = of_model(QWEN, |_, _| true)?;
    let mut rows = Vec::new();
    let mut all = Times::default();
    let mut own: Vec<GgmlType> = writers.iter().map(|c| c.own).collect();
    own.sort();
    own.dedup();
    for ggml_type in own {
        let (mut sum, mut values) = (Times::default(), 0);
        for case in writers.iter().filter(|c| c.own == ggml_type) {
            let Times { plain, modelled, quantize } = times(case, ggml_type, &case.bytes)?;
            sum.plain += plain;
            sum.modelled += modelled;
            sum.quantize += quantize;
            values += case.values.len();
        }
        all.plain += sum.plain;
        all.modelled += sum.modelled;
        all.quantize += sum.quantize;
        rows.push(row(ggml_type.to_string(), values, sum));
    }
    rows.push(row("all".into(), writers.iter().map(|c| c.values.len()).sum(), all));
    let text = format!(
        "All {} residual writers of Qwen2.5-Coder-0.5B in their own types, with an edit of 1 %. CPU seconds \
         of one thread, median of {SAMPLES} samples; \"with inputs\" uses {PRINCIPAL} principal directions \
         of the writers' inputs, as `inject` does. The time of ggml is for encoding alone, without \
         decoding.",
        writers.len()
    );
    table::print("Speed: the writers of a model", &text, &HEADER, &rows);

    let big = writers.iter().max_by_key(|c| c.values.len()).ok_or("the model has no writers")?;
    let mut rows = Vec::new();
    for ggml_type in types().into_iter().filter(|&t| big.fits(t)) {
        let bytes = encoded(ggml_type, big.n_in(), &big.values)?;
        rows.push(row(ggml_type.to_string(), big.values.len(), times(big, ggml_type, &bytes)?));
        eprintln!("{}", rows[rows.len() - 1].join("  "));
    }
    let text = format!(
        "{} quantized to each type; as above. Target: 3 times faster than ggml for Q2_K to Q6_K.",
        big.name
    );
    table::print("Speed: one tensor in every type", &text, &HEADER, &rows);
    Ok(())
}
