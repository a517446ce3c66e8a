//! Choice of the method: detectors, and linear gates if the model still refuses little with detectors.

use super::EditSearch;
use super::told::refuses_little;
use crate::llama::{Arithmetic, LlamaEngine};
use crate::method::edit::Method;
use crate::method::search::journal::Journal;
use crate::pipeline::error::Error;
use crate::pipeline::options::InjectOptions;
use crate::pipeline::session::{Opened, Session};
use crate::pipeline::types;

impl EditSearch {
    /// Runs the whole search on a loaded model, reusing the steps in the journal. Values that are only compared with
    /// each other are computed in floating point. If the user sets no method and the model still refuses little with
    /// detectors, this also searches linear gates and takes the more useful edit. Linear gates change more layers, and
    /// restore refusal where every layer lost its own direction and detectors cannot
    /// (docs/notebook/removed-refusal.md).
    ///
    /// # Errors
    /// Returns [`Error`] if the model cannot be run or the search finds no edit.
    pub fn new(session: Session<'_>, engine: &mut LlamaEngine, journal: &mut Journal) -> Result<Self, Error> {
        let Session { opened, options, printer, .. } = session;
        let arithmetic = engine.set_arithmetic(Arithmetic::Float);
        let mut search =
            |options: &InjectOptions| Self::of_method(Session { options, ..session }, engine, journal);
        let mut found = search(options);
        if let Some(little) = falls_short(&found, options) {
            match linear(opened, options) {
                Some(linear) => {
                    printer.say(format!("{little}: also searching linear gates"));
                    found = better(found, search(&linear), EditSearch::utility);
                }
                None => printer
                    .warn(format!("{little}; --method contrast edits more layers and may restore more")),
            }
        }
        engine.set_arithmetic(arithmetic);
        found
    }
}

/// Returns a message if detectors were ineffective.
fn falls_short(found: &Result<EditSearch, Error>, options: &InjectOptions) -> Option<String> {
    match found {
        Ok(found) => refuses_little(options.method, found.search.base?, found.chosen_trial()?.score),
        Err(Error::NoGain { .. }) if options.method == Method::Detector => {
            Some("no detectors make this model refuse more".into())
        }
        Err(_) => None,
    }
}

/// Returns the options for linear gates, or `None` if the user set the method, or a strength or contrast, whose meaning
/// depends on the method, or if the matrices' types cannot hold the edit.
fn linear(opened: &Opened, options: &InjectOptions) -> Option<InjectOptions> {
    let search = options.search;
    let open = options.asked_method.is_none() && search.strength.is_none() && search.contrast.is_none();
    let linear = open.then(|| options.with_method(Method::Contrast))?.ok()?;
    types::check(opened, &linear, None).is_ok().then_some(linear)
}

/// Returns the more useful of two search results; either search may have found no edit.
fn better<T>(
    detectors: Result<T, Error>,
    linear: Result<T, Error>,
    utility: impl Fn(&T) -> f64,
) -> Result<T, Error> {
    match (detectors, linear) {
        (Ok(detectors), Ok(linear)) if utility(&detectors) >= utility(&linear) => Ok(detectors),
        (Ok(detectors), Err(Error::NoGain { .. })) => Ok(detectors),
        (Err(nothing), Err(Error::NoGain { .. })) => Err(nothing),
        (_, linear) => linear,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_useful_edit_is_taken() {
        let nothing = |trials| {
            Err(Error::NoGain {
                trials,
                base: "2/64".into(),
                max_kl: 0.1,
                max_false_refusal: 0.1,
                best: String::new(),
            })
        };
        let of = |detectors, linear| better(detectors, linear, |utility: &f64| *utility);
        assert_eq!(of(Ok(0.1), Ok(0.3)).unwrap(), 0.3);
        assert_eq!(of(Ok(0.3), Ok(0.1)).unwrap(), 0.3);
        assert_eq!(of(nothing(3), Ok(0.1)).unwrap(), 0.1);
        assert_eq!(of(Ok(0.1), nothing(4)).unwrap(), 0.1);
        assert!(matches!(of(nothing(3), nothing(4)), Err(Error::NoGain { trials: 3, .. })));
        // Any error other than NoGain ends the run.
        let stopped = Err(crate::util::interrupt::Interrupted.into());
        assert!(matches!(of(Ok(0.1), stopped), Err(Error::Interrupted(_))));
    }
}
