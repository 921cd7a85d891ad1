//! What the daemon shows of itself, kept ready for whoever asks.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::clock;
use super::cycle::Cycle;
use super::metrics::Figures;
use super::status::{ClassCount, Images, RunStatus, Status};
use super::trigger;

/// The latest status and figures; asking for them waits for nothing.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<(Value, Figures, String)>);

impl Told {
    /// The status as JSON.
    pub fn json(&self) -> Value {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// The figures as metrics.
    pub fn metrics(&self) -> String {
        let figures = self.0.lock().unwrap_or_else(PoisonError::into_inner).1.clone();
        figures.render()
    }

    /// What is done now, in one line.
    pub fn line(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).2.clone()
    }

    /// Takes all of it from `cycle`.
    pub fn tell(&self, cycle: &Cycle) {
        let (phase, reason) = &cycle.doing;
        let line = format!("{}: {reason}", phase.name());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (json!(status(cycle)), figures(cycle), line);
    }
}

fn status(cycle: &Cycle) -> Status {
    let state = &cycle.state;
    let run = cycle.run.as_ref().map(|run| {
        let started = clock::rfc3339(run.record.started_unix_s);
        match &cycle.child {
            Some(child) => RunStatus::new(&run.id, started, &child.progress),
            None => RunStatus::new(&run.id, started, &super::child::Progress::default()),
        }
    });
    Status {
        state: cycle.doing.0,
        reason: cycle.doing.1.clone(),
        since: clock::rfc3339(cycle.since_unix_s),
        images: images(cycle),
        run,
        gate: state.gate.clone(),
        watch: cycle.watch.as_ref().map(|watch| json!(watch)),
        guards: cycle.guards.readings().to_vec(),
        backoff_until: (state.backoff_until_unix_s > clock::unix_s())
            .then(|| clock::rfc3339(state.backoff_until_unix_s)),
        history: state.history.iter().cloned().collect(),
    }
}

fn images(cycle: &Cycle) -> Images {
    let shared = &cycle.shared;
    let served = cycle.asker.served();
    let names = served.as_ref().map(|served| served.signature.class_names.as_slice()).unwrap_or_default();
    let counts = shared.counts();
    let reservoir = shared.reservoir();
    let (images, new) = (reservoir.len(), reservoir.newer_than(cycle.state.seen));
    let named = |(class, count): (usize, usize)| {
        let name = names.get(class).cloned().unwrap_or_else(|| class.to_string());
        ClassCount { name, count }
    };
    Images {
        reservoir: images,
        bytes: reservoir.bytes(),
        needed: trigger::needed(&cycle.config.trigger, images, new),
        new,
        quarantined: counts.quarantined,
        duplicates: counts.duplicates,
        left_alone: shared.left_alone.load(Ordering::Relaxed),
        classes: reservoir.classes().into_iter().map(named).collect(),
    }
}

fn figures(cycle: &Cycle) -> Figures {
    let shared = &cycle.shared;
    let counts = shared.counts();
    let reservoir = shared.reservoir();
    Figures {
        phase: cycle.doing.0,
        reservoir: (reservoir.len(), reservoir.bytes()),
        intake: counts,
        left_alone: shared.left_alone.load(Ordering::Relaxed),
        totals: cycle.state.totals,
        child_bytes: cycle.child.as_ref().and_then(super::child::Adaptation::resident_bytes).unwrap_or(0),
        guards: cycle.guards.readings().to_vec(),
    }
}
