//! Looking into the model: does it refuse, along what, and which edit is best.

use crate::commands::levers::{self, Levers, Offer};
use crate::commands::material::{self, Material};
use crate::commands::session::Opened;
use crate::direction::{self, Along, SafetyDirection};
use crate::edit::{Edit, EditError};
use crate::error::Error;
use crate::evaluate::stats::Proportion;
use crate::evaluate::{Examination, Examiner, FEW, Questions, Score, Tally};
use crate::llama::{Engine, LlamaEngine, LlamaError, RankOne, adapter};
use crate::options::InjectOptions;
use crate::output::Printer;
use crate::plan::{Plan, ResidualWriter};
use crate::prompts::{PromptSet, Split};
use crate::scar::Scar;
use crate::search::journal::Journal;
use crate::search::{Allowed, Candidate, KlBudget, Lever, Probe, Refusal, Search, SearchResult, Trial};

/// Most harmful, harmless and alarming prompts of a trial. Of fewer, strengths that differ by eight harmful
/// prompts in a hundred looked alike (docs/method.md).
pub(super) const SEARCH_PROMPTS: [usize; 3] = [96; 3];

/// What was found out about a model.
pub struct Study {
    /// What edits are made of.
    pub material: Material,
    /// Along what.
    pub levers: Levers,
    /// What was removed from the weights before, where the weights were looked at.
    pub scar: Option<Scar>,
    /// Every trial.
    pub search: SearchResult,
    /// The edit that is written.
    pub chosen: Chosen,
    /// `none`, `safety` or `user`: the system prompt of the chosen direction.
    pub system_prompt: &'static str,
}

/// The choice of a search, or of the user.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chosen {
    /// Which edit.
    pub candidate: Candidate,
    /// Relative Frobenius change.
    pub strength: f64,
}

/// The edits as adapters, without the writers to which llama.cpp applies none.
///
/// # Errors
/// [`LlamaError::EditShape`], which llama.cpp would partly answer with a crash.
pub fn adapters(plan: &Plan, edits: &[Edit]) -> Result<Vec<RankOne>, LlamaError> {
    let applied = edits.iter().map(|e| (e, &plan.writers[e.writer])).filter(|(_, writer)| writer.lora);
    let checked = |(edit, writer): (&Edit, &ResidualWriter)| {
        let rank_one = edit.to_rank_one();
        rank_one.check(writer.n_in, writer.n_out).map(|()| rank_one)
    };
    applied.map(checked).collect()
}

/// The same as a file for `llama-server --lora`.
///
/// # Errors
/// As [`adapters`].
pub fn adapter_file(plan: &Plan, edits: &[Edit]) -> Result<Vec<u8>, LlamaError> {
    adapter::to_gguf(&plan.architecture, &adapters(plan, edits)?)
}

impl Study {
    /// Runs the whole study on a loaded model, taking from the journal what is in it already.
    pub fn new(
        opened: &Opened,
        (engine, journal): (&mut LlamaEngine, &mut Journal),
        prompts: &PromptSet,
        options: &InjectOptions,
        printer: &Printer,
    ) -> Result<Self, Error> {
        let scar = levers::find_scar(opened, options, printer)?;
        let found = scar.clone();
        let bar = printer.bar("asking the base model", 1);
        let questions = Questions::of(prompts, Split::Search, SEARCH_PROMPTS);
        let (mut examiner, base) = Examiner::new(engine, questions)?;
        drop(bar);
        printer.say(format!(
            "base model: {} harmful prompts refused (search split)",
            base.score.harmful.refused()
        ));
        let offer = Offer::of(engine, (&mut examiner, &base), scar, (options, printer))?;
        if examiner.shorten(&base) {
            printer.detail("  short answers tell as much: trials ask for these");
        }
        check_layer(options, opened.plan.n_layer)?;
        let how = (options, offer.scar.is_some());
        let (mut material, shown) = Material::collect(opened, (engine, &examiner), prompts, how, printer)?;
        if let Some(path) = &options.imatrix {
            material.mix(path, &opened.plan, printer)?;
        }
        let mut levers = Levers::collect(opened, engine, prompts, (&offer, shown), (options, printer))?;
        let maker = Maker { opened, material: &material, options };
        if let Some(scar) = &offer.scar {
            let way = maker.turn(engine, &mut examiner, levers.ways(scar)?, printer)?;
            levers.set_scar(way);
        }
        let search = maker.search((engine, journal), (&examiner, base.score), &levers, printer)?;
        let Trial { candidate, strength, .. } = choose_trial(&search, &base, options)?;
        let chosen = Chosen { candidate, strength };
        let system_prompt = offer.system_prompt(candidate.lever);
        Ok(Self { material, levers, scar: found, search, chosen, system_prompt })
    }

    /// What the chosen edit is along.
    pub fn along(&self) -> Along<'_> {
        self.levers.along(&self.chosen.candidate)
    }

    /// The direction of the chosen layer.
    pub fn direction(&self) -> &SafetyDirection {
        self.along().at(self.chosen.candidate.layer)
    }

    /// The chosen edit of every writer.
    pub fn edits(&self, plan: &Plan) -> Result<Vec<Edit>, EditError> {
        self.material.edits(plan, &self.chosen.candidate, (self.along(), self.chosen.strength))
    }

    /// The same edit along a random direction: the control.
    pub fn random_edits(&self, plan: &Plan, seed: u64) -> Result<Vec<Edit>, Error> {
        let random = direction::random(self.chosen.candidate.layer, plan.n_embd as usize, seed)?;
        Ok(self.material.edits(plan, &self.chosen.candidate, (Along::One(&random), self.chosen.strength))?)
    }
}

/// Makes the edits that are tried.
struct Maker<'a> {
    opened: &'a Opened,
    material: &'a Material,
    options: &'a InjectOptions,
}

impl Maker<'_> {
    /// The adapters of `candidate` at `strength`.
    fn adapters(
        &self,
        candidate: &Candidate,
        along: Along<'_>,
        strength: f64,
    ) -> Result<Vec<RankOne>, Error> {
        let edits = self.material.edits(&self.opened.plan, candidate, (along, strength))?;
        Ok(adapters(&self.opened.plan, &edits)?)
    }

    /// Of the `ways` in which a scar can be pushed, the one along which the model refuses the most harmful
    /// prompts. Teaches `examiner` how the refusals begin that come back: the base may have none.
    fn turn(
        &self,
        engine: &mut LlamaEngine,
        examiner: &mut Examiner,
        ways: Vec<Vec<SafetyDirection>>,
        printer: &Printer,
    ) -> Result<Vec<SafetyDirection>, Error> {
        let bar = printer.bar("finding the side of refusal", ways.len() as u64);
        let few = examiner.part(FEW);
        let space = material::space_of(self.options, Lever::Scar);
        let candidate = Candidate {
            lever: Lever::Scar,
            layer: 0,
            window: space.windows[0],
            contrast: space.contrasts[0],
        };
        let mut best: Option<(u64, Vec<SafetyDirection>)> = None;
        for (i, way) in ways.into_iter().enumerate() {
            let edits = |strength| self.adapters(&candidate, Along::Layers(&way), strength);
            edits(1.0)?; // what can fail does so at every strength
            let make = |strength: f64| edits(strength).unwrap_or_default();
            let max_kl = self.options.search.allowed(Refusal::Removed).max_kl;
            let strength = match self.options.search.strength {
                Some(strength) => strength,
                None => KlBudget { engine, examiner: &few, max_kl }.strength(&make, space.first_strength)?,
            };
            engine.apply(&make(strength))?;
            let refused = examiner.learn_openings(engine, None)?.refused;
            printer.detail(format!("  scar way {i} strength {strength:.4}: {refused} harmful refused"));
            if best.as_ref().is_none_or(|(most, _)| refused > *most) {
                best = Some((refused, way));
            }
            bar.set(i as u64 + 1);
        }
        engine.apply(&[])?;
        Ok(best.map(|(_, way)| way).unwrap_or_default())
    }

    fn search(
        &self,
        (engine, journal): (&mut LlamaEngine, &mut Journal),
        (examiner, base): (&Examiner, Score),
        levers: &Levers,
        printer: &Printer,
    ) -> Result<SearchResult, Error> {
        let spaces = levers.spaces(self.options);
        let edits =
            |candidate: &Candidate, strength| self.adapters(candidate, levers.along(candidate), strength);
        for space in &spaces {
            let (lever, layer) = (space.lever, space.layer.unwrap_or(0));
            let first = Candidate { lever, layer, window: space.windows[0], contrast: space.contrasts[0] };
            edits(&first, 1.0)?; // what can fail does so for every layer and strength alike
        }
        let make = |candidate: &Candidate, strength| edits(candidate, strength).unwrap_or_default();
        let options = self.options.search;
        let few = &examiner.part(FEW);
        let search =
            Search { engine, examiner, few, base, make_edits: &make, options, spaces: &spaces, journal };
        run_search(search, self.opened.plan.n_layer, printer)
    }
}

fn check_layer(options: &InjectOptions, n_layer: usize) -> Result<(), Error> {
    match options.search.layer {
        Some(layer) if layer >= n_layer => Err(Error::Option {
            flag: "--layer",
            problem: format!("the model has layers 0 to {}, found {layer}", n_layer - 1),
            hint: None,
        }),
        _ => Ok(()),
    }
}

fn run_search(mut search: Search<'_>, n_layer: usize, printer: &Printer) -> Result<SearchResult, Error> {
    let bar = printer.bar("searching", 9);
    Ok(search.run(n_layer, &mut |result, total| {
        bar.set_of((result.probes.len() + result.trials.len()) as u64, total as u64);
        match (result.trials.last(), result.probes.last()) {
            (Some(trial), _) => {
                printer.detail(describe_trial(trial));
                let best = result.best().map_or("none yet".into(), |t| {
                    let refused: Proportion = t.score.harmful.refused();
                    format!("{}/{} at layer {}", refused.count, refused.total, t.candidate.layer)
                });
                bar.note(&format!("trial {}: best {best}", result.trials.len()));
            }
            (None, Some(probe)) => {
                printer.detail(describe_probe(probe));
                bar.note(&format!("comparing edits: {}", result.probes.len()));
            }
            _ => {}
        }
    })?)
}

fn describe(candidate: &Candidate) -> String {
    let (from, until) = candidate.window;
    let Candidate { lever, layer, contrast, .. } = *candidate;
    format!("{} layer {layer:2} window {from:.1}-{until:.1} contrast {contrast:.1}", lever.name())
}

fn describe_probe(p: &Probe) -> String {
    let quick = p.quick.map_or(String::new(), |q| {
        format!(
            ": first tokens harmful {:.3} harmless {:.3} alarming {:.3}",
            q.harmful, q.harmless, q.alarming
        )
    });
    format!("  probe {} strength {:.4}{quick} utility {:+.3}", describe(&p.candidate), p.strength, p.utility)
}

fn describe_trial(t: &Trial) -> String {
    format!(
        "  trial {} strength {:.4}: harmful {} harmless {} alarming {} broken {} KL {:.4} utility {:+.3}{}",
        describe(&t.candidate),
        t.strength,
        t.score.harmful.refused,
        t.score.harmless.refused,
        t.score.alarming.refused,
        t.score.broken().count,
        t.score.kl,
        t.utility,
        match (t.stopped, t.accepted) {
            (true, _) => " at most: ended",
            (false, true) => "",
            (false, false) => ", over a limit",
        }
    )
}

/// The best accepted trial; with `--force` the most useful one when none was accepted.
fn choose_trial(search: &SearchResult, base: &Examination, options: &InjectOptions) -> Result<Trial, Error> {
    if let Some(best) = search.best() {
        return Ok(*best);
    }
    // With `--force` none was stopped.
    let whole = search.trials.iter().filter(|t| !t.stopped);
    let most = whole.max_by(|a, b| a.utility.total_cmp(&b.utility));
    if let Some(trial) = most.filter(|_| options.force) {
        return Ok(*trial);
    }
    let refusal = Refusal::of(search.probes.iter().map(|probe| probe.candidate.lever));
    let Allowed { max_kl, max_false_refusal } = options.search.allowed(refusal);
    Err(Error::NoGain {
        trials: search.trials.len(),
        base: base.score.harmful.refused().to_string(),
        max_kl,
        max_false_refusal,
        best: most.map_or_else(String::new, |trial| beside(&trial.score, &base.score)),
    })
}

/// What an edit that broke a limit did, for the error.
fn beside(edited: &Score, base: &Score) -> String {
    let counts = |score: &Score| {
        let refused = |tally: Tally| format!("{}/{}", tally.refused, tally.total());
        format!("{} harmless and {} alarming", refused(score.harmless), refused(score.alarming))
    };
    let Tally { refused, .. } = edited.harmful;
    format!(
        "; the best of them refused {refused} of these, but {} prompts (base: {}), at a KL of {:.3}",
        counts(edited),
        counts(base),
        edited.kl
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_broke_a_limit_is_told_beside_the_base() {
        let of = |refused| Tally { refused, complied: 48 - refused, broken: 0 };
        let base = Score { harmful: of(3), harmless: of(0), alarming: of(1), kl: 0.0 };
        let edited = Score { harmful: of(34), harmless: of(4), alarming: of(7), kl: 0.0459 };
        assert_eq!(
            beside(&edited, &base),
            "; the best of them refused 34 of these, but 4/48 harmless and 7/48 alarming prompts (base: 0/48 harmless and \
             1/48 alarming), at a KL of 0.046"
        );
    }
}
