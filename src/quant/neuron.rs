//! Writing single rows and columns of a quantized matrix, to encode a neuron.
//!
//! **A row** has its own blocks, so it gets new scales (from ggml, weighted by the second moments of the inputs) and
//! then better codes for these scales. Only its products with actual inputs matter, so the codes q minimize
//!
//! ```text
//! ‖X (q − w)‖² + μ ‖q − w‖²,   X [n][n_in] a sample of those inputs, μ = a hundredth of ‖X‖²_F / n_in
//! ```
//!
//! by coordinate descent: each value in turn takes the code that lowers this cost most, until no code changes. The
//! error of a score becomes several times smaller than with rounding to nearest, because the inputs of a layer span
//! only a few directions.
//!
//! **A column** has one code in each row, in a block whose scale it shares with its neighbors. It takes the code
//! nearest to the target value, and nothing else changes. Columns in the same sub-block ([`COLUMNS_ALIKE`]) have the
//! same grid in every row, so columns with equal targets are encoded as identical values.

use half::{bf16, f16};
use ndarray::{Array2, ArrayView2, Axis};

use super::grid::{Grid, MAX_SUBS, WithGrid, with_grid};
use super::{QuantError, dequantize, quantize, quantize_weighted};
use crate::gguf::GgmlType;

/// Aligned runs of this many columns share one grid in each row, for every type: no type has smaller sub-blocks.
pub const COLUMNS_ALIKE: usize = 16;
/// Maximum number of passes over a row.
const MAX_PASSES: usize = 12;
/// μ in units of ‖X‖²_F / n_in.
const RIDGE: f64 = 0.01;

/// Returns whether single values of the type can be changed; false for codebook types, where a code encodes several
/// values.
pub fn has_single_codes(ggml_type: GgmlType) -> bool {
    ggml_type.is_float() || with_grid(ggml_type, Probe).is_some()
}

struct Probe;

impl WithGrid for Probe {
    type Output = ();
    fn with<G: Grid>(self) {}
}

/// Returns the bytes of a row that approximates `target` `[n_in]` on inputs like `inputs` `[n][n_in]` (see the module
/// documentation). Rounds to nearest if the type is a float type or there are no inputs of that length.
///
/// # Errors
/// Returns [`QuantError`] if ggml cannot write the type or a value is out of its range.
pub fn row(ggml_type: GgmlType, target: &[f32], inputs: ArrayView2<'_, f32>) -> Result<Vec<u8>, QuantError> {
    let n_in = target.len();
    let wrong = QuantError::Size { ggml_type, n_per_row: n_in, expected: 0, found: 0 };
    let mut bytes = vec![0; ggml_type.row_bytes(n_in as u64).ok_or(wrong)? as usize];
    if ggml_type.is_float() || inputs.nrows() == 0 || inputs.ncols() != n_in {
        quantize(ggml_type, n_in, target, &mut bytes)?;
        return Ok(bytes);
    }
    let columns = inputs.t().as_standard_layout().into_owned();
    let squares: Vec<f64> =
        columns.rows().into_iter().map(|x| x.iter().map(|&v| f64::from(v).powi(2)).sum()).collect();
    let ridge = RIDGE * squares.iter().sum::<f64>() / n_in as f64;
    let importance: Vec<f32> = squares.iter().map(|s| (s + ridge).max(f64::MIN_POSITIVE) as f32).collect();
    quantize_weighted(ggml_type, n_in, target, &importance, &mut bytes)?;
    let mut values = vec![0.0; n_in];
    dequantize(ggml_type, n_in, &bytes, &mut values)?;
    let descent = Descent { target, columns: &columns, squares: &squares, ridge, values, bytes: &mut bytes };
    with_grid(ggml_type, descent);
    Ok(bytes)
}

/// Coordinate descent over the codes of one row.
struct Descent<'a> {
    target: &'a [f32],
    /// Xᵀ, `[n_in][n]`.
    columns: &'a Array2<f32>,
    /// ‖x_j‖² of each column.
    squares: &'a [f64],
    ridge: f64,
    /// Decoded values of the codes, `[n_in]`.
    values: Vec<f32>,
    bytes: &'a mut [u8],
}

impl WithGrid for Descent<'_> {
    type Output = ();

    fn with<G: Grid>(mut self) {
        let n = self.columns.ncols();
        // X (q − w), `[n]`.
        let mut error = vec![0.0f32; n];
        for (x, (q, w)) in self.columns.rows().into_iter().zip(self.values.iter().zip(self.target)) {
            let by = q - w;
            error.iter_mut().zip(x).for_each(|(e, x)| *e += by * x);
        }
        let mut steps = [0.0; MAX_SUBS];
        for _ in 0..MAX_PASSES {
            let mut moved = false;
            for (b, block) in self.bytes.chunks_exact_mut(G::BYTES).enumerate() {
                G::steps(block, &mut steps);
                for at in 0..G::LEN {
                    let (j, step) = (b * G::LEN + at, steps[at / G::SUB]);
                    if !step.is_finite() || step == 0.0 {
                        continue;
                    }
                    let x = self.columns.row(j);
                    let pull: f64 = x.iter().zip(&error).map(|(x, e)| f64::from(x * e)).sum();
                    let own = f64::from(self.values[j] - self.target[j]);
                    let weight = self.squares[j] + self.ridge;
                    let wish = -(pull + self.ridge * own) / weight / f64::from(step);
                    let code = G::get(block, at);
                    let (to, levels) = G::LEVELS.moved(code, wish as f32, f32::MAX);
                    // A move of more than twice the optimum increases the cost.
                    if to == code || levels.abs() >= 2.0 * wish.abs() as f32 {
                        continue;
                    }
                    G::set(block, at, to);
                    let by = levels * step;
                    self.values[j] += by;
                    error.iter_mut().zip(x).for_each(|(e, x)| *e += by * x);
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
    }
}

/// Writes, for each `(column, target)`, the codes nearest to `target` `[n_row]` into the matrix in `bytes` (rows of
/// `n_in` values); no other code changes.
///
/// # Errors
/// Returns [`QuantError`] if the sizes do not match, the type has no single-value codes, or a value is out of range.
pub fn set_columns(
    ggml_type: GgmlType,
    bytes: &mut [u8],
    n_in: usize,
    columns: &[(usize, &[f32])],
) -> Result<(), QuantError> {
    let Some(n_row) = columns.first().map(|(_, target)| target.len()).filter(|&n_row| n_row > 0) else {
        return Ok(());
    };
    super::check_size(ggml_type, n_in, n_in * n_row, bytes.len())?;
    let row_bytes = bytes.len() / n_row;
    for &(column, target) in columns {
        super::check_values(ggml_type, target)?;
        for (row, &value) in bytes.chunks_exact_mut(row_bytes).zip(target) {
            set_value(ggml_type, row, column, value)?;
        }
    }
    Ok(())
}

/// Returns the column that [`set_columns`] would produce: for each row, the representable value nearest to `target`.
/// It is the same for all columns of a sub-block.
///
/// # Errors
/// Returns [`QuantError`] if the type has no single-value codes.
pub fn nearest_column(
    ggml_type: GgmlType,
    blocks: &ColumnBlocks,
    target: &[f32],
) -> Result<Vec<f32>, QuantError> {
    let mut bytes = blocks.bytes.clone();
    let n_row = target.len();
    let row_bytes = bytes.len() / n_row.max(1);
    let block_len = ggml_type.block_len() as usize;
    let mut values = vec![0.0; block_len];
    let mut column = Vec::with_capacity(n_row);
    for (row, &value) in bytes.chunks_exact_mut(row_bytes.max(1)).zip(target) {
        set_value(ggml_type, row, blocks.at, value)?;
        dequantize(ggml_type, block_len, row, &mut values)?;
        column.push(values[blocks.at]);
    }
    Ok(column)
}

/// The blocks that contain one column of a matrix, one per row.
#[derive(Debug, Clone)]
pub struct ColumnBlocks {
    bytes: Vec<u8>,
    /// Index of the column within its block.
    at: usize,
}

impl ColumnBlocks {
    /// Copies the blocks of `column` from the matrix in `bytes` (rows of `n_in` values).
    pub fn of(ggml_type: GgmlType, bytes: &[u8], n_in: usize, column: usize) -> Self {
        let (len, size) = (ggml_type.block_len() as usize, ggml_type.block_bytes() as usize);
        let row_bytes = (n_in / len.max(1) * size).max(1);
        let from = column / len * size;
        let blocks = bytes.chunks_exact(row_bytes).flat_map(|row| row[from..from + size].iter().copied());
        Self { bytes: blocks.collect(), at: column % len }
    }

    /// Returns the values of the column.
    ///
    /// # Errors
    /// Returns [`QuantError`] if ggml cannot decode the type.
    pub fn values(&self, ggml_type: GgmlType) -> Result<Vec<f32>, QuantError> {
        let len = ggml_type.block_len() as usize;
        let mut values = vec![0.0; self.bytes.len() / ggml_type.block_bytes() as usize * len];
        dequantize(ggml_type, len, &self.bytes, &mut values)?;
        Ok(values.into_iter().skip(self.at).step_by(len).collect())
    }
}

fn set_value(ggml_type: GgmlType, row: &mut [u8], column: usize, value: f32) -> Result<(), QuantError> {
    match ggml_type {
        GgmlType::F32 => row[4 * column..][..4].copy_from_slice(&value.to_le_bytes()),
        GgmlType::F16 => row[2 * column..][..2].copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        GgmlType::BF16 => row[2 * column..][..2].copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
        _ => {
            let unsupported = QuantError::Unsupported { ggml_type, direction: "from" };
            with_grid(ggml_type, SetValue { ggml_type, row, column, value }).ok_or(unsupported)??;
        }
    }
    Ok(())
}

struct SetValue<'a> {
    ggml_type: GgmlType,
    row: &'a mut [u8],
    column: usize,
    value: f32,
}

impl WithGrid for SetValue<'_> {
    type Output = Result<(), QuantError>;

    fn with<G: Grid>(self) -> Self::Output {
        let block = &mut self.row[self.column / G::LEN * G::BYTES..][..G::BYTES];
        let at = self.column % G::LEN;
        let mut values = vec![0.0; G::LEN];
        dequantize(self.ggml_type, G::LEN, block, &mut values)?;
        let mut steps = [0.0; MAX_SUBS];
        G::steps(block, &mut steps);
        let step = steps[at / G::SUB];
        if !step.is_finite() || step == 0.0 {
            return Ok(());
        }
        let (to, _) = G::LEVELS.moved(G::get(block, at), (self.value - values[at]) / step, f32::MAX);
        G::set(block, at, to);
        Ok(())
    }
}

/// Returns the Pearson correlation between the scores `X a` of a row and the scores `X b` of its approximation.
pub fn score_correlation(inputs: ArrayView2<'_, f32>, a: &[f32], b: &[f32]) -> f64 {
    let of = |row: &[f32]| -> Vec<f64> {
        let row = ndarray::ArrayView1::from(row);
        inputs.axis_iter(Axis(0)).map(|x| f64::from(x.dot(&row))).collect()
    };
    crate::util::linalg::correlation(&of(a), &of(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, seed: f32) -> Vec<f32> {
        (0..n)
            .map(|i| ((i as f32 + 1.0) * (seed + 0.37)).sin() * 0.1 + ((i * 7 % 13) as f32 - 6.0) * 0.01)
            .collect()
    }

    /// Inputs that span only a few directions, like those of a layer.
    fn inputs(n: usize, n_in: usize) -> Array2<f32> {
        let basis: Vec<Vec<f32>> = (0..24).map(|k| wave(n_in, 0.13 * k as f32 + 0.7)).collect();
        Array2::from_shape_fn((n, n_in), |(i, j)| {
            let part = |k: usize| ((i * 31 + k * 17) as f32 * 0.71).cos() * basis[k][j];
            (0..24).map(part).sum::<f32>() + 0.3
        })
    }

    fn writable() -> impl Iterator<Item = GgmlType> {
        GgmlType::all().filter(|&t| t.can_quantize() && has_single_codes(t))
    }

    #[test]
    fn scores_of_a_row_survive_every_type() {
        let (x, held_out) = {
            let all = inputs(240, 256);
            (all.slice(ndarray::s![..200, ..]).to_owned(), all.slice(ndarray::s![200.., ..]).to_owned())
        };
        let target = wave(256, 2.9);
        for ggml_type in writable() {
            let bytes = row(ggml_type, &target, x.view()).unwrap();
            let mut values = vec![0.0; 256];
            dequantize(ggml_type, 256, &bytes, &mut values).unwrap();
            let fits = score_correlation(held_out.view(), &target, &values);
            let least = if matches!(ggml_type, GgmlType::Q1_0) { 0.95 } else { 0.99 };
            assert!(fits >= least, "{ggml_type}: {fits}");
        }
    }

    #[test]
    fn a_column_changes_no_other_value() {
        let (n_row, n_in) = (40, 512);
        for ggml_type in writable() {
            let weights: Vec<f32> = (0..n_row).flat_map(|i| wave(n_in, i as f32 * 0.29)).collect();
            let mut bytes = vec![0; ggml_type.row_bytes(n_in as u64).unwrap() as usize * n_row];
            quantize(ggml_type, n_in, &weights, &mut bytes).unwrap();
            let decoded = |bytes: &[u8]| {
                let mut values = vec![0.0; n_row * n_in];
                dequantize(ggml_type, n_in, bytes, &mut values).unwrap();
                values
            };
            let before = decoded(&bytes);
            let target = wave(n_row, 5.1);
            let foretold = nearest_column(ggml_type, &ColumnBlocks::of(ggml_type, &bytes, n_in, 35), &target);
            set_columns(ggml_type, &mut bytes, n_in, &[(35, &target), (40, &target)]).unwrap();
            let after = decoded(&bytes);
            for (i, foretold) in foretold.unwrap().into_iter().enumerate() {
                for j in (0..n_in).filter(|j| ![35, 40].contains(j)) {
                    assert_eq!(before[i * n_in + j], after[i * n_in + j], "{ggml_type} {i} {j}");
                }
                assert_eq!(
                    after[i * n_in + 35],
                    after[i * n_in + 40],
                    "{ggml_type}: columns of one sub-block differ"
                );
                assert_eq!(after[i * n_in + 35], foretold, "{ggml_type}");
            }
        }
    }

    #[test]
    fn codebooks_have_no_single_codes() {
        for ggml_type in [GgmlType::IQ2_XS, GgmlType::IQ3_S, GgmlType::IQ1_M] {
            assert!(!has_single_codes(ggml_type));
            let mut bytes = vec![0; ggml_type.row_bytes(256).unwrap() as usize];
            assert!(set_columns(ggml_type, &mut bytes, 256, &[(3, &[0.5])]).is_err());
        }
    }
}
