//! `inject --in-place`: changes the file itself, measures the result, and restores the original on failure.

use crate::gguf::Gguf;
use crate::gguf::in_place::{BATCH, Change, InPlace, UndoError};
use crate::method::verify::ReadBytes;
use crate::output::Printer;
use crate::pipeline::error::Error;
use crate::pipeline::session::stoppable;
use crate::pipeline::write::Write;
use crate::util::interrupt;

/// Changes the source of `write` in place. `measure` receives the changed file and the bytes of the original. If
/// the change or `measure` fails, or the user stops the run, the original is restored.
///
/// # Errors
/// Returns the error of the change or of `measure`, or [`UndoError::NotRestored`] if restoring the original failed.
pub fn change<T>(
    write: Write<'_>,
    sha256: &str,
    measure: impl FnOnce(&Gguf, &ReadBytes<'_>) -> Result<T, Error>,
    printer: &Printer,
) -> Result<T, Error> {
    let rewrite = write.rewrite(write.source);
    let edited = write.edits.tensors();
    let what = Change { rewrite: &rewrite, edited: &edited, sha256, batch: BATCH };
    let bar = printer.bar("saving the original data", 1);
    let mut file = match InPlace::begin(&what, &mut stoppable(&bar)) {
        Ok(file) => file,
        Err(error) => {
            interrupt::check()?;
            return Err(error.into());
        }
    };
    drop(bar);
    let done = apply(&mut file, &what, write, printer).and_then(|()| {
        let changed = file.open_changed()?;
        measure(&changed, &|range| file.read_original(range))
    });
    let done = done.and_then(|measured| file.accept().map(|()| measured).map_err(Error::from));
    done.map_err(|error| {
        // Restore first, so that the model is intact whatever fails next.
        let restored = file.restore();
        let (path, after) = (write.source.path.clone(), error.to_string());
        match restored {
            Ok(()) => {
                printer.say("the original was restored");
                error
            }
            Err(source) => UndoError::NotRestored { path, after, source: Box::new(source) }.into(),
        }
    })
}

/// Changes the file and proves that the original can be restored.
fn apply(file: &mut InPlace, what: &Change<'_>, write: Write<'_>, printer: &Printer) -> Result<(), Error> {
    let bar = printer.bar("changing the file", write.source.file_len);
    let mut progress = stoppable(&bar);
    let applied = file
        .apply(what, &mut |tensor, old| Ok(write.new_data(tensor, old)?), &mut progress)
        // This hash is the only check of tensors outside the edit, which have moved.
        .and_then(|()| file.prove(&mut progress));
    interrupt::check()?;
    Ok(applied?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::gguf::GgufBuilder;
    use crate::gguf::in_place::journal_path;
    use crate::method::Edits;
    use crate::method::edit::Edit;
    use crate::method::requant::Requant;
    use crate::pipeline::{plan_of, write};

    /// Requantizes one tensor of a small model in place; the measurement returns `verdict`.
    fn try_it(path: &Path, verdict: Result<(), Error>) -> Result<(), Error> {
        let source = Gguf::open(path).unwrap();
        let plan = plan_of(&source).unwrap();
        let sha256 = crate::gguf::sha256_file(path, &mut |_, _| Ok(())).unwrap();
        let edit = Edit {
            writer: 0,
            tensor: "blk.0.attn_output.weight".into(),
            n_expert: 1,
            left: vec![1.0, 0.0, 0.0, 0.0],
            right: vec![1.0; 4],
            alpha: 1.0,
            weight_norm_sq: 1.0,
            scale: Vec::new(),
            scales_adapter: false,
            post_norm: None,
        };
        let requant = Requant::Nearest;
        let edits = Edits::from(vec![edit]);
        let change = write::Change::RequantizeOnly;
        let write = Write { source: &source, plan: &plan, edits: &edits, inputs: &[], requant, change };
        let measure = |changed: &Gguf, original: &ReadBytes<'_>| {
            assert_eq!(original(&(0..4))?, b"GGUF");
            assert_eq!(changed.tensors.len(), 3);
            verdict
        };
        super::change(write, &sha256, measure, &Printer::new(true, 0))
    }

    #[test]
    fn what_is_found_bad_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let model = GgufBuilder::new()
            .string("general.architecture", "llama")
            .kv("llama.block_count", crate::gguf::Value::U32(1))
            .kv("llama.embedding_length", crate::gguf::Value::U32(4))
            .f32_tensor("token_embd.weight", &[4, 2], &[0.5; 8])
            .f32_tensor("blk.0.attn_output.weight", &[4, 4], &[0.5; 16])
            .f32_tensor("blk.0.ffn_down.weight", &[8, 4], &[0.5; 32]);
        model.write_to(&mut std::fs::File::create(&path).unwrap()).unwrap();
        let base = std::fs::read(&path).unwrap();
        let bad = Error::LessSafe { edited: "1 of 2".into(), base: "2 of 2".into() };
        assert!(matches!(try_it(&path, Err(bad)), Err(Error::LessSafe { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), base);
        assert!(!journal_path(&path).exists());
        try_it(&path, Ok(())).unwrap();
        assert!(journal_path(&path).exists());
    }
}
