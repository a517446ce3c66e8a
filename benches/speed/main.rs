//! Compares the speed with the programs that a user would run instead. Prints Markdown tables; `scripts/bench speed`
//! sets the `ROSI_BENCH_*` variables and writes the tables to docs/benchmarks.md.
//!
//! ```text
//! cargo bench --bench speed -- [short] [capture] [rewrite] [search] [job] [growth]      (default: all)
//! ```
//!
//! `short` measures the smallest model once, so that CI detects when a benchmark fails to run; its figures are not
//! meaningful. Compared programs take turns, so that other load on the machine affects all of them equally.

mod capture;
mod clock;
mod growth;
mod job;
mod model;
mod predict;
mod rewrite;
mod search;
#[path = "../requant/table.rs"]
mod table;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Name of a part on the command line, and the function that prints its tables.
type Part = (&'static str, fn(Effort) -> Result<(), Failure>);

/// The parts, in output order.
const PARTS: [Part; 5] = [
    ("capture", capture::run),
    ("rewrite", rewrite::run),
    ("search", search::run),
    ("job", job::run),
    ("growth", growth::run),
];

/// How much to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effort {
    /// Only that the benchmark runs.
    Short,
    /// Everything.
    Full,
}

impl Effort {
    /// Returns the number of rounds per comparison.
    fn rounds(self) -> usize {
        if self == Self::Short { 1 } else { 5 }
    }

    /// Returns the environment variables with the paths of the models.
    fn models(self) -> &'static [&'static str] {
        match self {
            Self::Short => &["ROSI_TEST_MODEL_SMOLLM2"],
            Self::Full => &["ROSI_TEST_MODEL_SMOLLM2", "ROSI_TEST_MODEL_QWEN"],
        }
    }
}

fn main() -> Result<(), Failure> {
    // Cargo adds `--bench`.
    let mut wanted: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let effort = if wanted.iter().any(|w| w == "short") { Effort::Short } else { Effort::Full };
    wanted.retain(|w| w != "short");
    if let Some(unknown) = wanted.iter().find(|w| PARTS.iter().all(|(name, _)| name != w)) {
        let known: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
        return Err(format!("unknown part {unknown:?}: expected one of {}", known.join(", ")).into());
    }
    for (name, run) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            run(effort)?;
        }
    }
    Ok(())
}
