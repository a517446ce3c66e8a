//! Checks what remains on disk after failures: killed processes, full or read-only disks, changing files, concurrent
//! runs, too little memory. The work is done by this binary, started again to run [`child`], through the functions that
//! the commands use. A test that the machine does not support prints a message and is skipped.
#![cfg(unix)]

#[path = "../common/mod.rs"]
mod common;
mod split;
mod tmpfs;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use common::files::names;
use common::in_place;
use rosi_gguf::gguf::in_place::{Phase, journal_path, phase, undo};
use rosi_gguf::gguf::{Gguf, GgufError, Rewrite};
use rosi_gguf::util::hint::Hint;

use tmpfs::Tmpfs;

const WORK: &str = "ROSI_FAULT_WORK";
const MODEL: &str = "ROSI_FAULT_MODEL";
const PAUSE: &str = "ROSI_FAULT_PAUSE";
/// Number of runs to kill, per kind of work.
const KILLS: usize = 100;
/// Size in MB of the file that killed runs write, which takes some hundred milliseconds.
const MEGABYTES: usize = 4;

/// Does the work of a child process that the tests kill or starve. Passes at once when run as a test.
#[test]
fn child() {
    let (Ok(work), Ok(model)) = (std::env::var(WORK), std::env::var(MODEL)) else { return };
    let pause = || {
        if std::env::var(PAUSE).is_ok() {
            eprintln!("ready");
            let _ = std::io::stdin().lock().read_line(&mut String::new());
        }
    };
    let model = Path::new(&model);
    let done = match work.as_str() {
        "copy" => in_place::copy(model, &out_of(model), pause).map_err(|e| (e.to_string(), e.hint())),
        "copy-split" => split::copy(model).map_err(|e| (e.to_string(), e.hint())),
        "in-place" => in_place::change(model, pause, false).map_err(|e| (e.to_string(), e.hint())),
        _ => undo(model, false, &mut |_, _| Ok(())).map(drop).map_err(|e| (e.to_string(), e.hint())),
    };
    let Err((error, hint)) = done else { std::process::exit(0) };
    eprintln!("error: {error}\nhint: {}", hint.unwrap_or_default());
    std::process::exit(1);
}

fn out_of(model: &Path) -> PathBuf {
    model.with_file_name("out.gguf")
}

fn command(work: &str, model: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["child", "--exact", "--nocapture"]).env(WORK, work).env(MODEL, model);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Like [`command`], but through a shell that sets limits first.
fn limited(work: &str, model: &Path, limits: &str) -> Command {
    let own = command(work, model);
    let mut shell = Command::new("bash");
    shell.args(["-c", &format!("{limits}; exec \"$0\" child --exact --nocapture")]).arg(own.get_program());
    shell.env(WORK, work).env(MODEL, model).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    shell
}

fn end(mut child: Child) -> (ExitStatus, String) {
    let mut text = String::new();
    drop(child.stdin.take());
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    (child.wait().unwrap(), text)
}

fn run(mut command: Command) -> (ExitStatus, String) {
    end(command.spawn().unwrap())
}

/// A model, its bytes, and the bytes of the changed model.
struct Case {
    folder: PathBuf,
    model: PathBuf,
    base: Vec<u8>,
    changed: Vec<u8>,
    _temporary: Option<tempfile::TempDir>,
}

impl Case {
    fn new(megabytes: usize) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().to_path_buf();
        Self { _temporary: Some(temporary), ..Self::at(&folder, megabytes) }
    }

    fn at(folder: &Path, megabytes: usize) -> Self {
        let model = in_place::model(folder, megabytes);
        in_place::copy(&model, &out_of(&model), || ()).unwrap();
        let [base, changed] = [&model, &out_of(&model)].map(|path| std::fs::read(path).unwrap());
        std::fs::remove_file(out_of(&model)).unwrap();
        Self { folder: folder.into(), model, base, changed, _temporary: None }
    }

    fn now(&self) -> Vec<u8> {
        std::fs::read(&self.model).unwrap()
    }

    /// Asserts that the folder holds only the original model.
    fn assert_untouched(&self, what: &str) {
        assert!(self.now() == self.base, "{what}: the input differs");
        assert_eq!(names(&self.folder), ["model.gguf"], "{what}");
    }

    /// Returns the files with temporary names.
    fn hidden(&self) -> Vec<PathBuf> {
        hidden(&self.folder)
    }

    /// Removes the files with temporary names that a killed run left.
    fn sweep(&self) {
        self.hidden().iter().for_each(|path| std::fs::remove_file(path).unwrap());
    }
}

fn hidden(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let hidden = entries.filter(|e| e.file_name().to_string_lossy().starts_with('.'));
    hidden.map(|entry| entry.path()).collect()
}

/// A random number generator, seeded from the clock.
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        let nanos = SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
        println!("seed {nanos}");
        Self(nanos.into())
    }

    /// Returns a number from 0 to 1.
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / (1u64 << 31) as f64
    }
}

/// Runs `work` and kills it at a random time within `most`; returns whether it was still running.
fn killed(work: &str, case: &Case, chance: &mut Chance, most: Duration) -> bool {
    let mut child = command(work, &case.model).spawn().unwrap();
    std::thread::sleep(most.mul_f64(chance.share()));
    let _ = child.kill();
    let (status, text) = end(child);
    assert!(!text.contains("panicked"), "{text}");
    status.signal() == Some(9)
}

/// Runs `work` to its end and returns how long it takes.
fn duration(work: &str, case: &Case) -> Duration {
    let start = Instant::now();
    let (status, text) = run(command(work, &case.model));
    assert!(status.success(), "{text}");
    start.elapsed()
}

/// Repeats `run` until [`KILLS`] runs were killed, up to three times as many runs. Returns the number of kills and of
/// runs; fails if fewer than half of [`KILLS`] were killed.
fn until_killed(mut run: impl FnMut() -> bool) -> (usize, usize) {
    let (mut runs, mut hit) = (0, 0);
    while hit < KILLS && runs < 3 * KILLS {
        runs += 1;
        hit += usize::from(run());
    }
    assert!(hit >= KILLS / 2, "only {hit} of {runs} runs were still running when they were killed");
    (hit, runs)
}

#[test]
fn a_killed_copy_leaves_no_half_file() {
    let (case, mut chance) = (Case::new(MEGABYTES), Chance::new());
    let out = out_of(&case.model);
    let _ = duration("copy", &case); // the first run loads this binary
    std::fs::remove_file(&out).unwrap();
    let most = duration("copy", &case);
    let (mut named, mut hidden) = (0, 0);
    let (hit, runs) = until_killed(|| {
        let _ = std::fs::remove_file(&out);
        let hit = killed("copy", &case, &mut chance, most);
        if out.exists() {
            named += 1;
            assert!(std::fs::read(&out).unwrap() == case.changed, "a partial file has the final name");
        }
        let left = case.hidden().len();
        assert!(left <= 1, "files of the previous run were not removed");
        hidden += left;
        assert!(case.now() == case.base);
        hit
    });
    println!("copy, {most:.0?}: {hit} of {runs} killed; {hidden} left a temporary file, {named} finished");
    assert!(hidden > 0, "no run was killed while it wrote");
    let _ = std::fs::remove_file(&out);
    duration("copy", &case);
    std::fs::remove_file(&out).unwrap();
    case.assert_untouched("after a run that was not killed");
}

#[test]
fn a_killed_change_is_undone() {
    let (case, mut chance) = (Case::new(MEGABYTES), Chance::new());
    let most = duration("in-place", &case);
    assert!(case.now() == case.changed);
    let most_undo = duration("undo", &case);
    let (mut before, mut amid, mut after, mut twice) = (0, 0, 0, 0);
    let (hit, runs) = until_killed(|| {
        let hit = killed("in-place", &case, &mut chance, most);
        case.sweep();
        match phase(&case.model).unwrap() {
            None => before += 1,
            Some(Phase::Done) => {
                after += 1;
                assert!(case.now() == case.changed);
            }
            _ => {
                amid += 1;
                assert!(matches!(Gguf::open(&case.model), Err(GgufError::HalfChanged { .. })));
                // About every other time, the undo is killed too.
                if chance.share() < 0.5 {
                    twice += usize::from(killed("undo", &case, &mut chance, most_undo));
                }
            }
        }
        if journal_path(&case.model).exists() {
            let (status, text) = run(command("undo", &case.model));
            assert!(status.success(), "{text}");
        }
        case.assert_untouched("in place");
        hit
    });
    println!(
        "in place, {most:.0?}: {hit} of {runs} killed; {before} before the change, {amid} during it ({twice} \
         again during the undo), {after} after it"
    );
    assert!(amid > 0, "no run was killed during its change");
}

#[test]
fn a_killed_undo_is_done_again() {
    let (case, mut chance) = (Case::new(MEGABYTES), Chance::new());
    in_place::change(&case.model, || (), false).unwrap();
    let journal = std::fs::read(journal_path(&case.model)).unwrap();
    let most = duration("undo", &case);
    let mut amid = 0;
    let (hit, runs) = until_killed(|| {
        std::fs::write(&case.model, &case.changed).unwrap();
        std::fs::write(journal_path(&case.model), &journal).unwrap();
        let hit = killed("undo", &case, &mut chance, most);
        if journal_path(&case.model).exists() {
            amid += usize::from(case.now() != case.changed);
            undo(&case.model, false, &mut |_, _| Ok(())).unwrap();
        }
        case.assert_untouched("undo");
        hit
    });
    println!("undo, {most:.0?}: {hit} of {runs} killed, {amid} of them during the change");
}

#[test]
fn a_full_disk_leaves_the_input_whole() {
    let Some(disk) = Tmpfs::new(16) else { return };
    let case = Case::at(disk.folder(), 2);
    in_place::change(&case.model, || (), false).unwrap();
    let journal = std::fs::metadata(journal_path(&case.model)).unwrap().len();
    // Undo needs no more space than the journal has already reserved.
    let filler = disk.fill(0);
    let (status, text) = run(command("undo", &case.model));
    assert!(status.success(), "{text}");
    std::fs::remove_file(filler).unwrap();
    case.assert_untouched("undo on a full disk");
    // Not enough space for the copy, for the journal, for the growth of the header.
    let cases = [
        ("copy", 0),
        ("copy", 1 << 20),
        ("in-place", 0),
        ("in-place", journal / 2),
        ("in-place", journal + 8192),
    ];
    for (work, left) in cases {
        let filler = disk.fill(left);
        let (status, text) = run(command(work, &case.model));
        std::fs::remove_file(filler).unwrap();
        assert_eq!(status.code(), Some(1), "{work} {left}: {text}");
        assert!(text.contains("no space left to write output") && text.contains("free some space"), "{text}");
        case.assert_untouched(work);
    }
}

#[test]
fn a_limit_on_file_sizes_leaves_the_input_whole() {
    let case = Case::new(2);
    // Limits in blocks of 1024 bytes: below the size of the copy, below that of the journal, and between the size of
    // the file and the size to which it grows.
    let file = case.base.len() / 1024;
    for (work, blocks) in [("copy", 100), ("copy", file), ("in-place", 100), ("in-place", file + 8)] {
        // With SIGXFSZ ignored, the write fails instead of killing the process.
        let (status, text) = run(limited(work, &case.model, &format!("trap '' XFSZ; ulimit -f {blocks}")));
        assert_eq!(status.code(), Some(1), "{work} {blocks}: {text}");
        assert!(text.contains("no space left to write output"), "{text}");
        case.assert_untouched(work);
        // Otherwise, SIGXFSZ kills the process like any signal.
        let (status, _) = run(limited(work, &case.model, &format!("ulimit -f {blocks}")));
        assert!(!status.success());
        case.sweep();
        if journal_path(&case.model).exists() {
            undo(&case.model, false, &mut |_, _| Ok(())).unwrap();
        }
        case.assert_untouched(work);
    }
}

#[test]
fn too_little_memory_leaves_the_input_whole() {
    let case = Case::new(8);
    let (mut done, mut failed) = (0, 0);
    for work in ["copy", "in-place"] {
        for megabytes in (4..32).step_by(2).chain([256]) {
            let limits = format!("ulimit -c 0; ulimit -v {}", megabytes * 1024);
            let (status, _) = run(limited(work, &case.model, &limits));
            *if status.success() { &mut done } else { &mut failed } += 1;
            case.sweep();
            if out_of(&case.model).exists() {
                assert!(std::fs::read(out_of(&case.model)).unwrap() == case.changed);
                std::fs::remove_file(out_of(&case.model)).unwrap();
            }
            if journal_path(&case.model).exists() {
                undo(&case.model, false, &mut |_, _| Ok(())).unwrap();
            }
            case.assert_untouched(work);
        }
    }
    println!("memory: {done} runs succeeded, {failed} ran out of memory");
    assert!(failed > 0 && done > 0, "{done} {failed}");
}

/// Makes `command` run as the user nobody if this process runs as root, which ignores permissions. Returns `None` if
/// that fails.
fn as_nobody(mut command: Command, case: &Case) -> Option<Command> {
    if std::fs::metadata(&case.folder).unwrap().uid() != 0 {
        return Some(command);
    }
    command.uid(65_534).gid(65_534);
    match command.spawn() {
        Ok(child) => {
            let _ = end(child);
            Some(command)
        }
        Err(error) => {
            println!("skipped: this binary cannot be run as another user ({error})");
            None
        }
    }
}

#[test]
fn missing_permissions_are_told() {
    let case = Case::new(1);
    let mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    let cases = [
        ("copy", 0o555, 0o444, "no permission to write output"),
        ("in-place", 0o555, 0o666, "no permission to write output"),
        ("in-place", 0o777, 0o444, "no permission to write output"),
        ("copy", 0o777, 0o000, "cannot read"),
        ("in-place", 0o777, 0o000, "cannot read"),
    ];
    for (work, folder_mode, file_mode, wanted) in cases {
        mode(&case.model, file_mode);
        mode(&case.folder, folder_mode);
        let command = as_nobody(command(work, &case.model), &case);
        let told = command.map(run);
        mode(&case.folder, 0o777);
        mode(&case.model, 0o666);
        let Some((status, text)) = told else { return };
        assert_eq!(status.code(), Some(1), "{work} {folder_mode:o} {file_mode:o}: {text}");
        assert!(text.contains(wanted), "{text}");
        case.assert_untouched(work);
    }
}

#[test]
fn a_read_only_disk_is_told() {
    let Some(disk) = Tmpfs::new(16) else { return };
    let case = Case::at(disk.folder(), 1);
    let remount = |mode: &str| {
        let options = format!("remount,{mode}");
        assert!(Command::new("mount").args(["-o", &options]).arg(disk.folder()).status().unwrap().success());
    };
    for work in ["copy", "in-place"] {
        remount("ro");
        let (status, text) = run(command(work, &case.model));
        assert_eq!(status.code(), Some(1), "{text}");
        assert!(text.contains("no permission to write output"), "{text}");
        case.assert_untouched(work);
        remount("rw");
    }
    in_place::change(&case.model, || (), false).unwrap();
    remount("ro");
    let (status, text) = run(command("undo", &case.model));
    assert!(status.code() == Some(1) && text.contains("no permission to write output"), "{text}");
    remount("rw");
    undo(&case.model, false, &mut |_, _| Ok(())).unwrap();
    case.assert_untouched("undo");
}

#[test]
fn an_input_that_changes_meanwhile_is_noticed() {
    let case = Case::new(1);
    let mut other = case.base.clone();
    *other.last_mut().unwrap() ^= 1;
    let cut = case.base[..case.base.len() - 1].to_vec();
    for (work, found, wanted) in [
        ("in-place", &other, "changed since it was read"),
        ("in-place", &cut, "changed while it was being read"),
        ("copy", &cut, "changed while it was being read"),
    ] {
        std::fs::write(&case.model, &case.base).unwrap();
        let mut command = command(work, &case.model);
        let mut child = command.env(PAUSE, "1").spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut text = String::new();
        lines.read_line(&mut text).unwrap();
        assert_eq!(text, "ready\n");
        std::fs::write(&case.model, found).unwrap();
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        lines.read_to_string(&mut text).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{text}");
        assert!(text.contains(wanted), "{work}: {text}");
        assert!(case.now() == *found);
        std::fs::write(&case.model, &case.base).unwrap();
        case.assert_untouched(work);
    }
}

#[test]
fn of_two_runs_at_once_one_writes() {
    let case = Case::new(1);
    for (work, other) in [("copy", "copy"), ("in-place", "in-place"), ("in-place", "undo")].repeat(6) {
        let children = [work, other].map(|work| command(work, &case.model).spawn().unwrap());
        let ends = children.map(end);
        let done = ends.iter().filter(|(status, _)| status.success()).count();
        for (_, text) in ends.iter().filter(|(status, _)| !status.success()) {
            assert!(text.contains("error: ") && !text.contains("panicked"), "{text}");
        }
        if work == "copy" {
            assert_eq!(done, 1, "{ends:?}");
            assert!(std::fs::read(out_of(&case.model)).unwrap() == case.changed);
            std::fs::remove_file(out_of(&case.model)).unwrap();
        } else if other == "in-place" {
            assert_eq!(done, 1, "{ends:?}");
            assert!(case.now() == case.changed);
        }
        if journal_path(&case.model).exists() {
            assert!(case.now() == case.changed);
            undo(&case.model, false, &mut |_, _| Ok(())).unwrap();
        }
        case.assert_untouched(work);
    }
}

#[test]
fn the_change_is_the_one_that_a_copy_would_be() {
    let case = Case::new(1);
    let source = Gguf::open(&case.model).unwrap();
    assert!(in_place::rewrite(&source).header().unwrap().len() as u64 > source.data_start);
    assert_eq!(Rewrite::copy(&source).header().unwrap().len() as u64, source.data_start);
    in_place::change(&case.model, || (), false).unwrap();
    assert!(case.now() == case.changed);
}
