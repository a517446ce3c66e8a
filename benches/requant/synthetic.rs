//! How much of an edit of a given size is retained, in every type.

use std::sync::Mutex;

use rosi_gguf::gguf::GgmlType;
use rosi_gguf::quant;
use rosi_gguf::quant::preserve::{InputModel, RankOneTarget, can_preserve, preserve};

use crate::Failure;
use crate::cases::{Case, decoded, encoded, norm, of_middle_blocks};
use crate::table;

/// ‖ΔW‖/‖W‖.
const STRENGTHS: [f64; 5] = [0.002, 0.005, 0.01, 0.02, 0.04];

/// The effect of writing an edit.
#[derive(Clone, Copy)]
struct Outcome {
    /// ⟨mᵀΔ, r⟩/‖r‖².
    gain: f64,
    /// ⟨mᵀΔ, r⟩/(‖mᵀΔ‖ ‖r‖).
    cosine: f64,
    /// ‖Δ − l rᵀ‖.
    noise: f64,
}

impl Outcome {
    fn of(case: &Case, right: &[f32], before: &[f32], after: &[f32]) -> Self {
        let mut along = vec![0.0f64; right.len()];
        let mut noise = 0.0;
        let rows = before.chunks_exact(right.len()).zip(after.chunks_exact(right.len()));
        for ((old, new), (&l, &m)) in rows.zip(case.left.iter().zip(&case.along)) {
            for (j, (o, n)) in old.iter().zip(new).enumerate() {
                let delta = f64::from(*n) - f64::from(*o);
                along[j] += f64::from(m) * delta;
                noise += (delta - f64::from(l) * f64::from(right[j])).powi(2);
            }
        }
        let dot: f64 = along.iter().zip(right).map(|(a, &r)| a * f64::from(r)).sum();
        let found = along.iter().map(|a| a * a).sum::<f64>().sqrt();
        let asked = norm(right);
        let cosine = if found > 0.0 { dot / (found * asked) } else { 0.0 };
        Self { gain: dot / (asked * asked), cosine, noise: noise.sqrt() }
    }
}

/// One tensor in one type.
struct Trial {
    /// Type of the tensor in its file.
    from: GgmlType,
    /// ‖Q(W) − W‖/‖W‖; 0 if the tensor already has the type.
    own_noise: f64,
    /// ‖W‖.
    norm: f64,
    /// Outcome of preserving, per strength.
    preserved: Vec<Outcome>,
    /// Outcome of rounding to nearest, per strength.
    nearest: Vec<Outcome>,
    /// Whether strength 0 left all bytes unchanged.
    control: bool,
}

fn preserved(ggml_type: GgmlType, case: &Case, bytes: &[u8], right: &[f32]) -> Result<Vec<u8>, Failure> {
    let mut new = bytes.to_vec();
    let target = RankOneTarget { left: &case.left, along: &case.along, right };
    preserve(ggml_type, &mut new, target, &InputModel::default(), 1)?;
    quant::validate(ggml_type, &new)?;
    Ok(new)
}

fn trial(ggml_type: GgmlType, case: &Case) -> Result<Trial, Failure> {
    let n_in = case.n_in();
    let bytes = match case.own == ggml_type {
        true => case.bytes.clone(),
        false => encoded(ggml_type, n_in, &case.values)?,
    };
    let before = decoded(ggml_type, n_in, &bytes)?;
    let difference: Vec<f32> = before.iter().zip(&case.values).map(|(q, w)| q - w).collect();
    let whole = norm(&case.values);
    let own_noise = norm(&difference) / whole;
    let control = preserved(ggml_type, case, &bytes, &case.right_at(0.0))? == bytes;
    let mut trial =
        Trial { from: case.own, own_noise, norm: whole, preserved: vec![], nearest: vec![], control };
    for strength in STRENGTHS {
        let right = case.right_at(strength);
        let new = decoded(ggml_type, n_in, &preserved(ggml_type, case, &bytes, &right)?)?;
        trial.preserved.push(Outcome::of(case, &right, &before, &new));
        let mut edited = before.clone();
        for (row, &l) in edited.chunks_exact_mut(n_in).zip(&case.left) {
            row.iter_mut().zip(&right).for_each(|(w, &r)| *w += l * r);
        }
        let new = decoded(ggml_type, n_in, &encoded(ggml_type, n_in, &edited)?)?;
        trial.nearest.push(Outcome::of(case, &right, &before, &new));
    }
    Ok(trial)
}

/// Bits per value.
pub fn bits(ggml_type: GgmlType) -> f64 {
    8.0 * ggml_type.block_bytes() as f64 / ggml_type.block_len() as f64
}

/// All trials of one type.
struct Row {
    ggml_type: GgmlType,
    trials: Vec<Trial>,
}

impl Row {
    /// Returns the gain farthest from 1 and the lowest cosine.
    fn worst(&self, of: impl Fn(&Trial) -> &Vec<Outcome>, strength: usize) -> (f64, f64) {
        let outcomes = || self.trials.iter().map(|t| of(t)[strength]);
        let gain = outcomes().map(|o| o.gain).max_by(|a, b| (a - 1.0).abs().total_cmp(&(b - 1.0).abs()));
        (gain.unwrap_or(f64::NAN), outcomes().map(|o| o.cosine).fold(f64::INFINITY, f64::min))
    }

    /// Returns the mean ‖Q(W) − W‖/‖W‖ over the tensors that were at least one bit wider or, if there are none (for the
    /// widest types), over those of another type.
    fn own_noise(&self) -> f64 {
        let over = |counts: &dyn Fn(&Trial) -> bool| {
            let known: Vec<f64> = self.trials.iter().filter(|t| counts(t)).map(|t| t.own_noise).collect();
            (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
        };
        let wider = over(&|t| bits(t.from) >= bits(self.ggml_type) + 1.0);
        wider.or_else(|| over(&|t| t.from != self.ggml_type)).unwrap_or(f64::NAN)
    }

    /// Returns the largest ‖Δ − ΔW‖/‖Q(W) − W‖.
    fn added(&self, of: impl Fn(&Trial) -> &Vec<Outcome>, strength: usize) -> f64 {
        let own = self.own_noise();
        self.trials.iter().map(|t| of(t)[strength].noise / (own * t.norm)).fold(0.0, f64::max)
    }

    /// Returns whether the targets are met from 0.5 % up; types below 2 bits have no target.
    fn verdict(&self) -> &'static str {
        let (gain, cosine) = match self.ggml_type {
            t if bits(t) >= 4.0 => (0.98..=1.02, 0.99),
            t if bits(t) >= 2.0 => (0.9..=1.1, 0.95),
            _ => return "no target",
        };
        let mut worst = (1..STRENGTHS.len()).map(|s| self.worst(|t| &t.preserved, s));
        if worst.all(|(g, c)| gain.contains(&g) && c >= cosine) { "met" } else { "MISSED" }
    }

    fn survival(&self, of: impl Fn(&Trial) -> &Vec<Outcome>) -> Vec<String> {
        let cell = |s| {
            let (gain, cosine) = self.worst(&of, s);
            format!("{gain:.3} / {cosine:.3}")
        };
        let name = vec![format!("{} ({:.2})", self.ggml_type, bits(self.ggml_type))];
        name.into_iter().chain((0..STRENGTHS.len()).map(cell)).collect()
    }

    fn survival_preserved(&self) -> Vec<String> {
        let mut cells = self.survival(|t| &t.preserved);
        cells.push(self.verdict().into());
        cells.push(if self.trials.iter().all(|t| t.control) { "identical" } else { "CHANGED" }.into());
        cells
    }

    fn noise(&self) -> Vec<String> {
        let ratio = |r: f64| if r.is_finite() { format!("{r:.2}") } else { "–".into() };
        let mut cells = vec![self.ggml_type.to_string(), format!("{:.3} %", 100.0 * self.own_noise())];
        cells.extend((0..STRENGTHS.len()).map(|s| ratio(self.added(|t| &t.preserved, s))));
        cells.push(ratio(self.added(|t| &t.nearest, 2)));
        cells
    }
}

/// Returns every type that an edit can be written in, by descending bits per value.
pub fn types() -> Vec<GgmlType> {
    let mut types: Vec<GgmlType> = GgmlType::all().filter(|&t| can_preserve(t)).collect();
    types.sort_by(|&a, &b| bits(b).total_cmp(&bits(a)));
    types
}

fn rows(cases: &[Case]) -> Result<Vec<Row>, Failure> {
    let types = types();
    let pairs = types.iter().flat_map(|&t| cases.iter().filter(move |c| c.fits(t)).map(move |c| (t, c)));
    // Jobs are popped from the end, where the slowest ones are, so that these start first.
    let jobs = Mutex::new(pairs.collect::<Vec<_>>());
    let done = Mutex::new(Vec::new());
    let worker = || -> Result<(), Failure> {
        loop {
            let Some((t, case)) = jobs.lock().ok().and_then(|mut jobs| jobs.pop()) else { return Ok(()) };
            let start = std::time::Instant::now();
            let trial = trial(t, case).map_err(|e| format!("{t} of {}: {e}", case.name))?;
            eprintln!("{t} of {}: {:.1} s", case.name, start.elapsed().as_secs_f64());
            if let Ok(mut done) = done.lock() {
                done.push((t, trial));
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let ends = workers.into_iter().map(|w| w.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        ends.fold(Ok(()), Result::and)
    })?;
    let mut rows: Vec<Row> = types.into_iter().map(|ggml_type| Row { ggml_type, trials: vec![] }).collect();
    for (t, trial) in done.into_inner().map_err(|e| e.to_string())? {
        if let Some(row) = rows.iter_mut().find(|r| r.ggml_type == t) {
            row.trials.push(trial);
        }
    }
    Ok(rows)
}

/// Prints the tables.
pub fn run() -> Result<(), Failure> {
    let cases = of_middle_blocks()?;
    let rows = rows(&cases)?;
    let names: Vec<String> = cases.iter().map(|c| format!("{} ({})", c.name, c.own)).collect();
    let percent: Vec<String> = STRENGTHS.iter().map(|s| format!("{} %", 100.0 * s)).collect();
    let percent: Vec<&str> = percent.iter().map(String::as_str).collect();
    let text = format!(
        "An edit ΔW = l rᵀ of size ‖ΔW‖ = strength · ‖W‖ is applied to {}. l is a random direction of the \
         residual stream (mapped through the writer's norm, if any); r is along the mean row of W, as in the \
         published method. Each type is tested on the tensors whose row length is a multiple of its block \
         length; ggml quantizes tensors of another type to it first. In parentheses: bits per value. Cells: \
         gain ⟨mᵀΔ, r⟩/‖r‖² / cosine of mᵀΔ and r, each for the worst tensor. Δ is the decoded difference; m \
         is l or, before a norm, each row's push on the residual stream. Target from 0.5 % up: 0.98–1.02 / \
         0.99 from 4 bits, 0.9–1.1 / 0.95 from 2 bits. No edit: whether strength 0 leaves all bytes \
         unchanged.",
        names.join(", ")
    );
    let with = |first: &'static [&'static str], last: &[&'static str]| -> Vec<&str> {
        first.iter().chain(&percent).chain(last).copied().collect()
    };
    let preserved: Vec<_> = rows.iter().map(Row::survival_preserved).collect();
    table::print(
        "Synthetic: edit retained (`--requant preserve`)",
        &text,
        &with(&["type"], &["target", "no edit"]),
        &preserved,
    );
    let nearest: Vec<_> = rows.iter().map(|r| r.survival(|t| &t.nearest)).collect();
    table::print(
        "Synthetic: edit retained by rounding to nearest (`--requant nearest`)",
        "As above.",
        &with(&["type"], &[]),
        &nearest,
    );
    let text = "Noise added besides the edit, ‖Δ − ΔW‖, relative to the type's own quantization noise, ‖Q(W) \
                − W‖; the largest over the tensors. The column \"own\" is ‖Q(W) − W‖ in % of ‖W‖, measured \
                on tensors with at least one more bit per value or, for the widest types, on tensors of \
                another type. Target: at most 0.5 at 1 % in types of 4 bits.";
    let noise: Vec<_> = rows.iter().map(Row::noise).collect();
    table::print("Noise added by the edit", text, &with(&["type", "own"], &["nearest, 1 %"]), &noise);
    Ok(())
}
