//! The stages of a run, each fresh or from a checkpoint.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::checkpoint::{Checkpoint, Progress, RunIdentity, Sections};
use super::drive::{Driver, Loaders, Steps};
use super::finetune_phase::FineTunePhase;
use super::latency::{CANDIDATES, LatencyTable, Search, TableIdentity, is_disturbed};
use super::mask_phase::MaskPhase;
use super::observer::{Observer, Phase};
use super::pass::{Answers, Network};
use super::ranking::ONLY;
use super::rare::RareClasses;
use super::removal::Remains;
use super::removal_phase::RemovalPhase;
use super::report::{CandidateFigures, GroupWidth, PhaseReport};
use super::run::{Context, Job};
use super::survey::Survey;
use super::teacher_choice::Adapted;
use crate::graph::Graph;
use crate::model::Params;
use crate::prune::{Admm, Measure, Selector, surgery};
use crate::{Error, Result};

/// The student after surgery and fine-tuning.
pub(super) struct Pruned {
    pub graph: Graph,
    pub params: Params,
    pub keep: Vec<bool>,
    pub surgery_difference: f32,
}

pub(super) struct Stages<'a> {
    pub context: &'a Context<'a>,
    pub(super) driver: Driver<'a>,
    resumed: Option<Checkpoint>,
}

impl<'a> Stages<'a> {
    /// # Errors
    /// [`Error::Config`] if the checkpoint to resume belongs to another run.
    pub fn new(job: &'a Job, context: &'a Context<'a>, observer: &'a mut dyn Observer) -> Result<Self> {
        let identity = RunIdentity {
            teacher_sha256: job.teacher.sha256.clone(),
            data_sha256: job.target.digest(),
            config: serde_json::json!(job.config),
        };
        let resumed = match (&job.safety.checkpoint, job.resume) {
            (Some(path), true) => {
                let checkpoint = Checkpoint::load(path)?;
                checkpoint.check(path, &identity)?;
                let Progress { phase, step, wall_s, .. } = &checkpoint.progress;
                log::info!("resumed phase={} step={step} earlier_s={wall_s:.0} path={}", phase.name(), path.display());
                Some(checkpoint)
            }
            (None, true) => return Err(Error::Usage("resume: no checkpoint file was named".into())),
            (_, false) => None,
        };
        let progress = resumed.as_ref().map(|c| &c.progress);
        let driver = Driver {
            observer,
            safety: job.safety,
            identity,
            reports: progress.map(|p| p.reports.clone()).unwrap_or_default(),
            adapted_by: progress.and_then(|p| p.adapted_by),
            candidates: progress.map(|p| p.candidates.clone()).unwrap_or_default(),
            survey: progress.and_then(|p| p.survey.clone()),
            latency: progress.and_then(|p| p.latency.clone()),
            carried: Sections::default(),
            started: Instant::now(),
            earlier_s: progress.map_or(0.0, |p| p.wall_s),
        };
        Ok(Self { context, driver, resumed })
    }

    /// Announces work outside the phases' steps, unless the run shall stop.
    ///
    /// # Errors
    /// [`Error::Interrupted`] after a requested stop; the last checkpoint holds all that can be gone on from.
    pub fn note(&mut self, text: &str) -> Result<()> {
        self.driver.safety.go_on(&format!("before: {text}"))?;
        self.driver.observer.note(text);
        Ok(())
    }

    pub fn identity(&self) -> &RunIdentity {
        &self.driver.identity
    }

    pub fn wall_s(&self) -> f64 {
        self.driver.wall_s()
    }

    /// What was measured for a budget of latency.
    pub fn latency(&self) -> Option<&LatencyTable> {
        self.driver.latency.as_ref()
    }

    pub fn reports(&self) -> &[PhaseReport] {
        &self.driver.reports
    }

    pub fn candidate_figures(&self) -> &[CandidateFigures] {
        &self.driver.candidates
    }

    pub fn survey(&self) -> Option<&Survey> {
        self.driver.survey.as_ref()
    }

    /// Which classes hardly come, if any do.
    pub fn rare_classes(&self) -> Option<RareClasses<'_>> {
        let Context { teacher, config, images, .. } = self.context;
        let (names, least) = (&teacher.info.class_names, config.gate.min_class_share);
        RareClasses::of(&self.survey()?.class_shares, names, images.good().len(), least)
    }

    /// The checkpoint, if it lies behind `phase`: the phase is over.
    pub(super) fn past(&self, phase: Phase) -> Option<&Checkpoint> {
        self.resumed.as_ref().filter(|c| c.progress.phase > phase)
    }

    /// What chooses the channels that stay, if some have to go. For a budget of latency, what networks take on this device
    /// is measured now, unless it is known.
    ///
    /// # Errors
    /// [`Error::Config`] if the budget is out of reach, or one of latency where the engine does not run;
    /// [`Error::Interrupted`] after a requested stop.
    pub fn selector(&mut self) -> Result<Option<Selector<'a>>> {
        let context = self.context;
        let Some(budget) = context.config.budget else { return Ok(None) };
        let (graph, groups) = (&context.teacher.graph, context.groups);
        let model = match budget.measure {
            Measure::Latency => Some(self.measured_latency()?.model(graph)?),
            _ => None,
        };
        Selector::with_latency(graph, groups, budget, &context.config.limits, model).map(Some)
    }

    fn measured_latency(&mut self) -> Result<&LatencyTable> {
        let Context { config, teacher, groups, latency_table, device, .. } = self.context;
        if !device.is_cpu() {
            return Err(Error::Config("budget latency: expected --device cpu, where the engine runs".into()));
        }
        let identity = TableIdentity::here(&teacher.graph, config.precision, config.scope);
        let stored = match latency_table.map(|path| LatencyTable::load(path, &identity)) {
            Some(Err(error @ Error::Config(_))) => {
                log::warn!("{error}; measuring anew");
                None
            }
            loaded => loaded.transpose()?.flatten(),
        };
        let known = match self.driver.latency.take() {
            Some(table) if table.identity != identity => {
                let TableIdentity { device, isa, threads, .. } = table.identity;
                return Err(Error::Config(format!(
                    "resume: latency was measured on {device} with {isa} and {threads} threads, expected {} with {} and \
                     {}",
                    identity.device, identity.isa, identity.threads
                )));
            }
            // The file may know more networks than the checkpoint, if it has the same layers.
            Some(table) => stored.filter(|stored| stored.networks == table.networks).or(Some(table)),
            None => stored,
        };
        let table = match known {
            Some(table) => table,
            None => {
                self.note("latency of layers in many widths on this device")?;
                let Driver { observer, safety, .. } = &mut self.driver;
                let table = LatencyTable::measure(&teacher.graph, groups, identity, &mut |part| {
                    if safety.stop.load(Ordering::Relaxed) {
                        return Err(Error::Interrupted("stopped while latency was measured; start anew".into()));
                    }
                    observer.work("latency", part);
                    Ok(())
                })?;
                if let Some(path) = latency_table {
                    table.save(path)?;
                    log::info!("latency table written path={}", path.display());
                }
                table
            }
        };
        Ok(self.driver.latency.insert(table))
    }

    /// Runs `phase` to its end, from where a checkpoint left it.
    pub(super) fn drive(&mut self, phase: Phase, steps: usize, work: &mut impl Steps) -> Result<()> {
        let context = self.context;
        let (mut from, mut states) = (0, None);
        // Taken, for a limit on memory has no room for a second copy of everything.
        if let Some(Checkpoint { progress, tensors }) = self.resumed.take_if(|c| c.progress.phase == phase) {
            work.load(&tensors)?;
            (from, states) = (progress.step, Some((progress.loader, progress.source_loader)));
        }
        let sets = (context.images, context.train.as_slice(), context.source);
        let loaders = Loaders::new(sets, &context.teacher.info.preprocess, context.config, phase, states)?;
        self.driver.drive(phase, from..steps, work, loaders)
    }

    /// Phases 2 and 3.
    pub fn prune(&mut self, selector: &mut Selector, adapted: &Adapted) -> Result<Pruned> {
        let context = self.context;
        let Remains { graph, params, keep, surgery_difference, .. } = self.remove(selector, adapted)?;
        let cost = graph.cost();
        let show = |amount| selector.budget().measure.show(amount);
        log::info!(
            "channels removed budget_left={:?} of={:?} macs={} params={} logit_difference={surgery_difference:e}",
            show(selector.measure(&keep)?),
            show(selector.full()),
            cost.macs,
            cost.params
        );
        self.driver.observer.channels(&GroupWidth::all(context.groups, &keep));
        let mut phase = FineTunePhase::new(context.setting(), &graph, &params, &adapted.answers)?;
        self.drive(Phase::FineTune, context.config.fine_tune.steps, &mut phase)?;
        self.note("batch-norm statistics of the student")?;
        let tuned = phase.into_params()?;
        let params = context.with_statistics(Network { graph: &graph, params: &tuned }, &context.train)?;
        Ok(Pruned { graph, params, keep, surgery_difference })
    }

    /// Phase 2: the network without the channels that the budget has no room for.
    fn remove(&mut self, selector: &mut Selector, adapted: &Adapted) -> Result<Remains> {
        let context = self.context;
        let remains = match self.past(Phase::Prune) {
            Some(Checkpoint { tensors, .. }) => {
                Remains::load(context, tensors, tensors.get("removed", context.device)?)?
            }
            None => {
                let mask = &context.config.mask;
                let whole = Remains::whole(context, adapted.params.clone());
                self.note("importance of every channel")?;
                if mask.admp {
                    let rank = whole.rank(context, &adapted.answers, ONLY)?;
                    let mut phase =
                        MaskPhase::new(context.setting(), &adapted.params, selector, rank, &adapted.answers)?;
                    self.drive(Phase::Prune, mask.steps, &mut phase)?;
                    let (params, mut admm) = phase.finish()?;
                    let masked = Remains { params, ..whole };
                    let keep = self.harden(&mut admm, selector, &masked)?;
                    masked.cut(context, &keep)?
                } else {
                    let round = if mask.steps == 0 { ONLY } else { mask.rounds };
                    let left = self.rounds(selector, whole, &adapted.answers)?;
                    let rank = left.rank(context, &adapted.answers, round)?;
                    let mut last = selector.within(&left.graph, &left.groups)?;
                    let mut admm = Admm::at_rank(rank, mask.admm.clone(), &last)?;
                    let keep = self.harden(&mut admm, &mut last, &left)?;
                    let left = left.cut(context, &keep)?;
                    left.tell(context, mask.all_rounds())?;
                    left
                }
            }
        };
        remains.save(&mut self.driver.carried)?;
        self.driver.carried.put("removed", remains.params.clone());
        Ok(remains)
    }

    /// All rounds of removal but the last, and the updates after them.
    fn rounds(&mut self, selector: &Selector, whole: Remains, teacher: &Answers) -> Result<Remains> {
        let steps = self.context.config.mask.steps;
        if steps == 0 {
            return Ok(whole);
        }
        let mut phase = RemovalPhase::new(self.context, selector, whole, teacher)?;
        self.drive(Phase::Prune, steps, &mut phase)?;
        phase.trained()
    }

    /// The final mask of `network`. Where the budget is latency, what it leaves is measured and the prediction corrected,
    /// before fine-tuning starts.
    fn harden(&mut self, admm: &mut Admm, selector: &mut Selector, network: &Remains) -> Result<Vec<bool>> {
        let context = self.context;
        let mut keep = admm.harden(selector)?;
        if selector.limit(1.0) >= selector.full() {
            return Ok(keep);
        }
        let Some(mut table) = self.driver.latency.take() else { return Ok(keep) };
        let goal_ms = selector.limit(1.0) as f64 / 1e6;
        let (mut search, mut best) = (Search::default(), (f64::INFINITY, keep.clone()));
        for _ in 0..CANDIDATES {
            let (graph, params) = surgery::compact(&network.graph, &network.groups, &keep, &network.params)?;
            let predicted = selector.measure(&keep)?;
            let safety = self.driver.safety;
            let mut go_on = || safety.go_on("while the student was timed");
            let measured = table.candidate(&graph, &params, predicted, &mut go_on)?;
            let [ms, predicted_ms] = [measured, predicted].map(|ns| ns as f64 / 1e6);
            log::info!("latency budget_ms={goal_ms:.3} predicted_ms={predicted_ms:.3} measured_ms={ms:.3}");
            if is_disturbed(measured, predicted) {
                log::warn!("other work disturbs the measurement, so the prediction stands");
                break;
            }
            let miss = Search::miss(ms / goal_ms);
            if miss < best.0 {
                best = (miss, keep.clone());
            }
            let Some(factor) = search.correction(ms / goal_ms, ms / predicted_ms) else { break };
            selector.correct_latency(factor);
            let next = admm.harden_again(selector)?;
            if next == keep {
                break;
            }
            keep = next;
        }
        if let Some(path) = context.latency_table {
            table.save(path)?;
        }
        self.driver.latency = Some(table);
        Ok(best.1)
    }
}
