//! The same checks for a split model, whose files get their final names one after another.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use crate::common::splitter;
use rosi_gguf::gguf::{AtomicModel, Gguf, GgufError, Rewrite, recover};
use rosi_gguf::util::hint::Hint;

use super::tmpfs::Tmpfs;
use super::{Case, Chance, KILLS, command, end, hidden};

/// Number of tensors in each file. There are many files, so that time passes between the first renaming and the last.
const COUNTS: [usize; 12] = [1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0];
/// Stem of the names of the input files, one file per entry of [`COUNTS`].
const IN: &str = "in";

fn name_of(stem: &str, no: usize) -> String {
    format!("{stem}-{:05}-of-{:05}.gguf", no + 1, COUNTS.len())
}

/// Writes a copy of a split model as `inject` does, over an earlier one. `model` is the first file of the input.
/// `ROSI_FAULT_BYTE` is the byte in the first tensor that distinguishes one copy from another.
pub fn copy(model: &Path) -> Result<(), GgufError> {
    let byte = std::env::var("ROSI_FAULT_BYTE").unwrap().parse().unwrap();
    write(model, byte)
}

fn write(model: &Path, byte: u8) -> Result<(), GgufError> {
    let source = Gguf::open(model)?;
    let mut written = AtomicModel::create(&model.with_file_name(name_of("out", 0)), &source, true)?;
    for (file, out) in source.files().zip(written.files_mut()) {
        let mut replace = |tensor: &rosi_gguf::gguf::TensorInfo| {
            let mut bytes = source.read_tensor(tensor)?;
            bytes.iter_mut().step_by(4096).for_each(|b| *b = byte);
            Ok(Some(bytes))
        };
        Rewrite::copy(file).write_to(out, &mut replace, &mut |_, _| Ok(()))?;
    }
    written.commit()
}

/// A split model, and the contents of its copies for the bytes 1 and 2.
struct Split {
    folder: PathBuf,
    first: PathBuf,
    input: Vec<Vec<u8>>,
    copies: [Vec<Vec<u8>>; 2],
    _case: Case,
}

impl Split {
    fn new(case: Case) -> Self {
        let folder = case.folder.clone();
        let whole = Gguf::open(&case.model).unwrap();
        splitter::split(&whole, &folder, IN, &COUNTS);
        std::fs::remove_file(&case.model).unwrap();
        let first = folder.join(name_of(IN, 0));
        let read = |stem: &str| {
            (0..COUNTS.len())
                .map(|no| std::fs::read(folder.join(name_of(stem, no))).unwrap())
                .collect::<Vec<_>>()
        };
        let input = read(IN);
        let copies = [1, 2].map(|byte| {
            write(&first, byte).unwrap();
            read("out")
        });
        assert!(copies[0].iter().zip(&copies[1]).any(|(a, b)| a != b));
        let split = Self { input, first, copies, _case: case, folder };
        split.remove_output();
        split
    }

    fn out(&self, no: usize) -> PathBuf {
        self.folder.join(name_of("out", no))
    }

    /// Removes the output and what a killed run left. (A complete copy would get its names if the next run found no
    /// output.)
    fn remove_output(&self) {
        (0..COUNTS.len()).for_each(|no| drop(std::fs::remove_file(self.out(no))));
        hidden(&self.folder).iter().for_each(|folder| std::fs::remove_dir_all(folder).unwrap());
    }

    /// Returns the contents of the files with the names of the output.
    fn output(&self) -> Vec<Option<Vec<u8>>> {
        (0..COUNTS.len()).map(|no| std::fs::read(self.out(no)).ok()).collect()
    }

    fn assert_input_whole(&self) {
        let now = (0..COUNTS.len()).map(|no| std::fs::read(self.folder.join(name_of(IN, no))).unwrap());
        assert!(now.eq(self.input.iter().cloned()), "the input differs");
    }

    fn spawn(&self, byte: u8) -> Child {
        let mut command = command("copy-split", &self.first);
        command.env("ROSI_FAULT_BYTE", byte.to_string()).spawn().unwrap()
    }

    /// Inspects the output of a run killed while it wrote the copy `new` over the copy `old`, or over nothing. Asserts
    /// that all files are whole and that they form a model only if they belong together.
    fn look(&self, old: Option<&Vec<Vec<u8>>>, new: &[Vec<u8>]) -> Left {
        let output = self.output();
        let there = output.iter().flatten().count();
        for (no, file) in output.iter().enumerate() {
            let Some(file) = file else { continue };
            let whole = *file == new[no] || old.is_some_and(|old| *file == old[no]);
            assert!(whole, "file {no} is neither the old nor the new one");
        }
        let is = |copy: &[Vec<u8>]| output.iter().map(|file| file.as_ref()).eq(copy.iter().map(Some));
        match &output[0] {
            _ if is(new) => Left::New,
            _ if old.is_some_and(|old| is(old)) || (old.is_none() && there == 0) => Left::Old,
            None => {
                let other = (1..COUNTS.len()).find(|&no| output[no].is_some()).unwrap();
                let error = Gguf::open(&self.out(other)).unwrap_err();
                assert!(matches!(error, GgufError::MissingShard { first: true, .. }), "{error}");
                assert!(error.hint().unwrap().contains("--overwrite"));
                Left::NoModel
            }
            Some(_) => panic!("the first file is there, but other files are missing or of another copy"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Old,
    NoModel,
    New,
}

/// Kills `child` at a random time, or as soon as `on_sight` returns true.
fn kill(mut child: Child, most: Duration, chance: &mut Chance, on_sight: Option<&dyn Fn() -> bool>) {
    let start = Instant::now();
    let wait = most.mul_f64(chance.share());
    match on_sight {
        None => std::thread::sleep(wait),
        Some(seen) => while !seen() && start.elapsed() < 10 * most && child.try_wait().unwrap().is_none() {},
    }
    let _ = child.kill();
    let (_, text) = end(child);
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn a_killed_copy_of_a_split_model_is_whole_or_no_model() {
    let (split, mut chance) = (Split::new(Case::new(4)), Chance::new());
    let start = Instant::now();
    assert!(end(split.spawn(1)).0.success());
    let most = start.elapsed();
    let (mut left, mut folders) = ([0; 3], 0);
    let mut old = None;
    for i in 0..KILLS {
        let byte = 1 + (i % 2) as u8;
        let new = &split.copies[i % 2];
        if i % 4 < 2 {
            split.remove_output();
            old = None;
        }
        // Two thirds of the kills aim at the renaming: they wait for a file that gets its name before the first one.
        let target = split.out(1 + (chance.share() * (COUNTS.len() - 1) as f64) as usize);
        let seen = || old.is_none() && target.exists() || old.is_some() && !split.out(0).exists();
        let child = split.spawn(byte);
        kill(child, most, &mut chance, (i % 3 > 0).then_some(&seen as &dyn Fn() -> bool));
        let found = split.look(old, new);
        left[found as usize] += 1;
        let temporary = hidden(&split.folder);
        assert!(temporary.len() <= 1, "files of the previous run were not removed: {temporary:?}");
        folders += temporary.len();
        split.assert_input_whole();
        // Recovery leaves the output as the next round finds it: the new model, or the state before this round. If the
        // old model was lost, it must be the new one.
        recover(&split.out(1));
        let whole = split.look(old, new);
        if found == Left::NoModel {
            assert_eq!(whole, Left::New);
            assert!(hidden(&split.folder).is_empty(), "left by the killed run");
        }
        old = match whole {
            Left::Old => old,
            Left::NoModel => panic!("neither the old nor the new model"),
            Left::New => Some(new),
        };
    }
    println!(
        "split, {most:.0?}: {KILLS} killed; {} before the renaming, {} during it, {} after it; \
         {folders} left a temporary folder",
        left[Left::Old as usize],
        left[Left::NoModel as usize],
        left[Left::New as usize]
    );
    assert!(left[Left::NoModel as usize] > 0, "no run was killed during the renaming");
}

#[test]
fn a_full_disk_leaves_a_split_model_and_its_earlier_copy_whole() {
    let Some(disk) = Tmpfs::new(32) else { return };
    let split = Split::new(Case::at(disk.folder(), 2));
    for old in [None, Some(1)] {
        if let Some(byte) = old {
            write(&split.first, byte).unwrap();
        }
        let before = split.output();
        for left in [0, 64 << 10, 1 << 20] {
            let filler = disk.fill(left);
            let (status, text) = end(split.spawn(2));
            std::fs::remove_file(filler).unwrap();
            assert_eq!(status.code(), Some(1), "{left}: {text}");
            assert!(text.contains("no space left to write output"), "{text}");
            assert!(split.output() == before, "{left}: the earlier copy changed");
            assert!(hidden(&split.folder).is_empty());
            split.assert_input_whole();
        }
    }
}
