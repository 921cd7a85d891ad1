//! What `/v1/status` and `secateur status` say of the daemon.

use serde::Serialize;
use serde_json::Value;

use super::child::{Losses, Progress};
use super::guard::Reading;
use super::state::Event;

/// What the daemon is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Images are gathered; it is not time to adapt.
    #[default]
    Collecting,
    /// It is time, and something is against it.
    Waiting,
    /// An adaptation runs.
    Adapting,
    /// An adaptation stands still.
    Paused,
    /// A student is published and activated.
    Judging,
    /// A version has begun to serve and is watched.
    Watching,
    /// Something failed, and nothing is tried for a while.
    BackingOff,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Collecting,
        Self::Waiting,
        Self::Adapting,
        Self::Paused,
        Self::Judging,
        Self::Watching,
        Self::BackingOff,
    ];

    /// Its name in JSON, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Collecting => "collecting",
            Self::Waiting => "waiting",
            Self::Adapting => "adapting",
            Self::Paused => "paused",
            Self::Judging => "judging",
            Self::Watching => "watching",
            Self::BackingOff => "backing_off",
        }
    }
}

/// All that is told.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// What it is doing.
    pub state: Phase,
    /// Why.
    pub reason: String,
    /// Since when, as RFC 3339 has it.
    pub since: String,
    /// The images.
    pub images: Images,
    /// The adaptation in progress.
    pub run: Option<RunStatus>,
    /// The last verdict of the gate.
    pub gate: Option<Value>,
    /// The version under watch.
    pub watch: Option<Value>,
    /// What each guard says.
    pub guards: Vec<Reading>,
    /// Until when nothing is tried, as RFC 3339 has it.
    pub backoff_until: Option<String>,
    /// What happened lately, the latest last.
    pub history: Vec<Event>,
}

/// The images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Images {
    /// Kept to learn from.
    pub reservoir: usize,
    /// Their bytes.
    pub bytes: u64,
    /// How many more make an adaptation due by their number.
    pub needed: usize,
    /// How many arrived since the last adaptation.
    pub new: usize,
    /// Broken ones since the first start.
    pub quarantined: u64,
    /// Duplicates since then.
    pub duplicates: u64,
    /// Links, folders and the like in the inbox, which are not taken.
    pub left_alone: usize,
    /// How many of each class that occurs.
    pub classes: Vec<ClassCount>,
}

/// Images of a class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClassCount {
    /// The class.
    pub name: String,
    /// How many.
    pub count: usize,
}

/// The adaptation in progress.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunStatus {
    /// Its name.
    pub id: String,
    /// The phase, or what goes on between phases.
    pub phase: String,
    /// Steps of the phase that are done.
    pub step: usize,
    /// How many it has.
    pub steps: usize,
    /// Seconds until its end.
    pub eta_s: f64,
    /// When the run was started, as RFC 3339 has it.
    pub started: String,
    /// The losses so far.
    pub losses: Vec<NamedLosses>,
    /// Channels of each group of layers, once that is decided.
    pub channels: Vec<super::child::Channels>,
}

/// The course of a loss.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NamedLosses {
    /// Phase and name.
    pub name: String,
    /// Steps and values.
    #[serde(flatten)]
    pub losses: Losses,
}

impl RunStatus {
    /// The status of run `id`, which was started at `started`.
    pub fn new(id: &str, started: String, progress: &Progress) -> Self {
        let named = |(name, losses): (&String, &Losses)| NamedLosses { name: name.clone(), losses: losses.clone() };
        Self {
            id: id.to_string(),
            phase: progress.phase.clone(),
            step: progress.step,
            steps: progress.steps,
            eta_s: progress.eta_s,
            started,
            losses: progress.losses.iter().map(named).collect(),
            channels: progress.channels.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_json() {
        for phase in Phase::ALL {
            assert_eq!(serde_json::json!(phase), phase.name());
        }
    }
}
