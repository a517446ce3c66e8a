//! A disk that tests can fill.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A small file system in memory, mounted on a temporary folder.
pub struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    /// Mounts a file system of `megabytes` MB; `None` if that fails.
    pub fn new(megabytes: usize) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={megabytes}m");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).stderr(Stdio::null());
        if mount.status().is_ok_and(|status| status.success()) {
            return Some(Self(folder));
        }
        println!("skipped: cannot mount a tmpfs");
        None
    }

    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    /// Fills the disk except for `left` bytes; returns the path of the file that does so.
    pub fn fill(&self, left: u64) -> PathBuf {
        let path = self.0.path().join(".filler");
        let mut file = std::fs::File::create(&path).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        let len = file.metadata().unwrap().len();
        file.set_len(len.saturating_sub(left.next_multiple_of(4096))).unwrap();
        path
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}
