//! Whether an edit of a given size arrives, in every type.

use std::sync::Mutex;

use rosi_gguf::gguf::GgmlType;
use rosi_gguf::quant;
use rosi_gguf::quant::preserve::{InputModel, RankOneTarget, can_preserve, preserve};

use crate::Failure;
use crate::cases::{Case, decoded, encoded, norm, of_middle_blocks};
use crate::table;

/// ‖ΔW‖/‖W‖.
const STRENGTHS: [f64; 5] = [0.002, 0.005, 0.01, 0.02, 0.04];

/// What became of an edit.
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
    /// ‖Q(W) − W‖/‖W‖; 0 where the tensor has the type already.
    own_noise: f64,
    /// ‖W‖.
    norm: f64,
    /// Per strength.
    preserved: Vec<Outcome>,
    nearest: Vec<Outcome>,
    /// Whether strength 0 left every byte as it was.
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

/// What is known of one type: all its trials.
struct Row {
    ggml_type: GgmlType,
    trials: Vec<Trial>,
}

impl Row {
    /// Gain farthest from 1 and lowest cosine.
    fn worst(&self, of: impl Fn(&Trial) -> &Vec<Outcome>, strength: usize) -> (f64, f64) {
        let outcomes = || self.trials.iter().map(|t| of(t)[strength]);
        let gain = outcomes().map(|o| o.gain).max_by(|a, b| (a - 1.0).abs().total_cmp(&(b - 1.0).abs()));
        (gain.unwrap_or(f64::NAN), outcomes().map(|o| o.cosine).fold(f64::INFINITY, f64::min))
    }

    /// ‖Q(W) − W‖/‖W‖: mean over the tensors that were a bit wider at least; where no model has any
    /// (the widest types), over those of another type.
    fn own_noise(&self) -> f64 {
        let over = |counts: &dyn Fn(&Trial) -> bool| {
            let known: Vec<f64> = self.trials.iter().filter(|t| counts(t)).map(|t| t.own_noise).collect();
            (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
        };
        let wider = over(&|t| bits(t.from) >= bits(self.ggml_type) + 1.0);
        wider.or_else(|| over(&|t| t.from != self.ggml_type)).unwrap_or(f64::NAN)
    }

    /// Largest ‖Δ − ΔW‖/‖Q(W) − W‖.
    fn added(&self, of: impl Fn(&Trial) -> &Vec<Outcome>, strength: usize) -> f64 {
        let own = self.own_noise();
        self.trials.iter().map(|t| of(t)[strength].noise / (own * t.norm)).fold(0.0, f64::max)
    }

    /// Whether the aims hold from 0.5 % up; types below 2 bits have none.
    fn verdict(&self) -> &'static str {
        let (gain, cosine) = match self.ggml_type {
            t if bits(t) >= 4.0 => (0.98..=1.02, 0.99),
            t if bits(t) >= 2.0 => (0.9..=1.1, 0.95),
            _ => return "no aim",
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

/// Every type that an edit can be written in, by falling bits.
pub fn types() -> Vec<GgmlType> {
    let mut types: Vec<GgmlType> = GgmlType::all().filter(|&t| can_preserve(t)).collect();
    types.sort_by(|&a, &b| bits(b).total_cmp(&bits(a)));
    types
}

fn rows(cases: &[Case]) -> Result<Vec<Row>, Failure> {
    let types = types();
    let pairs = types.iter().flat_map(|&t| cases.iter().filter(move |c| c.fits(t)).map(move |c| (t, c)));
    // The slowest are the last: they begin first.
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
        "An edit ΔW = l rᵀ of the size ‖ΔW‖ = strength · ‖W‖ (l a random direction of the residual stream behind the \
         writer's norm, r along the mean row of W, as the published method has it) is made to {}; those whose rows the \
         type's blocks fit, quantized to the type by ggml where they have another. Bits per value beside the type. Gain \
         ⟨mᵀΔ, r⟩/‖r‖² / cosine of mᵀΔ and r, Δ the decoded difference, m = l or what reaches the stream behind a norm: the worst of the tensors, each. Aim from 0.5 % up: \
         0.98–1.02 / 0.99 from 4 bits, 0.9–1.1 / 0.95 from 2 bits. No edit: the bytes at strength 0.",
        names.join(", ")
    );
    let with = |first: &'static [&'static str], last: &[&'static str]| -> Vec<&str> {
        first.iter().chain(&percent).chain(last).copied().collect()
    };
    let preserved: Vec<_> = rows.iter().map(Row::survival_preserved).collect();
    table::print(
        "Synthetic: does the edit arrive (`--requant preserve`)",
        &text,
        &with(&["type"], &["aim", "no edit"]),
        &preserved,
    );
    let nearest: Vec<_> = rows.iter().map(|r| r.survival(|t| &t.nearest)).collect();
    table::print(
        "The same by rounding to nearest (`--requant nearest`)",
        "As above.",
        &with(&["type"], &[]),
        &nearest,
    );
    let text = "What is added besides the edit, ‖Δ − ΔW‖, over the noise that the type has anyway, ‖Q(W) − W‖ (measured on \
                the tensors that had a bit more per value at least, or for the widest types on those of another type; in % \
                of ‖W‖); the largest of the tensors. Aim: at most 0.5 at 1 % in types of 4 bits.";
    let noise: Vec<_> = rows.iter().map(Row::noise).collect();
    table::print("Noise beside the edit", text, &with(&["type", "own"], &["nearest, 1 %"]), &noise);
    Ok(())
}
