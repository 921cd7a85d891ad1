//! All that the daemon holds, and the order of its decisions.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::ask::Asker;
use super::child::Adaptation;
use super::clock;
use super::config::DaemonConfig;
use super::folders::Folders;
use super::guard::{Circumstances, Guards};
use super::intake::Shared;
use super::notice::Notices;
use super::run::{Plan, Run};
use super::score::Drift;
use super::state::State;
use super::status::Phase;
use super::teacher;
use super::tell::Told;
use super::trigger::{self, Situation};
use super::watch::Watch;
use crate::Result;
use crate::serve::Repository;
use crate::store::{ModelName, Store};

/// How long to wait before something that the system refused is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// How long new images may keep a due adaptation waiting.
const ARRIVING: Duration = Duration::from_secs(600);
/// How often counts of images are saved, which change with every one of them.
const COUNT_EVERY: Duration = Duration::from_secs(60);

/// What is done now, and why.
pub(super) type Doing = (Phase, String);

/// The daemon's things.
pub(super) struct Cycle {
    pub config: Arc<DaemonConfig>,
    pub folders: Folders,
    pub store: Store,
    pub repository: Arc<Repository>,
    pub asker: Asker,
    pub shared: Arc<Shared>,
    pub state: State,
    pub guards: Guards,
    pub notices: Notices,
    /// The run that is not finished, whether or not its process runs.
    pub run: Option<Run>,
    pub child: Option<Adaptation>,
    /// Why the process was killed, if it was.
    pub killed_for: Option<String>,
    pub watch: Option<Watch>,
    /// Images whose class an earlier version saw.
    pub relabel: VecDeque<u64>,
    /// Since when another version is active than serves.
    pub unserved: Option<Instant>,
    pub doing: Doing,
    pub since_unix_s: u64,
    saved: State,
    looked: Option<Instant>,
    counted: Instant,
    drift: Option<Drift>,
    due: Option<Instant>,
    again: Option<Instant>,
}

impl Cycle {
    pub fn new(
        config: Arc<DaemonConfig>,
        folders: Folders,
        (store, repository): (Store, Arc<Repository>),
        asker: Asker,
        (shared, state): (Arc<Shared>, State),
    ) -> Self {
        let mut guards = Guards::default();
        guards.slowness.remember(state.idle_p99_s);
        shared.given.store(state.seen, Ordering::Relaxed);
        shared.count_from(&state.totals.images);
        let run = Run::unfinished(&folders);
        if let Some(run) = &run {
            log::info!("unfinished run found run={} images={}", run.id, run.record.images);
        }
        Self {
            config,
            folders,
            store,
            repository,
            asker,
            shared,
            guards,
            run,
            saved: State::default(),
            state,
            notices: Notices::default(),
            child: None,
            killed_for: None,
            watch: None,
            relabel: VecDeque::new(),
            unserved: None,
            doing: (Phase::Collecting, "just started".into()),
            since_unix_s: clock::unix_s(),
            looked: None,
            counted: Instant::now(),
            drift: None,
            due: None,
            again: None,
        }
    }

    /// The model's name.
    pub fn name(&self) -> &ModelName {
        &self.config.daemon.name
    }

    /// Decides once.
    pub fn tick(&mut self, told: &Told) {
        let looks = self.look();
        self.follow(looks);
        let doing = self.step();
        self.change_to(doing);
        self.relabel_one();
        if self.counted.elapsed() >= COUNT_EVERY {
            self.count();
        }
        self.save();
        told.tell(self);
    }

    /// Other settings from now on.
    pub fn set_config(&mut self, config: Arc<DaemonConfig>) {
        for key in self.config.needing_restart(&config) {
            log::warn!("{key} is changed by a restart only");
        }
        let mut config = (*config).clone();
        config.intake.inbox = self.config.intake.inbox.clone();
        config.daemon = super::config::General {
            folder: self.config.daemon.folder.clone(),
            teacher: self.config.daemon.teacher.clone(),
            name: self.config.daemon.name.clone(),
            ..config.daemon
        };
        self.config = Arc::new(config);
        self.shared.set_config(self.config.clone());
        self.looked = None;
    }

    /// Asks an adaptation to save its state.
    pub fn ask_to_stop(&mut self) {
        if let Some(child) = &mut self.child {
            log::info!("adaptation is asked to save its state");
            child.stop();
        }
    }

    /// Waits for it, and saves what is remembered.
    pub fn end(&mut self) {
        let patience = Duration::from_secs(self.config.daemon.stop_s);
        if let Some(mut child) = self.child.take()
            && let Some(ended) = child.end(patience)
        {
            log::info!("adaptation ended with the daemon, the next start goes on with it: {ended:?}");
        }
        self.count();
        self.save();
    }

    fn count(&mut self) {
        self.counted = Instant::now();
        self.state.totals.images = self.shared.counts();
    }

    /// Looks at the board, if it is time; `true` if it was.
    fn look(&mut self) -> bool {
        let every = Duration::from_secs_f64(self.config.guard.every_s);
        if self.looked.is_some_and(|at| at.elapsed() < every) {
            return false;
        }
        self.looked = Some(Instant::now());
        let runs = self.child.as_ref().is_some_and(|child| child.paused_for().is_none());
        let threads = self.run.as_ref().filter(|_| runs).map_or(0, |run| run.record.threads);
        let metrics = self.repository.registry().metrics().model(self.name());
        let now = Circumstances {
            board_root: &self.config.daemon.board_root,
            folder: &self.folders.root,
            running_threads: threads,
            compute: metrics.compute_seconds_fine.counts(),
        };
        self.guards.look(&self.config.guard, &now);
        let latest = self.shared.recent.latest_arrivals(self.config.trigger.drift_window);
        self.drift = self.state.arrivals.as_ref().zip(latest).map(|(first, latest)| first.drift(&latest));
        true
    }

    /// What there is to do about adapting.
    fn step(&mut self) -> Doing {
        if self.child.is_some() {
            return self.mind();
        }
        if let Some(watch) = &self.watch {
            let text = format!("version {}: {} of {} answers", watch.version, watch.answers, watch.wanted);
            return (Phase::Watching, text);
        }
        if self.is_trying_again() {
            return self.doing.clone();
        }
        self.again = None;
        if self.run.as_ref().is_some_and(Run::is_complete) {
            return self.judge();
        }
        if clock::unix_s() < self.state.backoff_until_unix_s {
            return (Phase::BackingOff, format!("{} failures in a row", self.state.failures));
        }
        let reason = match &self.run {
            Some(run) => format!("run {} goes on", run.id),
            None => match self.reason() {
                Ok(reason) => reason,
                Err(doing) => return doing,
            },
        };
        if let Some(guard) = self.guards.against() {
            return (Phase::Waiting, format!("{}: {}", guard.name, guard.detail));
        }
        match self.begin(reason) {
            Ok(doing) => doing,
            Err(error) => self.try_again("start", Phase::Waiting, &error.to_string()),
        }
    }

    /// Why an adaptation should start, or what is done instead.
    fn reason(&mut self) -> Result<String, Doing> {
        let (images, new) = {
            let reservoir = self.shared.reservoir();
            (reservoir.len(), reservoir.newer_than(self.state.seen))
        };
        let situation = Situation {
            images,
            new,
            since_s: clock::unix_s().saturating_sub(self.state.last_unix_s),
            minute: clock::minute_of_day(),
            drift: self.drift,
        };
        let Some(reason) = trigger::due(&self.config.trigger, &situation) else {
            self.due = None;
            let needed = trigger::needed(&self.config.trigger, images, new);
            return Err((Phase::Collecting, format!("{needed} more images wanted")));
        };
        let due = *self.due.get_or_insert_with(Instant::now);
        if self.shared.waiting.load(Ordering::Relaxed) > 0 && due.elapsed() < ARRIVING {
            return Err((Phase::Waiting, "images are still coming in".into()));
        }
        Ok(reason)
    }

    /// Starts an adaptation, or goes on with one.
    fn begin(&mut self, reason: String) -> Result<Doing> {
        let goes_on = self.run.is_some();
        let teacher = teacher::whole(&self.config.daemon, &self.store, &mut self.state)?;
        let path = self.store.path(self.name(), teacher);
        if let Some(run) = self.run.as_mut().filter(|run| run.record.teacher != teacher)
            && self.store.verify(&self.config.daemon.name, run.record.teacher).is_err()
        {
            log::warn!("run goes on with another copy of its teacher run={} version={teacher}", run.id);
            run.take_teacher(teacher, &path)?;
        }
        let run = match self.run.take() {
            Some(run) => run,
            None => {
                let replaces_adapted = self.store.active(self.name())?.is_some_and(|active| active != teacher);
                let teacher = (teacher, path.as_path());
                let plan = Plan { teacher, reason: reason.clone(), replaces_adapted, config: &self.config };
                Run::create(&self.folders, &self.shared.reservoir(), plan)?
            }
        };
        let started = Adaptation::start(&run, self.config.adapt.scheduling);
        let (id, images, threads) = (run.id.clone(), run.record.images, run.record.threads);
        self.run = Some(run);
        let child = started?;
        let process = child.id();
        self.child = Some(child);
        self.state.idle_p99_s = self.guards.slowness.idle_p99_s();
        let event = if goes_on { "adaptation resumed" } else { "adaptation started" };
        self.notices.well("start", "adaptations can be started again");
        let detail = format!("run={id} images={images} threads={threads} process={process} reason={reason:?}");
        self.state.happened(event, detail);
        Ok((Phase::Adapting, reason))
    }

    /// Something that the system refused is tried again in a while.
    pub fn try_again(&mut self, subject: &'static str, phase: Phase, why: &str) -> Doing {
        self.notices.warn(subject, why);
        self.again = Some(Instant::now() + AGAIN);
        (phase, why.to_string())
    }

    /// Whether it is too early for that.
    pub fn is_trying_again(&self) -> bool {
        self.again.is_some_and(|at| Instant::now() < at)
    }

    fn change_to(&mut self, doing: Doing) {
        // Of a wait it is news, too, when something else is against it.
        let cause = |(phase, reason): &Doing| {
            (*phase, reason.split(':').next().filter(|_| *phase == Phase::Waiting).map(str::to_string))
        };
        if cause(&doing) != cause(&self.doing) {
            log::info!("state changed state={} before={} reason={:?}", doing.0.name(), self.doing.0.name(), doing.1);
        }
        if doing.0 != self.doing.0 {
            self.since_unix_s = clock::unix_s();
        }
        self.doing = doing;
    }

    /// Saves what is remembered, if it changed.
    pub fn save(&mut self) {
        if self.state == self.saved {
            return;
        }
        match self.state.save(&self.folders.state) {
            Ok(()) => {
                self.notices.well("state", "state can be saved again");
                self.saved = self.state.clone();
            }
            Err(error) => self.notices.warn("state", &format!("state cannot be saved: {error}")),
        }
    }
}
