//! Output files: what is rejected before any work, how concurrent runs are locked out, and what is left behind. No
//! model is run.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::common::files::listing;
use crate::common::run::{command, ended, refused, text};
use rosi_gguf::gguf::{GgmlType, GgufBuilder, LockFile, Value};

/// Writes a file whose header suffices for a plan, with writers of 256 columns in `ggml_type`.
fn model(path: &Path, ggml_type: GgmlType) {
    let zeros = |ggml_type: GgmlType, rows: usize| vec![0; ggml_type.row_bytes(256).unwrap() as usize * rows];
    let file = GgufBuilder::new()
        .string("general.architecture", "llama")
        .string("tokenizer.chat_template", "{{ messages[0].content }}")
        .kv("general.file_type", Value::U32(1))
        .kv("llama.block_count", Value::U32(1))
        .kv("llama.embedding_length", Value::U32(256))
        .tensor("token_embd.weight", &[256, 2], GgmlType::F16, zeros(GgmlType::F16, 2))
        .tensor("blk.0.attn_output.weight", &[256, 256], ggml_type, zeros(ggml_type, 256))
        .tensor("blk.0.ffn_down.weight", &[256, 256], ggml_type, zeros(ggml_type, 256));
    file.write_to(&mut std::fs::File::create(path).unwrap()).unwrap();
}

struct Folder {
    folder: tempfile::TempDir,
    model: String,
}

impl Folder {
    fn new(ggml_type: GgmlType) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        model(&path, ggml_type);
        Self { model: text(&path).into(), folder }
    }

    fn at(&self, name: &str) -> String {
        text(&self.folder.path().join(name)).into()
    }

    fn names(&self) -> Vec<PathBuf> {
        listing(self.folder.path())
    }

    /// Runs a command that must end with exit code 1, before any work and without leaving files; returns its stderr.
    fn refused(&self, args: &[&str]) -> String {
        let before = self.names();
        let told = refused(args);
        assert_eq!(self.names(), before, "{args:?} left something behind");
        assert!(!told.contains("hashing") && !told.contains("loading"), "{args:?} did work first: {told}");
        told
    }
}

#[test]
fn no_work_is_done_for_an_output_that_cannot_be_written() {
    let folder = Folder::new(GgmlType::F16);
    let (model, out) = (folder.model.as_str(), folder.at("out.gguf"));
    let long = folder.at(&"x".repeat(300));
    let no_folder = folder.at("none/x");
    let slash = format!("{}/", folder.at("none"));
    let edit = folder.at("e.safetensors");
    let dot = format!("{slash}.");
    for bad in [&long, &no_folder, &slash, &dot] {
        for args in [
            &["inject", model, "--report", bad][..],
            &["inject", model, "--html", bad],
            &["inject", model, "--save-adapter", bad],
            &["inject", model, "-o", bad],
            &["eval", model, "--report", bad],
            &["search", model, "-o", bad],
            &["export", &edit, "--model", model, "--lora", bad],
            &["export", &edit, "--model", model, "--lora", &out, "--control-vector", bad],
        ] {
            let told = folder.refused(args);
            assert!(told.starts_with("error: ") && told.contains("output"), "{args:?}: {told}");
        }
    }
    // The name of the model is short enough, but that of the search journal is too long.
    let almost = folder.at(&format!("{}.gguf", "y".repeat(248)));
    let told = folder.refused(&["inject", model, "-o", &almost]);
    assert!(told.contains(".search.jsonl"), "{told}");
}

#[test]
fn outputs_are_kept_apart_however_they_are_spelled() {
    let folder = Folder::new(GgmlType::F16);
    let (model, out) = (folder.model.as_str(), folder.at("z.gguf"));
    let same = format!("{}/./z.gguf", text(folder.folder.path()));
    let prompts = folder.at("p.jsonl");
    std::fs::write(&prompts, "").unwrap();
    let with_kind = format!("harmful:{prompts}");
    for args in [
        &["inject", model, "-o", &out, "--save-adapter", &same][..],
        &["inject", model, "--report", &out, "--html", &same],
        &["inject", model, "-o", &prompts, "--prompts", &with_kind],
        &["inject", model, "--report", &prompts, "--prompts", &with_kind],
        &["report", &prompts, "--html", &prompts],
    ] {
        let told = folder.refused(&[args, &["--overwrite"]].concat());
        assert!(told.contains("already used for another file"), "{args:?}: {told}");
    }
}

#[test]
fn a_dry_run_refuses_the_outputs_that_the_run_would() {
    let folder = Folder::new(GgmlType::F16);
    let (model, no_folder) = (folder.model.as_str(), folder.at("none/x"));
    let there = folder.at("there");
    std::fs::write(&there, "").unwrap();
    for bad in [&no_folder, &there, &folder.at("")] {
        for flag in ["-o", "--report", "--html", "--save-adapter"] {
            let told = folder.refused(&["inject", model, "--dry-run", flag, bad]);
            assert!(told.starts_with("error: "), "{flag} {bad}: {told}");
        }
    }
}

#[test]
fn files_without_an_end_are_not_read_whole() {
    let folder = Folder::new(GgmlType::F16);
    let patches = folder.folder.path().join("patches");
    std::fs::create_dir(&patches).unwrap();
    std::os::unix::fs::symlink("/dev/zero", patches.join("llama.toml")).unwrap();
    for (args, problem) in [
        (&["inject", &folder.model, "--dry-run", "--context", "/dev/zero"][..], "expected at most"),
        (&["inject", &folder.model, "--dry-run", "--system-prompt", "/dev/zero"], "expected at most"),
        (&["inspect", &folder.model, "--patches", text(&patches)], "expected a regular file"),
        (&["release", text(&patches.join("llama.toml"))], "expected at most"),
    ] {
        let told = folder.refused(args);
        assert!(told.contains(problem), "{args:?}: {told}");
    }
}

#[test]
fn types_that_cannot_be_written_are_told_before_any_work() {
    let folder = Folder::new(GgmlType::IQ2_XXS);
    let inject = ["inject", &folder.model, "--method", "contrast"];
    let told = folder.refused(&[&inject[..], &["--requant", "nearest"]].concat());
    assert!(told.contains("blk.0.attn_output.weight") && told.contains("importance matrix"), "{told}");
    let narrow = Folder::new(GgmlType::IQ1_S);
    let inject = ["inject", &narrow.model, "--method", "contrast"];
    let told = narrow.refused(&[&inject[..], &["--promote", "IQ2_XS"]].concat());
    assert!(told.contains("as IQ2_XS") && told.contains("importance matrix"), "{told}");
    // A type that needs no importance matrix is accepted.
    ended(&[&inject[..], &["--promote", "Q8_0", "--dry-run"]].concat(), 0);
}

#[test]
#[cfg(unix)]
fn a_second_run_is_kept_away() {
    let folder = Folder::new(GgmlType::F16);
    let held = LockFile::take(Path::new(&folder.at("m-rosi.search.jsonl"))).unwrap();
    for args in [
        &["inject", &folder.model][..],
        &["inject", &folder.model, "--resume"],
        &["search", &folder.model, "-o", &folder.at("m-rosi.safetensors")],
    ] {
        let told = refused(args);
        assert!(told.contains("another run is writing") && told.contains("search.jsonl"), "{told}");
    }
    drop(held);
    let out = folder.at("release");
    std::fs::create_dir(&out).unwrap();
    let held = LockFile::take(&Path::new(&out).join("release.json")).unwrap();
    let told = refused(&["release", &folder.model, "-o", &out]);
    assert!(told.contains("another run is writing") && told.contains("release.json"), "{told}");
    drop(held);
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
}

/// Reads lines until one contains `wanted`.
fn wait_for(stderr: &mut impl BufRead, wanted: &str) {
    let mut line = String::new();
    while !line.contains(wanted) {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended before {wanted:?}");
    }
}

fn interrupt(child: &Child) {
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

#[test]
#[cfg(unix)]
fn a_second_interrupt_leaves_no_temporary_file() {
    let folder = Folder::new(GgmlType::F16);
    let before = folder.names();
    // A worker that does not respond: llama.cpp waits for it without checking for interrupts.
    let worker = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = worker.local_addr().unwrap().to_string();
    let (report, set) = (folder.at("report.json"), folder.at("m.gguf"));
    let mut child = command(&["eval", &set, "--report", &report, "--rpc", &address]).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    wait_for(&mut said, "connecting to the RPC worker");
    let _connection = worker.accept().unwrap();
    assert_eq!(folder.names().len(), before.len() + 1, "the report should exist under its temporary name");
    interrupt(&child);
    wait_for(&mut said, "again to stop at once");
    interrupt(&child);
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(60), "it did not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(folder.names(), before);
}

#[test]
fn a_stderr_that_nobody_reads_is_no_failure() {
    let folder = Folder::new(GgmlType::F16);
    let dry_run = ["inject", folder.model.as_str(), "--dry-run", "--json", "-vvv"];
    for (args, code) in [(&["inspect", "none.gguf"][..], 1), (&dry_run, 0)] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut child = command(args).stderr(Stdio::from(writer)).spawn().unwrap();
        let mut told = String::new();
        child.stdout.take().unwrap().read_to_string(&mut told).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{args:?}");
        assert_eq!(told.is_empty(), code == 1, "{args:?}");
    }
}
