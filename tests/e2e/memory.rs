//! Compares the memory estimate of `inject --dry-run` with what llama.cpp reserves. `scripts/test` sets the
//! `ROSI_TEST_*` variables.

use rosi_gguf::gguf::Gguf;
use rosi_gguf::llama::ContextMemory;

use crate::common::run::{ended, stderr, text, variable};

/// Bounds of the estimate, relative to what llama.cpp reserves. Too low is worse than too high.
const LEAST: f64 = 0.99;
const MOST: f64 = 1.10;

/// Returns the total size of the buffers of this kind according to llama.cpp's log, in bytes.
fn reserved(log: &str, kind: &str) -> f64 {
    let sizes = log.lines().filter_map(|line| line.split_once(&format!(" {kind} buffer size =")));
    let sizes = sizes.filter_map(|(_, size)| size.split_whitespace().next()?.parse::<f64>().ok());
    sizes.sum::<f64>() * f64::from(1 << 20)
}

#[test]
fn the_context_takes_what_the_dry_run_tells() {
    for name in ["ROSI_TEST_MODEL_SMOLLM2", "ROSI_TEST_MODEL_QWEN", "ROSI_TEST_MODEL_GEMMA3"] {
        let model = variable(name);
        let log = stderr(&ended(&["-vvv", "ask", text(&model), "--prompt", "Hi", "--tokens", "1"], 0));
        let memory = ContextMemory::of(&Gguf::open(&model).unwrap());
        for (kind, told) in [("KV", memory.cache), ("compute", memory.compute), ("output", memory.output)] {
            let (found, told) = (reserved(&log, kind), told as f64);
            println!("{name} {kind}: estimate {:.1} MB, llama.cpp {:.1} MB", told / 1e6, found / 1e6);
            assert!(found > 0.0, "llama.cpp's log does not mention its {kind} buffer");
            assert!(told >= LEAST * found && told <= MOST * found, "{name}: {kind} {told}, actual {found}");
        }
    }
}
