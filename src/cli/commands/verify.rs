//! `verify`: compares two files and reports what differs.

use serde::Serialize;

use crate::cli::VerifyArgs;
use crate::gguf::Gguf;
use crate::method::verify::{self, Verification};
use crate::output::{Printer, Table, percent};
use crate::pipeline::error::{Error, ExitStatus};
use crate::pipeline::provenance::{Provenance, claimed_edits};
use crate::pipeline::session::{Opened, find};
use crate::report::MIN_SURVIVAL;
use crate::sources::Check;

/// The output of `--json`.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    verification: &'a Verification,
    /// Why the edited file is not the base with the edit that its metadata claims.
    problem: Option<String>,
}

/// Compares the two files and prints the result. The status is [`ExitStatus::NotVerified`] unless the edited file is
/// the base with the edit that its metadata claims or, if it claims none, identical to the base.
///
/// # Errors
/// Returns [`Error`] if a file cannot be read or if they are not two versions of one model.
pub fn run(args: &VerifyArgs, printer: &Printer) -> Result<ExitStatus, Error> {
    let base = Opened::new(&find(&args.base, Check::Content, printer)?.path, args.patches.as_deref())?;
    let edited = Gguf::open(&find(&args.edited, Check::Content, printer)?.path)?.listed_as(&base.gguf);
    let edits = claimed_edits(&base.gguf, &edited, &base.plan)?;
    if edits.is_empty() {
        printer.warn("the edited file has no rosi.* keys of a known method: gain and cosine are unknown");
    }
    let bar = printer.bar("comparing", base.gguf.tensors.len() as u64);
    let verification = verify::verify(&base.gguf, &edited, &edits, &mut |done, total| {
        bar.set_of(done as u64, total as u64);
    })?;
    drop(bar);
    let problem = verification.check(Provenance::read(&edited).is_some(), MIN_SURVIVAL).err();
    if args.json {
        let problem = problem.as_ref().map(ToString::to_string);
        printer.json(&Told { verification: &verification, problem });
    } else {
        printer.data(describe(&verification));
    }
    let Some(problem) = problem else { return Ok(ExitStatus::Done) };
    printer.warn(format!("not verified: {problem}"));
    Ok(ExitStatus::NotVerified)
}

/// Formats the table of changed tensors and the totals.
pub fn describe(v: &Verification) -> String {
    let mut table = Table::new(&["tensor", "type", "requested", "changed", "gain", "cosine", "noise"]);
    let number = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.3}"));
    for t in &v.tensors {
        table.row(vec![
            t.name.clone(),
            t.ggml_type.clone(),
            t.requested_change.map_or("-".into(), percent),
            percent(t.relative_change),
            number(t.gain),
            number(t.cosine),
            number(t.noise),
        ]);
    }
    let yes = |b: bool| if b { "yes" } else { "NO" };
    let mut neurons = Table::new(&["block", "neurons", "score", "alike", "gain", "cosine", "noise"]);
    for n in &v.neurons {
        let numbers = [n.score, n.alike, n.gain, n.cosine, n.noise].map(|x| format!("{x:.4}"));
        neurons.row([n.layer.to_string(), n.neurons.to_string()].into_iter().chain(numbers).collect());
    }
    let neurons = if v.neurons.is_empty() {
        String::new()
    } else {
        format!(
            "\n{neurons}score: lowest correlation of a neuron's score with the exact one; alike: share of \
             inputs on which gates open as in the exact edit\n"
        )
    };
    format!(
        "{table}{neurons}\n{} tensors changed, {} identical; untouched tensors identical: {}; metadata preserved: {}\n\
         edit in the file (gain): {}, cosine along the direction: {}",
        v.tensors.len(),
        v.identical,
        yes(v.untouched_identical),
        yes(v.metadata_preserved),
        number(v.gain),
        number(v.cosine)
    )
}
