//! Compares tiny random models on two local RPC workers with the same models on the CPU, and tests the loss of a
//! worker. The workers run `rosi-gguf rpc-server`, which is llama.cpp's own server. Nothing is fetched.

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::common::beside::same_direction;
use crate::common::few_prompts::few_prompts;
use crate::common::files::listing;
use crate::common::run::{command, ended, json, refused, stderr, text};
use crate::common::talking::{directing, models};

/// A worker process that ends with the test.
struct Worker {
    child: Child,
    endpoint: String,
}

impl Worker {
    fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let mut server = command(&["rpc-server", "-p", &port, "-t", "1"]);
        let mut worker = Self {
            child: server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap(),
            endpoint: format!("127.0.0.1:{port}"),
        };
        let started = Instant::now();
        while TcpStream::connect(&worker.endpoint).is_err() {
            assert!(worker.child.try_wait().unwrap().is_none(), "the worker exited");
            assert!(started.elapsed() < Duration::from_secs(30), "the worker does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        worker
    }

    fn end(&mut self) {
        // Ignored: it may have exited already.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

fn endpoints(workers: &[Worker; 2]) -> String {
    workers.each_ref().map(|worker| worker.endpoint.clone()).join(",")
}

#[test]
fn two_workers_find_the_direction_that_this_machine_finds() {
    let folder = tempfile::tempdir().unwrap();
    let few = few_prompts(folder.path());
    for model in models(folder.path()) {
        let [local, remote] = ["local", "remote"].map(|end| model.with_extension(end));
        let direction = |out: &Path, extra: &[&str]| {
            let started = Instant::now();
            let told = stderr(&ended(&[&directing(&model, out, &few)[..], extra].concat(), 0));
            eprintln!("{extra:?}: {:.0} s", started.elapsed().as_secs_f64());
            told
        };
        direction(&local, &["--device", "none"]);
        let workers = [Worker::start(), Worker::start()];
        let told = direction(&remote, &["--rpc", &endpoints(&workers), "--device", "RPC0,RPC1", "-vvv"]);
        for worker in &workers {
            assert!(told.contains(&format!("connecting to the RPC worker {}", worker.endpoint)), "{told}");
            let holds = |line: &&str| line.contains(&worker.endpoint) && line.contains("model buffer size");
            let buffer = told.lines().find(holds);
            eprintln!(
                "{}",
                buffer.unwrap_or_else(|| panic!("{} holds nothing: {told}", worker.endpoint)).trim()
            );
        }
        same_direction(&model.file_stem().unwrap().to_string_lossy(), &local, &remote);
    }
}

#[test]
fn workers_are_listed_and_those_that_are_not_there_are_told() {
    let workers = [Worker::start(), Worker::start()];
    let told = json(&["devices", "--json", "--rpc", &endpoints(&workers)]);
    let devices = told["devices"].as_array().unwrap();
    let at =
        |worker: &Worker| devices.iter().find(|device| device["description"] == worker.endpoint.as_str());
    let [first, second] = workers.each_ref().map(|worker| at(worker).unwrap());
    assert_eq!([&first["name"], &second["name"]], ["RPC0", "RPC1"]);
    assert!(first["total"].as_u64().unwrap() > 1 << 20, "{told}");
    let [_, mut gone] = workers;
    gone.end();
    let told = refused(&["devices", "--rpc", &gone.endpoint]);
    assert!(told.contains(&format!("error: RPC worker {}: ", gone.endpoint)), "{told}");
    assert!(told.contains("hint: start a worker at that address"), "{told}");
}

/// Runs a command on two workers and kills one of them once the command has printed `moment`. The command must end with
/// an error and leave no new files in the folder except those that `--resume` needs.
fn lose_a_worker(folder: &Path, args: &[&str], moment: &str) -> String {
    let before = listing(folder);
    let mut workers = [Worker::start(), Worker::start()];
    let rpc = endpoints(&workers);
    let run_on = ["--rpc", &rpc, "--device", "RPC0,RPC1"];
    let mut child = command(&[args, &run_on].concat()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut told = String::new();
    while !told.contains(moment) {
        assert!(lines.read_line(&mut told).unwrap() > 0, "it ended before: {told}");
    }
    let unfinished = listing(folder).into_iter().filter(|path| !before.contains(path)).count();
    assert!(unfinished > 0, "no temporary file exists yet");
    workers[1].end();
    lines.read_to_string(&mut told).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{told}");
    assert!(told.contains("error: an RPC worker was lost: "), "{told}");
    let mut left = listing(folder);
    left.retain(|path| path.extension().is_none_or(|end| end != "jsonl") || before.contains(path));
    assert_eq!(left, before);
    told
}

#[test]
fn a_lost_worker_is_told_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let few = few_prompts(folder.path());
    let [model, ..] = models(folder.path());
    let [edit, out] = ["edit", "out.gguf"].map(|name| folder.path().join(name));
    let search = directing(&model, &edit, &few);
    for moment in ["loading the model", "collecting hidden states", "training the gates"] {
        let told = lose_a_worker(folder.path(), &search, moment);
        assert!(told.contains("--resume continues a search"), "{told}");
    }
    // And while the written file is scored, when it still has its temporary name.
    ended(&[&search[..], &["--device", "none"]].concat(), 0);
    let inject = ["inject", text(&model), "--edit", text(&edit), "-o", text(&out)];
    let inject = [&inject[..], &["--prompts", text(&few), "--no-bundled-prompts"]].concat();
    lose_a_worker(folder.path(), &inject, "scoring the written file");
}
