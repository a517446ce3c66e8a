//! Writes edits into quantized tensors: by error diffusion, by rounding to nearest, or in a wider type.

use std::str::FromStr;

use crate::gguf::{GgmlType, TensorInfo};
use crate::method::edit::{CHUNK_VALUES, Edit, EditError, Unwritable};
use crate::quant::preserve::{InputModel, RankOneTarget, can_preserve, preserve};
use crate::quant::{self, QuantError, neuron};
use crate::util::linalg;

/// How edited tensors are requantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requant {
    /// Moves codes on each block's own grid so that the edit is kept ([`quant::preserve`]).
    Preserve,
    /// Quantizes every block again by rounding to nearest, like `llama-quantize`; loses small edits.
    Nearest,
    /// Like [`Requant::Preserve`], but converts edited tensors with fewer bits to this type.
    Promote(GgmlType),
}

impl Requant {
    /// Returns the name used in reports and provenance keys.
    pub fn name(self) -> String {
        match self {
            Self::Preserve => "preserve".into(),
            Self::Nearest => "nearest".into(),
            Self::Promote(ggml_type) => format!("promote={ggml_type}"),
        }
    }

    /// Returns the type in which an edited tensor of `ggml_type` is written.
    pub fn type_for(self, ggml_type: GgmlType) -> GgmlType {
        match self {
            Self::Promote(wider) if bits(ggml_type) < bits(wider) => wider,
            _ => ggml_type,
        }
    }
}

/// The part of a tensor that an edit changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All values of a writer.
    Matrix,
    /// Rows of neurons.
    Rows,
    /// Columns of neurons.
    Columns,
}

impl Requant {
    /// Checks that `part` of a tensor can be written, so that an edit does not fail after the search.
    ///
    /// # Errors
    /// Returns [`EditError::NoSingleCodes`] for columns of codebook types, and [`EditError::Unwritable`] for everything
    /// else that cannot be written.
    pub fn check(self, tensor: &TensorInfo, part: Part) -> Result<(), EditError> {
        let ggml_type = self.type_for(tensor.ggml_type);
        if part == Part::Columns && !neuron::has_single_codes(ggml_type) {
            return Err(EditError::NoSingleCodes { tensor: tensor.name.clone(), ggml_type });
        }
        self.problem(tensor, part).map_or(Ok(()), |problem| {
            Err(EditError::Unwritable { tensor: tensor.name.clone(), ggml_type, problem })
        })
    }

    fn problem(self, tensor: &TensorInfo, part: Part) -> Option<Unwritable> {
        let ggml_type = self.type_for(tensor.ggml_type);
        let rounded = ggml_type != tensor.ggml_type || (self == Self::Nearest && part != Part::Columns);
        match part {
            _ if rounded => unroundable(tensor, ggml_type),
            Part::Matrix => (!can_preserve(ggml_type)).then_some(Unwritable::NoGrid),
            // Rows are rounded with the second moments of their inputs as importances.
            Part::Rows => (!ggml_type.can_quantize()).then_some(Unwritable::NoEncoder),
            Part::Columns => undecodable(ggml_type),
        }
    }
}

/// Returns why the values of `tensor` cannot be rounded to nearest in `ggml_type`, or `None` if they can.
pub fn unroundable(tensor: &TensorInfo, ggml_type: GgmlType) -> Option<Unwritable> {
    let (n, block) = (tensor.ne[0], ggml_type.block_len());
    match ggml_type {
        _ if !ggml_type.can_quantize() => Some(Unwritable::NoEncoder),
        _ if ggml_type.needs_imatrix() => Some(Unwritable::NeedsImatrix),
        _ if ggml_type.row_bytes(n).is_none() => Some(Unwritable::Row { n, block }),
        _ => undecodable(tensor.ggml_type),
    }
}

fn undecodable(ggml_type: GgmlType) -> Option<Unwritable> {
    // Decodes zero rows, only to find out whether there is a decoder.
    let decoded = quant::dequantize(ggml_type, ggml_type.block_len() as usize, &[], &mut []);
    decoded.is_err().then_some(Unwritable::NoDecoder(ggml_type))
}

/// Bytes used while a tensor is written or verified that do not grow with the model: buffers, and decoded runs of rows
/// of each thread.
const BUFFERS: u64 = 64 << 20;

impl Requant {
    /// Returns the maximum number of bytes held while an edit of `tensor` is written and verified: the original tensor
    /// and, unless its codes are changed in place, the new one.
    pub fn memory(self, tensor: &TensorInfo) -> u64 {
        let ggml_type = self.type_for(tensor.ggml_type);
        let in_place = self != Self::Nearest && ggml_type == tensor.ggml_type;
        let row = ggml_type.row_bytes(tensor.ne[0]).unwrap_or_else(|| tensor.row_bytes());
        let new = if in_place { 0 } else { row.saturating_mul(tensor.n_rows()) };
        tensor.n_bytes().saturating_add(new).saturating_add(BUFFERS)
    }
}

/// Returns the bits per value of a type.
fn bits(ggml_type: GgmlType) -> f64 {
    8.0 * ggml_type.block_bytes() as f64 / ggml_type.block_len() as f64
}

impl FromStr for Requant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = "preserve, nearest or promote=TYPE";
        match (text, text.strip_prefix("promote=")) {
            ("preserve", _) => Ok(Self::Preserve),
            ("nearest", _) => Ok(Self::Nearest),
            (_, Some(name)) => {
                let found = GgmlType::all().find(|t| t.name().eq_ignore_ascii_case(name));
                let writable = found.filter(|&t| can_preserve(t));
                writable
                    .map(Self::Promote)
                    .ok_or_else(|| format!("expected a type such as Q8_0 or F16, found {name:?}"))
            }
            _ => Err(format!("expected {wanted}, found {text:?}")),
        }
    }
}

/// Returns the tensor's data with `edit` applied, in the type that `requant` selects; `inputs` models the writer's
/// inputs.
///
/// # Errors
/// Returns [`EditError::Quant`] if the tensor cannot be converted.
pub fn apply(
    edit: &Edit,
    info: &TensorInfo,
    bytes: Vec<u8>,
    requant: Requant,
    inputs: &InputModel,
) -> Result<Vec<u8>, EditError> {
    let ggml_type = requant.type_for(info.ggml_type);
    if requant == Requant::Nearest || ggml_type != info.ggml_type {
        return nearest(edit, info, &bytes, ggml_type);
    }
    preserved(edit, info, bytes, inputs)
}

/// Applies `edit` in place, expert by expert, by error diffusion.
fn preserved(
    edit: &Edit,
    info: &TensorInfo,
    mut bytes: Vec<u8>,
    inputs: &InputModel,
) -> Result<Vec<u8>, EditError> {
    let n_in = info.ne[0] as usize;
    let in_file = edit.right_in_file();
    let per_expert = bytes.len() / (edit.n_expert as usize).max(1);
    for ((expert, bytes), spared) in bytes.chunks_mut(per_expert.max(1)).enumerate().zip(edit.spared()) {
        if spared {
            continue;
        }
        let right: Vec<f32> = in_file[expert * n_in..(expert + 1) * n_in]
            .iter()
            .map(|&r| (f64::from(r) * edit.alpha) as f32)
            .collect();
        let target = RankOneTarget { left: &edit.left, along: edit.along(), right: &right };
        preserve(info.ggml_type, bytes, target, inputs, linalg::threads(usize::MAX))
            .map_err(|source| EditError::Quant { tensor: info.name.clone(), source })?;
    }
    Ok(bytes)
}

/// Returns W + ΔW, rounded to nearest in `ggml_type`.
fn nearest(edit: &Edit, info: &TensorInfo, bytes: &[u8], ggml_type: GgmlType) -> Result<Vec<u8>, EditError> {
    let n_in = info.ne[0] as usize;
    let n_embd = edit.left.len();
    let in_file = edit.right_in_file();
    let mut written = requantize(info, bytes, ggml_type, &|first_row, rows| {
        for (i, row) in rows.chunks_exact_mut(n_in).enumerate() {
            let (expert, coordinate) = ((first_row + i) / n_embd, (first_row + i) % n_embd);
            let push = (f64::from(edit.left[coordinate]) * edit.alpha) as f32;
            let right = &in_file[expert * n_in..(expert + 1) * n_in];
            row.iter_mut().zip(right).for_each(|(w, &r)| *w += push * r);
        }
    })?;
    if ggml_type == info.ggml_type {
        // Decoding and rounding again does not always restore the bytes, so experts without an edit keep theirs.
        let per_expert = (bytes.len() / (edit.n_expert as usize).max(1)).max(1);
        let experts = written.chunks_mut(per_expert).zip(bytes.chunks(per_expert)).zip(edit.spared());
        experts.filter(|(_, spared)| *spared).for_each(|((new, old), _)| new.copy_from_slice(old));
    }
    Ok(written)
}

/// Passes the tensor through `dequantize → quantize` without any edit: the control that shows the effect of
/// requantization alone.
///
/// # Errors
/// Returns [`EditError::Quant`] if the tensor cannot be converted.
pub fn requantize_only(info: &TensorInfo, bytes: &[u8]) -> Result<Vec<u8>, EditError> {
    convert(info, bytes, info.ggml_type)
}

/// Converts the tensor's data to another type, rounding each value to nearest.
///
/// # Errors
/// Returns [`EditError::Quant`] if the tensor cannot be converted.
pub fn convert(info: &TensorInfo, bytes: &[u8], ggml_type: GgmlType) -> Result<Vec<u8>, EditError> {
    requantize(info, bytes, ggml_type, &|_, _| ())
}

/// A change to a run of decoded rows, given the index of the first row and the values.
type ChangeRows<'a> = dyn Fn(usize, &mut [f32]) + Sync + 'a;

/// Decodes `bytes` in runs of rows on all cores, applies `change` to each run, and encodes it as `ggml_type`, rounding
/// to nearest. The split into runs depends only on the tensor, so the bytes do not depend on the machine.
fn requantize(
    info: &TensorInfo,
    bytes: &[u8],
    ggml_type: GgmlType,
    change: &ChangeRows<'_>,
) -> Result<Vec<u8>, EditError> {
    let failed = |source| EditError::Quant { tensor: info.name.clone(), source };
    let n_in = info.ne[0] as usize;
    let row_bytes = info.row_bytes() as usize;
    let wrong = QuantError::Size { ggml_type, n_per_row: n_in, expected: 0, found: bytes.len() };
    let new_row = ggml_type.row_bytes(info.ne[0]).ok_or_else(|| failed(wrong))? as usize;
    let rows_per_run = (CHUNK_VALUES / n_in.max(1)).max(1);
    let mut out = vec![0; new_row * info.n_rows() as usize];
    let runs = bytes.chunks(rows_per_run * row_bytes);
    let targets = out.chunks_mut(rows_per_run * new_row);
    let jobs = std::sync::Mutex::new(runs.zip(targets).enumerate());
    let worker = || -> Result<(), QuantError> {
        let mut values = Vec::new();
        loop {
            let Some((run, (source, target))) = jobs.lock().ok().and_then(|mut j| j.next()) else {
                return Ok(());
            };
            values.resize(source.len() / row_bytes * n_in, 0.0);
            quant::dequantize(info.ggml_type, n_in, source, &mut values)?;
            change(run * rows_per_run, &mut values);
            quant::quantize(ggml_type, n_in, &values, target)?;
        }
    };
    let result = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..linalg::threads(usize::MAX)).map(|_| scope.spawn(worker)).collect();
        let results = handles.into_iter().map(|h| h.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        results.fold(Ok(()), Result::and)
    });
    result.map_err(failed)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for requant in [Requant::Preserve, Requant::Nearest, Requant::Promote(GgmlType::Q8_0)] {
            assert_eq!(requant.name().parse(), Ok(requant));
        }
        assert_eq!("promote=q8_0".parse(), Ok(Requant::Promote(GgmlType::Q8_0)));
        for bad in ["", "promote", "promote=Q9", "promote=Q8_K", "keep"] {
            assert!(bad.parse::<Requant>().is_err(), "{bad}");
        }
    }

    fn tensor(ggml_type: GgmlType, n: u64) -> TensorInfo {
        let bytes = ggml_type.row_bytes(n).unwrap() * 4;
        TensorInfo { name: "w".into(), n_dims: 2, ne: [n, 4, 1, 1], ggml_type, data: 0..bytes, shard: 0 }
    }

    fn zeros(info: &TensorInfo) -> Vec<u8> {
        vec![0; info.data.end as usize]
    }

    /// For every pair of types, the check before the work rejects exactly what would fail during it.
    #[test]
    fn a_pair_of_types_is_refused_when_it_cannot_be_written() {
        let edit = |n: usize| Edit {
            writer: 0,
            tensor: "w".into(),
            n_expert: 1,
            left: vec![0.5; 4],
            right: vec![1.0; n],
            alpha: 0.1,
            weight_norm_sq: 1.0,
            scale: Vec::new(),
            scales_adapter: false,
            post_norm: None,
        };
        let promotions = GgmlType::all().map(Requant::Promote);
        for requant in [Requant::Preserve, Requant::Nearest].into_iter().chain(promotions) {
            for (ggml_type, n) in GgmlType::all().flat_map(|t| [(t, 256), (t, t.block_len())]) {
                let info = tensor(ggml_type, n);
                let written = apply(&edit(n as usize), &info, zeros(&info), requant, &InputModel::default());
                let checked = requant.check(&info, Part::Matrix);
                assert_eq!(
                    checked.is_ok(),
                    written.is_ok(),
                    "{ggml_type} {n} {requant:?}: {checked:?} {written:?}"
                );
            }
        }
    }

    #[test]
    fn a_control_is_left_out_for_the_types_that_cannot_be_rounded() {
        for ggml_type in GgmlType::all() {
            let info = tensor(ggml_type, 256);
            let made = requantize_only(&info, &zeros(&info));
            assert_eq!(unroundable(&info, ggml_type).is_none(), made.is_ok(), "{ggml_type}: {made:?}");
        }
        let problem = unroundable(&tensor(GgmlType::IQ2_XXS, 256), GgmlType::IQ2_XXS);
        assert_eq!(problem, Some(Unwritable::NeedsImatrix));
    }

    #[test]
    fn columns_need_codes_of_their_own_and_rows_an_encoder() {
        let check = |ggml_type, part, requant: Requant| requant.check(&tensor(ggml_type, 256), part);
        for codebook in [GgmlType::IQ2_XXS, GgmlType::IQ3_S, GgmlType::IQ1_S] {
            let told = check(codebook, Part::Columns, Requant::Preserve);
            assert!(matches!(told, Err(EditError::NoSingleCodes { .. })), "{told:?}");
            check(codebook, Part::Rows, Requant::Preserve).unwrap();
            check(codebook, Part::Columns, Requant::Promote(GgmlType::Q8_0)).unwrap();
        }
        check(GgmlType::IQ2_XXS, Part::Rows, Requant::Nearest).unwrap_err();
        check(GgmlType::Q4_K, Part::Columns, Requant::Nearest).unwrap();
        let narrow =
            Requant::Promote(GgmlType::Q6_K).check(&tensor(GgmlType::Q4_0, 32), Part::Rows).unwrap_err();
        assert!(narrow.to_string().contains("expected a multiple of 256"), "{narrow}");
    }

    #[test]
    fn promotion_never_narrows() {
        let promote = Requant::Promote(GgmlType::Q8_0);
        assert_eq!(promote.type_for(GgmlType::Q2_K), GgmlType::Q8_0);
        assert_eq!(promote.type_for(GgmlType::F16), GgmlType::F16);
        assert_eq!(Requant::Preserve.type_for(GgmlType::Q2_K), GgmlType::Q2_K);
    }
}
