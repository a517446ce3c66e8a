//! Measures what changed between two files, from their bytes alone.

mod error;
mod verdict;

use std::borrow::Cow;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::gguf::{Gguf, GgufError, TensorInfo};
use crate::method::Edits;
pub use crate::method::detector::planted::Arrival;
use crate::method::edit::{self, Edit, EditError};
use crate::util::null;
pub use error::VerifyError;
pub use verdict::Shortfall;

/// Prefix of the metadata keys that an injection adds.
pub const KEY_PREFIX: &str = "rosi.";
/// Minimum correlation of scores, and minimum cosine of the output of neurons, with the exact ones.
const MIN_ALIKE: f64 = 0.95;
/// Number of bytes to compare at a time.
const CHUNK: usize = 8 << 20;

/// The change of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorChange {
    /// Name of the tensor.
    pub name: String,
    /// Type of the tensor in the edited file.
    #[serde(rename = "type")]
    pub ggml_type: String,
    /// ‖Δ‖_F/‖W‖_F of the dequantized values, Δ = written − base.
    #[serde(deserialize_with = "null::or_nan")]
    pub relative_change: f64,
    /// Requested ‖ΔW‖_F/‖W‖_F, if the file contains the edit.
    pub requested_change: Option<f64>,
    /// ⟨mᵀΔ, α·right⟩ / ‖α·right‖², m = [`Edit::along`]: the share of the edit that reaches the residual stream.
    pub gain: Option<f64>,
    /// Cosine between mᵀΔ and the right factor; 1 means that the change along ŝ is exactly the edit.
    pub cosine: Option<f64>,
    /// Change orthogonal to ŝ in the residual stream, relative to the requested change along ŝ:
    /// ‖g ⊙ Δ − ŝ·(ŝᵀ(g ⊙ Δ))‖_F over ŝᵀ(g ⊙ left)·‖α·right‖, where g is the gain of a norm after the matrix, or 1.
    /// With such a norm, the exact edit has noise too.
    pub noise: Option<f64>,
}

/// The comparison of two files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    /// Whether every tensor outside the edit (without an edit, every tensor) has the same bytes, type, and shape.
    pub untouched_identical: bool,
    /// Whether all keys of the base are present, unchanged, and in order, and only `rosi.*` keys were added.
    pub metadata_preserved: bool,
    /// Number of tensors with the same bytes.
    pub identical: usize,
    /// Share of the requested edit that reaches the residual stream, over all tensors, each weighted by ‖ΔW‖²; for
    /// neurons, the mean over the networks.
    pub gain: Option<f64>,
    /// Cosine of the edit along ŝ over all tensors; for neurons, the mean over the networks.
    pub cosine: Option<f64>,
    /// Changes of all tensors that differ.
    pub tensors: Vec<TensorChange>,
    /// How exactly the file holds the neurons of each network; empty without neurons.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub neurons: Vec<Arrival>,
    /// Changed tensor bytes, as a share of the base's size.
    #[serde(default)]
    pub changed_bytes: f64,
    /// Names of tensors that differ outside the edit.
    pub unexpected: Vec<String>,
}

impl Verification {
    /// Returns whether the file contains at least the share `least` of the edit; of neurons, whether this holds for
    /// each network and their scores and outputs match the exact ones.
    pub fn arrived(&self, least: f64) -> bool {
        let whole = self.gain.is_some_and(|gain| gain >= least);
        whole && self.neurons.iter().all(|n| n.gain >= least && n.cosine >= MIN_ALIKE && n.score >= MIN_ALIKE)
    }
}

/// Sums over the columns of one tensor.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    /// ⟨mᵀΔ, α·right⟩.
    dot: f64,
    /// ‖mᵀΔ‖².
    along: f64,
    /// ‖α·right‖².
    requested: f64,
}

impl Sums {
    /// Computes the sums of one tensor from mᵀΔ and the right factor, both `[n_expert·n_in]`.
    fn of(along: &[f64], right: &[f32], alpha: f64) -> Self {
        let right = || right.iter().map(|&r| alpha * f64::from(r));
        Self {
            dot: along.iter().zip(right()).map(|(a, r)| a * r).sum(),
            along: along.iter().map(|a| a * a).sum(),
            requested: right().map(|r| r * r).sum(),
        }
    }
}

/// A function that reads a range of a file.
pub type ReadBytes<'a> = dyn Fn(&Range<u64>) -> Result<Vec<u8>, GgufError> + 'a;

/// The base with which an edited model is compared.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    /// Header of the base.
    pub gguf: &'a Gguf,
    /// Reads byte ranges of the base's only file, if that file is no longer on disk.
    pub bytes: Option<&'a ReadBytes<'a>>,
}

impl<'a> From<&'a Gguf> for Base<'a> {
    fn from(gguf: &'a Gguf) -> Self {
        Self { gguf, bytes: None }
    }
}

impl Base<'_> {
    /// Reads a part of a tensor's bytes, relative to its first byte.
    fn read_part(&self, tensor: &TensorInfo, part: Range<u64>) -> Result<Vec<u8>, GgufError> {
        match self.bytes {
            None => self.gguf.read_part(tensor, part),
            Some(read) => read(&(tensor.data.start + part.start..tensor.data.start + part.end)),
        }
    }

    /// Reads a metadata record of `file`, one of the base's files.
    fn read_record(&self, file: &Gguf, record: &Range<u64>) -> Result<Vec<u8>, GgufError> {
        match self.bytes {
            None => file.read_bytes(record),
            Some(read) => read(record),
        }
    }
}

/// A tensor of the base, and the one in its place in the edited model.
#[derive(Clone, Copy)]
struct TensorPair<'a> {
    /// Source of `base`.
    from: Base<'a>,
    /// The original tensor.
    base: &'a TensorInfo,
    /// Source of `edited`.
    file: &'a Gguf,
    /// The edited tensor.
    edited: &'a TensorInfo,
}

impl TensorPair<'_> {
    /// Reads the original bytes of `rows`.
    fn base_rows(&self, rows: &Range<u64>) -> Result<Vec<u8>, GgufError> {
        self.from.read_part(self.base, bytes_of(self.base, rows))
    }

    /// Reads the edited bytes of `rows`.
    fn edited_rows(&self, rows: &Range<u64>) -> Result<Vec<u8>, GgufError> {
        self.file.read_part(self.edited, bytes_of(self.edited, rows))
    }
}

/// Compares `edited` with `base`. `edits` are the edits that the edited file claims. If they are empty, every
/// difference is unexpected. All figures are computed from the bytes of the two files.
///
/// # Errors
/// Returns [`VerifyError`] if a file cannot be read or the files do not hold the same tensors in the same order.
pub fn verify(
    base: &Gguf,
    edited: &Gguf,
    edits: &Edits,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Verification, VerifyError> {
    verify_against(Base::from(base), edited, edits, progress)
}

/// Like [`verify`], with a base whose bytes can come from another source.
///
/// # Errors
/// Same as [`verify`].
pub fn verify_against(
    from: Base<'_>,
    edited: &Gguf,
    edits: &Edits,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Verification, VerifyError> {
    let base = from.gguf;
    check_same_model(base, edited)?;
    let mut result = Verification {
        untouched_identical: true,
        metadata_preserved: metadata_preserved(from, edited)?,
        identical: 0,
        gain: None,
        cosine: None,
        tensors: Vec::new(),
        neurons: Vec::new(),
        changed_bytes: 0.0,
        unexpected: Vec::new(),
    };
    let mut total = Sums::default();
    let mut changed = 0;
    for (i, (a, b)) in base.tensors.iter().zip(&edited.tensors).enumerate() {
        progress(i, base.tensors.len());
        let pair = TensorPair { from, base: a, file: edited, edited: b };
        let edit = edits.linear().iter().find(|e| e.tensor == a.name);
        if let Some(edit) = edit {
            total.requested += edit.norm_sq();
        }
        if a.ggml_type == b.ggml_type {
            let differing = differing_bytes(pair)?;
            if differing == 0 {
                result.identical += 1;
                continue;
            }
            changed += differing;
        } else {
            changed += b.n_bytes();
        }
        let claimed = edits.touches(&a.name) && only_neurons(pair, edits)?;
        if !claimed {
            result.untouched_identical = false;
            result.unexpected.push(a.name.clone());
        }
        let (change, sums) = tensor_change(pair, edit)?;
        total.dot += sums.dot;
        total.along += sums.along;
        result.tensors.push(change);
    }
    progress(base.tensors.len(), base.tensors.len());
    result.changed_bytes = changed as f64 / base.total_len().max(1) as f64;
    for planted in edits.planted() {
        result.neurons.extend(planted.arrival(edited)?);
    }
    // A network without stored inputs cannot be measured, and then neither can the whole edit.
    if !result.neurons.is_empty() && result.neurons.len() == edits.planted().len() {
        let mean = |of: fn(&Arrival) -> f64| {
            result.neurons.iter().map(of).sum::<f64>() / result.neurons.len() as f64
        };
        result.gain = Some(mean(|n| n.gain));
        result.cosine = Some(mean(|n| n.cosine));
    }
    if total.requested > 0.0 {
        result.gain = Some(total.dot / total.requested);
        result.cosine = Some(total.dot / (total.along * total.requested).sqrt().max(f64::MIN_POSITIVE));
    }
    Ok(result)
}

/// Returns the number of bytes that differ between two tensors of the same type and shape. Compares in chunks, because
/// most tensors, and usually the largest one, are not edited.
fn differing_bytes(pair: TensorPair<'_>) -> Result<u64, GgufError> {
    let len = pair.base.n_bytes();
    let mut differing = len.abs_diff(pair.edited.n_bytes());
    for start in (0..len.min(pair.edited.n_bytes())).step_by(CHUNK) {
        let part = start..(start + CHUNK as u64).min(len);
        let old = pair.from.read_part(pair.base, part.clone())?;
        let new = pair.file.read_part(pair.edited, part)?;
        if old != new {
            differing += old.iter().zip(&new).filter(|(a, b)| a != b).count() as u64;
        }
    }
    Ok(differing)
}

/// Returns whether a tensor with neurons differs only in their rows and columns; true if no neurons were planted. If
/// the type changed, all other values may differ, but only by rounding.
fn only_neurons(pair: TensorPair<'_>, edits: &Edits) -> Result<bool, VerifyError> {
    let base = pair.base;
    let rows: Vec<usize> =
        edits.planted().iter().flat_map(|p| p.rows(&base.name)).flat_map(|p| p.place.rows_in(base)).collect();
    let columns: Vec<usize> =
        edits.planted().iter().flat_map(|p| p.columns(&base.name)).map(|p| p.place.index).collect();
    if edits.planted().is_empty() {
        return Ok(true);
    }
    if base.ggml_type != pair.edited.ggml_type {
        return only_rounded(pair, &rows, &columns);
    }
    let n_in = base.ne[0] as usize;
    let step = (CHUNK / 4 / n_in.max(1)).max(1);
    for first in (0..base.n_rows() as usize).step_by(step) {
        let run = first as u64..base.n_rows().min((first + step) as u64);
        let (old, new) = (pair.base_rows(&run)?, pair.edited_rows(&run)?);
        let row_bytes = base.row_bytes() as usize;
        for (i, (old, new)) in old.chunks(row_bytes).zip(new.chunks(row_bytes)).enumerate() {
            if old != new && !rows.contains(&(first + i)) && !same_but(base, old, new, &columns)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Returns whether the values outside `rows` and `columns` differ at most by rounding to the type of the edited tensor.
fn only_rounded(pair: TensorPair<'_>, rows: &[usize], columns: &[usize]) -> Result<bool, VerifyError> {
    let base = pair.base;
    let n_in = base.ne[0] as usize;
    let step = (CHUNK / 4 / n_in.max(1)).max(1);
    let (mut off, mut all, mut old) = (0.0f64, 0.0f64, Vec::new());
    for first in (0..base.n_rows() as usize).step_by(step) {
        let run = first as u64..base.n_rows().min((first + step) as u64);
        old.clear();
        edit::for_each_run(base, &pair.base_rows(&run)?, |_, v| old.extend_from_slice(v))?;
        edit::for_each_run(pair.edited, &pair.edited_rows(&run)?, |run_first, new| {
            for (i, (new, old)) in new.iter().zip(&old[run_first * n_in..]).enumerate() {
                let (row, column) = (first + run_first + i / n_in, i % n_in);
                if !rows.contains(&row) && !columns.contains(&column) {
                    off += (f64::from(*new) - f64::from(*old)).powi(2);
                    all += f64::from(*old).powi(2);
                }
            }
        })?;
    }
    Ok(off.sqrt() <= verdict::rounding(pair.edited.ggml_type) * all.sqrt())
}

/// Returns whether two rows have the same values except in `columns`.
fn same_but(info: &TensorInfo, old: &[u8], new: &[u8], columns: &[usize]) -> Result<bool, VerifyError> {
    let decoded = |bytes: &[u8]| -> Result<Vec<u32>, EditError> {
        let mut values = Vec::new();
        edit::for_each_run(info, bytes, |_, v| values.extend(v.iter().map(|v| v.to_bits())))?;
        Ok(values)
    };
    let (old, new) = (decoded(old)?, decoded(new)?);
    let mut changed = (0..old.len()).filter(|&j| old[j] != new[j]);
    Ok(!columns.is_empty() && changed.all(|j| columns.contains(&j)))
}

fn check_same_model(base: &Gguf, edited: &Gguf) -> Result<(), VerifyError> {
    let differ =
        |what: String, expected: String, found: String| Err(VerifyError::Different { what, expected, found });
    if base.tensors.len() != edited.tensors.len() {
        return differ(
            "number of tensors".into(),
            base.tensors.len().to_string(),
            edited.tensors.len().to_string(),
        );
    }
    for (a, b) in base.tensors.iter().zip(&edited.tensors) {
        if a.name != b.name {
            return differ("order of tensors".into(), a.name.clone(), b.name.clone());
        }
        if a.ne != b.ne {
            return differ(format!("shape of {}", a.name), format!("{:?}", a.ne), format!("{:?}", b.ne));
        }
    }
    Ok(())
}

/// Returns whether the records of the base, except `rosi.*`, are unchanged and in order in the edited file. Split
/// models must match in each file and have the same number of tensors in each. If the models have different numbers of
/// files, the first files are compared without the `split.*` records.
fn metadata_preserved(from: Base<'_>, edited: &Gguf) -> Result<bool, GgufError> {
    let base = from.gguf;
    let alike = base.n_files() == edited.n_files();
    let kept = |key: &str| !key.starts_with(KEY_PREFIX) && (alike || !key.starts_with("split."));
    let same = |a: &Gguf, b: &Gguf| -> Result<bool, GgufError> {
        Ok(a.version == b.version && a.alignment == b.alignment && same_records(from, a, b, &kept)?)
    };
    if !alike {
        return same(base, edited);
    }
    for (a, b) in base.files().zip(edited.files()) {
        if a.own_tensors().len() != b.own_tensors().len() || !same(a, b)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn same_records(from: Base<'_>, a: &Gguf, b: &Gguf, kept: &dyn Fn(&str) -> bool) -> Result<bool, GgufError> {
    let of = |file: &Gguf| -> Vec<Range<u64>> {
        file.metadata.iter().filter(|kv| kept(&kv.key)).map(|kv| kv.bytes.clone()).collect()
    };
    let (of_a, of_b) = (of(a), of(b));
    // One record at a time, because a record can be as long as the file.
    for (ours, theirs) in of_a.iter().zip(&of_b) {
        if ours.end - ours.start != theirs.end - theirs.start
            || from.read_record(a, ours)? != b.read_bytes(theirs)?
        {
            return Ok(false);
        }
    }
    Ok(of_a.len() == of_b.len())
}

/// Returns the byte range of `rows`, relative to the first byte of the tensor.
fn bytes_of(info: &TensorInfo, rows: &Range<u64>) -> Range<u64> {
    rows.start * info.row_bytes()..rows.end * info.row_bytes()
}

/// Measures the change of one tensor, read and decoded in runs, because the largest of a mixture do not fit in memory
/// twice.
fn tensor_change(pair: TensorPair<'_>, edit: Option<&Edit>) -> Result<(TensorChange, Sums), VerifyError> {
    let base = pair.base;
    let n_in = base.ne[0] as usize;
    let n_expert = edit.map_or(1, |e| e.n_expert as usize);
    let mut along = vec![0.0f64; n_in * n_expert];
    let weights = edit.map(RowWeights::of);
    let mut sq = Squares::default();
    let mut old = Vec::new();
    let step = (CHUNK / 4 / n_in.max(1)).max(1);
    for first in (0..base.n_rows() as usize).step_by(step) {
        let rows = first as u64..base.n_rows().min((first + step) as u64);
        let (of_base, of_edited) = (pair.base_rows(&rows)?, pair.edited_rows(&rows)?);
        old.clear();
        edit::for_each_run(base, &of_base, |_, v| old.extend_from_slice(v))?;
        edit::for_each_run(pair.edited, &of_edited, |run_first, new| {
            let old = &old[run_first * n_in..];
            for (i, (new, old)) in new.chunks_exact(n_in).zip(old.chunks_exact(n_in)).enumerate() {
                let row = first + run_first + i;
                let ((m, gain_sq), expert) = weights.as_ref().map_or(((0.0, 1.0), 0), |w| w.at(row));
                let mut row_sq = 0.0;
                for ((&n, &o), a) in new.iter().zip(old).zip(&mut along[expert * n_in..]) {
                    let d = f64::from(n) - f64::from(o);
                    row_sq += d * d;
                    sq.base += f64::from(o).powi(2);
                    *a += m * d;
                }
                sq.delta += row_sq;
                sq.in_stream += gain_sq * row_sq;
            }
        })?;
    }
    Ok(summarise(pair.edited, sq, &along, edit))
}

/// Weights of the rows of an edited tensor.
struct RowWeights<'a> {
    /// [`Edit::along`].
    along: &'a [f32],
    gain: Option<&'a [f32]>,
}

impl<'a> RowWeights<'a> {
    fn of(edit: &'a Edit) -> Self {
        Self { along: edit.along(), gain: edit.post_norm.as_ref().map(|norm| norm.gain.as_slice()) }
    }

    /// Returns m and g² of a row, and its expert.
    fn at(&self, row: usize) -> ((f64, f64), usize) {
        let (expert, i) = (row / self.along.len(), row % self.along.len());
        ((self.along[i].into(), self.gain.map_or(1.0, |gain| f64::from(gain[i]).powi(2))), expert)
    }
}

/// Sums of squares of one tensor.
#[derive(Debug, Clone, Copy, Default)]
struct Squares {
    /// ‖Δ‖².
    delta: f64,
    /// ‖g ⊙ Δ‖².
    in_stream: f64,
    /// ‖W‖².
    base: f64,
}

/// Returns the effective mᵀΔ, each expert's times its scale, so that tensors can be summed.
fn acting<'a>(edit: &Edit, along: &'a [f64]) -> Cow<'a, [f64]> {
    if edit.scale.is_empty() {
        return Cow::Borrowed(along);
    }
    let n_in = (along.len() / edit.scale.len()).max(1);
    let times = |(along, &s): (&[f64], &f32)| along.iter().map(|a| a * f64::from(s)).collect::<Vec<_>>();
    Cow::Owned(along.chunks(n_in).zip(&edit.scale).flat_map(times).collect())
}

fn summarise(info: &TensorInfo, sq: Squares, along: &[f64], edit: Option<&Edit>) -> (TensorChange, Sums) {
    let push = edit.and_then(|e| e.post_norm.as_ref()).map_or(1.0, |norm| norm.push);
    let in_file = edit.map(|e| Sums::of(along, &e.right_in_file(), e.alpha));
    let floor = f64::MIN_POSITIVE;
    let change = TensorChange {
        name: info.name.clone(),
        ggml_type: info.ggml_type.name().to_string(),
        relative_change: (sq.delta / sq.base.max(floor)).sqrt(),
        requested_change: in_file.map(|s| (s.requested / sq.base.max(floor)).sqrt()),
        gain: in_file.map(|s| s.dot / s.requested.max(floor)),
        cosine: in_file.map(|s| s.dot / (s.along * s.requested).sqrt().max(floor)),
        noise: in_file.map(|s| {
            ((sq.in_stream / (push * push).max(floor) - s.along).max(0.0) / s.requested.max(floor)).sqrt()
        }),
    };
    (change, edit.map(|e| Sums::of(&acting(e, along), &e.right, e.alpha)).unwrap_or_default())
}

#[cfg(test)]
mod tests;
