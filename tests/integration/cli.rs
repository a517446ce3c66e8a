//! The flags of the program, and files that it must reject. No model is run.

use std::path::Path;
use std::process::Command;

use clap::CommandFactory;
use rosi_gguf::cli::Cli;
use rosi_gguf::gguf::GgufBuilder;

use crate::common::files::{gguf_bytes, listing};
use crate::common::plan_only::{arch, tiny_llama};
use crate::common::run::{ended, json, parsed, ran, stderr, told};

fn inject(folder: &Path, file: &str) -> String {
    let before = listing(folder);
    let text = told(&["inject", folder.join(file).to_str().unwrap()], folder);
    assert_eq!(listing(folder), before, "files were left behind");
    text
}

fn save(folder: &Path, name: &str, file: GgufBuilder) -> Vec<u8> {
    let bytes = gguf_bytes(&file);
    std::fs::write(folder.join(name), &bytes).unwrap();
    bytes
}

/// Terminal control: a link, clearing the screen, right-to-left text, overwriting a line, deletion, a line feed.
const HOSTILE: &str = "\u{1b}]8;;http://x\u{7}n\u{9b}2J\u{202e}\r\u{7f}\nwarning";

/// Runs a command; returns its stdout and stderr after checking that they contain no terminal control characters.
fn harmless(args: &[&str], code: i32) -> [String; 2] {
    let output = ran(args);
    let texts = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert_eq!(output.status.code(), Some(code), "{texts:?}");
    for text in &texts {
        let steers = |c: char| c != '\n' && (c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c));
        assert!(!text.contains(steers), "{args:?}: {text:?}");
    }
    texts
}

#[test]
fn no_file_steers_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    // Tensor names with control characters are rejected, but those with bidirectional formatting are accepted.
    let named = |file: GgufBuilder, value: f32| file.f32_tensor("\u{202e}\u{2066}t", &[4], &[value; 4]);
    let model = tiny_llama()
        .string("general.name", HOSTILE)
        .string("general.description", HOSTILE)
        .string("tokenizer.chat_template", HOSTILE)
        .string_array("tokenizer.ggml.tokens", &[HOSTILE]);
    save(folder, "hostile.gguf", named(model, 0.0));
    let [told, _] = harmless(&["inspect", &at("hostile.gguf")], 0);
    assert!(told.contains(r"\u{1b}]8;;http://x\u{7}n\u{9b}2J\u{202e}\u{d}\u{7f}\u{a}warning"), "{told}");
    let [json, _] = harmless(&["inspect", "--json", &at("hostile.gguf")], 0);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["name"], &json["chat_template"]), (&HOSTILE.into(), &HOSTILE.into()));

    save(folder, "one.gguf", named(tiny_llama(), 1.0));
    save(folder, "two.gguf", named(tiny_llama(), 2.0));
    let [told, _] = harmless(&["verify", &at("one.gguf"), &at("two.gguf")], 3);
    assert!(told.contains(r"\u{202e}\u{2066}t"), "{told}");

    // Files that the builder does not write.
    let replaced = |name: &str, file: GgufBuilder, [from, to]: [&str; 2]| {
        let mut bytes = save(folder, name, file);
        let at = bytes.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        std::fs::write(folder.join(name), &bytes).unwrap();
    };
    let two = named(tiny_llama(), 1.0).f32_tensor("\u{202e}\u{2066}u", &[4], &[2.0; 4]);
    replaced("twice.gguf", two, ["\u{2066}u", "\u{2066}t"]);
    let control = tiny_llama().f32_tensor("[2Jx", &[4], &[0.0; 4]);
    replaced("control.gguf", control, ["[2Jx", "\u{1b}[\u{9b}"]);
    save(folder, "architecture.gguf", arch(HOSTILE).f32_tensor("t", &[4], &[0.0; 4]));
    for file in ["twice.gguf", "control.gguf", "architecture.gguf", &HOSTILE.replace('/', "")] {
        let [_, told] = harmless(&["inspect", &at(file)], 1);
        assert!(told.starts_with("error: "), "{told}");
    }
    for args in [["inspect", "--\u{1b}[2J\u{9b}"], ["\u{202e}\u{1b}[2J", "x"]] {
        harmless(&args, 1);
    }
    let hostile = &at("hostile.gguf");
    let prompts = folder.join(format!("{}.csv", HOSTILE.replace('/', "")));
    std::fs::write(&prompts, format!("prompt,kind\n\"{HOSTILE}\",\"{HOSTILE}\"\n")).unwrap();
    harmless(&["inject", hostile, "--prompts", prompts.to_str().unwrap(), "--dry-run"], 1);
}

#[test]
fn files_that_are_no_model_are_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let some = |file: GgufBuilder| file.f32_tensor("t", &[4], &[0.0; 4]);
    std::fs::create_dir(folder.join("folder.gguf")).unwrap();
    std::fs::write(folder.join("empty.gguf"), b"").unwrap();
    std::fs::write(folder.join("text.gguf"), b"this is a text and not a model, not at all").unwrap();
    let whole = save(folder, "base.gguf", tiny_llama());
    std::fs::write(folder.join("truncated.gguf"), &whole[..whole.len() - 40]).unwrap();
    std::fs::write(folder.join("header.gguf"), &whole[..60]).unwrap();
    save(folder, "mmproj.gguf", some(arch("clip")));
    save(folder, "adapter.gguf", some(arch("llama").string("general.type", "adapter")));
    save(folder, "vocab.gguf", arch("llama"));
    save(folder, "unknown.gguf", some(arch("llamma")));
    let all = [
        "missing",
        "folder",
        "empty",
        "text",
        "truncated",
        "header",
        "mmproj",
        "adapter",
        "vocab",
        "unknown",
        "base",
    ];
    let told: Vec<String> =
        all.iter().map(|name| format!("## {name}\n{}", inject(folder, &format!("{name}.gguf")))).collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn flags_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), "m.gguf", tiny_llama().string("tokenizer.chat_template", "{{ messages[0].content }}"));
    let model = dir.path().join("m.gguf");
    let model = model.to_str().unwrap();
    let none = dir.path().join("none.safetensors");
    let none = none.to_str().unwrap();
    let page = dir.path().join("page.html");
    let page = page.to_str().unwrap();
    let cases: [&[&str]; 13] = [
        &["inject", model, "--strength", "-0.04"],
        &["inject", model, "--strength", "65"],
        &["inject", model, "--layer", "-1"],
        &["inject", model, "--contrast", "-1"],
        &["inject", model, "--contrast", "0.5", "--method", "published"],
        &["inject", model, "--max-kl", "0"],
        &["inject", model, "-o", model],
        &["inject", model, "--threads", "0"],
        &["inject", model, "--direction-source", "safety", "--system-prompt", "off"],
        &["inject", model, "--report", page, "--html", page],
        &["inject", model, "--html", model, "--overwrite"],
        &["inject", model, "--edit", none],
        &["inject", model, "--edit", none, "--direction-source", "plain"],
    ];
    let told: Vec<String> = cases.iter().map(|args| told(args, dir.path())).collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn dry_run_writes_nothing_and_tells_what_it_would() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), "m.gguf", tiny_llama().string("tokenizer.chat_template", "{{ messages[0].content }}"));
    let before = listing(dir.path());
    let facts = json(&["inject", dir.path().join("m.gguf").to_str().unwrap(), "--dry-run", "--json"]);
    assert_eq!(facts["tensors"], serde_json::json!(["blk.0.attn_output.weight", "blk.0.ffn_down.weight"]));
    assert_eq!(facts["method"], "contrast", "the model has no network with an up projection");
    assert_eq!(facts["edited_bytes"], (16 + 32) * 4);
    assert_eq!(listing(dir.path()), before);
}

#[test]
fn an_existing_output_is_only_overwritten_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), "m.gguf", tiny_llama().string("tokenizer.chat_template", "{{ messages[0].content }}"));
    std::fs::write(dir.path().join("m-rosi.gguf"), b"mine").unwrap();
    insta::assert_snapshot!(inject(dir.path(), "m.gguf"));
    assert_eq!(std::fs::read(dir.path().join("m-rosi.gguf")).unwrap(), b"mine");
}

#[test]
fn a_page_is_never_put_where_something_else_is() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), "m.gguf", tiny_llama().string("tokenizer.chat_template", "{{ messages[0].content }}"));
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("mine.html"), b"mine").unwrap();
    std::fs::write(path("other.json"), b"[1, 2]").unwrap();
    let before = listing(dir.path());
    let cases: [&[&str]; 5] = [
        &["inject", &path("m.gguf"), "--html", &path("mine.html")],
        &["report", &path("other.json"), "--html", &path("mine.html")],
        &["report", &path("other.json"), "--html", &path("mine.html"), "--overwrite"],
        &["report", &path("other.json"), "--html", &path("none/x.html")],
        &["report", &path("none.json")],
    ];
    let told: Vec<String> = cases.iter().map(|args| told(args, dir.path())).collect();
    insta::assert_snapshot!(told.join("\n"));
    assert_eq!(listing(dir.path()), before);
    assert_eq!(std::fs::read(path("mine.html")).unwrap(), b"mine");
}

#[test]
fn inspect_tells_the_writers() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), "m.gguf", tiny_llama());
    let path = dir.path().join("m.gguf");
    let facts = json(&["inspect", path.to_str().unwrap(), "--json"]);
    assert_eq!(facts["architecture"], "llama");
    assert_eq!(facts["writers"].as_array().unwrap().len(), 2);
    assert_eq!(facts["tied_embeddings"], true);
    assert_eq!(facts["injected"], serde_json::Value::Null);
    assert!(facts.get("abliterated").is_none(), "--weights was not given");
    let facts = parsed(&ran(&["inspect", path.to_str().unwrap(), "--json", "--weights"]));
    assert_eq!(facts.get("abliterated"), Some(&serde_json::Value::Null));
}

#[test]
fn verify_sees_every_difference() {
    let dir = tempfile::tempdir().unwrap();
    let base = save(dir.path(), "a.gguf", tiny_llama());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let json = |edited: &str| parsed(&ran(&["-q", "verify", &path("a.gguf"), &path(edited), "--json"]));
    let same = json("a.gguf");
    assert_eq!((same["identical"].as_u64(), same["tensors"].as_array().unwrap().len()), (Some(3), 0));
    let mut bytes = base.clone();
    *bytes.last_mut().unwrap() ^= 0x40;
    std::fs::write(dir.path().join("b.gguf"), bytes).unwrap();
    let changed = json("b.gguf");
    assert_eq!(changed["tensors"][0]["name"], "blk.0.ffn_down.weight");
    assert_eq!(changed["metadata_preserved"], true);
    save(dir.path(), "c.gguf", tiny_llama().string("general.name", "other"));
    assert_eq!(json("c.gguf")["metadata_preserved"], false);
}

/// Returns the completions that bash offers for the last of `words`.
fn completed(words: &[&str], folder: &Path) -> Vec<String> {
    // Does what bash does on Tab: calls the function registered for the program, with the words in variables.
    let script = r#"
        source <("$TOOL" completions bash)
        registered="$(complete -p rosi-gguf)"
        [[ $registered =~ -F\ ([^ ]+) ]]
        COMP_WORDS=(rosi-gguf "$@") COMP_CWORD=$#
        "${BASH_REMATCH[1]}" rosi-gguf "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
        [[ $registered == *"-o default"* && ${#COMPREPLY[@]} == 0 ]] && compgen -f -- "${COMP_WORDS[COMP_CWORD]}"
        true"#;
    let mut command = Command::new("bash");
    command.args(["-uc", script, "bash"]).args(words).current_dir(folder);
    let output = command.env("TOOL", env!("CARGO_BIN_EXE_rosi-gguf")).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn completions_work_in_bash() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("some.gguf"), b"").unwrap();
    let completed = |words: &[&str]| completed(words, dir.path());
    assert_eq!(completed(&["inj"]), ["inject"]);
    assert_eq!(completed(&["inject", "--str"]), ["--strength"]);
    assert_eq!(completed(&["inject", "some.gguf", "--dry"]), ["--dry-run"]);
    assert_eq!(completed(&["inject", "--direction-source", "s"]), ["safety"]);
    assert_eq!(completed(&["inject", "so"]), ["some.gguf"]);
    assert_eq!(completed(&["verify", "some.gguf", "so"]), ["some.gguf"]);
    assert!(completed(&["completions", ""]).contains(&"zsh".to_owned()));
}

#[test]
fn manual_pages_tell_what_help_tells() {
    let dir = tempfile::tempdir().unwrap();
    ended(&["man", "--dir", dir.path().to_str().unwrap()], 0);
    let pages: Vec<String> =
        listing(dir.path()).iter().map(|p| p.file_name().unwrap().to_str().unwrap().into()).collect();
    let help = String::from_utf8(ran(&["--help"]).stdout).unwrap();
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let names = commands.lines().take_while(|line| !line.is_empty());
    let names: Vec<&str> = names.filter_map(|l| l.strip_prefix("  ")?.split(' ').next()).collect();
    // Continuation lines of a description are indented further.
    let names: Vec<&str> = names.into_iter().filter(|name| !name.is_empty() && *name != "help").collect();
    assert!(names.contains(&"inject") && names.contains(&"man"), "{names:?}");
    let page = |name: &&str| format!("rosi-gguf-{name}.1");
    let mut expected: Vec<String> = names.iter().map(page).collect();
    expected.push("rosi-gguf.1".into());
    expected.sort();
    assert_eq!(pages, expected);
    let whole = String::from_utf8(ran(&["man"]).stdout).unwrap();
    assert!(whole.contains("rosi\\-gguf\\-inject(1)") && whole.contains("Exit status"), "{whole}");
    let inject = String::from_utf8(ran(&["man", "inject"]).stdout).unwrap();
    assert_eq!(inject, std::fs::read_to_string(dir.path().join("rosi-gguf-inject.1")).unwrap());
    assert!(inject.contains("\\-\\-max\\-kl"), "{inject}");
    assert_eq!(told(&["man", "injekt"], dir.path()).lines().count(), 3);
}

#[test]
fn devices_and_workers_that_cannot_be_are_told_before_the_model_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    save(folder, "model.gguf", tiny_llama());
    let model = folder.join("model.gguf");
    // A port that was free just now, so that no worker listens on it.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (flags, why) in [
        (["-dev", "Nonsense7"], "error: no device named Nonsense7; available: ".to_owned()),
        (["-ngl", "many"], "expected auto, all, or a number of layers".into()),
        (["--rpc", "worker"], "expected HOST:PORT, found \"worker\"".into()),
        (["--rpc", &port.to_string()], format!("error: RPC worker {port}: ")),
        (["-ts", "0,0"], "error: --tensor-split: expected non-negative numbers, at least one above 0".into()),
        (["-sm", "tensor"], "possible values: none, layer, row".into()),
    ] {
        let before = listing(folder);
        let text = told(&["inject", model.to_str().unwrap(), flags[0], flags[1]], folder);
        assert!(text.starts_with("exit 1\n") && text.contains(&why), "{flags:?}: {text}");
        assert_eq!(listing(folder), before, "files were left behind");
    }
}

#[test]
fn devices_are_listed_wherever_the_flag_stands() {
    for args in [&["devices"][..], &["--list-devices"], &["inject", "model.gguf", "--list-devices"]] {
        let output = ran(args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.starts_with("Available devices:\n  "), "{args:?}: {text}");
    }
}

/// Returns the `--help` output of all commands, in the form of docs/cli.md.
fn pages() -> String {
    let mut program = Cli::command().disable_help_subcommand(true).term_width(100);
    program.build();
    let names: Vec<String> = program.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let mut text = String::from(
        "# Commands\n\nWhat `rosi-gguf COMMAND --help` prints. Written by `ROSI_WRITE_DOCS=1 cargo test --release --test integration cli::`; do not edit.\n",
    );
    for name in names {
        let command = program.find_subcommand_mut(&name).unwrap();
        let help = command.render_long_help().to_string();
        let lines: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
        text += &format!("\n## {name}\n\n```text\n{}\n```\n", lines.join("\n"));
    }
    text
}

#[test]
fn the_documentation_of_the_commands_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md");
    let pages = pages();
    if std::env::var_os("ROSI_WRITE_DOCS").is_some() {
        std::fs::write(&path, &pages).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == pages, "docs/cli.md is out of date: run this test with ROSI_WRITE_DOCS=1");
}
