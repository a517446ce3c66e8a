//! Edited models after a copy by llama-quantize, which newer versions of `ollama create` run. The copies are made by
//! the built-in llama.cpp and, if `ROSI_TEST_LLAMA_QUANTIZE` names the llama-quantize of another build, by that too.

#[path = "../common/mod.rs"]
mod common;
mod ffi;

use std::path::{Path, PathBuf};
use std::process::Command;

use rosi_gguf::gguf::{Gguf, Value};
use serde_json::Value as Json;

use common::few_prompts::short_prompts;
use common::run::{json, parsed, ran, stderr, text};
use common::talking;

/// One edit for each way of recording it: only a direction, factors of each matrix, neurons.
const EDITS: [&[&str]; 3] = [
    &["--method", "published", "--layer", "1", "--strength", "0.03"],
    &["--method", "contrast", "--layer", "1", "--strength", "0.03"],
    &["--method", "detector", "--strength", "4.5"],
];

fn edited(model: &Path, edit: &[&str], folder: &Path) -> PathBuf {
    let (stem, few) = (model.file_stem().unwrap().to_str().unwrap(), short_prompts(folder));
    let out = folder.join(format!("{stem}-{}.gguf", edit[1]));
    let args = [
        "inject",
        text(model),
        "-o",
        text(&out),
        "--prompts",
        text(&few),
        "--no-bundled-prompts",
        "--direction-source",
        "plain",
        "-t",
        "2",
    ];
    let always = ["--json", "--allow-no-refusal", "--allow-over-limits", "-q"];
    json(&[&args[..], &always, edit].concat());
    out
}

/// The `rosi.*` keys of a file, and the name, type and bytes of every tensor.
#[derive(PartialEq)]
struct Contents {
    keys: Vec<(String, Json)>,
    tensors: Vec<(String, String, Vec<u8>)>,
}

fn contents(path: &Path) -> Contents {
    let gguf = Gguf::open(path).unwrap();
    let value = |value: &Value| match value {
        Value::Array(array) => format!("{:?}", gguf.read_f32_array(array).unwrap()).into(),
        value => Json::from(format!("{value:?}")),
    };
    let ours = gguf.metadata.iter().filter(|kv| kv.key.starts_with("rosi."));
    let mut keys: Vec<_> = ours.map(|kv| (kv.key.clone(), value(&kv.value))).collect();
    keys.sort_by(|a, b| a.0.cmp(&b.0));
    let tensor = |t: &rosi_gguf::gguf::TensorInfo| {
        (t.name.clone(), t.ggml_type.name().to_owned(), gguf.read_tensor(t).unwrap())
    };
    let mut tensors: Vec<_> = gguf.tensors.iter().map(tensor).collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    Contents { keys, tensors }
}

fn copies(from: &Path) -> Vec<PathBuf> {
    let copy = from.with_extension("copy.gguf");
    ffi::copy(from, &copy);
    let other = std::env::var_os("ROSI_TEST_LLAMA_QUANTIZE").map(|program| {
        let copy = from.with_extension("other.gguf");
        let output = Command::new(program).args([from, &copy]).arg("COPY").output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        copy
    });
    std::iter::once(copy).chain(other).collect()
}

#[test]
fn an_edit_outlives_a_copy_by_llama_quantize() {
    let dir = tempfile::tempdir().unwrap();
    let [dense, normed, experts] = talking::models(dir.path());
    for (base, edits) in [(dense, &EDITS[..]), (normed, &EDITS[..1]), (experts, &EDITS[2..])] {
        for edit in edits {
            let out = edited(&base, edit, dir.path());
            let verified = json(&["-q", "verify", text(&base), text(&out), "--json"]);
            let injected = json(&["inspect", text(&out), "--json"])["injected"].clone();
            assert!(injected.is_object());
            for copy in copies(&out) {
                assert!(!contents(&out).keys.is_empty());
                assert!(contents(&copy) == contents(&out), "{edit:?}: {}", copy.display());
                assert_eq!(json(&["inspect", text(&copy), "--json"])["injected"], injected);
                // The copy has its tensors in a different order, and a file type if the original had none.
                let again = parsed(&ran(&["-q", "verify", text(&base), text(&copy), "--json"]));
                for fact in ["gain", "cosine", "untouched_identical", "identical"] {
                    assert_eq!(again[fact], verified[fact], "{fact}, {edit:?}: {}", copy.display());
                }
            }
        }
    }
}
