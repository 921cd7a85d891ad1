//! Phase 1 as a whole: the teachers it may go on with, and which one it takes.

use super::gate::{Expect, Kin, Verdict};
use super::observer::Phase;
use super::pass::{Answers, Network};
use super::report::{AdaptedBy, CandidateFigures};
use super::stages::Stages;
use super::survey::Survey;
use super::target::ImageSet;
use super::teacher_phase::TeacherPhase;
use crate::Result;
use crate::model::{Mode, Params};

/// The adapted teacher and what is known of it.
pub(super) struct Adapted {
    pub params: Params,
    pub by: AdaptedBy,
    pub verdict: Verdict,
    pub answers: Answers,
}

impl Adapted {
    fn figures(&self, images: &ImageSet) -> Result<CandidateFigures> {
        Ok(CandidateFigures { by: self.by, accuracy: self.answers.accuracy(images)?, gate: self.verdict.clone() })
    }
}

impl Stages<'_> {
    /// Phase 1. Goes on with the trained teacher if the gate lets it, else with the steadier of source and, if the gate lets
    /// them, target statistics.
    pub fn adapt_teacher(&mut self, params: Params, before: &Answers) -> Result<Adapted> {
        let context = self.context;
        let mut adapted = match (self.past(Phase::Teacher), self.driver.adapted_by) {
            (Some(checkpoint), Some(by)) => {
                let params = checkpoint.tensors.get("adapted", context.device)?;
                let answers = context.answer(&context.teacher.graph, &params)?;
                let figures = self.driver.candidates.iter().find(|c| c.by == by);
                let verdict = match figures {
                    Some(figures) => figures.gate.clone(),
                    None => context.judge(Expect::BetterAnswers, &answers, before)?,
                };
                vec![Adapted { params, by, verdict, answers }]
            }
            _ => self.candidates(params, before)?,
        };
        if self.driver.candidates.is_empty() {
            self.driver.candidates = adapted.iter().map(|c| c.figures(context.images)).collect::<Result<_>>()?;
        }
        let accepted = |by: AdaptedBy| adapted.iter().position(|c| c.by == by && c.verdict.accepted);
        let prefers_source = self.driver.survey.as_ref().is_none_or(|survey| survey.prefers_source());
        let untrained = || accepted(AdaptedBy::Statistics).filter(|_| !prefers_source);
        let best = accepted(AdaptedBy::Training).or_else(untrained);
        let adapted = adapted.swap_remove(best.unwrap_or(0));
        self.driver.adapted_by = Some(adapted.by);
        self.driver.carried.put("adapted", adapted.params.clone());
        Ok(adapted)
    }

    fn candidates(&mut self, params: Params, before: &Answers) -> Result<Vec<Adapted>> {
        let context = self.context;
        let graph = &context.teacher.graph;
        self.note("batch-norm statistics of the target")?;
        let statistics = context.with_statistics(Network { graph, params: &params }, &context.train)?;
        let source = Adapted {
            params: params.clone(),
            by: AdaptedBy::Source,
            verdict: context.judge(Expect::BetterAnswers, before, before)?,
            answers: before.clone(),
        };
        self.note("the teacher answers with statistics of the target")?;
        let target = self.candidate(AdaptedBy::Statistics, statistics.clone(), Expect::BetterAnswers, before)?;
        // A resumed training goes on as it began.
        let survey = match self.driver.survey.take() {
            Some(survey) => survey,
            None => {
                self.note("the teacher answers changed images")?;
                Survey::new(context, (&source.params, &source.answers), (&target.params, &target.answers))?
            }
        };
        let mut candidates = vec![source, target];
        log::info!(
            "the teacher as it came source_stability={:.3} target_stability={:.3} images={} source_diversity={:.2} \
             target_diversity={:.2}",
            survey.source_stability,
            survey.target_stability,
            survey.images,
            survey.source_diversity,
            survey.target_diversity
        );
        self.driver.survey = Some(survey.clone());
        if let Some(rare) = self.rare_classes() {
            log::warn!("{rare}: unless training repairs more than may be lost with them, the student will be refused");
        }
        // The classifier is frozen in this phase: with nothing else to train there is nothing to do.
        if context.config.teacher.steps > 0 && !context.config.train.is_classifier_alone() {
            let own = survey.trains_by_source();
            log::info!("training normalises by statistics of={}", if own { "the source" } else { "each batch" });
            let (from, mode) = if own { (&params, Mode::Eval) } else { (&statistics, Mode::Train) };
            let mut phase = TeacherPhase::new(context, from, mode)?;
            self.drive(Phase::Teacher, context.config.teacher.steps, &mut phase)?;
            let trained = phase.into_params()?;
            let trained = if own {
                trained
            } else {
                context.with_statistics(Network { graph, params: &trained }, &context.train)?
            };
            let statistics = &context.testimony(&candidates[1].answers)?;
            let (steadier, stability) = (!survey.source_is_steadier(), survey.stability());
            let expect = Expect::Kinship(Kin { statistics, steadier, stability });
            candidates.push(self.candidate(AdaptedBy::Training, trained, expect, before)?);
        }
        Ok(candidates)
    }

    fn candidate(&self, by: AdaptedBy, params: Params, expect: Expect, before: &Answers) -> Result<Adapted> {
        let answers = self.context.answer(&self.context.teacher.graph, &params)?;
        let verdict = self.context.judge(expect, &answers, before)?;
        log::info!("adapted teacher candidate by={by:?} accepted={} {}", verdict.accepted, verdict.reason);
        Ok(Adapted { params, by, verdict, answers })
    }
}
