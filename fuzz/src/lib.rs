//! The fuzz targets. A target fails if it panics, takes too long, or allocates more than [`MOST_HELD`] bytes.
//! For accepted input, it also checks invariants of the result.

#[path = "../../tests/common/ffi.rs"]
mod counting;

use std::fs::File;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use rosi_gguf::arch::patches::Patches;
use rosi_gguf::arch::plan::Plan;
use rosi_gguf::eval::prompts::PromptSet;
use rosi_gguf::gguf::{Gguf, GgufBuilder, Rewrite, Value};
use rosi_gguf::imatrix::Imatrix;
use rosi_gguf::llama::template::ChatTemplate;
use rosi_gguf::llama::{Chat, Thinking};
use rosi_gguf::method::stored::StoredEdit;

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

/// Upper bound on the memory allocated while reading a small file, in bytes.
const MOST_HELD: usize = 64 << 20;

static FOLDER: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("cannot create a temporary folder"));
static EMBEDDED: LazyLock<Patches> =
    LazyLock::new(|| Patches::embedded().expect("the embedded patch files are invalid"));

/// Writes `bytes` to a file in the temporary folder, for parsers that only accept a path.
fn written(name: &str, bytes: &[u8]) -> PathBuf {
    let path = FOLDER.path().join(name);
    std::fs::write(&path, bytes).expect("cannot write to the temporary folder");
    path
}

fn bounded<T>(work: impl FnOnce() -> T) -> T {
    let (result, held) = counting::peak_of(work);
    assert!(held <= MOST_HELD, "{held} bytes were allocated");
    result
}

/// Parses a GGUF header. If it is accepted, resolves the plan and writes a copy of the file.
pub fn gguf(bytes: &[u8]) {
    let patches = &*EMBEDDED;
    let Ok(parsed) = bounded(|| Gguf::parse(Cursor::new(bytes), bytes.len() as u64)) else { return };
    let len = bytes.len() as u64;
    assert!(parsed.kv_bytes.end <= parsed.info_bytes.end && parsed.info_bytes.end <= parsed.data_start);
    let mut at = parsed.data_start;
    for tensor in &parsed.tensors {
        assert!(at <= tensor.data.start && tensor.data.start <= tensor.data.end && tensor.data.end <= len);
        assert_eq!(tensor.n_bytes(), tensor.row_bytes() * tensor.n_rows());
        at = tensor.data.end;
    }
    let _ = bounded(|| (parsed.refuse_non_model().map_err(|e| e.hint()), Plan::resolve(&parsed, patches)));
    let Ok(opened) = bounded(|| Gguf::open(&written("model.gguf", bytes))) else { return };
    let mut copy = Vec::new();
    let made = Rewrite::copy(&opened).write_to(&mut copy, &mut |_| Ok(None), &mut |_, _| Ok(()));
    assert!(made.is_ok() && copy == bytes, "the copy differs from the file");
}

/// A small llama model of two blocks, against which [`patches`] resolves the fuzzed patch file.
static LLAMA: LazyLock<Gguf> = LazyLock::new(|| {
    let mut file = GgufBuilder::new()
        .string("general.architecture", "llama")
        .kv("llama.block_count", Value::U32(2))
        .kv("llama.embedding_length", Value::U32(4))
        .f32_tensor("token_embd.weight", &[4, 2], &[0.5; 8]);
    for layer in 0..2 {
        for name in ["attn_output", "ffn_down", "attn_q"] {
            file = file.f32_tensor(&format!("blk.{layer}.{name}.weight"), &[4, 4], &[0.5; 16]);
        }
        file = file.f32_tensor(&format!("blk.{layer}.attn_norm.weight"), &[4], &[1.0; 4]);
    }
    let path = FOLDER.path().join("llama.gguf");
    file.write_to(&mut File::create(&path).expect("cannot write to the temporary folder"))
        .expect("cannot write the model");
    Gguf::open(&path).expect("a file written by the builder is readable")
});

/// Parses a user's patch file and resolves the plan with it.
pub fn patches(bytes: &[u8]) {
    let (model, Ok(text)) = (&*LLAMA, std::str::from_utf8(bytes)) else { return };
    bounded(|| match Patches::from_text("user.toml", text) {
        Err(error) => drop((error.to_string(), error.hint())),
        Ok(patches) => {
            for name in patches.architectures() {
                assert!(patches.find(name).is_ok(), "{name} is listed but not found");
            }
            patches.table();
            match Plan::resolve(model, &patches) {
                Ok(plan) => assert!(plan.writers.iter().all(|w| model.tensor(&w.tensor).is_some())),
                Err(error) => drop((error.to_string(), error.hint())),
            }
        }
    });
}

/// Loads a prompt file. The first byte selects the file name and so the format.
pub fn prompts(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    const NAMES: [&str; 6] =
        ["harmful.txt", "harmless.csv", "prompts.jsonl", "prompts.csv", "borderline.json", "harmful.tsv"];
    let path = written(NAMES[usize::from(*first) % NAMES.len()], rest);
    let set = bounded(|| PromptSet::load_whole(std::slice::from_ref(&path)));
    let _ = bounded(|| PromptSet::load(std::slice::from_ref(&path)).map_err(|e| e.to_string()));
    let Ok(set) = set else { return };
    assert!(!set.is_empty());
    let lines = set.prompts().iter().map(|p| serde_json::to_string(p).expect("prompts serialize") + "\n");
    let again = written("again.jsonl", lines.collect::<String>().as_bytes());
    let again = PromptSet::load_whole(&[again]).expect("a prompt set survives a round trip");
    assert_eq!(set.sha256(), again.sha256());
}

/// Opens an importance matrix, in either format.
pub fn imatrix(bytes: &[u8]) {
    let path = written("imatrix", bytes);
    bounded(|| match Imatrix::open(Path::new(&path)) {
        Err(error) => drop((error.to_string(), error.hint())),
        Ok(imatrix) => {
            assert!(!imatrix.is_empty());
            for name in ["blk.0.ffn_down.weight", "blk.0.ffn_down_exps.weight", "a"] {
                for (n_in, n_expert) in [(4, 1), (4, 2), (2, 2), (1, 1)] {
                    let Ok(Some(model)) = imatrix.input_model(name, n_in, n_expert) else { continue };
                    assert!(model.diagonal.iter().all(|v| *v >= 0.0), "{:?}", model.diagonal);
                }
            }
        }
    });
}

/// Renders a chat template in the ways the commands do.
pub fn template(bytes: &[u8]) {
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    let template = match ChatTemplate::new(source, "<s>", "</s>") {
        Ok(template) => template,
        Err(error) => return drop((error.to_string(), error.hint())),
    };
    for system in [None, Some("Be kind.")] {
        let chat = Chat { system, ..Chat::of("How do I bake bread?") };
        match template.render(&chat) {
            Ok(prompt) => assert!(!prompt.text.is_empty() && prompt.text.len() <= 1 << 20),
            Err(error) => assert!(error.to_string().len() < 1 << 14),
        }
    }
    let endings = [true, false].map(|thinks| template.ending(thinks));
    if let [Ok(on), Ok(off)] = endings {
        assert!(Thinking::of_endings(&on, &off).is_none_or(|thinking| thinking.answer_prefix.len() < 100));
    }
    let _ = template.render_exchange("How do I bake bread?", "Mix flour.").map_err(|e| e.to_string());
}

/// Reads a stored edit and writes it again.
pub fn stored(bytes: &[u8]) {
    let read =
        |bytes: &[u8]| bounded(|| StoredEdit::from_bytes(bytes).map_err(|problem| problem.to_string()));
    let Ok(edit) = read(bytes) else { return };
    assert!(edit.facts.strength > 0.0 && !edit.writers.is_empty());
    let once = edit.to_bytes().expect("an edit that was read can be written");
    let again = read(&once).expect("an edit that was written can be read");
    assert!(again.to_bytes().is_ok_and(|bytes| bytes == once), "the edit differs after a round trip");
}
