//! The norm between a matrix and the residual stream: which left factor pushes along a direction through it, and what
//! part of a change reaches the stream.
//!
//! If an RMS norm with gain g follows W, a block adds `y = g ⊙ z / rms(z)` to the stream, z = W x. To first order in
//! ΔW, a change of W moves y by
//!
//! ```text
//! δy = [g ⊙ ΔW x − (zᵀΔW x / ‖z‖²) g ⊙ z] / rms(z)
//! ```
//!
//! The second term scales y as a whole. It is neglected: rms(z) is treated as a constant, so ΔW = l rᵀ moves the stream
//! along `g ⊙ l`. The push of a change is therefore measured as ŝᵀ(g ⊙ ΔW).
//!
//! **Left factor.** `l = ŝ ⊘ g` would put g ⊙ l exactly along ŝ, but nearly all of the edit into the rows with the
//! smallest gains, through which almost nothing passes. Among all unit vectors with a given share of g ⊙ l along ŝ, the
//! one with the largest push ŝᵀ(g ⊙ l) has the form
//!
//! ```text
//! l ∝ g ⊙ ŝ ⊘ (g² + λ),   λ = argmax push · cos¹²,   push = ŝᵀ(g ⊙ l)/‖l‖,   cos = ŝᵀ(g ⊙ l)/‖g ⊙ l‖
//! ```
//!
//! So the choice gives up 1 % of the cosine if that gains 12 % of push per change of the matrix. With equal gains, l =
//! ŝ. Rows with gains at or near 0 get no edit, however many there are.

/// Exponent of the cosine in the choice of λ.
const PURITY: i32 = 12;
/// Values of λ to try: 10^(exponent/8) times the largest g².
const EXPONENTS: std::ops::RangeInclusive<i32> = -96..=16;

/// Returns the left factor l (see the module documentation) for the direction `s` of any length, and its push ŝᵀ(g ⊙
/// l); f64 `[n_embd]`. Returns zeros and 0 if no gain passes any part of `s`.
pub fn through(s: &[f64], gain: &[f32]) -> (Vec<f64>, f64) {
    let largest = gain.iter().fold(0.0f32, |most, g| most.max(g.abs()));
    let length = s.iter().map(|v| v * v).sum::<f64>().sqrt();
    if largest == 0.0 || length == 0.0 {
        return (vec![0.0; s.len()], 0.0);
    }
    let pairs: Vec<(f64, f64)> =
        s.iter().zip(gain).map(|(s, &g)| (s / length, f64::from(g) / f64::from(largest))).collect();
    let mut best = Sums::default();
    for exponent in EXPONENTS {
        let sums = Sums::of(&pairs, 10f64.powf(f64::from(exponent) / 8.0));
        if sums.worth() > best.worth() {
            best = sums;
        }
    }
    let size = best.squares.sqrt().max(f64::MIN_POSITIVE);
    let left = pairs.iter().map(|(s, g)| g * s / (g * g + best.lambda) / size).collect();
    (left, f64::from(largest) * best.push())
}

/// Sums over l = g ⊙ ŝ ⊘ (g² + λ) for one λ.
#[derive(Clone, Copy, Default)]
struct Sums {
    lambda: f64,
    /// ŝᵀ(g ⊙ l).
    along: f64,
    /// ‖l‖².
    squares: f64,
    /// ‖g ⊙ l‖².
    reached: f64,
}

impl Sums {
    /// Computes the sums from pairs (ŝ, g).
    fn of(pairs: &[(f64, f64)], lambda: f64) -> Self {
        let mut sums = Self { lambda, ..Self::default() };
        for &(s, g) in pairs {
            let l = g * s / (g * g + lambda);
            sums.along += s * g * l;
            sums.squares += l * l;
            sums.reached += g * g * l * l;
        }
        sums
    }

    fn push(&self) -> f64 {
        self.along / self.squares.sqrt().max(f64::MIN_POSITIVE)
    }

    /// Returns push · cos¹².
    fn worth(&self) -> f64 {
        let cosine = self.along / self.reached.sqrt().max(f64::MIN_POSITIVE);
        self.push() * cosine.powi(PURITY)
    }
}

/// The norm after an edited matrix, which determines what part of a change reaches the residual stream.
#[derive(Debug, Clone, PartialEq)]
pub struct PostNorm {
    /// Gain g, f32 `[n_embd]`.
    pub gain: Vec<f32>,
    /// m = g ⊙ ŝ / push, f32 `[n_embd]`: mᵀΔ is the push of a change Δ along ŝ, per column; for ΔW = l rᵀ it is r.
    pub along: Vec<f32>,
    /// Push of the left factor, ŝᵀ(g ⊙ l).
    pub push: f64,
}

impl PostNorm {
    /// Returns the left factor l for the unit vector ŝ `[n_embd]`, and the norm with the derived m and push.
    pub fn meet(unit: &[f32], gain: &[f32]) -> (Vec<f32>, Self) {
        let s: Vec<f64> = unit.iter().map(|&v| f64::from(v)).collect();
        let (left, push) = through(&s, gain);
        let m = |(s, &g): (&f64, &f32)| if push > 0.0 { (s * f64::from(g) / push) as f32 } else { 0.0 };
        let along = s.iter().zip(gain).map(m).collect();
        (left.iter().map(|&l| l as f32).collect(), Self { gain: gain.to_vec(), along, push })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::direction::random;

    const N: usize = 640;

    fn direction(seed: u64) -> Vec<f64> {
        random(0, N, seed).unwrap().unit().iter().map(|&v| f64::from(v)).collect()
    }

    /// Gains over several powers of ten, like those of gemma-3: e to the power of normal numbers from `seed`.
    fn gains(spread: f64, seed: u64) -> Vec<f32> {
        direction(seed).iter().map(|v| (spread * v * (N as f64).sqrt()).exp() as f32).collect()
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    fn seen(left: &[f64], gain: &[f32]) -> Vec<f64> {
        left.iter().zip(gain).map(|(l, &g)| l * f64::from(g)).collect()
    }

    /// Returns the push and cosine of a left factor of any length.
    fn measured(s: &[f64], left: &[f64], gain: &[f32]) -> (f64, f64) {
        let reached = seen(left, gain);
        let along = dot(s, &reached);
        (along / dot(left, left).sqrt(), along / dot(&reached, &reached).sqrt())
    }

    #[test]
    fn a_push_gains_more_than_its_purity_costs() {
        for (spread, seed) in [(0.5, 1), (1.0, 2), (2.0, 3)] {
            let (s, mut gain) = (direction(9), gains(spread, seed));
            (0..N).step_by(7).for_each(|i| gain[i] = -gain[i]);
            let (left, push) = through(&s, &gain);
            let (found, cosine) = measured(&s, &left, &gain);
            assert!((dot(&left, &left) - 1.0).abs() < 1e-9 && (push / found - 1.0).abs() < 1e-6, "{spread}");
            assert!(cosine > 0.9, "{spread}: {cosine}");
            // Moving toward ŝ ⊘ g makes it purer and toward g ⊙ ŝ stronger, but neither is worth more.
            let worth = |(push, cosine): (f64, f64)| push * cosine.powi(PURITY);
            for power in [-1, 1] {
                let other: Vec<f64> =
                    s.iter().zip(&gain).map(|(s, &g)| s * f64::from(g).powi(power)).collect();
                let by = 0.2 / dot(&other, &other).sqrt();
                let mixed: Vec<f64> = left.iter().zip(&other).map(|(l, o)| l + by * o).collect();
                let other = measured(&s, &mixed, &gain);
                assert!((power < 0) == (other.0 < push), "{spread} {power}: {other:?}");
                assert!(worth(other) < worth((push, cosine)), "{spread} {power}: {other:?}");
            }
        }
    }

    #[test]
    fn small_gains_do_not_take_the_edit() {
        for every in [40, 8] {
            let (s, mut gain) = (direction(9), gains(0.3, 4));
            (0..N).step_by(every).for_each(|i| gain[i] *= 1e-4);
            let (left, push) = through(&s, &gain);
            let small: f64 = (0..N).step_by(every).map(|i| left[i] * left[i]).sum();
            assert!(small < 0.01, "{every}: {small}");
            let divided: Vec<f64> = s.iter().zip(&gain).map(|(s, &g)| s / f64::from(g)).collect();
            assert!(push > 100.0 * measured(&s, &divided, &gain).0, "{every}: {push}");
        }
    }

    #[test]
    fn equal_gains_change_nothing_and_closed_ones_are_left_out() {
        let s = direction(9);
        let twice: Vec<f64> = s.iter().map(|s| 2.0 * s).collect();
        let (left, push) = through(&twice, &[2.5; N]);
        assert!(left.iter().zip(&s).all(|(l, s)| (l - s).abs() < 1e-6) && (push - 2.5).abs() < 1e-5);
        let closed: Vec<f32> = (0..N).map(|i| if i % 3 == 0 { 0.0 } else { 2.5 }).collect();
        let (left, push) = through(&s, &closed);
        let passing: f64 = (0..N).filter(|i| i % 3 > 0).map(|i| s[i] * s[i]).sum();
        assert!(left.iter().step_by(3).all(|&l| l == 0.0) && (push - 2.5 * passing.sqrt()).abs() < 1e-5);
        assert_eq!(through(&s, &[0.0; N]), (vec![0.0; N], 0.0));
    }

    #[test]
    fn what_is_measured_is_the_push_along_the_direction() {
        let (unit, gain) = (random(0, N, 9).unwrap().unit().to_vec(), gains(1.0, 5));
        let (left, norm) = PostNorm::meet(&unit, &gain);
        let sum = |of: &[f32]| norm.along.iter().zip(of).map(|(m, v)| f64::from(m * v)).sum::<f64>();
        assert!((sum(&left) - 1.0).abs() < 1e-5);
        // A change orthogonal to ŝ in the stream does not count, however much it changes the matrix.
        let mut across = vec![0.0f32; N];
        (across[0], across[1]) = (unit[1] / gain[0], -unit[0] / gain[1]);
        assert!(sum(&across).abs() < 1e-6, "{}", sum(&across));
    }
}
