//! Models on the Hugging Face Hub by name, from a local server with the hub's layout and headers. No model is run.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

use rosi_gguf::gguf::sha256_hex;
use serde_json::{Value, json};

use crate::common::files::gguf_bytes;
use crate::common::http_server::{Answer, Request, Server};
use crate::common::plan_only::{arch, with_tiny_llama};
use crate::common::run::{command, outcome, parsed, stderr, text};

const REPO: &str = "me/tiny-GGUF";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// An address at which no server listens.
const NOBODY: &str = "127.0.0.1:9";

fn model() -> Vec<u8> {
    let file = arch("llama").string("tokenizer.chat_template", "{{ messages[0].content }}");
    gguf_bytes(&with_tiny_llama(file))
}

/// A fault of the fake hub.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// The repository requires a token.
    Gated,
    /// The ETag is a path that leads out of the cache.
    Etag,
    /// The first download breaks off.
    Cut,
    /// The bytes do not match the ETag.
    Damage,
    /// The commit is a path that leads out of the cache.
    Commit,
    /// The redirect has no `Location` header.
    Redirect,
    /// The response is not JSON.
    Html,
}

/// A fake hub with one repository. As on the real hub, large files are stored elsewhere and reached by a redirect.
struct Hub {
    files: BTreeMap<String, Vec<u8>>,
    fault: Fault,
    cut: std::sync::atomic::AtomicBool,
}

impl Hub {
    fn start(files: Files, fault: Fault) -> Server {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
        let hub = Self { files, fault, cut: (fault == Fault::Cut).into() };
        Server::start(move |request| hub.answer(request))
    }

    fn answer(&self, request: &Request) -> Answer {
        if self.fault == Fault::Gated && request.header("authorization") != Some("Bearer secret") {
            return Answer::new(401, r#"{"error":"Access to model is restricted"}"#);
        }
        let path = &request.path;
        if *path == format!("/api/models/{REPO}/revision/main") {
            return self.info();
        }
        if let Some(file) = path.strip_prefix(&format!("/{REPO}/resolve/main/")) {
            return self.resolve(file, request);
        }
        match path.strip_prefix("/cdn/").and_then(|file| self.files.get(file)) {
            Some(bytes) => self.bytes(bytes, request),
            None => Answer::new(404, r#"{"error":"Repository not found"}"#),
        }
    }

    fn info(&self) -> Answer {
        let siblings: Vec<Value> = self.files.keys().map(|name| json!({ "rfilename": name })).collect();
        let sha = if self.fault == Fault::Commit { "../../../../x" } else { COMMIT };
        match self.fault {
            Fault::Html => Answer::new(200, "<html>"),
            _ => Answer::new(200, json!({ "id": REPO, "sha": sha, "siblings": siblings }).to_string()),
        }
    }

    fn resolve(&self, file: &str, request: &Request) -> Answer {
        let Some(bytes) = self.files.get(file) else { return Answer::new(404, "Entry not found") };
        let etag = if self.fault == Fault::Etag { "../../../../x".into() } else { sha256_hex(bytes) };
        let answer = Answer::new(302, "")
            .with("X-Repo-Commit", COMMIT)
            .with("X-Linked-Etag", format!("\"{etag}\""))
            .with("X-Linked-Size", bytes.len());
        match self.fault {
            Fault::Redirect => answer,
            _ => {
                let host = request.header("host").unwrap_or_default();
                answer.with("Location", format!("http://{host}/cdn/{file}"))
            }
        }
    }

    fn bytes(&self, bytes: &[u8], request: &Request) -> Answer {
        let range = request.header("range").and_then(|range| range.strip_prefix("bytes=")).unwrap_or("0-");
        let (from, to) = range.split_once('-').unwrap();
        let (from, to) = (from.parse::<usize>().unwrap(), to.parse().unwrap_or(bytes.len() - 1));
        let mut part = bytes[from.min(bytes.len())..(to + 1).min(bytes.len())].to_vec();
        if self.fault == Fault::Damage && part.len() > 1 {
            *part.last_mut().unwrap() ^= 1;
        }
        let mut answer = Answer::new(206, part)
            .with("Content-Range", format!("bytes {from}-{to}/{}", bytes.len()))
            .with("Accept-Ranges", "bytes")
            .with("ETag", "\"cdn\"");
        if answer.body.len() > 1 && self.cut.swap(false, std::sync::atomic::Ordering::SeqCst) {
            answer.cut = Some(answer.body.len() / 2);
        }
        answer
    }
}

fn run(folder: &Path, hub: &str, args: &[&str], vars: &[(&str, &str)]) -> Output {
    command(args)
        .current_dir(folder)
        .env("HF_ENDPOINT", format!("http://{hub}/"))
        .env("HF_HOME", folder.join("home"))
        .envs(vars.iter().copied())
        .env_remove("http_proxy")
        .env_remove("HTTP_PROXY")
        .env_remove("ALL_PROXY")
        .output()
        .unwrap()
}

/// Runs the program; returns its exit code and stderr, without what differs from run to run.
fn told(folder: &Path, hub: &str, args: &[&str], vars: &[(&str, &str)]) -> String {
    let text = outcome(&run(folder, hub, args, vars), folder).replace(hub, "HUB");
    let lines: Vec<&str> = text.lines().filter(|line| !line.ends_with('…')).collect();
    lines.join("\n")
}

fn inspected(folder: &Path, hub: &str, name: &str, vars: &[(&str, &str)]) -> Value {
    let output = run(folder, hub, &["inspect", name, "--json"], vars);
    assert!(output.status.success(), "{}", stderr(&output));
    parsed(&output)
}

#[test]
fn a_name_leads_through_the_cache_to_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let files = [("README.md", b"#".to_vec()), ("tiny-q4_k_m.gguf", model()), ("tiny-Q8_0.gguf", model())];
    let hub = Hub::start(&files, Fault::None);
    let name = &format!("hf:{REPO}");
    let facts = inspected(dir.path(), &hub.address, name, &[]);
    let path = facts["path"].as_str().unwrap();
    let snapshot = format!("home/hub/models--me--tiny-GGUF/snapshots/{COMMIT}/tiny-q4_k_m.gguf");
    assert!(path.ends_with(&snapshot), "{path}");
    assert_eq!(std::fs::read(path).unwrap(), model());
    let blob = dir.path().join("home/hub/models--me--tiny-GGUF/blobs").join(sha256_hex(&model()));
    assert!(blob.is_file());
    // The next run finds it in the cache, even without the hub.
    let downloads = || hub.asked().iter().filter(|request| request.path.contains("/cdn/")).count();
    let before = downloads();
    assert_eq!(inspected(dir.path(), &hub.address, name, &[])["path"], path);
    assert_eq!(downloads(), before);
    assert_eq!(inspected(dir.path(), "127.0.0.1:9", name, &[])["path"], path);
    assert_eq!(inspected(dir.path(), "127.0.0.1:9", name, &[("HF_HUB_OFFLINE", "1")])["path"], path);
    // A commit hash needs no entry in `refs`.
    let by_commit = &format!("{name}@{COMMIT}");
    assert_eq!(inspected(dir.path(), "127.0.0.1:9", by_commit, &[("HF_HUB_OFFLINE", "1")])["path"], path);
    assert!(
        told(dir.path(), &hub.address, &["inject", name, "--dry-run", "-o", path], &[])
            .contains("is the input")
    );
    let inside = "home/hub/out.gguf";
    assert!(
        told(dir.path(), &hub.address, &["inject", name, "--dry-run", "-o", inside], &[])
            .contains("another program's model store")
    );
    let facts = parsed(&run(dir.path(), &hub.address, &["inject", name, "--dry-run", "--json"], &[]));
    assert_eq!(facts["output"], "tiny-q4_k_m-rosi.gguf");
}

#[test]
fn what_llama_cpp_downloaded_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let split = ["Q8_0/t-Q8_0-00001-of-00002.gguf", "Q8_0/t-Q8_0-00002-of-00002.gguf"];
    let files = [("tiny-q4_k_m.gguf", model()), (split[0], model()), (split[1], model())];
    let hub = Hub::start(&files, Fault::None);
    let llama = dir.path().join("llama");
    std::fs::create_dir(&llama).unwrap();
    let flat = |name: &str| llama.join(format!("me_tiny-GGUF_{}", name.replace('/', "_")));
    files.iter().for_each(|(name, bytes)| std::fs::write(flat(name), bytes).unwrap());
    let vars = [("LLAMA_CACHE", text(&llama))];
    let found = |hub: &str, wanted: &str| {
        let facts = inspected(dir.path(), hub, &format!("hf:{REPO}{wanted}"), &vars);
        facts["path"].as_str().unwrap().to_owned()
    };
    for address in [hub.address.as_str(), NOBODY] {
        assert_eq!(found(address, ""), text(&flat("tiny-q4_k_m.gguf")));
        assert_eq!(found(address, ":q8_0"), text(&flat(split[0])));
    }
    assert_eq!(found(NOBODY, &format!(":{}", split[0])), text(&flat(split[0])));
    let snapshots = dir.path().join("home/hub/models--me--tiny-GGUF/snapshots");
    assert!(!snapshots.exists(), "it was downloaded although llama.cpp has it");
    let refused = told(
        dir.path(),
        &hub.address,
        &["inject", &format!("hf:{REPO}"), "--dry-run", "-o", "llama/x.gguf"],
        &vars,
    );
    assert!(refused.contains("another program's model store"), "{refused}");

    // A file that differs from the one on the hub is downloaded again.
    std::fs::write(flat("tiny-q4_k_m.gguf"), b"an older one").unwrap();
    assert!(found(&hub.address, "").contains("/home/hub/"));
    // Flat names are ambiguous, because `/` becomes `_`. The notes say that these files belong to another repository.
    std::fs::remove_dir_all(dir.path().join("home")).unwrap();
    let note = json!({ "url": "https://huggingface.co/me/tiny/resolve/main/GGUF_t.gguf" }).to_string();
    split.iter().for_each(|name| std::fs::write(flat(name).with_extension("gguf.json"), &note).unwrap());
    let missing = told(dir.path(), NOBODY, &["inspect", &format!("hf:{REPO}:q8_0")], &vars);
    assert!(missing.starts_with("exit 1"), "{missing}");

    // Newer versions of llama.cpp use the layout of the hub's cache.
    std::fs::remove_dir_all(&llama).unwrap();
    let as_hub = [("HF_HUB_CACHE", text(&llama))];
    inspected(dir.path(), &hub.address, &format!("hf:{REPO}"), &as_hub);
    for address in [hub.address.as_str(), NOBODY] {
        assert!(found(address, "").contains("/llama/models--me--tiny-GGUF/snapshots/"));
    }
}

#[test]
fn folders_of_the_environment_are_expanded() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(&[("tiny.GGUF", model())], Fault::None);
    let vars = [("HOME", text(dir.path())), ("HF_HOME", "~/${PLACE}"), ("PLACE", "of/mine")];
    let facts = inspected(dir.path(), &hub.address, &format!("hf:{REPO}"), &vars);
    let place = dir.path().join("of/mine/hub");
    assert!(facts["path"].as_str().unwrap().starts_with(text(&place)), "{facts}");
}

#[test]
fn a_download_whose_check_was_stopped_is_checked_by_the_next_run() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(&[("tiny-Q8_0.gguf", model())], Fault::None);
    let name = &format!("hf:{REPO}");
    let repo = dir.path().join("home/hub/models--me--tiny-GGUF");
    let (blob, unchecked) =
        (repo.join("blobs").join(sha256_hex(&model())), repo.join(".unchecked-tiny-Q8_0.gguf"));
    let offline: &[(&str, &str)] = &[("HF_HUB_OFFLINE", "1")];
    for vars in [&[][..], offline] {
        inspected(dir.path(), &hub.address, name, &[]);
        assert!(!unchecked.exists(), "the mark of an unfinished check remains");
        let mut bytes = model();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&blob, bytes).unwrap();
        std::fs::write(&unchecked, b"").unwrap();
        let said = told(dir.path(), &hub.address, &["inspect", name], vars);
        assert!(said.starts_with("exit 1") && said.contains(&sha256_hex(&model())), "{said}");
        assert!(!blob.exists(), "a damaged blob remains, which other programs would trust");
    }
    inspected(dir.path(), &hub.address, name, &[]);
    std::fs::write(&unchecked, b"").unwrap();
    inspected(dir.path(), &hub.address, name, offline);
    assert!(!unchecked.exists());
}

#[test]
fn a_split_model_comes_whole_and_a_download_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["Q8_0/t-Q8_0-00001-of-00002.gguf", "Q8_0/t-Q8_0-00002-of-00002.gguf"];
    let hub = Hub::start(&[(names[0], model()), (names[1], model())], Fault::Cut);
    let facts = inspected(dir.path(), &hub.address, &format!("hf:{REPO}:q8_0"), &[]);
    assert!(facts["path"].as_str().unwrap().ends_with(names[0]), "{facts}");
    let snapshot = dir.path().join("home/hub/models--me--tiny-GGUF/snapshots").join(COMMIT);
    for name in names {
        assert_eq!(std::fs::read(snapshot.join(name)).unwrap(), model());
    }
    let half = format!("bytes={}-", model().len() / 2);
    let ranges: Vec<String> =
        hub.asked().iter().filter_map(|r| r.header("range").map(str::to_owned)).collect();
    assert!(ranges.contains(&half), "the download was not resumed: {ranges:?}");
}

#[test]
fn a_token_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(&[("tiny-Q4_K_M.gguf", model())], Fault::Gated);
    let name = format!("hf:{REPO}");
    assert_eq!(
        inspected(dir.path(), &hub.address, &name, &[("HF_TOKEN", "secret")])["architecture"],
        "llama"
    );
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("home")).unwrap();
    std::fs::write(dir.path().join("home/token"), "secret\n").unwrap();
    assert_eq!(inspected(dir.path(), &hub.address, &name, &[])["architecture"], "llama");
}

type Files<'a> = &'a [(&'a str, Vec<u8>)];

#[test]
fn what_cannot_be_had_is_told() {
    let one = [("tiny-Q4_K_M.gguf", model())];
    let two = [("a-Q8_0.gguf", model()), ("b-Q8_0.gguf", model())];
    let none = [("model.safetensors", vec![1]), ("mmproj.gguf", vec![1])];
    let evil = [("../../evil-Q4_K_M.gguf", vec![1])];
    let page = [("tiny-Q4_K_M.gguf", b"<html>this is not the model that you asked for</html>".to_vec())];
    let cases: [(&str, &str, Files, Fault); 17] = [
        ("not there", "hf:me/other", &one, Fault::None),
        ("no such revision", "hf:me/tiny-GGUF@v2", &one, Fault::None),
        ("no such quantization", "hf:me/tiny-GGUF:Q5_K_M", &one, Fault::None),
        ("no such file", "hf:me/tiny-GGUF:x.gguf", &one, Fault::None),
        ("several", "hf:me/tiny-GGUF", &two, Fault::None),
        ("several of it", "hf:me/tiny-GGUF:Q8_0", &two, Fault::None),
        ("no GGUF", "hf:me/tiny-GGUF", &none, Fault::None),
        ("traversal", "hf:me/tiny-GGUF", &evil, Fault::None),
        ("no model", "hf:me/tiny-GGUF", &page, Fault::None),
        ("gated", "hf:me/tiny-GGUF", &one, Fault::Gated),
        ("etag", "hf:me/tiny-GGUF", &one, Fault::Etag),
        ("commit", "hf:me/tiny-GGUF", &one, Fault::Commit),
        ("damage", "hf:me/tiny-GGUF", &one, Fault::Damage),
        ("html", "hf:me/tiny-GGUF", &one, Fault::Html),
        ("no owner", "hf:tiny", &one, Fault::None),
        ("bad name", "hf:../..:x", &one, Fault::None),
        ("nothing", "hf:", &one, Fault::None),
    ];
    let mut all = Vec::new();
    for (what, name, files, fault) in cases {
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::start(files, fault);
        all.push(format!("## {what}\n{}", told(dir.path(), &hub.address, &["inspect", name], &[])));
        assert!(
            !dir.path().join("x").exists() && !dir.path().parent().unwrap().join("evil-Q4_K_M.gguf").exists()
        );
    }
    let dir = tempfile::tempdir().unwrap();
    all.push(format!("## nobody\n{}", told(dir.path(), "127.0.0.1:9", &["inspect", "hf:a/b"], &[])));
    let offline = [("HF_HUB_OFFLINE", "1")];
    all.push(format!("## offline\n{}", told(dir.path(), "127.0.0.1:9", &["inspect", "hf:a/b"], &offline)));
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn an_answer_that_makes_the_crate_panic_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(&[("tiny-Q4_K_M.gguf", model())], Fault::Redirect);
    let said = told(dir.path(), &hub.address, &["inspect", &format!("hf:{REPO}")], &[]);
    assert!(said.starts_with("exit 1") && said.contains("hf-hub cannot parse it"), "{said}");
}

#[test]
fn a_cache_that_cannot_be_written_is_told() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("home"), b"a file").unwrap();
    let hub = Hub::start(&[("tiny-Q4_K_M.gguf", model())], Fault::None);
    let said = told(dir.path(), &hub.address, &["inspect", &format!("hf:{REPO}")], &[]);
    assert!(said.starts_with("exit 1") && said.contains("error: "), "{said}");
    // Simulates a full disk.
    if Path::new("/dev/full").exists() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = dir.path().join("home/hub/models--me--tiny-GGUF/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::os::unix::fs::symlink("/dev/full", blobs.join(format!("{}.part", sha256_hex(&model()))))
            .unwrap();
        let said = told(dir.path(), &hub.address, &["inspect", &format!("hf:{REPO}")], &[]);
        assert!(said.contains("free some space"), "{said}");
    }
}
