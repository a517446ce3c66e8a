//! The same of a split model, whose files get their names one after the other.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use crate::common::splitter;
use rosi_gguf::gguf::{AtomicModel, Gguf, GgufError, Rewrite, recover};
use rosi_gguf::util::hint::Hint;

use super::tmpfs::Tmpfs;
use super::{Case, Chance, KILLS, command, end, hidden};

/// Tensors of each file: many files, so that there is time between the first name and the last.
const COUNTS: [usize; 12] = [1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0];
/// The input is [`COUNTS`] files of this name beside `model.gguf`.
const IN: &str = "in";

fn name_of(stem: &str, no: usize) -> String {
    format!("{stem}-{:05}-of-{:05}.gguf", no + 1, COUNTS.len())
}

/// Writes the copy of a split model that `inject` would write, over an earlier one. `model` is its first file; the
/// first tensor gets another byte for each copy, `ROSI_FAULT_BYTE`.
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

/// A split model, and what its copies are, for the bytes 1 and 2.
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

    /// Also what a killed run left: a complete copy gets its names when the next run finds none there.
    fn remove_output(&self) {
        (0..COUNTS.len()).for_each(|no| drop(std::fs::remove_file(self.out(no))));
        hidden(&self.folder).iter().for_each(|folder| std::fs::remove_dir_all(folder).unwrap());
    }

    /// What bears the names of the output.
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

    /// What a run that was killed while it wrote copy `new` over copy `old` (or nothing) left: whole files only,
    /// and a model only if all of them belong together.
    fn look(&self, old: Option<&Vec<Vec<u8>>>, new: &[Vec<u8>]) -> Left {
        let output = self.output();
        let there = output.iter().flatten().count();
        for (no, file) in output.iter().enumerate() {
            let Some(file) = file else { continue };
            let whole = *file == new[no] || old.is_some_and(|old| *file == old[no]);
            assert!(whole, "file {no} is neither the old one nor the new one");
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
            Some(_) => panic!("a first file with files of another copy, or with too few"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Old,
    NoModel,
    New,
}

/// Kills `child` at a random moment, or, `on_sight`, as soon as `path` appears.
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
        // Half of them amid the renaming: at the sight of a file that gets its name before the first one does.
        let target = split.out(1 + (chance.share() * (COUNTS.len() - 1) as f64) as usize);
        let seen = || old.is_none() && target.exists() || old.is_some() && !split.out(0).exists();
        let child = split.spawn(byte);
        kill(child, most, &mut chance, (i % 3 > 0).then_some(&seen as &dyn Fn() -> bool));
        let found = split.look(old, new);
        left[found as usize] += 1;
        let temporary = hidden(&split.folder);
        assert!(temporary.len() <= 1, "what the run before left was not removed: {temporary:?}");
        folders += temporary.len();
        split.assert_input_whole();
        // What the next one is written over: a whole model, old or new. Whoever lost the old one has the new one.
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
        "split, {most:.0?}: {KILLS} killed; {} before any file had its name, {} amid the renaming, {} after it; \
         {folders} left a temporary folder",
        left[Left::Old as usize],
        left[Left::NoModel as usize],
        left[Left::New as usize]
    );
    assert!(left[Left::NoModel as usize] > 0, "no run was hit amid the renaming");
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
            assert!(split.output() == before, "{left}: the earlier copy is another");
            assert!(hidden(&split.folder).is_empty());
            split.assert_input_whole();
        }
    }
}
