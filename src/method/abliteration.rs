//! Detects the trace that removing the refusal direction leaves in the weights.
//!
//! Most "uncensored" models were made by `W ← W − w·r rᵀW` (w ≈ 0.8 to 1.2; 1 is an exact projection) in the matrices
//! that write into the residual stream. Afterwards, almost nothing is written along r, so r is the eigenvector of the
//! smallest eigenvalue of `G = Σ W Wᵀ/‖W‖_F²`. It can be found without running the model, and also after quantization,
//! whose noise raises that eigenvalue but not to the size of the others. A model without such a trace is called
//! *honest* here.
//!
//! # What counts as an ablated direction
//! The statistic is the gap `ln(λ2/λ1)` of `D^{-1/2} G D^{-1/2}`, D = diag(G), for every layer, for windows of at least
//! a quarter of the layers, and for attention and feed-forward writers separately. For several removed directions, it
//! is the gap after the last one. The spacing of the honest spectrum cannot serve as a threshold: honest weights show
//! gaps of 60 mean spacings. The width and place of honest gaps can: the widest lie along two or three coordinates, the
//! massive ones that every model has, whereas a meaningful direction is dense (its participation ratio exceeds a
//! thirtieth of all coordinates). Honest layers also agree on their smallest eigenvectors, up to |cos| 0.93, so
//! agreement is evidence only together with a gap.
//!
//! The table shows gaps measured on SmolLM2-135M, Gemma3-270M, and Qwen2.5-Coder-0.5B, and the cosine between the
//! layers' directions that were found and the true ones (mean over layers, worst model; `tests/e2e/abliteration.rs`,
//! `print_the_table`). r is random or a difference of token embeddings, and differs per layer either without relation
//! or with |cos| 0.85 between neighbors. No unmodified layer was ever reported.
//!
//! | removed, with weight w           | F32: gap    | cosine | Q4_0, Q4_K: gap | cosine | layers found |
//! |----------------------------------|-------------|--------|-----------------|--------|--------------|
//! | nothing                          | 0.5 - 0.8   |        | 0.5 - 0.8       |        | none         |
//! | r from all layers, w = 1         | 13.0 - 13.3 | 1.0000 | 4.0 - 5.4       | 0.9999 | all          |
//! | r from layers 30-70 %, w = 1     | 12.4 - 12.6 | 1.0000 | 3.6 - 4.6       | 0.999  | all          |
//! | all layers, w = 0.8, 1.2         | 2.6 - 2.9   | 0.995  | 2.2 - 3.0       | 0.995  | all          |
//! | layers 30-70 %, w = 0.8, 1.2     | 2.2 - 2.7   | 0.96   | 1.8 - 2.3       | 0.96   | all          |
//! | all layers, w = 1.4              | 1.3 - 1.6   | 0.96   | 1.3 - 1.6       | 0.96   | all          |
//! | layers 30-70 %, w = 1.4          | 1.0 - 1.6   | 0.83   | 1.0 - 1.4       | 0.84   | most or none |
//! | an own r per layer, w = 1        | 11.4 - 11.8 | 1.0000 | 2.8 - 3.6       | 0.997  | 99 %         |
//! | per layer, w = 0.8, 1.2          | 1.5 - 2.1   | 0.96   | 1.3 - 2.0       | 0.96   | 80 - 100 %   |
//! | per layer, w = 1.4               | 0.9 - 1.3   |        | 0.8 - 1.3       |        | hardly any   |
//! | from attention or FFN only, w = 1| 13.0 - 13.3 | 1.0000 | 4.0 - 4.4       | 0.999  | all          |
//! | r = what one FFN writes most, w = 1 | 11.5 - 13.0 | 1.0000 | 2.7 - 4.9    | 0.999  | all          |
//! | the same, w = 0.8, 1.2           | 0.7 - 1.7   |        | 0.5 - 1.7       |        | none         |
//!
//! Real refusal directions (difference in means of Qwen and SmolLM2, from the middle layer or from each layer) behave
//! like random ones. Gaps for w = 1: 13.2 and 11.7, in Q4_0 4.3 and 3.0; for w = 0.8, 1.2: 2.6 and 1.7, in Q4_0 2.4 and
//! 1.5. The direction that writers write most (14 to 17 times the average) is not found with w ≠ 1, because what is
//! left along it matches an average direction; along refusal directions, writers write 1.0 to 1.1 times the average.
//!
//! Weights that were already on a type's grid partly snap back. For Qwen's own Q4_K_M file, with refusal removed and
//! the result rounded to nearest in its own types (`tests/e2e/uncensored.rs`), the gaps are: along layer 14's direction
//! with w = 0.8, 1.0, 1.2: 1.0 (35 of 48 writers found), 2.0, and 2.4 (48); along each layer's own: 1.0 (8 writers),
//! 2.0 (20), and 1.7 (16). w = 0.5 is not found (0.50, as in the original).

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::method::edit::EditError;
use crate::util::hint::Hint;
use crate::util::interrupt::Interrupted;
use crate::util::linalg::{self, NotPositive};
use crate::util::null;

mod region;
mod source;
#[cfg(test)]
mod tests;

use region::MIN_WIDTH;
pub use region::{Lowest, Region};
pub use source::{FileSource, Group, Site, Source};

/// Widest gap seen in any region of an honest model.
pub const HONEST_GAP: f64 = 1.1;
/// Gap of dense directions over several layers that is sufficient evidence by itself.
const GAP_ALONE: f64 = 1.5;
/// Gap of sparse directions (along few coordinates) that is sufficient evidence by itself.
const GAP_SPARSE: f64 = 2.2;
/// Gap of dense directions that is evidence if the layers agree on the direction.
const GAP_AGREED: f64 = 0.75;
/// Minimum number of layers in a window for agreement to count, and the share of them that must agree.
const MIN_AGREEING: (usize, f64) = (4, 0.5);
/// Minimum |cos| between a layer's own direction and the region's for the two to agree.
const AGREES: f64 = 0.7;
/// Gap of dense directions in a single layer that counts together with gaps of other layers or windows.
const GAP_LAYER: f64 = 1.0;
/// Single-layer gap that counts if no window is suspect, at least one but too few layers reach [`GAP_LAYER`], and
/// enough layers reach this value. Dense gaps of honest layers: up to .50, .58 and .79 in Qwen2.5-Coder-0.5B,
/// Gemma3-270M and SmolLM2-135M; above .75 in one layer of 72. In Qwen, with each of the 24 layers' own refusal
/// direction removed (w = .8, 4 bits): .76, .78, .96 and 1.19.
const GAP_FAINT: f64 = 0.75;
/// Minimum number of layers with such a gap: 2, and a tenth of all layers.
const MIN_LAYERS: (usize, usize) = (2, 10);
/// A writer counts as modified if it writes less than this along a direction; 1 is the value for a random direction.
const TOUCHED: f64 = 0.25;

/// Why the weights could not be searched.
#[derive(Debug, thiserror::Error)]
pub enum AblationError {
    /// A weight could not be read.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// The Gram matrix is not positive definite.
    #[error("the weights have no usable spectrum: {0}")]
    NotPositive(#[from] NotPositive),
    /// The user interrupted the search.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl Hint for AblationError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Edit(error) => error.hint(),
            Self::NotPositive(_) => {
                Some("the file is damaged or was converted incorrectly; download or convert it again".into())
            }
            Self::Interrupted(_) => None,
        }
    }
}

/// The modification of one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AblatedLayer {
    /// Index of the layer.
    pub layer: usize,
    /// Tensors that write (almost) nothing along the direction.
    pub tensors: Vec<String>,
    /// What these tensors still write along the direction, where 1 is the value for a random direction: about 0 after
    /// an exact projection, 0.01 after 4-bit quantization, 0.04 after a weight of 0.8 or 1.2.
    pub remaining: f64,
    /// |cos| between this layer's direction and the common one.
    pub cosine: f64,
    /// This layer's direction, a unit vector `[n_embd]`; its sign is arbitrary.
    #[serde(skip)]
    pub unit: Vec<f32>,
}

/// A model whose refusal direction was removed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AblatedDirection {
    /// Widest `ln(λ2/λ1)` of the suspect windows; or the median over the suspect single layers if that is wider and
    /// they make up at least half of the modified layers, or no window is suspect.
    #[serde(deserialize_with = "null::or_infinity")]
    pub gap: f64,
    /// `gap` divided by [`HONEST_GAP`], the widest gap seen in an honest model.
    #[serde(deserialize_with = "null::or_infinity")]
    pub times_honest: f64,
    /// Share of the layers in `layers` whose own spectrum shows the same direction (|cos| ≥ 0.7).
    pub agreement: f64,
    /// Median of the layers' `remaining`.
    pub remaining: f64,
    /// Number of modified writers, and of all searched writers.
    pub writers: (usize, usize),
    /// The modified layers, in order.
    pub layers: Vec<AblatedLayer>,
    /// The common directions, orthonormal, `[n_embd]` each; usually one. Signs are arbitrary.
    #[serde(skip)]
    pub directions: Vec<Vec<f32>>,
}

impl AblatedDirection {
    /// Describes the finding in one line.
    pub fn describe(&self) -> String {
        let layers: Vec<usize> = self.layers.iter().map(|l| l.layer).collect();
        let what = match self.directions.len() {
            1 => "a direction was".into(),
            n => format!("{n} directions were"),
        };
        let beside = match self.times_honest {
            times if times >= 1.0 => format!("{times:.1} times the widest in unmodified models"),
            _ => "which no unmodified model shows in so many layers".into(),
        };
        format!(
            "yes: {what} removed from {} of {} writers, layers {}; gap {:.1}, {beside}; {:.1} % of the usual weight remains",
            self.writers.0,
            self.writers.1,
            ranges(&layers),
            self.gap,
            self.remaining * 100.0
        )
    }
}

/// Formats ascending numbers as ranges: `3-7, 9`.
fn ranges(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [one] => one.to_string(),
        run => format!("{}-{}", run[0], run[run.len() - 1]),
    });
    runs.collect::<Vec<_>>().join(", ")
}

/// The result of a search.
#[derive(Debug, Clone, PartialEq)]
pub struct Findings {
    /// The ablated direction; `None` for an honest model or one that is too small to judge.
    pub ablated: Option<AblatedDirection>,
    /// The region that stands out most, whether or not it shows an ablated direction; `None` if the model is too small
    /// to judge.
    pub widest: Option<Region>,
}

impl Findings {
    /// Describes the findings in one line.
    pub fn describe(&self) -> String {
        match (&self.ablated, &self.widest) {
            (Some(ablated), _) => ablated.describe(),
            (None, Some(widest)) => format!(
                "no: no direction is missing from the weights; widest gap {:.2} (unmodified models: up to {HONEST_GAP})",
                widest.lowest.gap
            ),
            (None, None) => format!("unknown: too few weights or a model width below {MIN_WIDTH}"),
        }
    }
}

/// Searches all writers of `source` for directions along which they write (almost) nothing. Calls
/// `progress(done, total)`.
///
/// # Errors
/// Returns [`AblationError`] if a weight cannot be read, a spectrum cannot be computed, or the user interrupts.
pub fn find(source: &dyn Source, progress: &mut dyn FnMut(usize, usize)) -> Result<Findings, AblationError> {
    let (layers, windows) = region::all_regions(source, progress)?;
    let suspects = Suspects::of(&layers, &windows);
    let ablated = if suspects.is_empty() { None } else { suspects.evaluate(source, &layers)? };
    let widest = windows.iter().chain(layers.iter().flatten());
    let widest = widest.max_by(|a, b| a.lowest.strength().total_cmp(&b.lowest.strength())).cloned();
    Ok(Findings { ablated, widest })
}

/// Regions whose gap no honest model shows.
struct Suspects<'a> {
    /// Suspect windows, the clearest first.
    windows: Vec<&'a Region>,
    /// Suspect single layers.
    layers: Vec<&'a Region>,
}

impl<'a> Suspects<'a> {
    fn of(layers: &'a [Option<Region>], windows: &'a [Region]) -> Self {
        let mut windows: Vec<&Region> = windows.iter().filter(|w| is_suspect(w, layers)).collect();
        windows.sort_by(|a, b| b.clarity().total_cmp(&a.clarity()));
        let beyond = |least: f64| {
            let single = move |l: &&Region| l.lowest.gap >= if l.lowest.dense { least } else { GAP_SPARSE };
            layers.iter().flatten().filter(single).collect::<Vec<&Region>>()
        };
        let (clear, many) = (beyond(GAP_LAYER), beyond(GAP_FAINT));
        let enough = MIN_LAYERS.0.max(layers.len().div_ceil(MIN_LAYERS.1));
        let layers = if !windows.is_empty() || clear.len() >= enough {
            clear
        } else if !clear.is_empty() && many.len() >= enough {
            many
        } else {
            Vec::new()
        };
        Self { windows, layers }
    }

    fn is_empty(&self) -> bool {
        self.windows.is_empty() && self.layers.is_empty()
    }

    /// Measures every writer along every suspected direction and determines which were modified.
    fn evaluate(
        &self,
        source: &dyn Source,
        own: &[Option<Region>],
    ) -> Result<Option<AblatedDirection>, AblationError> {
        let all: Vec<&Region> = self.windows.iter().chain(&self.layers).copied().collect();
        let rows: Vec<&Vec<f64>> = all.iter().flat_map(|r| &r.lowest.basis).collect();
        let units = Array2::from_shape_fn((rows.len(), source.n_embd()), |(i, j)| rows[i][j] as f32);
        let mut energies = Vec::new();
        for site in 0..source.sites().len() {
            let by_row = source.energies(site, &units)?;
            let mut row = 0;
            let by_region = all.iter().map(|r| {
                row += r.lowest.rank;
                by_row[row - r.lowest.rank..row].iter().sum::<f64>() / r.lowest.rank as f64
            });
            energies.push(by_region.collect::<Vec<f64>>());
        }
        let layers: Vec<(AblatedLayer, &Lowest)> = (0..own.len())
            .filter_map(|layer| {
                let sites = source.sites().iter().zip(&energies).filter(|(s, _)| s.layer == layer);
                touched(layer, &sites.collect::<Vec<_>>(), &all)
            })
            .collect();
        Ok(self.conclude(source.sites().len(), layers, own))
    }

    fn conclude(
        &self,
        n_sites: usize,
        layers: Vec<(AblatedLayer, &Lowest)>,
        own: &[Option<Region>],
    ) -> Option<AblatedDirection> {
        if layers.is_empty() {
            return None;
        }
        let best = self.windows.first();
        let directions = match best {
            Some(best) if best.lowest.rank > 1 => best.lowest.basis.clone(),
            _ => vec![principal(&layers.iter().map(|(l, _)| l.unit.as_slice()).collect::<Vec<_>>())?],
        };
        let agrees = |(l, lowest): &(AblatedLayer, &Lowest)| {
            own[l.layer].as_ref().is_some_and(|own| lowest.cosine(&own.lowest.basis[0]) >= AGREES)
        };
        let agreement = layers.iter().filter(|l| agrees(l)).count() as f64 / layers.len() as f64;
        let mut layers: Vec<AblatedLayer> = layers.into_iter().map(|(layer, _)| layer).collect();
        for layer in &mut layers {
            let along = |d: &Vec<f64>| d.iter().zip(&layer.unit).map(|(a, &b)| a * f64::from(b)).sum::<f64>();
            layer.cosine = directions.iter().map(|d| along(d).powi(2)).sum::<f64>().sqrt();
        }
        // If each layer lost a different direction, windows show little.
        let single = median(self.layers.iter().map(|l| l.lowest.gap));
        let most = best.is_none() || 2 * self.layers.len() >= layers.len();
        let single = if most { single } else { 0.0 };
        let gap = self.windows.iter().map(|w| w.lowest.gap).fold(single, f64::max);
        Some(AblatedDirection {
            gap,
            times_honest: gap / HONEST_GAP,
            agreement,
            remaining: median(layers.iter().map(|l| l.remaining)),
            writers: (layers.iter().map(|l| l.tensors.len()).sum(), n_sites),
            layers,
            directions: directions.iter().map(|d| d.iter().map(|&v| v as f32).collect()).collect(),
        })
    }
}

/// Returns whether the gap of a window is sufficient evidence, by itself or through agreement of its layers.
fn is_suspect(window: &Region, layers: &[Option<Region>]) -> bool {
    let lowest = &window.lowest;
    if lowest.strength() >= 1.0 {
        return true;
    }
    let own = layers[window.layers.clone()].iter().flatten();
    let agreeing = own.filter(|l| lowest.cosine(&l.lowest.basis[0]) >= AGREES).count();
    let share = agreeing as f64 / window.layers.len() as f64;
    lowest.dense
        && lowest.gap >= GAP_AGREED
        && window.layers.len() >= MIN_AGREEING.0
        && share >= MIN_AGREEING.1
}

/// Returns the modification of one layer, given its writers' energies along the directions of each of `regions`
/// (windows, the clearest first, then single layers).
///
/// Takes the first direction that the writers lack, unless a later one leaves less than a quarter of its energy: a
/// direction of the layer alone is fitted to less data and therefore leaves less anyway.
fn touched<'r>(
    layer: usize,
    sites: &[(&Site, &Vec<f64>)],
    regions: &[&'r Region],
) -> Option<(AblatedLayer, &'r Lowest)> {
    let mut best: Option<(f64, usize)> = None;
    for (k, region) in regions.iter().enumerate() {
        let touched = sites.iter().filter(|(_, energies)| energies[k] < TOUCHED).count();
        // The direction of one layer is evidence for another only if all writers of the other lack it.
        let foreign = region.layers.len() == 1 && region.layers.start != layer;
        if touched == 0 || foreign && touched < sites.len() {
            continue;
        }
        let energy = sites.iter().map(|(_, e)| e[k].clamp(0.0, 1.0)).sum::<f64>() / sites.len() as f64;
        if best.is_none_or(|(least, _)| energy < least / 4.0) {
            best = Some((energy, k));
        }
    }
    let (_, k) = best?;
    let touched: Vec<_> = sites.iter().filter(|(_, e)| e[k] < TOUCHED).collect();
    let lowest = &regions[k].lowest;
    let ablated = AblatedLayer {
        layer,
        tensors: touched.iter().map(|(site, _)| site.tensor.clone()).collect(),
        remaining: touched.iter().map(|(_, e)| e[k].max(0.0)).sum::<f64>() / touched.len() as f64,
        cosine: 1.0,
        unit: lowest.basis[0].iter().map(|&v| v as f32).collect(),
    };
    Some((ablated, lowest))
}

/// Returns the unit vector v that maximizes Σ (vᵀu)², the common part of directions of arbitrary sign. `None` if
/// `units` is empty.
fn principal(units: &[&[f32]]) -> Option<Vec<f64>> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
    let products = Array2::from_shape_fn((units.len(), units.len()), |(i, j)| dot(units[i], units[j]));
    let (values, vectors) = linalg::jacobi(products);
    let top = (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b]))?;
    let mut sum = vec![0.0; units[0].len()];
    for (i, unit) in units.iter().enumerate() {
        sum.iter_mut().zip(*unit).for_each(|(s, &u)| *s += vectors[[i, top]] * f64::from(u));
    }
    linalg::normalize(&mut sum);
    Some(sum)
}

/// Returns the (upper) median, or 0 if `values` is empty.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
