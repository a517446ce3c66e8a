//! Split models: any file stands for the whole model, and either all files are written or none. No model is run.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use rosi_gguf::gguf::{
    AtomicModel, GgmlType, Gguf, GgufBuilder, GgufError, Rewrite, TensorInfo, Value, sha256_files, sha256_hex,
};
use rosi_gguf::util::hint::Hint;
use tempfile::TempDir;

use crate::common::files::{gguf_bytes, names};
use crate::common::run::{ended, parsed, ran, stderr};
use crate::common::splitter::split;

/// Returns a llama model of one block and width 32, aligned to `alignment` bytes.
fn tiny(alignment: u32) -> Vec<u8> {
    let q8 = |rows: u8| (0..34 * u32::from(rows)).map(|i| (i % 50) as u8).collect::<Vec<u8>>();
    let file = GgufBuilder::new()
        .string("general.architecture", "llama")
        .string("general.name", "tiny")
        .alignment(alignment)
        .kv("llama.block_count", Value::U32(1))
        .kv("llama.embedding_length", Value::U32(32))
        .string("tokenizer.chat_template", "{{ messages[0].content }}")
        .f32_tensor("token_embd.weight", &[32, 2], &[0.5; 64])
        .f32_tensor("blk.0.attn_norm.weight", &[32], &[1.0; 32])
        .tensor("blk.0.attn_output.weight", &[32, 32], GgmlType::Q8_0, q8(32))
        .tensor("odd", &[3], GgmlType::F16, vec![0; 6])
        .f32_tensor("blk.0.ffn_down.weight", &[8, 32], &[0.25; 256]);
    gguf_bytes(&file)
}

/// Returns the new type and data of a tensor; `None` keeps it.
type Change<'a> = dyn Fn(&TensorInfo) -> Option<(GgmlType, Vec<u8>)> + 'a;

/// A folder with the whole model `whole.gguf` and its parts `part-…`.
struct Fixture {
    folder: TempDir,
    whole: Gguf,
    parts: Vec<PathBuf>,
}

impl Fixture {
    fn new(counts: &[usize]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("whole.gguf");
        std::fs::write(&path, tiny(64)).unwrap();
        let whole = Gguf::open(&path).unwrap();
        let parts = split(&whole, folder.path(), "part", counts);
        Self { folder, whole, parts }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Returns the names in the folder, except those of the input.
    fn written(&self) -> Vec<String> {
        let mut names = names(self.folder.path());
        names.retain(|name| !name.starts_with("part-") && name != "whole.gguf");
        names
    }

    /// Writes a copy of the parts with the tensors that `change` replaces and retypes.
    fn copy(&self, model: &mut AtomicModel, change: &Change<'_>) {
        let source = Gguf::open(&self.parts[0]).unwrap();
        for (file, out) in source.files().zip(model.files_mut()) {
            let retyped = |t: &TensorInfo| Some((t.name.clone(), change(t)?.0));
            let all: HashMap<String, GgmlType> = file.own_tensors().iter().filter_map(retyped).collect();
            let new = |name: &String, to: GgmlType| file.tensor(name).unwrap().ggml_type != to;
            let types = all.into_iter().filter(|(name, to)| new(name, *to)).collect();
            let rewrite = Rewrite { types, ..Rewrite::copy(file) };
            rewrite.write_to(out, &mut |t| Ok(change(t).map(|c| c.1)), &mut |_, _| Ok(())).unwrap();
        }
    }
}

fn refused(path: &Path) -> GgufError {
    let error = Gguf::open(path).unwrap_err();
    assert!(error.hint().is_some(), "{error}");
    error
}

#[test]
fn any_file_is_read_as_the_whole_model() {
    for counts in [&[2, 3][..], &[0, 5], &[1, 1, 1, 1, 1], &[0, 0, 5], &[5, 0]] {
        let fixture = Fixture::new(counts);
        for part in &fixture.parts {
            let model = Gguf::open(part).unwrap();
            assert_eq!((&model.path, model.n_files()), (&fixture.parts[0], counts.len()));
            assert!(model.refuse_non_model().is_ok());
            let names = |gguf: &Gguf| gguf.tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
            assert_eq!(names(&model), names(&fixture.whole));
            for tensor in &fixture.whole.tensors {
                let found = model.tensor(&tensor.name).unwrap();
                assert_eq!(model.read_tensor(found).unwrap(), fixture.whole.read_tensor(tensor).unwrap());
                let part = model.read_part(found, 1..found.n_bytes()).unwrap();
                assert_eq!(part, fixture.whole.read_tensor(tensor).unwrap()[1..]);
            }
            let len: u64 = fixture.parts.iter().map(|p| std::fs::metadata(p).unwrap().len()).sum();
            assert_eq!(model.total_len(), len);
        }
    }
}

#[test]
fn each_file_has_an_alignment_of_its_own() {
    let fixture = Fixture::new(&[2, 3]);
    let model = Gguf::open(&fixture.parts[1]).unwrap();
    assert_eq!(model.files().map(|file| file.alignment).collect::<Vec<_>>(), [64, 32]);
}

#[test]
fn a_missing_file_is_named() {
    let fixture = Fixture::new(&[1, 2, 2]);
    std::fs::remove_file(&fixture.parts[1]).unwrap();
    let error = refused(&fixture.parts[2]).to_string();
    assert!(error.contains("part-00002-of-00003.gguf in the same directory, found 2 of 3"), "{error}");
}

#[test]
fn a_set_without_its_first_file_is_told_apart() {
    let fixture = Fixture::new(&[1, 2, 2]);
    std::fs::remove_file(&fixture.parts[0]).unwrap();
    for part in &fixture.parts[1..] {
        let error = refused(part);
        assert!(matches!(error, GgufError::MissingShard { first: true, found: 2, count: 3, .. }), "{error}");
        assert!(error.hint().unwrap().contains("--overwrite"));
    }
}

#[test]
fn a_renamed_file_is_refused() {
    let fixture = Fixture::new(&[2, 3]);
    for name in ["other.gguf", "part-00001-of-00003.gguf", "part-1-of-2.gguf", "part-00003-of-00002.gguf"] {
        let path = fixture.path(name);
        std::fs::copy(&fixture.parts[1], &path).unwrap();
        let error = refused(&path).to_string();
        assert!(error.contains(r#"is file 2 of 2 of a split model (split.no = 1), expected a name ending in "-00002-of-00002.gguf""#), "{error}");
    }
}

#[test]
fn foreign_files_are_refused() {
    let other = Fixture::new(&[2, 2, 1]);
    let says = |fixture: &Fixture, expected: &str| {
        let error = refused(&fixture.parts[0]);
        assert!(matches!(error, GgufError::ForeignShard { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    // A file of a model that was split differently.
    let fixture = Fixture::new(&[2, 3]);
    std::fs::copy(&other.parts[1], &fixture.parts[1]).unwrap();
    says(&fixture, "its position is file 2 of 3, expected file 2 of 2");
    // The same file twice.
    let fixture = Fixture::new(&[2, 3]);
    std::fs::copy(&fixture.parts[0], &fixture.parts[1]).unwrap();
    says(&fixture, "its position is file 1 of 2, expected file 2 of 2");
    // A whole model.
    let fixture = Fixture::new(&[2, 3]);
    std::fs::copy(&fixture.whole.path, &fixture.parts[1]).unwrap();
    says(&fixture, "its position is not recorded");
    // A file of a model with the same number of files but a different split of the tensors.
    let fixture = Fixture::new(&[2, 3]);
    std::fs::copy(&Fixture::new(&[1, 4]).parts[1], &fixture.parts[1]).unwrap();
    says(&fixture, "is 6 (2 + 4), expected 5");
}

#[test]
fn a_tensor_in_two_files_is_refused() {
    let fixture = Fixture::new(&[2, 2, 1]);
    let (a, b) = (&fixture.whole.tensors[1], &fixture.whole.tensors[4]);
    let mut twice = fixture.whole.clone();
    twice.tensors[4] = TensorInfo { name: a.name.clone(), ..b.clone() };
    let parts = split(&twice, fixture.folder.path(), "part", &[2, 2, 1]);
    let error = refused(&parts[0]).to_string();
    assert!(
        error.contains("part-00003-of-00003.gguf: tensor 'blk.0.attn_norm.weight' appears more than once"),
        "{error}"
    );
}

#[test]
fn keys_of_another_type_are_refused() {
    for key in ["split.no", "split.count", "split.tensors.count"] {
        let mut bytes = Vec::new();
        GgufBuilder::new().kv(key, Value::U32(1)).write_to(&mut bytes).unwrap_err();
        let error = GgufBuilder::new().kv(key, Value::U32(1)).write_to(&mut bytes).unwrap_err().to_string();
        assert!(error.contains(&format!("key '{key}' is uint32, expected ")), "{error}");
    }
}

#[test]
fn a_copy_keeps_every_file_but_those_with_an_edit() {
    let fixture = Fixture::new(&[0, 2, 2, 1]);
    let out = fixture.path("out-00003-of-00004.gguf");
    let source = Gguf::open(&fixture.parts[0]).unwrap();
    let mut model = AtomicModel::create(&out, &source, false).unwrap();
    assert_eq!(model.path(), fixture.path("out-00001-of-00004.gguf"));
    fixture.copy(&mut model, &|t| (t.name == "odd").then(|| (t.ggml_type, vec![1; 6])));
    // The model is readable before its files have their final names.
    assert_eq!(Gguf::open(model.temporary_path()).unwrap().tensors.len(), 5);
    assert_eq!(fixture.written().len(), 1, "one hidden folder");
    model.commit().unwrap();
    let names: Vec<String> = (1..=4).map(|k| format!("out-{k:05}-of-00004.gguf")).collect();
    assert_eq!(fixture.written(), names);
    let same = |k: usize| {
        std::fs::read(fixture.path(&names[k])).unwrap() == std::fs::read(&fixture.parts[k]).unwrap()
    };
    assert_eq!([same(0), same(1), same(2), same(3)], [true, true, false, true]);
    let copy = Gguf::open(&fixture.path(&names[2])).unwrap();
    assert_eq!(copy.read_tensor(copy.tensor("odd").unwrap()).unwrap(), [1; 6]);
    assert_eq!(copy.read_tensor(copy.tensor("blk.0.attn_output.weight").unwrap()).unwrap().len(), 34 * 32);
}

#[test]
fn a_retyped_tensor_moves_only_what_follows_it_in_its_file() {
    let fixture = Fixture::new(&[2, 3]);
    let source = Gguf::open(&fixture.parts[0]).unwrap();
    let mut model = AtomicModel::create(&fixture.path("out-00001-of-00002.gguf"), &source, false).unwrap();
    let wide =
        |t: &TensorInfo| (t.name == "blk.0.attn_output.weight").then(|| (GgmlType::F16, vec![0; 2048]));
    fixture.copy(&mut model, &wide);
    model.commit().unwrap();
    let copy = Gguf::open(&fixture.path("out-00001-of-00002.gguf")).unwrap();
    assert_eq!(copy.tensor("blk.0.attn_output.weight").unwrap().ggml_type, GgmlType::F16);
    for name in ["token_embd.weight", "odd", "blk.0.ffn_down.weight"] {
        let read = |gguf: &Gguf| gguf.read_tensor(gguf.tensor(name).unwrap()).unwrap();
        assert_eq!(read(&copy), read(&fixture.whole));
    }
}

#[test]
fn all_files_or_none() {
    let fixture = Fixture::new(&[2, 2, 1]);
    let source = Gguf::open(&fixture.parts[0]).unwrap();
    let out = fixture.path("out-00001-of-00003.gguf");
    let nothing = |_: &TensorInfo| None;
    // A write that is abandoned.
    let mut model = AtomicModel::create(&out, &source, false).unwrap();
    fixture.copy(&mut model, &nothing);
    drop(model);
    assert!(fixture.written().is_empty());
    // If one of the names has been taken in the meantime, the other files are removed.
    for taken in ["out-00001-of-00003.gguf", "out-00002-of-00003.gguf", "out-00003-of-00003.gguf"] {
        let mut model = AtomicModel::create(&out, &source, false).unwrap();
        fixture.copy(&mut model, &nothing);
        std::fs::write(fixture.path(taken), b"theirs").unwrap();
        assert!(matches!(model.commit(), Err(GgufError::OutputExists { .. })));
        assert_eq!(fixture.written(), [taken]);
        assert!(matches!(AtomicModel::create(&out, &source, false), Err(GgufError::OutputExists { .. })));
        std::fs::remove_file(fixture.path(taken)).unwrap();
    }
}

#[test]
fn an_overwritten_model_never_mixes_with_the_new_one() {
    let fixture = Fixture::new(&[2, 2, 1]);
    let source = Gguf::open(&fixture.parts[0]).unwrap();
    let out = fixture.path("out-00001-of-00003.gguf");
    let write = |byte: u8| {
        let mut model = AtomicModel::create(&out, &source, true).unwrap();
        fixture.copy(&mut model, &|t| (t.name == "odd").then(|| (t.ggml_type, vec![byte; 6])));
        model
    };
    write(1).commit().unwrap();
    write(2).commit().unwrap();
    let model = Gguf::open(&out).unwrap();
    assert_eq!(model.read_tensor(model.tensor("odd").unwrap()).unwrap(), [2; 6]);
    // If one file cannot be replaced, none is.
    let model = write(3);
    let second = fixture.path("out-00002-of-00003.gguf");
    let old = std::fs::read(&second).unwrap();
    std::fs::remove_file(&second).unwrap();
    std::fs::create_dir(&second).unwrap();
    model.commit().unwrap_err();
    std::fs::remove_dir(&second).unwrap();
    std::fs::write(&second, old).unwrap();
    assert_eq!(fixture.written().len(), 3, "the temporary folder is gone");
    let model = Gguf::open(&out).unwrap();
    assert_eq!(model.read_tensor(model.tensor("odd").unwrap()).unwrap(), [2; 6]);
}

/// Creates the remains of a run that was stopped before it replaced any of three files: its hidden folder, marked as
/// complete if `complete`. Returns the folder.
fn stopped_before_the_renaming(fixture: &Fixture, complete: bool) -> PathBuf {
    let source = Gguf::open(&fixture.parts[0]).unwrap();
    let name = |no: usize| format!("out-0000{no}-of-00003.gguf");
    let mut model = AtomicModel::create(&fixture.path(&name(1)), &source, true).unwrap();
    fixture.copy(&mut model, &|t| (t.name == "odd").then(|| (t.ggml_type, vec![7; 6])));
    model.files_mut().iter_mut().for_each(|file| file.flush().unwrap());
    let hidden = fixture.path(&format!(".{}.Abc123.tmp", name(1)));
    std::fs::create_dir(&hidden).unwrap();
    for (no, file) in model.files_mut().iter().enumerate() {
        std::fs::copy(file.temporary_path(), hidden.join(name(no + 1))).unwrap();
    }
    drop(model);
    if complete {
        std::fs::write(hidden.join("complete"), b"").unwrap();
    }
    hidden
}

/// Like [`stopped_before_the_renaming`], but stopped after the run had replaced the last file.
fn stopped_amid_the_renaming(fixture: &Fixture, complete: bool) {
    let hidden = stopped_before_the_renaming(fixture, complete);
    let last = "out-00003-of-00003.gguf";
    std::fs::rename(hidden.join(last), fixture.path(last)).unwrap();
    let _ = std::fs::remove_file(fixture.path("out-00001-of-00003.gguf"));
}

#[test]
fn a_stopped_replacement_of_a_split_model_is_brought_to_its_end() {
    let fixture = Fixture::new(&[2, 2, 1]);
    let source = Gguf::open(&fixture.parts[0]).unwrap();
    let out = fixture.path("out-00001-of-00003.gguf");
    let mut old = AtomicModel::create(&out, &source, true).unwrap();
    fixture.copy(&mut old, &|_| None);
    old.commit().unwrap();
    // The earlier model is whole, and stays until another run has written a new one.
    stopped_before_the_renaming(&fixture, true);
    drop(AtomicModel::create(&out, &source, true).unwrap());
    let model = Gguf::open(&out).unwrap();
    assert_ne!(model.read_tensor(model.tensor("odd").unwrap()).unwrap(), [7; 6]);
    assert_eq!(fixture.written().len(), 3, "{:?}", fixture.written());
    stopped_amid_the_renaming(&fixture, true);
    let last = fixture.path("out-00003-of-00003.gguf");
    assert!(matches!(refused(&last), GgufError::MissingShard { first: true, .. }));
    // Any command that reads the model completes the replacement.
    let facts = parsed(&ran(&["-q", "inspect", last.to_str().unwrap(), "--json"]));
    assert_eq!(facts["files"], 3);
    let model = Gguf::open(&out).unwrap();
    assert_eq!(model.read_tensor(model.tensor("odd").unwrap()).unwrap(), [7; 6]);
    assert_eq!(fixture.written().len(), 3, "{:?}", fixture.written());
    // An incomplete set of files is not a model and is removed.
    stopped_amid_the_renaming(&fixture, false);
    rosi_gguf::gguf::recover(&out);
    assert_eq!(fixture.written(), ["out-00002-of-00003.gguf", "out-00003-of-00003.gguf"]);
}

#[test]
fn hash_is_that_of_the_files_joined() {
    let fixture = Fixture::new(&[2, 2, 1]);
    let paths: Vec<&Path> = fixture.parts.iter().map(PathBuf::as_path).collect();
    let joined: Vec<u8> = paths.iter().flat_map(|path| std::fs::read(path).unwrap()).collect();
    assert_eq!(sha256_files(&paths, &mut |_, _| Ok(())).unwrap(), sha256_hex(&joined));
}

#[test]
fn inspect_verify_and_dry_run_take_any_file() {
    let fixture = Fixture::new(&[0, 2, 3]);
    let part = fixture.text("part-00002-of-00003.gguf");
    let facts = parsed(&ran(&["inspect", &part, "--json"]));
    assert_eq!((&facts["files"], &facts["tensors"]), (&3.into(), &5.into()));
    assert_eq!(facts["writers"].as_array().unwrap().len(), 2);
    let facts = parsed(&ran(&["-q", "inject", &part, "--dry-run", "--json"]));
    assert_eq!(facts["output"], fixture.text("part-rosi-00001-of-00003.gguf"));
    // Compare the split files with the whole file, and with a copy in which a byte differs.
    let same = parsed(&ran(&["-q", "verify", &fixture.text("whole.gguf"), &part, "--json"]));
    assert_eq!((&same["identical"], &same["metadata_preserved"]), (&5.into(), &true.into()));
    for k in 1..=3 {
        let name = |stem: &str| fixture.path(&format!("{stem}-0000{k}-of-00003.gguf"));
        let mut bytes = std::fs::read(name("part")).unwrap();
        if k == 3 {
            *bytes.last_mut().unwrap() ^= 1;
        }
        std::fs::File::create(name("edited")).unwrap().write_all(&bytes).unwrap();
    }
    let changed =
        parsed(&ran(&["-q", "verify", &part, &fixture.text("edited-00001-of-00003.gguf"), "--json"]));
    assert_eq!(changed["tensors"][0]["name"], "blk.0.ffn_down.weight");
    assert_eq!((&changed["identical"], &changed["metadata_preserved"]), (&4.into(), &true.into()));
}

#[test]
fn outputs_that_cannot_be_are_refused() {
    let fixture = Fixture::new(&[2, 3]);
    let part = fixture.text("part-00001-of-00002.gguf");
    let told = |output: &str| stderr(&ended(&["inject", &part, "-o", &fixture.text(output)], 1));
    let text = told("out.gguf");
    assert!(
        text.contains(r#"the model has 2 files, expected a name ending in "-00001-of-00002.gguf""#),
        "{text}"
    );
    assert!(text.contains("hint: -o out-00001-of-00002.gguf"), "{text}");
    assert!(told("part-00002-of-00002.gguf").contains("part-00001-of-00002.gguf is one of the input files"));
    assert!(fixture.written().is_empty());
}

#[test]
fn a_change_in_place_is_refused_and_leaves_every_file() {
    let fixture = Fixture::new(&[2, 3]);
    let bytes = || fixture.parts.iter().map(|part| std::fs::read(part).unwrap()).collect::<Vec<_>>();
    let before = bytes();
    for part in &fixture.parts {
        for more in [&["--in-place"][..], &["--in-place", "--dry-run"]] {
            let text = stderr(&ended(&[&["inject", part.to_str().unwrap()], more].concat(), 1));
            let expected =
                "part-00001-of-00002.gguf is one of 2 files of a split model, which cannot be changed";
            assert!(text.contains(expected) && text.contains("hint: write a copy instead"), "{text}");
        }
    }
    assert!(bytes() == before && fixture.written().is_empty());
}
