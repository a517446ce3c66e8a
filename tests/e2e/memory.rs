//! The memory that `inject --dry-run` tells beside what llama.cpp reserves. `scripts/test` sets the `ROSI_TEST_*` variables.

use rosi_gguf::gguf::Gguf;
use rosi_gguf::llama::ContextMemory;

use crate::common::run::{ended, stderr, text, variable};

/// What the estimate may be off by, as shares of what llama.cpp says: too little is worse than too much.
const LEAST: f64 = 0.99;
const MOST: f64 = 1.10;

/// The sum of what llama.cpp's log says of buffers of this kind, in bytes.
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
            println!("{name} {kind}: told {:.1} MB, llama.cpp reserves {:.1} MB", told / 1e6, found / 1e6);
            assert!(found > 0.0, "llama.cpp's log says nothing of its {kind} buffer");
            assert!(told >= LEAST * found && told <= MOST * found, "{name}: {kind} {told} beside {found}");
        }
    }
}
