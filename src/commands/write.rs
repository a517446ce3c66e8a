//! Writing an edited copy: under a temporary name until it has been verified.

use std::path::Path;

use crate::commands::provenance::Provenance;
use crate::direction::SafetyDirection;
use crate::edit::Edit;
use crate::error::Error;
use crate::gguf::{AtomicFile, Gguf, Rewrite};
use crate::interrupt;
use crate::output::Printer;
use crate::verify::KEY_PREFIX;

/// How the tensors of the edit are written.
#[derive(Clone, Copy)]
pub enum Change<'a> {
    /// With the edit and the keys that tell of it.
    Edit(&'a Provenance, &'a SafetyDirection),
    /// Requantized only: the control.
    RequantizeOnly,
}

/// Writes `source` with `edits` to `file`, which still has its temporary name; flushed, so that it
/// can be read back.
pub fn write(
    source: &Gguf,
    edits: &[Edit],
    change: Change<'_>,
    file: &mut AtomicFile,
    printer: &Printer,
) -> Result<(), Error> {
    let bar = printer.bar("writing", source.file_len);
    let (added, added_f32) = match change {
        Change::Edit(provenance, direction) => {
            (provenance.keys(), vec![Provenance::direction_key(direction)])
        }
        Change::RequantizeOnly => (Vec::new(), Vec::new()),
    };
    let rewrite = Rewrite { source, added, added_f32, drop_prefix: Some(KEY_PREFIX) };
    let written = rewrite.write_to(
        file,
        &mut |tensor| {
            let Some(edit) = edits.iter().find(|e| e.tensor == tensor.name) else { return Ok(None) };
            let bytes = source.read_tensor(tensor)?;
            Ok(Some(match change {
                Change::Edit(..) => edit.apply_nearest(tensor, &bytes)?,
                Change::RequantizeOnly => Edit::requantize_only(tensor, &bytes)?,
            }))
        },
        &mut |done, total| {
            bar.set_of(done, total);
            // `Interrupted` is an error kind that writers retry.
            interrupt::check().map_err(std::io::Error::other)
        },
    );
    interrupt::check()?;
    written?;
    Ok(())
}

/// Writes a small file as a whole.
pub fn write_whole(path: &Path, bytes: &[u8], overwrite: bool) -> Result<(), Error> {
    use std::io::Write;
    let mut file = AtomicFile::create(path, overwrite)?;
    file.write_all(bytes).map_err(|source| Error::Io { path: path.into(), source })?;
    Ok(file.commit()?)
}
