//! How fast, beside what a user would run instead. Prints Markdown tables; `scripts/bench speed` sets the `ROSI_BENCH_*`
//! variables and keeps the tables in docs/benchmarks.md.
//!
//! ```text
//! cargo bench --bench speed -- [short] [capture] [rewrite] [search] [job] [growth]      (all when none is named)
//! ```
//!
//! `short` measures the smallest model once, so that CI notices where this no longer runs: its figures mean nothing. What is compared takes
//! turns, so that whatever else the machine does meets all alike.

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

/// What it is called on the command line, and what prints its tables.
type Part = (&'static str, fn(Effort) -> Result<(), Failure>);

/// The parts, in the order in which they are printed.
const PARTS: [Part; 5] = [
    ("capture", capture::run),
    ("rewrite", rewrite::run),
    ("search", search::run),
    ("job", job::run),
    ("growth", growth::run),
];

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effort {
    /// That it runs.
    Short,
    /// All.
    Full,
}

impl Effort {
    /// Turns of what is compared.
    fn rounds(self) -> usize {
        if self == Self::Short { 1 } else { 5 }
    }

    /// The names of the models' variables.
    fn models(self) -> &'static [&'static str] {
        match self {
            Self::Short => &["ROSI_TEST_MODEL_SMOLLM2"],
            Self::Full => &["ROSI_TEST_MODEL_SMOLLM2", "ROSI_TEST_MODEL_QWEN"],
        }
    }
}

fn main() -> Result<(), Failure> {
    // cargo itself adds `--bench`.
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
