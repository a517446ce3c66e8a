//! A partially written file never has the final name.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::super::AtomicFile;
use super::*;
use crate::util::hint::Hint;

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn appears_on_commit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.gguf");
    let mut file = AtomicFile::create(&path, false).unwrap();
    file.write_all(b"data").unwrap();
    let hidden = names(directory.path());
    assert_eq!(hidden.len(), 1);
    assert!(hidden[0].starts_with(".out.gguf") && hidden[0].ends_with(".tmp"));
    assert_eq!(file.temporary_path(), directory.path().join(&hidden[0]));
    file.commit().unwrap();
    assert_eq!(names(directory.path()), ["out.gguf"]);
    assert_eq!(fs::read(&path).unwrap(), b"data");
}

#[test]
fn dropped_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut file = AtomicFile::create(&directory.path().join("out"), false).unwrap();
    file.write_all(b"data").unwrap();
    drop(file);
    assert!(names(directory.path()).is_empty());
}

#[test]
fn existing_target_is_refused_or_replaced() {
    let (directory, path) = on_disk(b"old");
    let error = AtomicFile::create(&path, false).unwrap_err();
    assert!(matches!(error, GgufError::OutputExists { .. }));
    assert!(error.hint().unwrap().contains("--overwrite"));
    let mut file = AtomicFile::create(&path, true).unwrap();
    file.write_all(b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"old");
    file.commit().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(names(directory.path()), ["model.gguf"]);
}

#[test]
fn target_that_appears_meanwhile_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out");
    let mut file = AtomicFile::create(&path, false).unwrap();
    file.write_all(b"ours").unwrap();
    fs::write(&path, b"theirs").unwrap();
    assert!(matches!(file.commit(), Err(GgufError::OutputExists { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"theirs");
    assert_eq!(names(directory.path()), ["out"]);
}

#[test]
fn unfit_targets() {
    let directory = tempfile::tempdir().unwrap();
    for path in [directory.path(), Path::new("/"), Path::new("..")] {
        let error = AtomicFile::create(path, true).unwrap_err();
        assert!(matches!(error, GgufError::OutputIsDirectory { .. }), "{error}");
    }
    let error = AtomicFile::create(&directory.path().join("no/out"), true).unwrap_err();
    assert!(matches!(error, GgufError::OutputNoDirectory { .. }));
    assert!(error.hint().unwrap().contains("mkdir -p"));
}

#[test]
fn long_names() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("n".repeat(255));
    AtomicFile::create(&path, false).unwrap().commit().unwrap();
    assert!(path.exists());
}

#[test]
fn failures_are_told_apart() {
    let path = Path::new("out.gguf");
    let error = |kind: io::ErrorKind| GgufError::from_output(path, "write", kind.into());
    let full = error(io::ErrorKind::StorageFull);
    assert!(matches!(full, GgufError::OutputNoSpace { .. }));
    assert!(full.to_string().contains("out.gguf"));
    let read_only = error(io::ErrorKind::ReadOnlyFilesystem);
    assert!(matches!(read_only, GgufError::OutputReadOnly { .. }));
    // A writer's error is recovered from the io::Error.
    let inner = io::Error::new(io::ErrorKind::StorageFull, full);
    let error = GgufError::from_write(Path::new("source"), inner);
    assert!(matches!(error, GgufError::OutputNoSpace { .. }));
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn permissions_follow_the_umask() {
        let directory = tempfile::tempdir().unwrap();
        let plain = directory.path().join("plain");
        fs::write(&plain, b"").unwrap();
        let path = directory.path().join("out");
        AtomicFile::create(&path, false).unwrap().commit().unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&plain));
    }

    #[test]
    fn link_is_replaced_not_followed() {
        let (directory, path) = on_disk(b"shared");
        let link = directory.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(AtomicFile::create(&link, false).is_err());
        let mut file = AtomicFile::create(&link, true).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"shared");
        assert_eq!(fs::read(&link).unwrap(), b"new");
    }

    #[test]
    fn device_is_never_replaced() {
        let error = AtomicFile::create(Path::new("/dev/null"), true).unwrap_err();
        assert!(matches!(error, GgufError::OutputNotAFile { .. }));
    }

    #[test]
    fn read_only_directory() {
        let directory = tempfile::tempdir().unwrap();
        if fs::metadata(directory.path()).unwrap().uid() == 0 {
            return; // root can write anywhere
        }
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o555)).unwrap();
        let error = AtomicFile::create(&directory.path().join("out"), false).unwrap_err();
        assert!(matches!(error, GgufError::OutputReadOnly { .. }));
    }
}

#[cfg(unix)]
#[test]
fn what_killed_runs_left_is_removed_and_what_is_in_use_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let others = [
        ".out.gguf.abc.tmp",        // too few random letters
        ".out.gguf.abc-ef.tmp",     // a character that tempfile never uses
        ".out.gguf.abcdef",         // no suffix
        ".out.gguf.old.abcdef.tmp", // for another file
        "out.gguf.abcdef.tmp",      // not hidden
    ];
    others.iter().for_each(|name| fs::write(at(name), b"mine").unwrap());
    fs::create_dir(at(".out.gguf.Sub123.tmp")).unwrap();
    fs::create_dir(at(".out.gguf.Sub123.tmp/theirs")).unwrap();
    std::os::unix::fs::symlink(at(others[0]), at(".out.gguf.Link12.tmp")).unwrap();
    let before = names(directory.path());
    fs::write(at(".out.gguf.a1B2c3.tmp"), b"half").unwrap();
    fs::create_dir(at(".out.gguf.Dir456.tmp")).unwrap();
    fs::write(at(".out.gguf.Dir456.tmp/out-00001-of-00002.gguf"), b"half").unwrap();

    let first = AtomicFile::create(&at("out.gguf"), false).unwrap();
    let second = AtomicFile::create(&at("out.gguf"), false).unwrap();
    let (a, b) = (first.temporary_path().to_path_buf(), second.temporary_path().to_path_buf());
    assert!(a != b && a.exists() && b.exists(), "a living writer lost its file");
    drop(second);
    assert!(a.exists() && !b.exists());
    drop(first);
    assert_eq!(names(directory.path()), before);
}
