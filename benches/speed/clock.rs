//! Wall and CPU time.

use std::time::Instant;

use crate::Failure;

/// What a piece of work took.
#[derive(Debug, Clone, Copy)]
pub struct Spent {
    /// Seconds on the clock.
    pub wall: f64,
    /// Seconds of all threads, and of programs that were started and ended.
    pub cpu: f64,
}

/// Seconds of CPU time of this process and its children so far.
fn cpu() -> Result<f64, Failure> {
    /// Ticks of /proc a second, on every Linux.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> =
        stat.rsplit_once(')').ok_or("/proc/self/stat has no name")?.1.split_whitespace().collect();
    // utime, stime, cutime and cstime are fields 14 to 17; the first one behind the name is field 3.
    let ticks = fields.get(11..15).ok_or("/proc/self/stat is short")?;
    Ok(ticks.iter().filter_map(|t| t.parse::<f64>().ok()).sum::<f64>() / TICKS)
}

/// What `work` takes.
pub fn time<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<(T, Spent), Failure> {
    let (start, before) = (Instant::now(), cpu()?);
    let done = work()?;
    Ok((done, Spent { wall: start.elapsed().as_secs_f64(), cpu: cpu()? - before }))
}

/// A piece of work that can be done again.
pub type Work<'a> = dyn FnMut() -> Result<(), Failure> + 'a;

/// The medians of what each of `works` takes, which take turns.
pub fn medians(rounds: usize, works: &mut [&mut Work<'_>]) -> Result<Vec<Spent>, Failure> {
    let mut all = vec![Vec::new(); works.len()];
    for _ in 0..rounds {
        for (work, spent) in works.iter_mut().zip(&mut all) {
            spent.push(time(work)?.1);
        }
    }
    Ok(all.iter().map(|spent| median_of(spent)).collect())
}

fn median_of(spent: &[Spent]) -> Spent {
    let median = |of: fn(&Spent) -> f64| {
        let mut values: Vec<f64> = spent.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Spent { wall: median(|s| s.wall), cpu: median(|s| s.cpu) }
}
