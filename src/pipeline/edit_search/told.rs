//! Messages about a search.

use crate::arch::window::Window;
use crate::eval::{Score, Tally};
use crate::method::edit::Method;
use crate::method::search::{Candidate, Probe, Trial};
use crate::pipeline::direction_sources::HARDLY;

/// Refusal rate on harmful prompts below which detectors count as ineffective, unless the model refuses more than
/// [`HARDLY`] on its own and they raised it by at least [`GAINED`].
const LITTLE: f64 = 0.5;
/// Increase in the refusal rate from which detectors count as effective.
const GAINED: f64 = 0.15;

fn describe(candidate: &Candidate) -> String {
    let Window { from, until } = candidate.window;
    let Candidate { direction_source, layer, contrast, .. } = *candidate;
    format!("{} layer {layer:2} window {from:.1}-{until:.1} contrast {contrast:.1}", direction_source.name())
}

/// Describes a probe in one line.
pub(super) fn describe_probe(p: &Probe) -> String {
    let first_tokens = p.first_tokens.map_or(String::new(), |q| {
        format!(
            ": first tokens harmful {:.3} harmless {:.3} borderline {:.3}",
            q.harmful, q.harmless, q.borderline
        )
    });
    format!(
        "  probe {} strength {:.4}{first_tokens} utility {:+.3}",
        describe(&p.candidate),
        p.strength,
        p.utility
    )
}

/// Describes a trial in one line.
pub(super) fn describe_trial(t: &Trial) -> String {
    format!(
        "  trial {} strength {:.4}: harmful {} harmless {} borderline {} broken {} KL {:.4} utility {:+.3}{}",
        describe(&t.candidate),
        t.strength,
        t.score.harmful.refused,
        t.score.harmless.refused,
        t.score.borderline.refused,
        t.score.broken().count,
        t.score.kl,
        t.utility,
        match (t.stopped, t.accepted) {
            (true, _) => " at most, stopped early",
            (false, true) => "",
            (false, false) => ", over a limit",
        }
    )
}

/// Returns a message if the model still refuses little with detectors.
pub(super) fn refuses_little(method: Method, base: Score, score: Score) -> Option<String> {
    let [own, refused] = [base, score].map(|score| score.harmful.refused());
    let ineffective = own.rate() <= HARDLY || refused.rate() - own.rate() < GAINED;
    let little = refused.rate() < LITTLE && ineffective;
    let told = || format!("with detectors, this model refuses only {refused} harmful prompts (search split)");
    (method == Method::Detector && little).then(told)
}

/// Describes the best edit that exceeded a limit, as a suffix of the error message.
pub(super) fn beside(edited: &Score, base: &Score) -> String {
    let counts = |score: &Score| {
        let refused = |tally: Tally| format!("{}/{}", tally.refused, tally.total());
        format!("{} harmless and {} borderline", refused(score.harmless), refused(score.borderline))
    };
    let Tally { refused, .. } = edited.harmful;
    format!(
        "; the best edit refused {refused} of them, but also {} prompts (base: {}), at a KL of {:.3}",
        counts(edited),
        counts(base),
        edited.kl
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_refusal_is_told() {
        let of = |refused| Score {
            harmful: Tally { refused, complied: 64 - refused, ..Tally::default() },
            ..Score::default()
        };
        let told = refuses_little(Method::Detector, of(2), of(5)).unwrap();
        assert!(told.contains("only 5/64"), "{told}");
        assert!(refuses_little(Method::Detector, of(2), of(14)).is_some());
        assert!(refuses_little(Method::Detector, of(20), of(26)).is_some());
        assert_eq!(refuses_little(Method::Detector, of(20), of(31)), None);
        assert_eq!(refuses_little(Method::Detector, of(2), of(32)), None);
        assert_eq!(refuses_little(Method::Contrast, of(2), of(5)), None);
    }

    #[test]
    fn what_broke_a_limit_is_told_beside_the_base() {
        let of = |refused| Tally { refused, complied: 48 - refused, ..Tally::default() };
        let base = Score { harmful: of(3), harmless: of(0), borderline: of(1), kl: 0.0 };
        let edited = Score { harmful: of(34), harmless: of(4), borderline: of(7), kl: 0.0459 };
        assert_eq!(
            beside(&edited, &base),
            "; the best edit refused 34 of them, but also 4/48 harmless and 7/48 borderline prompts \
             (base: 0/48 harmless and 1/48 borderline), at a KL of 0.046"
        );
    }
}
