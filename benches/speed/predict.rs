//! Predicts the run time of `inject` on other machines, from the rate measured here and assumed hardware figures.
//!
//! ```text
//! seconds = tokens · 2 · active weights / rate + steps · bytes / bandwidth
//! ```
//!
//! The first term is arithmetic. The second is reading all weights once per step in which every sequence of a batch
//! grows by one token, which dominates on machines with fast arithmetic.

use crate::model::threads;
use crate::table;

/// Tokens of a default run on the bundled prompts, as counted by `inject --dry-run`.
const TOKENS: f64 = 83.5e3;
/// Steps of a default run in which a batch of 32 answers grows by one token.
const STEPS: f64 = 600.0;

/// A machine to predict for.
struct Machine {
    name: &'static str,
    /// Assumed sustained FLOP per second.
    rate: f64,
    /// Memory bandwidth, in bytes per second.
    bandwidth: f64,
    /// Memory for weights, in bytes.
    memory: f64,
    assumed: &'static str,
}

/// Models to predict for: name, active weights, all weights, bits per weight.
const MODELS: [(&str, f64, f64, f64); 3] = [
    ("8B, Q4_K_M", 7.5e9, 8.0e9, 4.85),
    ("70B, Q4_K_M", 69.5e9, 70.6e9, 4.85),
    ("120B MoE, 5B active, MXFP4", 5.1e9, 117e9, 4.4),
];

/// Returns FLOP per second and thread for the largest generated model; `sizes` has name, million weights and seconds.
pub fn rate(sizes: &[(String, f64, f64)], tokens: usize) -> f64 {
    let last = sizes.last().map_or(f64::NAN, |(_, millions, spent)| 2e6 * millions * tokens as f64 / spent);
    last / threads() as f64
}

/// Prints the table; `rate` is FLOP per second of one thread of this machine.
pub fn run(rate: f64) {
    let machines = [
        Machine {
            name: "laptop",
            rate: 8.0 * rate,
            bandwidth: 60e9,
            memory: 32e9,
            assumed: "8 cores, each as fast as one of this machine, 60 GB/s, 32 GB",
        },
        Machine {
            name: "24 GB GPU",
            rate: 0.3 * 165e12,
            bandwidth: 1.0e12,
            memory: 24e9,
            assumed: "30 % of 165 dense FP16 TFLOP/s, 1 TB/s",
        },
        Machine {
            name: "H100",
            rate: 0.4 * 990e12,
            bandwidth: 3.35e12,
            memory: 80e9,
            assumed: "40 % of 990 dense BF16 TFLOP/s, 3.35 TB/s, 80 GB",
        },
    ];
    let mut header = vec!["model"];
    header.extend(machines.iter().map(|m| m.name));
    let rows = MODELS.map(|(name, active, all, bits)| {
        let cells = machines.iter().map(|machine| {
            let bytes = all * bits / 8.0;
            if bytes > 0.9 * machine.memory {
                return format!("does not fit ({:.0} GB)", bytes / 1e9);
            }
            let seconds = TOKENS * 2.0 * active / machine.rate + STEPS * bytes / machine.bandwidth;
            match seconds {
                s if s > 5400.0 => format!("{:.1} h", s / 3600.0),
                s if s > 120.0 => format!("{:.0} min", s / 60.0),
                s => format!("{s:.0} s"),
            }
        });
        [name.to_owned()].into_iter().chain(cells).collect::<Vec<_>>()
    });
    let assumed: Vec<String> = machines.iter().map(|m| format!("{}: {}", m.name, m.assumed)).collect();
    let text = format!(
        "Predicted, not measured: {:.0} thousand tokens of a default run times two operations per active \
         weight, divided by the assumed rate, plus reading all weights {STEPS:.0} times. The largest model \
         above ran at {:.0} GFLOP/s per thread. Assumptions: {}. Writing takes additional time: twice the \
         file size divided by the disk's speed. `inject --dry-run` prints an estimate for a given model.",
        TOKENS / 1e3,
        rate / 1e9,
        assumed.join("; "),
    );
    table::print("Predicted run time on other machines", &text, &header, &rows);
}
