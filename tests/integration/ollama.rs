//! Ollama's models by name, from a store with Ollama's layout, and Ollama's API, on a fake server that follows its
//! documentation. No model is run.

use std::path::Path;
use std::process::Output;

use rosi_gguf::sources::ollama::api::{Part, Server as Api};
use rosi_gguf::sources::ollama::{Companions, Name, modelfile};
use serde_json::{Value, json};

use crate::common::files::gguf_bytes;
use crate::common::http_server::{Answer, Request, Server};
use crate::common::ollama_store::Store;
use crate::common::plan_only::tiny_llama;
use crate::common::run::{command, outcome, parsed, stderr, text};

const NAME: &str = "registry.ollama.ai/library/tiny/1b";
const NO_ONE: &str = "127.0.0.1:9";

fn model(template: bool) -> Vec<u8> {
    let mut file = tiny_llama();
    if template {
        file = file.string("tokenizer.chat_template", "{{ messages[0].content }}");
    }
    gguf_bytes(&file)
}

/// Runs the program in `folder`, with the store in it.
fn run(folder: &Path, args: &[&str]) -> Output {
    command(args)
        .current_dir(folder)
        .env("OLLAMA_MODELS", folder.join("models"))
        .env("OLLAMA_HOST", NO_ONE)
        .output()
        .unwrap()
}

/// Like [`run`]; returns the exit code and stderr, without what differs from run to run.
fn told(folder: &Path, args: &[&str]) -> String {
    outcome(&run(folder, args), folder)
}

fn json_of(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    parsed(output)
}

#[test]
fn names_lead_to_blobs_in_both_layouts() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    let layer = store.layer("model", &model(true));
    store.manifest(NAME, std::slice::from_ref(&layer));
    store.manifest("hf.co/user/tiny-GGUF/Q4_K_M", std::slice::from_ref(&layer));
    // As newer servers store it: a link to a blob that lists one manifest per runner.
    let ours = json!({ "runner": "ollama", "layers": [layer] });
    let other = store.layer("tensor", b"not for us");
    let list = json!({
        "mediaType": "application/vnd.ollama.manifest.list.v2+json",
        "manifests": [{ "runner": "mlx", "layers": [other] }, ours],
    });
    store.raw("manifests-v2", "ollama.com/library/new/latest", list.to_string().as_bytes());
    for name in
        ["ollama:tiny:1b", "ollama:library/tiny:1b", "ollama:hf.co/user/tiny-GGUF:Q4_K_M", "ollama:new"]
    {
        let facts = json_of(&run(dir.path(), &["inspect", name, "--json"]));
        assert_eq!(facts["name_given"], name);
        assert_eq!(facts["architecture"], "llama");
    }
    let facts = json_of(&run(dir.path(), &["inject", "ollama:tiny:1b", "--dry-run", "--json"]));
    assert_eq!(facts["output"], "tiny-1b-rosi.gguf");
    assert!(
        told(dir.path(), &["inject", "ollama:new", "--dry-run"]).contains("would write new-rosi.Modelfile")
    );
    let same = json_of(&run(dir.path(), &["-q", "verify", "ollama:tiny:1b", "ollama:new", "--json"]));
    assert_eq!(same["identical"], 3);
}

#[test]
fn blobs_may_have_their_old_names() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    store.manifest(NAME, &[store.layer("model", &model(true)), store.layer("system", b"You are.")]);
    for blob in std::fs::read_dir(store.0.join("blobs")).unwrap() {
        let blob = blob.unwrap().path();
        let old = blob.file_name().unwrap().to_str().unwrap().replace("sha256-", "sha256:");
        std::fs::rename(&blob, blob.with_file_name(old)).unwrap();
    }
    let facts = json_of(&run(dir.path(), &["inspect", "ollama:tiny:1b", "--json"]));
    let path = facts["path"].as_str().unwrap();
    assert!(path.contains("blobs/sha256:"), "{path}");
    // A path to a blob counts as being in the store, too.
    let inside = store.0.join("out.gguf");
    let args = ["inject", path, "--dry-run", "-o", text(&inside)];
    assert!(told(dir.path(), &args).contains("another program's model store"), "{}", told(dir.path(), &args));
}

#[test]
fn an_encoder_in_the_same_file_is_told_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    let file = tiny_llama()
        .string("tokenizer.chat_template", "{{ messages[0].content }}")
        .f32_tensor("v.blk.0.attn_k.weight", &[4, 4], &[0.5; 16])
        .f32_tensor("mm.0.bias", &[4], &[0.5; 4]);
    store.manifest(NAME, &[store.layer("model", &gguf_bytes(&file))]);
    let facts = json_of(&run(dir.path(), &["inspect", "ollama:tiny:1b", "--json"]));
    assert!(facts["warnings"].to_string().contains("a vision encoder (1 tensor v.*)"), "{facts}");
    for command in [
        &["inject", "--dry-run"][..],
        &["search", "-o", "e.safetensors"],
        &["chat"],
        &["ask", "--prompt", "x"],
    ] {
        let text = told(dir.path(), &[command, &["ollama:tiny:1b"]].concat());
        assert!(text.starts_with("exit 1\n") && text.contains("a vision encoder"), "{text}");
        assert!(text.contains("hint: get a version of the model made for llama.cpp"), "{text}");
    }
}

#[test]
fn a_file_of_that_name_wins() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ollama:tiny"), model(true)).unwrap();
    let facts = json_of(&run(dir.path(), &["inspect", "ollama:tiny", "--json"]));
    assert_eq!((&facts["path"], facts.get("name_given")), (&json!("ollama:tiny"), None));
}

#[test]
fn what_a_store_must_not_say_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    let good = store.layer("model", &model(true));
    let with = |key: &str, value: Value| {
        let mut layer = good.clone();
        layer[key] = value;
        layer
    };
    let hex = |digit: &str| digit.repeat(64);
    let damaged = store.layer("system", b"You are.");
    let path = store.blob(damaged["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap());
    std::fs::write(path, b"You aren").unwrap();
    let manifests: Vec<(&str, Vec<Value>)> = vec![
        ("traversal", vec![with("digest", json!("sha256:../../../etc/passwd"))]),
        ("algorithm", vec![with("digest", json!(format!("md5:{}", hex("0"))))]),
        ("missing", vec![with("digest", json!(format!("sha256:{}", hex("0"))))]),
        ("size", vec![with("size", json!(1))]),
        ("no-model", vec![store.layer("license", b"MIT")]),
        ("empty", vec![]),
        ("adapter", vec![good.clone(), store.layer("adapter", b"GGUF")]),
        ("safetensors", vec![store.layer("tensor", b"x")]),
        ("two", vec![good.clone(), good.clone()]),
        ("damaged", vec![good.clone(), damaged]),
        ("parameters", vec![good.clone(), store.layer("params", br#"{"stop\nFROM x": 1}"#)]),
        ("nested", vec![good.clone(), store.layer("params", br#"{"stop": {"a": 1}}"#)]),
        ("role", vec![good.clone(), store.layer("messages", br#"[{"role": "x\ny", "content": ""}]"#)]),
        ("binary", vec![good.clone(), store.layer("template", b"\xff\xfe")]),
        ("not-gguf", vec![store.layer("model", b"this is a text and not a model, not at all")]),
        ("large", vec![good.clone(), store.layer("license", &vec![b'x'; (4 << 20) + 1])]),
    ];
    let mut names: Vec<String> = manifests.iter().map(|(name, _)| (*name).to_owned()).collect();
    for (name, layers) in &manifests {
        store.manifest(&format!("registry.ollama.ai/library/{name}/latest"), layers);
    }
    for (name, bytes) in
        [("text", &b"{}}"[..]), ("array", b"[1]"), ("no-layers", b"{}"), ("huge", &vec![b' '; (1 << 20) + 1])]
    {
        store.raw("manifests", &format!("registry.ollama.ai/library/{name}/latest"), bytes);
        names.push(name.into());
    }
    let remote = json!({ "config": store.layer("config", br#"{"remote_host": "https://x", "model_format": ""}"#), "layers": [good] });
    store.raw("manifests", "registry.ollama.ai/library/remote/latest", remote.to_string().as_bytes());
    names.extend(
        ["remote", "absent", "../../etc/passwd", "a/b/c/d", "http://x/y", "", "a:", "traversal/.."]
            .map(str::to_owned),
    );
    let told: Vec<String> = names
        .iter()
        .map(|name| format!("## {name}\n{}", told(dir.path(), &["inspect", &format!("ollama:{name}")])))
        .collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn weights_that_are_not_what_their_name_says_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    let layer = store.layer("model", &model(true));
    let path = store.blob(layer["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap());
    store.manifest(NAME, &[layer]);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(
        run(dir.path(), &["inspect", "ollama:tiny:1b"]).status.success(),
        "the header is all that is read"
    );
    let said = told(dir.path(), &["inject", "ollama:tiny:1b", "--dry-run"]);
    assert!(said.starts_with("exit 1") && said.contains("is damaged: its sha256 is"), "{said}");
}

#[test]
fn a_store_is_never_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    let layer = store.layer("model", &model(true));
    store.manifest(NAME, std::slice::from_ref(&layer));
    let bare = store.layer("model", &model(false));
    let go = store.layer("template", b"{{ .Prompt }}");
    store.manifest("registry.ollama.ai/library/bare/latest", &[bare, go]);
    let digest = layer["digest"].as_str().unwrap().replace(':', "-");
    let blob = format!("models/blobs/{digest}");
    let split = ["inject", "ollama:tiny:1b", "--dry-run", "-o", "x.Modelfile"];
    let cases: [&[&str]; 6] = [
        &["inject", "ollama:tiny:1b", "--dry-run", "-o", "models/out.gguf"],
        &["inject", "ollama:tiny:1b", "--dry-run", "--in-place"],
        &["inject", &blob, "--dry-run"],
        &["inject", "ollama:bare", "--dry-run"],
        &["inject", "ollama:tiny:1b", "--dry-run", "--ollama-create", "../x"],
        &split,
    ];
    let told: Vec<String> =
        cases.iter().map(|args| told(dir.path(), args).replace(&digest, "sha256-HEX")).collect();
    insta::assert_snapshot!(told.join("\n"));
}

/// Returns a handler that responds as Ollama's documentation describes, with `last` as the final status line.
fn fake(blobs: Vec<String>, last: &'static str) -> impl Fn(&Request) -> Answer {
    move |request| match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/api/version") => Answer::new(200, r#"{"version":"0.0.0"}"#),
        ("POST", "/api/show") if request.body == br#"{"model":"taken:latest"}"# => Answer::new(200, "{}"),
        ("POST", "/api/show") => Answer::new(404, r#"{"error":"model not found"}"#),
        ("HEAD", path) => {
            Answer::new(if blobs.iter().any(|blob| path.ends_with(blob)) { 200 } else { 404 }, "")
        }
        ("POST", "/api/create") => Answer::new(
            200,
            format!("{}\n{}\n{last}\n", r#"{"status":"parsing GGUF"}"#, r#"{"status":"writing manifest"}"#),
        ),
        ("POST", path) if path.starts_with("/api/blobs/sha256:") => Answer::new(201, ""),
        _ => Answer::new(400, r#"{"error":"what?"}"#),
    }
}

fn part(folder: &Path, name: &str, bytes: &[u8]) -> Part {
    std::fs::write(folder.join(name), bytes).unwrap();
    let sha256 = rosi_gguf::gguf::sha256_hex(bytes);
    Part { name: name.into(), path: folder.join(name), sha256 }
}

#[test]
fn a_server_gets_what_the_documentation_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    let (new, old) =
        (part(dir.path(), "m-rosi.gguf", &[7; 300_000]), part(dir.path(), "projector-0.gguf", b"old"));
    let server = Server::start(fake(vec![old.sha256.clone()], r#"{"status":"success"}"#));
    let api = Api::at(&server.address).unwrap();
    assert!(api.is_running() && api.has(&Name::parse("taken").unwrap()).unwrap());
    let name = Name::parse("safer").unwrap();
    assert!(!api.has(&name).unwrap());
    let companions = Companions {
        template: Some("{{ .Prompt }}".into()),
        system: Some("You are.".into()),
        parameters: serde_json::from_str(r#"{"stop": ["a", "b"], "temperature": 0.7}"#).unwrap(),
        licenses: vec!["MIT".into()],
        ..Companions::default()
    };
    let mut last = (0, 0);
    let parts = [new.clone(), old.clone()];
    for part in &parts {
        api.upload(part, &mut |done, total| {
            last = (done, total);
            Ok(())
        })
        .unwrap();
    }
    assert_eq!(last, (300_000, 300_000));
    let mut statuses = Vec::new();
    api.create(&name, &parts, &companions, &mut |status| {
        statuses.push(status.to_owned());
        Ok(())
    })
    .unwrap();
    assert_eq!(statuses, ["parsing GGUF", "writing manifest"]);
    let asked = server.asked();
    let blobs: Vec<(&str, &str)> = asked
        .iter()
        .filter(|r| r.path.contains("blobs"))
        .map(|r| (r.method.as_str(), r.path.as_str()))
        .collect();
    let path = |part: &Part| format!("/api/blobs/sha256:{}", part.sha256);
    assert_eq!(blobs, [("HEAD", path(&new).as_str()), ("POST", &path(&new)), ("HEAD", &path(&old))]);
    let uploaded = asked.iter().find(|r| r.method == "POST" && r.path == path(&new)).unwrap();
    assert_eq!((uploaded.body.len(), uploaded.header("transfer-encoding")), (300_000, None));
    let create: Value = serde_json::from_slice(&asked.last().unwrap().body).unwrap();
    assert_eq!(
        create,
        json!({
            "model": "safer:latest",
            "files": { "m-rosi.gguf": format!("sha256:{}", new.sha256), "projector-0.gguf": format!("sha256:{}", old.sha256) },
            "stream": true,
            "template": "{{ .Prompt }}",
            "system": "You are.",
            "parameters": { "stop": ["a", "b"], "temperature": 0.7 },
            "license": ["MIT"],
        })
    );
}

#[test]
fn a_server_that_fails_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let name = Name::parse("safer").unwrap();
    let part = part(dir.path(), "m.gguf", b"x");
    let create = |answer: Answer| {
        let server = Server::start(move |_| answer.clone());
        let api = Api::at(&server.address).unwrap();
        let error = api.create(&name, std::slice::from_ref(&part), &Companions::default(), &mut |_| Ok(()));
        error.unwrap_err().to_string().replace(&server.address, "SERVER")
    };
    let told = [
        create(Answer::new(200, r#"{"error":"unsupported architecture"}"#)),
        create(Answer::new(200, r#"{"status":"reading"}"#)),
        create(Answer::new(200, "<html>")),
        create(Answer::new(400, r#"{"error":"invalid model name"}"#)),
        create(Answer::new(502, "bad gateway")),
        create(Answer::new(307, "").with("Location", "http://127.0.0.1:9/")),
    ];
    let nobody = Api::at(NO_ONE).unwrap();
    assert!(!nobody.is_running());
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn the_modelfile_carries_over_what_the_store_has() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    let layers = [
        store.layer("model", &model(true)),
        store.layer("template", b"{{ if .System }}<s>{{ .System }}</s>{{ end }}\n{{ .Prompt }}\n"),
        store.layer("system", b"You are \"careful\"."),
        store.layer("params", br#"{"num_ctx":4096,"stop":["<|im_end|>","<|im_start|>"],"temperature":0.6}"#),
        store.layer("license", b"First\nLicense"),
        store.layer("license", b"Second"),
        store
            .layer("messages", br#"[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello"}]"#),
        store.layer("application/x.future", b"?"),
    ];
    store.manifest(NAME, &layers);
    let found = rosi_gguf::sources::ollama::Store::at(store.0.clone())
        .find(&Name::parse("tiny:1b").unwrap(), None)
        .unwrap();
    assert_eq!(found.companions.unknown, ["application/x.future"]);
    insta::assert_snapshot!(modelfile::write("./tiny-1b-rosi.gguf", &found.companions).unwrap());
}
