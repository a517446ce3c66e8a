//! `undo`, and how other commands report a half-changed file. No model is run.

use std::path::Path;

use crate::common::in_place;
use crate::common::run::{self, ended, json, parsed, ran, text};
use rosi_gguf::gguf::in_place::journal_path;
use rosi_gguf::gguf::sha256_hex;

/// As [`run::told`], with a line break at the end.
fn told(args: &[&str], folder: &Path) -> String {
    run::told(args, folder) + "\n"
}

#[test]
fn undo_gives_the_original_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = in_place::model(dir.path(), 1);
    let (model, base) = (text(&path), std::fs::read(&path).unwrap());
    let copy = dir.path().join("copy.gguf");
    in_place::copy(&path, &copy, || ()).unwrap();
    for keep in [true, false] {
        in_place::change(&path, || (), false).unwrap();
        assert!(std::fs::read(&path).unwrap() == std::fs::read(&copy).unwrap());
        let mut args = vec!["undo", model, "--json"];
        args.extend(keep.then_some("--keep-journal"));
        let facts = json(&args);
        assert_eq!(facts["sha256"], sha256_hex(&base));
        assert_eq!(facts["bytes"], base.len());
        assert_eq!((&facts["was_complete"], &facts["journal_kept"]), (&true.into(), &keep.into()));
        assert_eq!(std::fs::read(&path).unwrap(), base);
        assert_eq!(journal_path(&path).exists(), keep);
    }
}

#[test]
fn every_command_refuses_a_half_changed_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("whole")).unwrap();
    let (path, whole) = (in_place::model(dir.path(), 1), in_place::model(&dir.path().join("whole"), 1));
    let base = std::fs::read(&path).unwrap();
    in_place::change(&path, || (), true).unwrap();
    let (half, whole) = (text(&path), text(&whole));
    let out = dir.path().join("edit.safetensors");
    let out = text(&out);
    let commands: [&[&str]; 9] = [
        &["inject", half],
        &["inject", half, "--in-place"],
        &["search", half, "-o", out],
        &["inspect", half],
        &["verify", half, whole],
        &["verify", whole, half],
        &["ask", half, "--prompt", "x"],
        &["eval", half],
        &["eval", whole, "--base", half],
    ];
    let told: Vec<String> = commands.iter().map(|args| told(args, dir.path())).collect();
    assert!(told.iter().all(|text| *text == told[0]), "{told:#?}");
    insta::assert_snapshot!(told[0]);
    ended(&["undo", half], 0);
    assert_eq!(std::fs::read(&path).unwrap(), base);
    ended(&["inspect", half], 0);
}

#[test]
fn what_cannot_be_undone_or_changed_in_place_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = in_place::model(dir.path(), 1);
    let model = text(&path);
    let mut all = vec![
        told(&["undo", model], dir.path()),
        told(&["inject", model, "--in-place", "-o", "x.gguf"], dir.path()),
        told(&["inject", model, "--in-place", "--promote", "Q8_0"], dir.path()),
        told(&["inject", model, "--in-place", "--requant", "promote=Q8_0"], dir.path()),
    ];
    in_place::change(&path, || (), false).unwrap();
    // --allow-injected waives the check for an earlier injection, but never for a journal.
    all.push(told(&["inject", model, "--in-place", "--allow-injected"], dir.path()));
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    all.push(told(&["undo", model], dir.path()));
    bytes.truncate(5000);
    std::fs::write(&path, &bytes).unwrap();
    all.push(told(&["undo", model], dir.path()));
    std::fs::write(journal_path(&path), b"not a journal at all").unwrap();
    all.push(told(&["undo", model], dir.path()));
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    std::fs::remove_file(journal_path(&path)).unwrap();
    #[cfg(unix)]
    {
        let path = in_place::model(dir.path(), 1);
        let link = dir.path().join("link.gguf");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        all.push(told(&["inject", text(&link), "--in-place"], dir.path()));
        std::fs::hard_link(&path, dir.path().join("hard.gguf")).unwrap();
        all.push(told(&["inject", model, "--in-place"], dir.path()));
    }
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn a_dry_run_in_place_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = in_place::model(dir.path(), 1);
    let base = std::fs::read(&path).unwrap();
    let facts = parsed(&ran(&["inject", text(&path), "--in-place", "--dry-run", "--json"]));
    assert_eq!((&facts["in_place"], &facts["output"]), (&true.into(), &facts["input"]));
    assert_eq!(std::fs::read(&path).unwrap(), base);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
