//! Which method: detectors, and linear gates where these leave a model that refuses little.

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
    /// Runs the whole search on a loaded model, taking from the journal what is in it already. What is only compared with each
    /// other is computed in F32. Where the user names no method and detectors leave a model that refuses little, linear gates
    /// are searched as well, and the more useful edit is taken: they change more layers, and where every layer lost a direction
    /// of its own they bring back what detectors do not (docs/notebook/removed-refusal.md).
    ///
    /// # Errors
    /// [`Error`].
    pub fn new(session: Session<'_>, engine: &mut LlamaEngine, journal: &mut Journal) -> Result<Self, Error> {
        let Session { opened, options, printer, .. } = session;
        let arithmetic = engine.set_arithmetic(Arithmetic::F32);
        let mut search =
            |options: &InjectOptions| Self::of_method(Session { options, ..session }, engine, journal);
        let mut found = search(options);
        if let Some(little) = falls_short(&found, options) {
            match linear(opened, options) {
                Some(linear) => {
                    printer.say(format!("{little}: linear gates are searched as well"));
                    found = better(found, search(&linear), EditSearch::utility);
                }
                None => printer
                    .warn(format!("{little}; --method contrast edits more layers, and may bring back more")),
            }
        }
        engine.set_arithmetic(arithmetic);
        found
    }
}

/// What to say where detectors did not do what they are for.
fn falls_short(found: &Result<EditSearch, Error>, options: &InjectOptions) -> Option<String> {
    match found {
        Ok(found) => refuses_little(options.method, found.search.base?, found.chosen_trial()?.score),
        Err(Error::NoGain { .. }) if options.method == Method::Detector => {
            Some("no detectors make this model refuse more".into())
        }
        Err(_) => None,
    }
}

/// The same options with linear gates, where the user names neither a method nor what counts differently with each, and the
/// types of the matrices hold them.
fn linear(opened: &Opened, options: &InjectOptions) -> Option<InjectOptions> {
    let search = options.search;
    let open = options.asked_method.is_none() && search.strength.is_none() && search.contrast.is_none();
    let linear = open.then(|| options.with_method(Method::Contrast))?.ok()?;
    types::check(opened, &linear, None).is_ok().then_some(linear)
}

/// The more useful of two searches, of which one may have found nothing.
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
        // What is no verdict on the edit ends the run.
        let stopped = Err(crate::util::interrupt::Interrupted.into());
        assert!(matches!(of(Ok(0.1), stopped), Err(Error::Interrupted(_))));
    }
}
