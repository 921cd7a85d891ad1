//! The loop every phase runs in: batches, progress, checkpoints, interruption.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::checkpoint::{Checkpoint, Progress, RunIdentity, Sections};
use super::config::AdaptConfig;
use super::latency::LatencyTable;
use super::observer::{Metrics, Observer, Phase};
use super::report::{AdaptedBy, CandidateFigures, PhaseReport};
use super::survey::Survey;
use super::target::ImageSet;
use crate::data::{Batch, LoaderConfig, LoaderState, Preprocess, TrainLoader, Transform};
use crate::rng::mix;
use crate::{Error, Result};

/// When and where checkpoints are written, and who may stop the run.
#[derive(Debug, Clone)]
pub struct Safety {
    /// The checkpoint file; `None` writes none.
    pub checkpoint: Option<PathBuf>,
    /// Time between two checkpoints.
    pub every: Duration,
    /// Set from outside to stop after the step or batch in progress.
    pub stop: Arc<AtomicBool>,
}

impl Default for Safety {
    fn default() -> Self {
        Self { checkpoint: None, every: Duration::from_secs(120), stop: Arc::default() }
    }
}

impl Safety {
    /// Fails once the run shall stop: `at` says where that is, outside the phases' steps.
    ///
    /// # Errors
    /// [`Error::Interrupted`]; the last checkpoint holds all that can be gone on from.
    pub(super) fn go_on(&self, at: &str) -> Result<()> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(Error::Interrupted(format!("stopped {at}; go on with --resume"))),
            false => Ok(()),
        }
    }
}

/// The work of a phase.
pub(super) trait Steps {
    /// One update on a target batch and, with source replay, a labelled source batch. If it is [`Error::Interrupted`], the
    /// state is as it was before.
    fn step(&mut self, step: usize, batch: &Batch, source: Option<&Batch>) -> Result<Metrics>;

    /// Adds the state to go on from after the last step.
    fn save(&self, into: &mut Sections) -> Result<()>;

    /// Takes the state up again.
    fn load(&mut self, from: &Sections) -> Result<()>;
}

/// Where the loaders of a phase are, target and source.
type LoaderStates = (LoaderState, Option<LoaderState>);

/// Batches of a phase.
pub(super) struct Loaders {
    target: TrainLoader,
    source: Option<TrainLoader>,
}

impl Loaders {
    /// Loaders of `phase`, fresh or from a checkpoint's states.
    pub fn new(
        sets: (&ImageSet, &[usize], Option<&ImageSet>),
        preprocess: &Preprocess,
        config: &AdaptConfig,
        phase: Phase,
        resumed: Option<LoaderStates>,
    ) -> Result<Self> {
        let (target, train, source) = sets;
        let seed = mix(config.seed ^ (phase as u64 + 1).wrapping_mul(0x9E37_79B9));
        let fresh = (LoaderState::new(seed), source.map(|_| LoaderState::new(mix(seed))));
        let (target_state, source_state) = resumed.unwrap_or(fresh);
        let transform = Transform::Train(preprocess.clone(), config.augment.clone());
        let loader = LoaderConfig { batch_size: config.batch_size, ..LoaderConfig::default() };
        let source = match (source, source_state) {
            (Some(set), Some(state)) => {
                let labelled = set.good().iter().copied().filter(|&i| set.label(i).is_some()).collect();
                Some(TrainLoader::new(set.subset(labelled)?, transform.clone(), loader.clone(), state)?)
            }
            _ => None,
        };
        let target = TrainLoader::new(target.subset(train.to_vec())?, transform, loader, target_state)?;
        Ok(Self { target, source })
    }

    fn states(&self) -> LoaderStates {
        (self.target.state(), self.source.as_ref().map(TrainLoader::state))
    }
}

/// A run in progress.
pub(super) struct Driver<'a> {
    pub observer: &'a mut dyn Observer,
    pub safety: &'a Safety,
    pub identity: RunIdentity,
    pub reports: Vec<PhaseReport>,
    /// What phase 1 ended with, once it has.
    pub adapted_by: Option<AdaptedBy>,
    /// What phase 1 chose among.
    pub candidates: Vec<CandidateFigures>,
    /// What phase 1 found out before training, once it has.
    pub survey: Option<Survey>,
    /// What was measured for a budget of latency.
    pub latency: Option<LatencyTable>,
    /// Tensors later phases need, saved with every checkpoint.
    pub carried: Sections,
    pub started: Instant,
    /// Seconds of work before a resume.
    pub earlier_s: f64,
}

impl Driver<'_> {
    /// Seconds of work so far, earlier sittings included.
    pub fn wall_s(&self) -> f64 {
        self.earlier_s + self.started.elapsed().as_secs_f64()
    }

    /// Runs steps `from..steps` of `phase`.
    ///
    /// # Errors
    /// [`Error::Interrupted`] after a requested stop, within a step too, with the state saved; [`Error::Numeric`] if a metric is not
    /// finite: the last checkpoint stays as it was.
    pub fn drive(
        &mut self,
        phase: Phase,
        range: std::ops::Range<usize>,
        work: &mut dyn Steps,
        mut loaders: Loaders,
    ) -> Result<()> {
        self.observer.phase(phase, range.start, range.end);
        let mut report = match self.reports.pop_if(|r| r.phase == phase) {
            Some(report) => report,
            None => PhaseReport::new(phase),
        };
        let (earlier_s, begun) = (report.wall_s, Instant::now());
        let mut saved = Instant::now();
        if !range.is_empty() {
            self.save((phase, range.start), work, loaders.states(), &report)?;
        }
        for step in range.clone() {
            let states = loaders.states();
            let batch = loaders.target.next_batch()?;
            let source = loaders.source.as_mut().map(TrainLoader::next_batch).transpose()?;
            let metrics = match work.step(step, &batch, source.as_ref()) {
                Err(Error::Interrupted(_)) => {
                    self.save((phase, step), work, states, &report)?;
                    return Err(self.stopped(phase, step));
                }
                metrics => metrics?,
            };
            if let Some((name, value)) = metrics.iter().find(|(_, value)| !value.is_finite()) {
                return Err(Error::Numeric(format!(
                    "{}: step {step}: {name} is {value}; nothing after the last checkpoint is kept; try a lower \
                     learning rate",
                    phase.name()
                )));
            }
            report.record(step, &metrics);
            report.wall_s = earlier_s + begun.elapsed().as_secs_f64();
            self.observer.step(phase, step, &metrics);
            let stop = self.safety.stop.load(Ordering::Relaxed);
            // After the last step, too: what follows may take long, and there is nothing in it to save.
            if stop || step + 1 == range.end || saved.elapsed() >= self.safety.every {
                self.save((phase, step + 1), work, loaders.states(), &report)?;
                saved = Instant::now();
            }
            if stop {
                return Err(self.stopped(phase, step + 1));
            }
        }
        self.reports.push(report);
        Ok(())
    }

    fn stopped(&self, phase: Phase, steps: usize) -> Error {
        let saved_to = match &self.safety.checkpoint {
            Some(path) => format!("go on with --resume (checkpoint {})", path.display()),
            None => "no checkpoint file was asked for".to_string(),
        };
        Error::Interrupted(format!("stopped in phase {} after step {steps}; {saved_to}", phase.name()))
    }

    fn save(
        &mut self,
        (phase, step): (Phase, usize),
        work: &dyn Steps,
        (loader, source_loader): LoaderStates,
        report: &PhaseReport,
    ) -> Result<()> {
        let Some(path) = &self.safety.checkpoint else { return Ok(()) };
        let mut tensors = self.carried.clone();
        work.save(&mut tensors)?;
        let mut reports = self.reports.clone();
        reports.push(report.clone());
        let progress = Progress {
            identity: self.identity.clone(),
            phase,
            step,
            loader,
            source_loader,
            wall_s: self.wall_s(),
            reports,
            adapted_by: self.adapted_by,
            candidates: self.candidates.clone(),
            survey: self.survey.clone(),
            latency: self.latency.clone(),
        };
        Checkpoint { progress, tensors }.save(path)?;
        self.observer.checkpoint(phase, step);
        Ok(())
    }
}
