//! A change can be undone after a crash at any byte.

use std::cell::Cell;
use std::io::Write;

use super::*;
use crate::gguf::{GgmlType, GgufBuilder, Value, sha256_file, sha256_hex};
use crate::util::hint::Hint;

thread_local! {
    /// Number of bytes that can still be written before the simulated crash; `None` for no crash.
    static FUSE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Fails if the simulated crash falls within `bytes`, after writing the bytes before it.
pub(super) fn burn(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    let Some(left) = FUSE.get() else { return Ok(()) };
    let n = bytes.len() as u64;
    FUSE.set(Some(left.saturating_sub(n)));
    if left > n {
        return Ok(());
    }
    file.write_all(&bytes[..left as usize])?;
    Err(io::Error::other("the fuse has burnt"))
}

/// Writes a model file whose edited tensor lies between two others.
fn model() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let builder = GgufBuilder::new()
        .string("general.architecture", "llama")
        .kv("llama.block_count", Value::U32(1))
        .f32_tensor("a", &[24], &[1.0; 24])
        .tensor("w", &[32, 3], GgmlType::Q8_0, (0..102).collect())
        .f32_tensor("z", &[9], &[3.0; 9]);
    let mut bytes = Vec::new();
    builder.write_to(&mut bytes).unwrap();
    bytes.extend_from_slice(b"a trailer");
    // Use a memory-backed directory if there is one: the tests simulate thousands of crashes.
    let memory = Path::new("/dev/shm");
    let directory = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let path = directory.path().join("model.gguf");
    fs::write(&path, &bytes).unwrap();
    (directory, path, bytes)
}

/// A copy with an added array of `n` floats; with `None`, nothing is added and no data moves.
fn rewrite(source: &Gguf, n: Option<usize>) -> Rewrite<'_> {
    let mut rewrite = Rewrite::copy(source);
    if let Some(n) = n {
        rewrite.added = vec![("rosi.version".into(), Value::String("0".into()))];
        rewrite.added_f32 = vec![("rosi.direction".into(), vec![0.5; n])];
    }
    rewrite
}

fn inverted(bytes: Vec<u8>) -> Vec<u8> {
    bytes.into_iter().map(|b| !b).collect()
}

/// Returns the copy that [`Rewrite`] produces for the same change.
fn copy(source: &Gguf, n: Option<usize>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut replace = |t: &TensorInfo| match t.name.as_str() {
        "w" => Ok(Some(inverted(source.read_tensor(t)?))),
        _ => Ok(None),
    };
    rewrite(source, n).write_to(&mut out, &mut replace, &mut |_, _| Ok(())).unwrap();
    out
}

/// Begins and applies the change; the fuse is set once the journal has its final name.
fn change(path: &Path, n: Option<usize>, batch: u64, fuse: Option<u64>) -> Result<InPlace, UndoError> {
    let source = Gguf::open(path)?;
    let rewrite = rewrite(&source, n);
    let sha256 = sha256_file(path, &mut |_, _| Ok(())).unwrap();
    let change = Change { rewrite: &rewrite, edited: &["w"], sha256: &sha256, batch };
    let mut in_place = InPlace::begin(&change, &mut |_, _| Ok(()))?;
    FUSE.set(fuse);
    let applied = in_place.apply(&change, &mut |_, old| Ok(inverted(old)), &mut |_, _| Ok(()));
    FUSE.set(None);
    applied.map(|()| in_place)
}

fn undo_now(path: &Path) -> Result<Undone, UndoError> {
    undo(path, false, &mut |_, _| Ok(()))
}

#[test]
fn the_result_is_the_copy_and_undo_gives_the_original() {
    for (n, batch) in [(None, 64), (Some(1), BATCH), (Some(40), 7), (Some(40), 1000), (Some(3000), 64)] {
        let (_directory, path, base) = model();
        let wanted = copy(&Gguf::open(&path).unwrap(), n);
        let mut in_place = change(&path, n, batch, None).unwrap();
        in_place.prove(&mut |_, _| Ok(())).unwrap();
        assert_eq!(in_place.read_original(&(0..base.len() as u64)).unwrap(), base);
        assert!(matches!(Gguf::open(&path), Err(GgufError::BeingChanged { .. })));
        assert_eq!(in_place.open_changed().unwrap().file_len, wanted.len() as u64);
        in_place.accept().unwrap();
        drop(in_place); // releases the lock
        assert_eq!(fs::read(&path).unwrap(), wanted, "{n:?} {batch}");
        Gguf::open(&path).unwrap();
        assert!(matches!(check(&path), Err(UndoError::Journaled { .. })));
        let undone = undo_now(&path).unwrap();
        assert_eq!(undone.sha256, sha256_hex(&base));
        assert!(undone.was_complete && !undone.journal_kept);
        assert_eq!(fs::read(&path).unwrap(), base);
        assert!(!journal_path(&path).exists());
        assert!(matches!(undo_now(&path), Err(UndoError::NoJournal { .. })));
    }
}

#[test]
fn a_crash_after_any_byte_of_the_change_is_undone() {
    for (n, batch) in [(None, 64), (Some(40), 50), (Some(40), 300)] {
        for fuse in 0.. {
            let (_directory, path, base) = model();
            let crashed = change(&path, n, batch, Some(fuse)).map(drop).is_err();
            assert!(matches!(Gguf::open(&path), Err(GgufError::HalfChanged { .. })), "{fuse}");
            let undone = undo_now(&path).unwrap_or_else(|error| panic!("{n:?} {batch} {fuse}: {error}"));
            assert!(!undone.was_complete);
            assert!(fs::read(&path).unwrap() == base, "{n:?} {batch} {fuse}");
            assert!(!journal_path(&path).exists());
            if !crashed {
                break;
            }
        }
    }
}

#[test]
fn a_crash_after_any_byte_of_the_undo_is_undone() {
    let (_directory, path, base) = model();
    change(&path, Some(40), 50, None).unwrap().accept().unwrap();
    let (changed, journal) = (fs::read(&path).unwrap(), fs::read(journal_path(&path)).unwrap());
    for fuse in 0.. {
        fs::write(&path, &changed).unwrap();
        fs::write(journal_path(&path), &journal).unwrap();
        FUSE.set(Some(fuse));
        let crashed = undo_now(&path).is_err();
        FUSE.set(None);
        if crashed {
            // The second attempt may crash too; the third runs to completion.
            FUSE.set(Some(fuse / 2));
            let _ = undo_now(&path);
            FUSE.set(None);
        }
        if journal_path(&path).exists() {
            undo_now(&path).unwrap_or_else(|error| panic!("{fuse}: {error}"));
        }
        assert!(fs::read(&path).unwrap() == base, "{fuse}");
        if !crashed {
            break;
        }
    }
}

#[test]
fn a_failed_change_is_put_back() {
    let (_directory, path, base) = model();
    let in_place = change(&path, Some(40), 50, None).unwrap();
    in_place.restore().unwrap();
    assert_eq!(fs::read(&path).unwrap(), base);
    assert!(!journal_path(&path).exists());
}

#[test]
fn a_kept_journal_makes_way() {
    let (_directory, path, base) = model();
    change(&path, Some(40), 50, None).unwrap().accept().unwrap();
    assert!(undo(&path, true, &mut |_, _| Ok(())).unwrap().journal_kept);
    assert_eq!(phase(&path).unwrap(), Some(Phase::Restored));
    assert!(!undo(&path, true, &mut |_, _| Ok(())).unwrap().was_complete);
    check(&path).unwrap();
    change(&path, Some(41), 50, None).unwrap().accept().unwrap();
    undo_now(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), base);
}

#[test]
fn a_journal_of_another_file_is_refused() {
    let (_directory, path, _) = model();
    change(&path, Some(40), 50, None).unwrap().accept().unwrap();
    let changed = fs::read(&path).unwrap();
    let mut others =
        vec![changed[..changed.len() - 1].to_vec(), changed.clone(), [&changed[..], b"x"].concat()];
    let last = others[1].len() - 1;
    others[1][last] ^= 1;
    for other in others {
        fs::write(&path, &other).unwrap();
        let error = undo_now(&path).unwrap_err();
        assert!(matches!(error, UndoError::Stranger { .. }), "{error}");
        assert!(error.hint().unwrap().contains("nothing was written"));
        assert_eq!(fs::read(&path).unwrap(), other);
        assert!(journal_path(&path).exists());
    }
}

#[test]
fn a_damaged_journal_is_refused() {
    let (_directory, path, _) = model();
    change(&path, Some(40), 50, None).unwrap().accept().unwrap();
    let (changed, whole) = (fs::read(&path).unwrap(), fs::read(journal_path(&path)).unwrap());
    for at in 0..whole.len() {
        let mut journal = whole.clone();
        journal[at] ^= 0x10;
        fs::write(journal_path(&path), &journal).unwrap();
        // Either the damage is harmless (older record, finished batch), or nothing is written.
        if undo_now(&path).is_ok() {
            fs::write(&path, &changed).unwrap();
        }
        assert_eq!(fs::read(&path).unwrap(), changed, "{at}");
    }
    for len in 0..whole.len() {
        fs::write(journal_path(&path), &whole[..len]).unwrap();
        undo_now(&path).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), changed, "{len}");
    }
}

#[cfg(unix)]
#[test]
fn a_journal_that_is_a_pipe_is_not_waited_for() {
    let (_dir, path, _) = model();
    let made = std::process::Command::new("mkfifo").arg(journal_path(&path)).status().unwrap();
    assert!(made.success());
    let error = undo_now(&path).unwrap_err().to_string();
    assert!(error.contains("it is not a regular file"), "{error}");
}

#[test]
fn a_file_that_changed_since_it_was_hashed_is_left_alone() {
    let (_directory, path, mut base) = model();
    let source = Gguf::open(&path).unwrap();
    let (rewrite, sha256) = (rewrite(&source, Some(4)), sha256_hex(&base));
    *base.last_mut().unwrap() ^= 1;
    fs::write(&path, &base).unwrap();
    let change = Change { rewrite: &rewrite, edited: &["w"], sha256: &sha256, batch: BATCH };
    let error = InPlace::begin(&change, &mut |_, _| Ok(())).unwrap_err();
    assert!(matches!(error, UndoError::Gguf(GgufError::Rewritten { .. })), "{error}");
    assert_eq!(fs::read(&path).unwrap(), base);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

#[cfg(unix)]
#[test]
fn links_are_refused() {
    let (directory, path, _) = model();
    let link = directory.path().join("link.gguf");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(matches!(check(&link), Err(UndoError::Linked { .. })));
    check(&path).unwrap();
    fs::hard_link(&path, directory.path().join("hard.gguf")).unwrap();
    assert!(matches!(check(&path), Err(UndoError::Linked { .. })));
}
