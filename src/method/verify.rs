//! What really changed between two files, from the files alone.

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

/// Prefix of the keys that an injection adds.
pub const KEY_PREFIX: &str = "rosi.";
/// Least correlation of scores, and cosine of what neurons write, with the exact ones.
const MIN_ALIKE: f64 = 0.95;
/// Bytes that are compared at a time.
const CHUNK: usize = 8 << 20;

/// Change of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorChange {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub ggml_type: String,
    /// ‖Δ‖_F/‖W‖_F of the dequantized values, Δ = written − base.
    #[serde(deserialize_with = "null::or_nan")]
    pub relative_change: f64,
    /// ‖ΔW‖_F/‖W‖_F that was asked for, where the file says what it was.
    pub requested_change: Option<f64>,
    /// ⟨mᵀΔ, α·right⟩ / ‖α·right‖², m = [`Edit::along`]: the share of the edit that arrived in the stream; 1 = all of it.
    pub gain: Option<f64>,
    /// Cosine between mᵀΔ and the right factor: 1 = nothing but the edit along ŝ.
    pub cosine: Option<f64>,
    /// What reaches the stream across ŝ, per size of what was to reach it along ŝ: ‖g ⊙ Δ − ŝ·(ŝᵀ(g ⊙ Δ))‖_F over
    /// ŝᵀ(g ⊙ left)·‖α·right‖, g the gain of a norm behind the matrix, 1 without. Behind a norm the exact edit has some, too.
    pub noise: Option<f64>,
}

/// What two files have in common and what not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    /// Whether every tensor outside the edit has the same bytes, type and shape; without an edit, every tensor.
    pub untouched_identical: bool,
    /// Whether all keys of the base are there, unchanged and in order, and nothing but `rosi.*` is new.
    pub metadata_preserved: bool,
    /// Tensors that have the same bytes.
    pub identical: usize,
    /// Share of the requested edit that arrived in the stream, over all tensors; each counts by ‖ΔW‖².
    pub gain: Option<f64>,
    /// Cosine along ŝ over all tensors, likewise.
    pub cosine: Option<f64>,
    /// Each tensor that differs.
    pub tensors: Vec<TensorChange>,
    /// What became of the neurons of each network; empty where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub neurons: Vec<Arrival>,
    /// Share of the file's bytes that changed in tensors.
    #[serde(default)]
    pub changed_bytes: f64,
    /// Tensors that differ without being part of the edit, or elsewhere than in it.
    pub unexpected: Vec<String>,
}

impl Verification {
    /// Whether what was asked for is in the file: at least `least` of the edit and, of neurons, of each network's, with
    /// scores that are the exact ones.
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
    /// Of one tensor, from mᵀΔ and the right factor, both `[n_expert·n_in]`.
    fn of(along: &[f64], right: &[f32], alpha: f64) -> Self {
        let right = || right.iter().map(|&r| alpha * f64::from(r));
        Self {
            dot: along.iter().zip(right()).map(|(a, r)| a * r).sum(),
            along: along.iter().map(|a| a * a).sum(),
            requested: right().map(|r| r * r).sum(),
        }
    }
}

/// Reads a range of a file.
pub type ReadBytes<'a> = dyn Fn(&Range<u64>) -> Result<Vec<u8>, GgufError> + 'a;

/// What an edited model is compared with.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    /// The model.
    pub gguf: &'a Gguf,
    /// Reads its only file, as its header places the bytes, where that is no longer on disk.
    pub bytes: Option<&'a ReadBytes<'a>>,
}

impl<'a> From<&'a Gguf> for Base<'a> {
    fn from(gguf: &'a Gguf) -> Self {
        Self { gguf, bytes: None }
    }
}

impl Base<'_> {
    /// Some of the bytes of a tensor, counted from its first.
    fn read_part(&self, tensor: &TensorInfo, part: Range<u64>) -> Result<Vec<u8>, GgufError> {
        match self.bytes {
            None => self.gguf.read_part(tensor, part),
            Some(read) => read(&(tensor.data.start + part.start..tensor.data.start + part.end)),
        }
    }

    /// A record of `file`, one of the model's.
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
    /// Where `base` is read.
    from: Base<'a>,
    /// The tensor as it was.
    base: &'a TensorInfo,
    /// Where `edited` is read.
    file: &'a Gguf,
    /// The tensor as it is now.
    edited: &'a TensorInfo,
}

impl TensorPair<'_> {
    /// The bytes of some rows as they were.
    fn base_rows(&self, rows: &Range<u64>) -> Result<Vec<u8>, GgufError> {
        self.from.read_part(self.base, bytes_of(self.base, rows))
    }

    /// The bytes of the same rows as they are now.
    fn edited_rows(&self, rows: &Range<u64>) -> Result<Vec<u8>, GgufError> {
        self.file.read_part(self.edited, bytes_of(self.edited, rows))
    }
}

/// Compares `edited` with `base`. `edits` are the edits that the edited file claims, empty when it
/// claims none, and then every difference is unexpected; every figure about them is computed from the two files' bytes.
///
/// # Errors
/// [`VerifyError`] when the files do not hold the same tensors in the same order.
pub fn verify(
    base: &Gguf,
    edited: &Gguf,
    edits: &Edits,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Verification, VerifyError> {
    verify_against(Base::from(base), edited, edits, progress)
}

/// As [`verify`], with a base whose bytes may come from elsewhere.
///
/// # Errors
/// As [`verify`].
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
    // A network that has no inputs to tell it by is not measured, and then the edit is not.
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

/// How many bytes of two tensors of one type and shape differ. They are compared piece by piece: most are not edited, and
/// the largest of all seldom is.
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

/// Whether a tensor of neurons differs in their rows and columns only; true of all others. In another type every other
/// value was rounded anew, and no more than that.
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

/// Whether the values outside `rows` and `columns` differ by no more than rounding to the type of the edited file.
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

/// Whether two rows have the same values but in `columns`.
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

/// Whether the records of the base stand unchanged and in order in the edited file, `rosi.*` aside; of
/// split models in each file, with the same tensors in each. Where only one of them is split, or they
/// are split otherwise, the first files are compared without what the splitting added.
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
    // One record at a time: a record may be as long as the file.
    for (ours, theirs) in of_a.iter().zip(&of_b) {
        if ours.end - ours.start != theirs.end - theirs.start
            || from.read_record(a, ours)? != b.read_bytes(theirs)?
        {
            return Ok(false);
        }
    }
    Ok(of_a.len() == of_b.len())
}

/// Where the bytes of some rows of a tensor lie, counted from its first.
fn bytes_of(info: &TensorInfo, rows: &Range<u64>) -> Range<u64> {
    rows.start * info.row_bytes()..rows.end * info.row_bytes()
}

/// Change of one tensor, read and decoded run by run: the largest of a mixture are too large to be held twice.
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
    Ok(summarise(base, sq, &along, edit))
}

/// By how much the rows of an edited tensor count.
struct RowWeights<'a> {
    /// [`Edit::along`].
    along: &'a [f32],
    gain: Option<&'a [f32]>,
}

impl<'a> RowWeights<'a> {
    fn of(edit: &'a Edit) -> Self {
        Self { along: edit.along(), gain: edit.post_norm.as_ref().map(|norm| norm.gain.as_slice()) }
    }

    /// m and g² of a row, and its expert.
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

/// mᵀΔ as it acts: of each expert times its scale, so that tensors can be added up.
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
