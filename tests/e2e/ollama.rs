//! Models by name from a store laid out like Ollama's: injected, written as a Modelfile and a GGUF file, and
//! uploaded to a fake server that follows Ollama's API documentation.

use std::path::Path;
use std::process::Output;

use rosi_gguf::gguf::sha256_hex;
use serde_json::{Value, json};

use crate::common::downloaded::{qwen, smollm2};
use crate::common::few_prompts::few_prompts;
use crate::common::http_server::{Answer, Server};
use crate::common::ollama_store::Store;
use crate::common::run::{command, parsed, stderr, text};
use crate::common::talking::talking;

fn rosi(folder: &Path, args: &[&str], host: &str) -> Output {
    let output = command(args)
        .current_dir(folder)
        .env("OLLAMA_MODELS", folder.join("models"))
        .env("OLLAMA_HOST", host)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    output
}

/// Creates a store with SmolLM2, Qwen and a tiny model as `ollama pull` would leave them.
fn store(folder: &Path) -> Store {
    let tiny = folder.join("tiny.gguf");
    talking("qwen2", &[], &tiny);
    let store = Store::new(folder);
    let beside = [
        store.layer("template", b"{{ .System }}\n{{ .Prompt }}"),
        store.layer("params", br#"{"stop":["<|im_start|>","<|im_end|>"],"temperature":0.2}"#),
        store.layer("license", b"Apache License\nVersion 2.0"),
    ];
    for (model, name) in [
        (smollm2(), "library/smollm2/135m"),
        (qwen(), "library/qwen2.5-coder/0.5b"),
        (tiny, "library/tiny/latest"),
    ] {
        let layers = [&[store.linked("model", &model)][..], &beside].concat();
        store.manifest(&format!("registry.ollama.ai/{name}"), &layers);
    }
    store
}

const EDIT: [&str; 10] = [
    "--method",
    "published",
    "--layer",
    "1",
    "--strength",
    "0.03",
    "--system-prompt",
    "off",
    "--allow-no-refusal",
    "--allow-over-limits",
];

#[test]
fn a_model_goes_in_by_name_and_comes_out_with_its_modelfile() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let _store = store(folder);
    let few = few_prompts(folder);
    for (name, architecture) in [("ollama:smollm2:135m", "llama"), ("ollama:qwen2.5-coder:0.5b", "qwen2")] {
        let facts = parsed(&rosi(folder, &["inspect", name, "--json"], ""));
        assert_eq!(facts["architecture"], architecture);
    }
    let args =
        [&["inject", "ollama:tiny", "--prompts", text(&few), "--no-bundled-prompts"][..], &EDIT].concat();
    // The server has no blobs.
    let server = Server::start(|request| match (request.method.as_str(), request.path.as_str()) {
        ("HEAD", _) | ("POST", "/api/show") => Answer::new(404, "{}"),
        ("POST", "/api/create") => Answer::new(200, "{\"status\":\"success\"}\n"),
        ("POST", _) => Answer::new(201, ""),
        _ => Answer::new(200, "{}"),
    });
    let said = rosi(folder, &[&args[..], &["--ollama-create", "safer"]].concat(), &server.address);
    assert!(stderr(&said).contains("ollama run safer:latest"));
    let modelfile = std::fs::read_to_string(folder.join("tiny-rosi.Modelfile")).unwrap();
    assert_eq!(
        modelfile,
        "FROM ./tiny-rosi.gguf\nTEMPLATE \"\"\"{{ .System }}\n{{ .Prompt }}\"\"\"\n\
         PARAMETER stop \"\"\"<|im_start|>\"\"\"\nPARAMETER stop \"\"\"<|im_end|>\"\"\"\nPARAMETER temperature 0.2\n\
         LICENSE \"\"\"Apache License\nVersion 2.0\"\"\"\n"
    );
    let verified = ["-q", "verify", "ollama:tiny", "tiny-rosi.gguf", "--json"];
    let verified = parsed(&rosi(folder, &verified, ""));
    assert_eq!(verified["untouched_identical"], true);
    assert!(verified["gain"].as_f64().unwrap() > 0.9, "{verified}");

    let written = std::fs::read(folder.join("tiny-rosi.gguf")).unwrap();
    let digest = format!("sha256:{}", sha256_hex(&written));
    let asked = server.asked();
    let blob = asked.iter().find(|r| r.method == "POST" && r.path == format!("/api/blobs/{digest}")).unwrap();
    assert!(blob.body == written, "the server received different bytes");
    let create: Value = serde_json::from_slice(&asked.last().unwrap().body).unwrap();
    assert_eq!(create["files"], json!({ "tiny-rosi.gguf": digest }));
    assert_eq!(create["parameters"]["stop"], json!(["<|im_start|>", "<|im_end|>"]));
}
