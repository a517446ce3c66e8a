//! Measurement of wall and CPU time.

use std::time::Instant;

use crate::Failure;

/// Time spent on a piece of work.
#[derive(Debug, Clone, Copy)]
pub struct Spent {
    /// Wall time, in seconds.
    pub wall: f64,
    /// CPU time of all threads and of finished child processes, in seconds.
    pub cpu: f64,
}

/// Returns the CPU seconds used by this process and its finished children.
fn cpu() -> Result<f64, Failure> {
    /// Clock ticks per second in /proc, the same on every Linux.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> =
        stat.rsplit_once(')').ok_or("/proc/self/stat has no process name")?.1.split_whitespace().collect();
    // utime, stime, cutime and cstime are fields 14 to 17; the first one after the name is field 3.
    let ticks = fields.get(11..15).ok_or("/proc/self/stat has too few fields")?;
    Ok(ticks.iter().filter_map(|t| t.parse::<f64>().ok()).sum::<f64>() / TICKS)
}

/// Runs `work` and returns its result and the time spent.
pub fn time<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<(T, Spent), Failure> {
    let (start, before) = (Instant::now(), cpu()?);
    let done = work()?;
    Ok((done, Spent { wall: start.elapsed().as_secs_f64(), cpu: cpu()? - before }))
}

/// Repeatable work.
pub type Work<'a> = dyn FnMut() -> Result<(), Failure> + 'a;

/// Returns the median time of each of `works`, run alternately for `rounds` rounds.
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
