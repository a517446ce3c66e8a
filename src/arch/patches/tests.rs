//! Tests of the embedded files, of overriding them, and of every kind of invalid file.

use std::fs;

use super::*;
use crate::util::hint::Hint;

const WRITER: &str = r#"
[[writer]]
tensor = "blk.{i}.ffn_down.weight"
kind = "ffn"
axis = "rows"
"#;

/// Returns a patch file for architecture `toy`, with `extra` after its only writer.
fn toy(extra: &str) -> String {
    format!("architectures = [\"toy\"]\nresidual = \"l_out\"\n{WRITER}{extra}")
}

fn embedded() -> Patches {
    Patches::embedded().unwrap()
}

/// Returns the error message for a file that `parse` rejects.
fn refusal(text: &str) -> String {
    let error = parse("toy.toml", text).unwrap_err();
    assert!(error.hint().is_some());
    error.to_string()
}

#[test]
fn embedded_files_are_valid_and_complete() {
    let patches = embedded();
    assert_eq!(patches.patches.len(), EMBEDDED.len());
    let on_disk = read_dir(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/patches"))).unwrap();
    let names: Vec<&str> = on_disk.iter().map(|(name, _)| name.as_str()).collect();
    let embedded: Vec<&str> = EMBEDDED.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, embedded);
    for arch in ["llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "mistral3", "mistral4"] {
        let patch = patches.find(arch).unwrap();
        assert_eq!(patch.residual, "l_out");
        assert_eq!(patch.embedding, EmbeddingPolicy::Leave);
        assert!(patch.writers.iter().all(|writer| writer.post_norm.is_none()));
    }
}

#[test]
fn gemma_norms_follow_the_architecture() {
    let patches = embedded();
    for arch in ["gemma2", "gemma3"] {
        let writers = patches.find(arch).unwrap().writers.iter();
        let norms: Vec<_> = writers.filter_map(|writer| writer.post_norm.as_deref()).collect();
        let expected = ["blk.{i}.post_attention_norm.weight", "blk.{i}.post_ffw_norm.weight"];
        assert_eq!(norms, expected);
    }
    let first = &patches.find("gemma").unwrap().writers;
    assert!(first.iter().all(|writer| writer.post_norm.is_none()));
}

#[test]
fn pattern_names_its_tensor_per_block() {
    let patch = parse("toy.toml", &toy("layers = { from = 1, until = 3 }")).unwrap();
    let writer = &patch.writers[0];
    assert_eq!(writer.tensor_in(12), "blk.12.ffn_down.weight");
    assert_eq!([0, 1, 2, 3].map(|layer| writer.layers.contains(layer)), [false, true, true, false]);
    assert!(LayerRange::default().contains(usize::MAX));
    assert!(writer.lora && !writer.required);
}

#[test]
fn unknown_architecture_lists_close_names() {
    let error = embedded().find("qwen4").unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown architecture `qwen4`: no patch file contains it, similar names: qwen, qwen2, qwen3"
    );
    assert!(error.hint().unwrap().contains("--patches DIR"));
    let error = embedded().find("zzzzzzzzzzzz").unwrap_err();
    assert_eq!(error.to_string(), "unknown architecture `zzzzzzzzzzzz`: no patch file contains it");
}

#[test]
fn what_cannot_be_edited_is_refused_with_its_own_reason() {
    for (architecture, reason) in [("bert", "encoder"), ("dream", "diffusion"), ("eagle3", "draft head")] {
        let error = embedded().find(architecture).unwrap_err();
        assert!(matches!(error, PatchError::Refused { .. }));
        assert!(error.to_string().contains(reason), "{error}");
        assert!(!embedded().architectures().contains(&architecture));
    }
}

#[test]
fn a_directory_can_take_back_a_refusal() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("mine.toml"), toy("").replace("\"toy\"", "\"dream\"")).unwrap();
    let patches = Patches::with_dir(dir.path()).unwrap();
    assert_eq!(patches.find("dream").unwrap().file, "mine.toml");
    assert!(patches.find("llada").unwrap_err().to_string().contains("diffusion"));
}

/// Compares the architectures that the linked llama.cpp knows with those in the files.
#[cfg(not(target_env = "msvc"))]
#[test]
fn the_files_name_what_llama_cpp_knows_and_nothing_else() {
    let known = ffi::architectures();
    assert!(known.len() > 100, "only {} names: has `enum llm_arch` changed?", known.len());
    let patches = embedded();
    let missing: Vec<&String> = known.iter().filter(|name| patches.named(name).is_none()).collect();
    assert!(missing.is_empty(), "no patches/*.toml contains {missing:?}");
    let named = patches.patches.iter().flat_map(ArchPatch::names);
    let invented: Vec<&str> = named.filter(|name| !known.iter().any(|known| known == name)).collect();
    assert!(invented.is_empty(), "llama.cpp does not know {invented:?}");
}

/// With `ROSI_WRITE_DOCS=1` in the environment, the file is written instead of compared.
#[test]
fn the_table_of_architectures_is_up_to_date() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/architectures.md"));
    let expected = markdown(&embedded().table());
    if std::env::var_os("ROSI_WRITE_DOCS").is_some() {
        fs::write(path, &expected).unwrap();
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    assert!(found == expected, "docs/architectures.md is outdated: run this test with ROSI_WRITE_DOCS=1");
}

#[test]
fn embedded_files_pair_scales_with_their_tensors() {
    for patch in &embedded().patches {
        for writer in &patch.writers {
            let stem = writer.tensor.trim_end_matches(".weight");
            let scale = writer.scale.as_deref().map(|scale| scale.trim_end_matches(".scale"));
            assert!(scale.is_none_or(|scale| scale == stem), "{}: {stem}", patch.file);
            let later = writer.scale_after_lora && writer.experts;
            assert!(!later, "{}: build_lora_mm_id scales before the LoRA", patch.file);
            let embedding = writer.kind == WriterKind::Embedding;
            assert_eq!(embedding, writer.axis == ResidualAxis::Cols, "{}: {stem}", patch.file);
        }
    }
}

#[test]
fn directory_overrides_one_architecture_only() {
    let dir = tempfile::tempdir().unwrap();
    let own = toy("").replace("[\"toy\"]", "[\"toy\", \"qwen3moe\"]");
    fs::write(dir.path().join("mine.toml"), own).unwrap();
    fs::write(dir.path().join("notes.txt"), "not TOML").unwrap();
    let patches = Patches::with_dir(dir.path()).unwrap();
    let files = ["toy", "qwen3moe", "qwen3", "llama"].map(|arch| &patches.find(arch).unwrap().file);
    assert_eq!(files, ["mine.toml", "mine.toml", "qwen3.toml", "llama.toml"]);
}

#[test]
fn directory_errors_name_the_path() {
    let dir = tempfile::tempdir().unwrap();
    let error = Patches::with_dir(dir.path()).unwrap_err();
    assert!(error.to_string().starts_with("no *.toml file in "));
    let missing = dir.path().join("missing");
    let error = Patches::with_dir(&missing).unwrap_err();
    assert!(error.to_string().starts_with(&format!("cannot read {}: ", missing.display())), "{error}");
    fs::write(dir.path().join("a.toml"), toy("colour = 3")).unwrap();
    let error = Patches::with_dir(dir.path()).unwrap_err();
    assert!(error.to_string().starts_with("a.toml, line 8: unknown field `colour`"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_pipe_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("a.toml");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let error = Patches::with_dir(dir.path()).unwrap_err().to_string();
    assert_eq!(error, format!("cannot read {}: expected a regular file", pipe.display()));
}

#[test]
fn an_architecture_named_twice_is_refused() {
    let files = ["a.toml", "b.toml"].map(|name| (name.to_string(), toy("")));
    let error = Patches::from_files(files.into_iter()).unwrap_err();
    let expected = "architecture `toy` is defined twice: in a.toml and in b.toml";
    assert_eq!(error.to_string(), expected);
    let twice = ("a.toml".to_string(), toy("").replace("[\"toy\"]", "[\"toy\", \"toy\"]"));
    assert!(Patches::from_files([twice].into_iter()).is_err());
}

#[test]
fn what_is_no_patch_file_is_refused_with_its_line() {
    for (text, expected) in [
        ("architectures = [", "toy.toml, line 1: "),
        ("architectures = [\"toy\"]", "`residual`: expected a name, found nothing"),
        ("residual = \"l_out\"", "`architectures`: expected at least one name, found none"),
        ("[refused]\ntoy = 3", "toy.toml, line 2: invalid type: integer `3`, expected a string"),
        (&toy("lora = 1"), "toy.toml, line 8: invalid type: integer `1`, expected a boolean"),
        (&toy("layers = { to = 1 }"), "unknown field `to`, expected `from` or `until`"),
        (&toy("").replace("rows", "both"), "unknown variant `both`, expected `rows` or `cols`"),
        (&toy("").replace("\"ffn\"", "\"mlp\""), "unknown variant `mlp`"),
        (&toy("").replace("axis = \"rows\"", ""), "missing field `axis`"),
        (&toy("residual_scale_times = \"pi\""), "unknown variant `pi`"),
        (
            &format!("embedding = \"when-untied\"\n{}", toy("")),
            "toy.toml, line 1: unknown variant `when-untied`, expected `leave`",
        ),
    ] {
        let message = refusal(text);
        assert!(message.contains(expected), "{message} lacks {expected}");
    }
}

#[test]
fn senseless_fields_are_refused_by_name() {
    let both = "required = true\nany_of = \"ffn\"";
    for (text, expected) in [
        (toy("").replace("[\"toy\"]", "[]"), "`architectures`: expected at least one name"),
        (toy("").replace("\"toy\"", "\"\""), "`architectures`: expected names and reasons"),
        (toy("[refused]\nelse = \"\""), "`architectures`: expected names and reasons"),
        (toy("").replace("\"l_out\"", "\"\""), "`residual`: expected a name"),
        (toy("").replace(WRITER, ""), "`writer`: expected at least one, found 0"),
        (
            format!("{WRITER}[refused]\ntoy = \"why\""),
            "`writer`: expected none without `architectures`, found 1",
        ),
        (format!("not_writers = [\"a b\"]\n{}", toy("")), "`not_writers`: expected a tensor name"),
        (toy("").replace("{i}", "{n}"), "`writer[0].tensor`: expected a tensor name"),
        (toy("").replace("{i}", "{i}{i}"), "`writer[0].tensor`: expected a tensor name"),
        (toy("").replace("{i}", "0"), "`writer[0].tensor`: expected a name with {i}"),
        (toy(WRITER), "`writer[1].tensor`: expected each tensor at most once per block"),
        (
            toy(&format!("with = \"blk.{{i}}.x\"{WRITER}with = \"blk.{{i}}.x\"")),
            "`writer[1].tensor`: expected each",
        ),
        (toy("with = \"x\""), "`writer[0].with`: expected {i} if and only if"),
        (toy("without = \"a b\""), "`writer[0].without`: expected a tensor name"),
        (toy("outer_norm = \"blk.{i}.n\""), "`writer[0].outer_norm`: expected a `post_norm`"),
        (toy("post_norm_key = \"k\""), "`writer[0].post_norm_key`: expected a `post_norm`"),
        (toy("experts_per_key = \"k\""), "`writer[0].experts_per_key`: expected `experts`"),
        (toy("post_norm = \"norm\""), "`writer[0].post_norm`: expected {i} if and only if"),
        (toy("scale = \"s.{j}\""), "`writer[0].scale`: expected a tensor name"),
        (toy(both), "`writer[0].required`: expected either `required` or `any_of`, found both"),
        (toy("any_of = \"ffn\""), "`writer[0].any_of`: expected a label of two or more writers, found ffn"),
        (toy("post_norm_optional = true"), "`writer[0].post_norm_optional`: expected a `post_norm`"),
        (toy("scale_after_lora = true"), "`writer[0].scale_after_lora`: expected a `scale`"),
        (toy("layers = { from = 3, until = 3 }"), "`writer[0].layers`: expected `from` below `until`"),
        (toy("residual_scale = 0.0"), "`writer[0].residual_scale`: expected a finite nonzero number"),
        (toy("residual_scale = nan"), "`writer[0].residual_scale`"),
        (toy("residual_scale_key = \"{i}.s\""), "`writer[0].residual_scale_key`"),
        (toy("experts = true").replace("rows", "cols"), "`writer[0].axis`: expected `rows`"),
        (toy("").replace("rows", "cols"), "`writer[0].axis`: expected `rows` except for the embedding"),
    ] {
        let message = refusal(&text);
        assert!(message.contains(expected), "{message} lacks {expected}");
        assert!(message.starts_with("toy.toml: ") && !message.ends_with('.'), "{message}");
    }
}

proptest::proptest! {
    #[test]
    fn edit_distance_is_a_metric(a in "[a-c]{0,6}", b in "[a-c]{0,6}", c in "[a-c]{0,6}") {
        let (ab, bc, ac) = (edit_distance(&a, &b), edit_distance(&b, &c), edit_distance(&a, &c));
        proptest::prop_assert_eq!(ab, edit_distance(&b, &a));
        proptest::prop_assert_eq!(ab == 0, a == b);
        proptest::prop_assert!(ac <= ab + bc);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[\\[\\]{}=\"a-z_.\n ]{0,200}") {
        let _ = parse("toy.toml", &text);
    }
}
