//! Small-sample statistics of the evaluation: proportions with intervals, separation of two
//! score samples, distance between two next-token distributions, and a paired test.
//!
//! Everything is computed in `f64`. Nothing here panics on unusual input; where the result is undefined
//! (an empty sample, a NaN), it is NaN or `None`, as each item documents.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Two-sided 95 % quantile of the standard normal distribution.
const Z95: f64 = 1.959_963_984_540_054;

/// `count` successes out of `total` trials.
///
/// A `count` above `total` is treated as `total`, so that all results stay in `[0, 1]`.
///
/// Displayed as `41/64 (.64, .52-.75)`: the fraction, its rate and its 95 % Wilson interval.
/// Serialized as `count`, `total`, `rate`, `low`, `high` (the last two from [`Self::wilson95`]);
/// the rate of zero trials is NaN, which JSON writes as `null`. Deserialized from the two counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "ProportionRow")]
pub struct Proportion {
    /// Number of trials that had the property.
    pub count: u64,
    /// Number of trials.
    pub total: u64,
}

/// The serialized form of [`Proportion`].
#[derive(Serialize)]
struct ProportionRow {
    count: u64,
    total: u64,
    rate: f64,
    low: f64,
    high: f64,
}

impl From<Proportion> for ProportionRow {
    fn from(p: Proportion) -> Self {
        let (low, high) = p.wilson95();
        let Proportion { count, total } = p;
        Self { count, total, rate: p.rate(), low, high }
    }
}

impl Proportion {
    /// Creates a proportion of `count` successes out of `total` trials.
    #[must_use]
    pub const fn new(count: u64, total: u64) -> Self {
        Self { count, total }
    }

    /// Returns the observed rate `count / total`, in `[0, 1]`; NaN if there were no trials.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.count.min(self.total) as f64 / self.total as f64
    }

    /// Returns the Wilson score interval `(low, high)` at `z` standard normal deviations.
    ///
    /// With `p = count / total` and `n = total`:
    ///
    /// ```text
    /// (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    /// ```
    ///
    /// Unlike the textbook interval `p ± z·sqrt(p(1-p)/n)`, it stays inside `[0, 1]` and keeps
    /// its coverage near 0 and 1, where refusal rates often lie. The sign of `z` does not matter.
    /// The interval is `(0, 1)` for zero trials or an infinite `z`; a NaN `z` gives NaN bounds.
    ///
    /// Source: E. B. Wilson, "Probable inference, the law of succession, and statistical
    /// inference", JASA 22 (1927).
    #[must_use]
    pub fn wilson(&self, z: f64) -> (f64, f64) {
        if z.is_nan() {
            return (f64::NAN, f64::NAN);
        }
        // For an infinite z, the formula would divide infinity by infinity.
        if self.total == 0 || z.is_infinite() {
            return (0.0, 1.0);
        }
        let (n, p) = (self.total as f64, self.rate());
        let z2n = z * z / n;
        let scale = 1.0 + z2n;
        let centre = (p + z2n / 2.0) / scale;
        let half = (p * (1.0 - p) * z2n + z2n * z2n / 4.0).sqrt() / scale;
        // Rounding must not push a bound past the rate it encloses, nor out of [0, 1].
        let low = (centre - half).clamp(0.0, 1.0).min(p);
        let high = (centre + half).clamp(0.0, 1.0).max(p);
        (low, high)
    }

    /// Returns [`Self::wilson`] at the two-sided 95 % level, `z = 1.96`.
    #[must_use]
    pub fn wilson95(&self) -> (f64, f64) {
        self.wilson(Z95)
    }
}

impl fmt::Display for Proportion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.total == 0 {
            return write!(f, "{}/0 (none)", self.count);
        }
        let (low, high) = self.wilson95();
        let (rate, low, high) = (short(self.rate()), short(low), short(high));
        write!(f, "{}/{} ({rate}, {low}-{high})", self.count, self.total)
    }
}

/// Formats with two decimals and no leading zero: `.64`, `1.00`.
fn short(x: f64) -> String {
    let text = format!("{x:.2}");
    match text.strip_prefix('0') {
        Some(rest) => rest.to_owned(),
        None => text,
    }
}

/// Returns the area under the ROC curve of a score that should be higher for `positive` than for `negative`.
///
/// It is the probability that a random positive outranks a random negative, with ties counting one half:
///
/// ```text
/// (#{p > n} + #{p = n} / 2) / (len(positive) · len(negative))
/// ```
///
/// Unitless in `[0, 1]`: 1 separates perfectly, 0.5 not at all, 0 perfectly the wrong way round.
/// Each slice holds one score per example, in any order; the time is that of sorting them.
/// Infinite scores are ordered as usual. Returns NaN if a sample is empty or contains a NaN.
///
/// Source: J. A. Hanley and B. J. McNeil, "The meaning and use of the area under a receiver
/// operating characteristic (ROC) curve", Radiology 143 (1982).
#[must_use]
pub fn auroc(positive: &[f64], negative: &[f64]) -> f64 {
    let all = || positive.iter().chain(negative);
    if positive.is_empty() || negative.is_empty() || all().any(|x| x.is_nan()) {
        return f64::NAN;
    }
    let tagged = |xs: &[f64], is_positive| xs.iter().map(|&x| (x, is_positive)).collect::<Vec<_>>();
    let mut scores = tagged(positive, true);
    scores.extend(tagged(negative, false));
    scores.sort_by(|a, b| a.0.total_cmp(&b.0));
    // `==` rather than bits, so that -0.0 ties with 0.0; `total_cmp` keeps them adjacent.
    let (mut wins, mut below) = (0.0, 0.0);
    for tie in scores.chunk_by(|a, b| a.0 == b.0) {
        let ups = tie.iter().filter(|s| s.1).count() as f64;
        let downs = tie.len() as f64 - ups;
        wins += ups * (below + downs / 2.0);
        below += downs;
    }
    wins / (positive.len() as f64 * negative.len() as f64)
}

/// Returns the sensitivity index d′: the distance between two sample means in pooled standard deviations.
///
/// ```text
/// (μ₁ - μ₀) / sqrt((σ₁² + σ₀²) / 2)
/// ```
///
/// with `μ₁`, `σ₁²` of `positive` and `μ₀`, `σ₀²` of `negative`, variances unbiased (divided by
/// `n - 1`). Unitless; this is the form for unequal variances, also written `d_a`. Two constant
/// samples give 0 if they are equal and ±infinity otherwise. Returns NaN if a sample has fewer than two
/// values or any value is not finite.
///
/// Source: N. A. Macmillan and C. D. Creelman, "Detection Theory: A User's Guide" (2005).
#[must_use]
pub fn d_prime(positive: &[f64], negative: &[f64]) -> f64 {
    let (Some((m1, v1)), Some((m0, v0))) = (mean_variance(positive), mean_variance(negative)) else {
        return f64::NAN;
    };
    let (gap, spread) = (m1 - m0, ((v1 + v0) / 2.0).sqrt());
    if gap == 0.0 { 0.0 } else { gap / spread }
}

/// Returns the mean and the unbiased variance; `None` if there are fewer than two values or any is not finite.
fn mean_variance(xs: &[f64]) -> Option<(f64, f64)> {
    if xs.len() < 2 || xs.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let n = xs.len() as f64;
    // A constant sample must have a variance of exactly zero, which a rounded mean would not give.
    if xs.iter().all(|x| *x == xs[0]) {
        return Some((xs[0], 0.0));
    }
    let mean = xs.iter().sum::<f64>() / n;
    // Two passes: subtracting the mean first preserves the precision of a small spread.
    let squares = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
    Some((mean, squares / (n - 1.0)))
}

/// Returns the Kullback-Leibler divergence `KL(p ‖ q)` in nats between the softmaxes of two logit rows.
///
/// ```text
/// Σᵢ pᵢ (ln pᵢ - ln qᵢ),   ln pᵢ = lᵢ - max l - ln Σⱼ exp(lⱼ - max l)
/// ```
///
/// Both rows have one logit per vocabulary entry, in the same order; `p` is the reference (the
/// original model), `q` the model under test. A logit of -infinity is a masked token: it adds
/// nothing where `p` masks it, and makes the divergence infinite where only `q` masks it. The result
/// is at least 0 (negative rounding errors become 0), and 0 for equal rows.
///
/// Returns `None` if the rows differ in length, are empty, contain a NaN or +infinity, or mask every token.
///
/// Source: S. Kullback and R. A. Leibler, "On information and sufficiency" (1951).
#[must_use]
pub fn kl_divergence(p_logits: &[f32], q_logits: &[f32]) -> Option<f64> {
    if p_logits.len() != q_logits.len() {
        return None;
    }
    let (p_norm, q_norm) = (log_sum_exp(p_logits)?, log_sum_exp(q_logits)?);
    let mut sum = 0.0;
    for (&p, &q) in p_logits.iter().zip(q_logits) {
        let ln_p = f64::from(p) - p_norm;
        let weight = ln_p.exp();
        // Zero weight is skipped: 0 · (ln 0 - ln q) is 0 in the limit but NaN in floats.
        if weight > 0.0 {
            sum += weight * (ln_p - (f64::from(q) - q_norm));
        }
    }
    Some(sum.max(0.0))
}

/// Returns `ln Σ exp(x)`, computed without overflow; `None` if a value is NaN or +infinity, or none is finite.
pub fn log_sum_exp(xs: &[f32]) -> Option<f64> {
    if xs.iter().any(|x| x.is_nan()) {
        return None;
    }
    let max = f64::from(xs.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    if !max.is_finite() {
        return None;
    }
    let sum: f64 = xs.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    Some(max + sum.ln())
}

/// Returns the p-value, in `[0, 1]`, of the exact two-sided McNemar test for paired yes/no outcomes.
///
/// `b` pairs changed one way (say, refused only before) and `c` the other way; pairs that did
/// not change carry no information. Under "no change either way" the `n = b + c` changed pairs
/// are fair coin tosses:
///
/// ```text
/// min(1, 2 · Σ_{k=0}^{min(b, c)} C(n, k) / 2ⁿ)
/// ```
///
/// Summed in logarithms, so large counts do not overflow; takes `min(b, c)` steps. The p-value is 1 if
/// no pair changed.
///
/// Source: Q. McNemar, "Note on the sampling error of the difference between correlated
/// proportions or percentages", Psychometrika 12 (1947), in its exact binomial form.
#[must_use]
pub fn mcnemar(b: u64, c: u64) -> f64 {
    // At b = c the two tails overlap and cover everything.
    if b == c {
        return 1.0;
    }
    let (n, tail) = (b as f64 + c as f64, b.min(c));
    let mut ln_term = -n * std::f64::consts::LN_2;
    // Terms grow up to the tail, so each one becomes the new scale of the running sum.
    let mut scaled = 1.0;
    for k in 1..=tail {
        let ratio = (n - k as f64 + 1.0) / k as f64;
        ln_term += ratio.ln();
        scaled = scaled / ratio + 1.0;
    }
    (2.0 * (ln_term.exp() * scaled)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(a: f64, b: f64, tolerance: f64) {
        assert!((a - b).abs() <= tolerance, "{a} is not {b}");
    }

    #[test]
    fn wilson_matches_hand_computed_values() {
        // 41/64 at z = 1.96: centre .632662, half-width .114457.
        let (low, high) = Proportion::new(41, 64).wilson(1.96);
        close(low, 0.518_205, 1e-5);
        close(high, 0.747_119, 1e-5);
        // No success: low is 0 and high is z²/(n + z²) = 4/14 at z = 2, n = 10.
        let (low, high) = Proportion::new(0, 10).wilson(2.0);
        close(low, 0.0, 1e-15);
        close(high, 4.0 / 14.0, 1e-12);
        let half = Proportion::new(5, 10);
        assert_eq!(half.wilson(0.0), (0.5, 0.5));
        assert_eq!(half.wilson(f64::INFINITY), (0.0, 1.0));
        assert!(half.wilson(f64::NAN).0.is_nan());
    }

    #[test]
    fn no_trials_have_no_rate_and_the_widest_interval() {
        let none = Proportion::new(0, 0);
        assert!(none.rate().is_nan());
        assert_eq!(none.wilson95(), (0.0, 1.0));
        assert_eq!(none.to_string(), "0/0 (none)");
        assert_eq!(Proportion::new(9, 3).rate(), 1.0);
    }

    #[test]
    fn proportions_are_shown_compactly() {
        let shown = |count, total| Proportion::new(count, total).to_string();
        assert_eq!(shown(41, 64), "41/64 (.64, .52-.75)");
        assert_eq!(shown(64, 64), "64/64 (1.00, .94-1.00)");
        assert_eq!(shown(0, 64), "0/64 (.00, .00-.06)");
    }

    #[test]
    fn proportions_serialise_with_rate_and_bounds() {
        let row = serde_json::to_value(Proportion::new(1, 2)).unwrap();
        assert_eq!((row["count"].as_u64(), row["total"].as_u64()), (Some(1), Some(2)));
        assert_eq!(row["rate"].as_f64(), Some(0.5));
        let bound = |name: &str| row[name].as_f64().unwrap();
        close(bound("low") + bound("high"), 1.0, 1e-12);
        let none = serde_json::to_value(Proportion::new(0, 0)).unwrap();
        assert!(none["rate"].is_null());
    }

    #[test]
    fn auroc_matches_hand_computed_values() {
        assert_eq!(auroc(&[3.0, 4.0], &[1.0, 2.0]), 1.0);
        assert_eq!(auroc(&[1.0, 2.0], &[3.0, 4.0]), 0.0);
        // Pairs of (1, 3) against (2, 3): lose, lose, win, tie.
        assert_eq!(auroc(&[1.0, 3.0], &[2.0, 3.0]), 1.5 / 4.0);
        assert_eq!(auroc(&[0.0], &[-0.0]), 0.5);
        assert_eq!(auroc(&[f64::INFINITY], &[1.0]), 1.0);
        assert!(auroc(&[], &[1.0]).is_nan());
        assert!(auroc(&[f64::NAN], &[1.0]).is_nan());
    }

    #[test]
    fn d_prime_matches_hand_computed_values() {
        // Means 4 and 1, both variances 2.
        close(d_prime(&[3.0, 5.0], &[0.0, 2.0]), 3.0 / 2.0_f64.sqrt(), 1e-12);
        // Means 5 and 0, variances 8 and 0: 5 / sqrt(4).
        close(d_prime(&[3.0, 7.0], &[0.0, 0.0]), 2.5, 1e-12);
        assert_eq!(d_prime(&[1.0, 1.0], &[1.0, 1.0]), 0.0);
        assert_eq!(d_prime(&[0.1; 3], &[0.3; 3]), f64::NEG_INFINITY);
        assert!(d_prime(&[1.0], &[0.0, 2.0]).is_nan());
        assert!(d_prime(&[1.0, f64::INFINITY], &[0.0, 2.0]).is_nan());
    }

    #[test]
    fn kl_matches_hand_computed_values() {
        let third = 3.0_f32.ln();
        // p = (1/2, 1/2), q = (1/4, 3/4): ½ ln 2 + ½ ln(2/3) = ½ ln(4/3).
        let kl = kl_divergence(&[0.0, 0.0], &[0.0, third]).unwrap();
        close(kl, 0.5 * (4.0_f64 / 3.0).ln(), 1e-7);
        // p = (1/4, 3/4), q = (1/2, 1/2): ¼ ln ½ + ¾ ln 3/2.
        let kl = kl_divergence(&[0.0, third], &[0.0, 0.0]).unwrap();
        close(kl, 0.25 * 0.5_f64.ln() + 0.75 * 1.5_f64.ln(), 1e-7);
        // Logits that overflow a naive exp.
        let kl = kl_divergence(&[1e4, 0.0], &[0.0, 0.0]).unwrap();
        close(kl, std::f64::consts::LN_2, 1e-12);
    }

    #[test]
    fn kl_knows_masks_and_rejects_what_is_no_distribution() {
        let mask = f32::NEG_INFINITY;
        let kl = kl_divergence(&[mask, 0.0], &[0.0, 0.0]).unwrap();
        close(kl, std::f64::consts::LN_2, 1e-12);
        assert_eq!(kl_divergence(&[0.0, 0.0], &[mask, 0.0]), Some(f64::INFINITY));
        assert_eq!(kl_divergence(&[mask, 0.0], &[mask, 5.0]), Some(0.0));
        assert_eq!(kl_divergence(&[f32::NAN, 0.0], &[0.0, 0.0]), None);
        assert_eq!(kl_divergence(&[0.0, 0.0], &[0.0, f32::INFINITY]), None);
        assert_eq!(kl_divergence(&[mask, mask], &[0.0, 0.0]), None);
        assert_eq!(kl_divergence(&[], &[]), None);
        assert_eq!(kl_divergence(&[0.0], &[0.0, 0.0]), None);
    }

    #[test]
    fn mcnemar_matches_hand_computed_values() {
        assert_eq!(mcnemar(0, 0), 1.0);
        assert_eq!(mcnemar(7, 7), 1.0);
        // 2 / 2⁵.
        close(mcnemar(0, 5), 0.0625, 1e-12);
        // 2 · (1 + 10 + 45) / 2¹⁰.
        close(mcnemar(8, 2), 112.0 / 1024.0, 1e-12);
        // 2 · (1 + 3) / 2³ is exactly 1.
        close(mcnemar(1, 2), 1.0, 1e-12);
        assert_eq!(mcnemar(0, 5_000), 0.0);
        // Large and nearly balanced: 4,999 against 5,001 is close to certain "no difference".
        close(mcnemar(4_999, 5_001), 0.992_0, 1e-3);
    }

    fn scores() -> impl Strategy<Value = Vec<f64>> {
        // Whole numbers, so that ties are frequent and sums are exact.
        prop::collection::vec((-20_i32..20).prop_map(f64::from), 2..30)
    }

    /// Computes the AUROC by its definition, pair by pair.
    fn auroc_by_pairs(positive: &[f64], negative: &[f64]) -> f64 {
        let mut wins = 0.0;
        for p in positive {
            for n in negative {
                wins += if p > n {
                    1.0
                } else if p == n {
                    0.5
                } else {
                    0.0
                };
            }
        }
        wins / (positive.len() * negative.len()) as f64
    }

    proptest! {
        #[test]
        fn wilson_encloses_the_rate(total in 1_u64..5_000, seed in 0_u64..5_000, z in 0.0..10.0_f64) {
            let p = Proportion::new(seed % (total + 1), total);
            let (low, high) = p.wilson(z);
            prop_assert!(0.0 <= low && low <= p.rate() && p.rate() <= high && high <= 1.0);
            let (wide_low, wide_high) = p.wilson(z + 0.5);
            prop_assert!(wide_low <= low + 1e-12 && high <= wide_high + 1e-12);
            let (mirror_low, mirror_high) = Proportion::new(total - p.count, total).wilson(z);
            prop_assert!((mirror_low - (1.0 - high)).abs() < 1e-9);
            prop_assert!((mirror_high - (1.0 - low)).abs() < 1e-9);
        }

        #[test]
        fn wilson_rises_with_the_count(total in 2_u64..500, seed in 0_u64..500) {
            let count = seed % total;
            let (low, high) = Proportion::new(count, total).wilson95();
            let (next_low, next_high) = Proportion::new(count + 1, total).wilson95();
            prop_assert!(low <= next_low && high <= next_high);
        }

        #[test]
        fn auroc_is_its_definition(a in scores(), b in scores()) {
            prop_assert!((auroc(&a, &b) - auroc_by_pairs(&a, &b)).abs() < 1e-12);
            prop_assert!((auroc(&a, &b) + auroc(&b, &a) - 1.0).abs() < 1e-12);
            prop_assert_eq!(auroc(&a, &a), 0.5);
            // Only the order of the scores matters.
            let cube = |xs: &[f64]| xs.iter().map(|x| x.powi(3)).collect::<Vec<_>>();
            prop_assert_eq!(auroc(&cube(&a), &cube(&b)), auroc(&a, &b));
        }

        #[test]
        fn d_prime_is_antisymmetric_and_grows_with_distance(a in scores(), b in scores()) {
            let d = d_prime(&a, &b);
            prop_assert_eq!(d, -d_prime(&b, &a));
            let moved: Vec<f64> = a.iter().map(|x| x + 1.0).collect();
            let further = d_prime(&moved, &b);
            prop_assert!(further > d || d.is_infinite());
            prop_assert_eq!(d_prime(&a, &a), 0.0);
        }

        #[test]
        fn kl_is_not_negative_and_ignores_shifts(
            rows in prop::collection::vec((-30.0..30.0_f32, -30.0..30.0_f32), 1..40),
            shift in -50.0..50.0_f32,
        ) {
            let (p, q): (Vec<f32>, Vec<f32>) = rows.into_iter().unzip();
            let kl = kl_divergence(&p, &q).unwrap();
            prop_assert!(kl >= 0.0 && kl.is_finite());
            prop_assert_eq!(kl_divergence(&p, &p), Some(0.0));
            let moved: Vec<f32> = q.iter().map(|x| x + shift).collect();
            // The shift itself is rounded to f32.
            prop_assert!((kl_divergence(&p, &moved).unwrap() - kl).abs() < 1e-3);
        }

        #[test]
        fn mcnemar_is_symmetric_bounded_and_falls_with_imbalance(b in 0_u64..300, c in 0_u64..300) {
            let p = mcnemar(b, c);
            prop_assert!(p > 0.0 && p <= 1.0);
            prop_assert_eq!(p, mcnemar(c, b));
            let (low, high) = (b.min(c), b.max(c));
            prop_assert!(mcnemar(low, high + 1) <= p + 1e-12);
        }
    }
}
