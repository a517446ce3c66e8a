//! What `inject` would take elsewhere, from what was measured here and what is assumed.
//!
//! ```text
//! seconds = tokens · 2 · active weights / rate + steps · bytes / bandwidth
//! ```
//!
//! The first part is arithmetic; the second is reading the weights once for each step in which all sequences of a batch grow by a
//! token, which binds where arithmetic is cheap.

use crate::model::threads;
use crate::table;

/// Tokens of a default run on the bundled prompts, as `inject --dry-run` counts them, and of these steps in which a
/// batch of 32 answers grows by a token.
const TOKENS: f64 = 86e3;
const STEPS: f64 = 600.0;

/// Where it might run.
struct Machine {
    name: &'static str,
    /// FLOP a second that are reached.
    rate: f64,
    /// Bytes a second.
    bandwidth: f64,
    /// Bytes for weights.
    memory: f64,
    assumed: &'static str,
}

/// What might run there: active weights, all weights, bits a weight.
const MODELS: [(&str, f64, f64, f64); 3] = [
    ("8B, Q4_K_M", 7.5e9, 8.0e9, 4.85),
    ("70B, Q4_K_M", 69.5e9, 70.6e9, 4.85),
    ("120B MoE, 5B active, MXFP4", 5.1e9, 117e9, 4.4),
];

/// FLOP a second and thread on the largest of the models that were generated: name, million weights, seconds.
pub fn rate(sizes: &[(String, f64, f64)], tokens: usize) -> f64 {
    let last = sizes.last().map_or(f64::NAN, |(_, millions, spent)| 2e6 * millions * tokens as f64 / spent);
    last / threads() as f64
}

/// Prints the table; `rate` is that of one thread here.
pub fn run(rate: f64) {
    let machines = [
        Machine {
            name: "laptop",
            rate: 8.0 * rate,
            bandwidth: 60e9,
            memory: 32e9,
            assumed: "8 cores, each as fast as one here, 60 GB/s, 32 GB",
        },
        Machine {
            name: "24 GB GPU",
            rate: 0.3 * 165e12,
            bandwidth: 1.0e12,
            memory: 24e9,
            assumed: "a third of 165 dense FP16 TFLOP/s, 1 TB/s",
        },
        Machine {
            name: "H100",
            rate: 0.4 * 990e12,
            bandwidth: 3.35e12,
            memory: 80e9,
            assumed: "two fifths of 990 dense BF16 TFLOP/s, 3.35 TB/s, 80 GB",
        },
    ];
    let mut header = vec!["model"];
    header.extend(machines.iter().map(|m| m.name));
    let rows = MODELS.map(|(name, active, all, bits)| {
        let cells = machines.iter().map(|machine| {
            let bytes = all * bits / 8.0;
            if bytes > 0.9 * machine.memory {
                return format!("{:.0} GB do not fit", bytes / 1e9);
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
        "Not measured: {:.0} thousand tokens of a default run times two operations for each active weight, over the rate that is assumed, and \
         {STEPS:.0} times reading all weights. {:.0} GFLOP/s and thread were measured here on the largest model above. Assumed: {}. Writing adds \
         twice the file over the disk's speed. `inject --dry-run` tells its own estimate for the model at hand.",
        TOKENS / 1e3,
        rate / 1e9,
        assumed.join("; "),
    );
    table::print("What it would take elsewhere", &text, &header, &rows);
}
