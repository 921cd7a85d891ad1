//! What survives a restart.
//!
//! Everything that files show is read from them: the reservoir is its folder, an unfinished run the one that still has its
//! images, the active version the store's pointer. The rest is here, in one file that is replaced whole.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::clock;
use super::score::Scores;
use crate::store::Version;
use crate::weights::write_bytes_atomic;
use crate::{Error, Result};

/// Events kept for people to see.
const MOST_EVENTS: usize = 50;

/// What the daemon remembers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The teacher's version and the file it was published from.
    pub teacher: Option<TeacherRecord>,
    /// Versions that may serve: teachers, and students that passed the watch.
    pub accepted: Vec<Version>,
    /// The accepted version that served last.
    pub current: Option<Version>,
    /// How it answered images of the reservoir.
    pub baseline: Option<Baseline>,
    /// How it answered the first images that arrived.
    pub arrivals: Option<Scores>,
    /// Images up to this number were there for an adaptation.
    pub seen: u64,
    /// When the last adaptation ended, or the daemon first started, in seconds since 1970.
    pub last_unix_s: u64,
    /// Failures in a row: refusals, rollbacks, crashes.
    pub failures: u32,
    /// When the next adaptation may start, in seconds since 1970.
    pub backoff_until_unix_s: u64,
    /// Ends of the run in progress that brought it no further.
    pub stuck: Crashes,
    /// The version that the daemon itself activated last.
    pub student: Option<Version>,
    /// 99 % quantile of the inference time without adaptation.
    pub idle_p99_s: Option<f64>,
    /// The last verdict of the gate.
    pub gate: Option<Value>,
    /// What was counted.
    pub totals: Totals,
    /// What happened, the latest last.
    pub history: VecDeque<Event>,
}

/// Where the teacher came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeacherRecord {
    /// Its version in the store.
    pub version: Version,
    /// Length of the file it was published from.
    pub file_bytes: u64,
    /// When that file was changed, in milliseconds since 1970.
    pub file_unix_ms: u64,
}

/// Ends of a run, one after the other, that brought it no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Crashes {
    /// How many.
    pub count: u32,
    /// How far it had come.
    pub furthest: u64,
    /// When the first of them was, in seconds since 1970.
    pub since_unix_s: u64,
}

impl Crashes {
    /// One more, at `unix_s`; if the run had come further than before, the first.
    pub fn count(&mut self, furthest: u64, unix_s: u64) {
        if self.count == 0 || furthest > self.furthest {
            *self = Self { count: 0, furthest, since_unix_s: unix_s };
        }
        self.count += 1;
    }
}

/// How a version answered some images of the reservoir.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// The version.
    pub version: Version,
    /// Number of each image and the class that was seen in it.
    pub answers: Vec<(u64, usize)>,
    /// What the answers have in common.
    pub scores: Scores,
}

/// Counts since the first start.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Adaptations that the gate accepted.
    pub accepted: u64,
    /// Adaptations that it refused.
    pub refused: u64,
    /// Adaptations that ended in an error or were killed.
    pub failed: u64,
    /// Times that one was stopped to go on later.
    pub interrupted: u64,
    /// Versions rolled back.
    pub rolled_back: u64,
    /// Seconds that adaptations were paused.
    pub paused_s: f64,
    /// What became of images that came in.
    pub images: ImageTotals,
}

/// Counts of images since the first start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageTotals {
    /// Kept in the reservoir.
    pub kept: u64,
    /// Removed as duplicates.
    pub duplicates: u64,
    /// Put into quarantine.
    pub quarantined: u64,
    /// Removed from the reservoir to make room.
    pub evicted: u64,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, as RFC 3339 has it.
    pub at: String,
    /// What, in few words that do not change.
    pub event: String,
    /// The rest.
    pub detail: String,
}

impl State {
    /// What was saved at `path`; the beginning if nothing was, or nothing that can be read.
    pub fn load(path: &Path) -> Self {
        let fresh = || Self { last_unix_s: clock::unix_s(), ..Self::default() };
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return fresh(),
            Err(error) => {
                log::error!("state cannot be read, starting anew path={}: {error}", path.display());
                return fresh();
            }
        };
        serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            let aside = path.with_extension("json.damaged");
            log::error!("state is damaged, starting anew path={} kept={}: {error}", path.display(), aside.display());
            // To look at; nothing depends on it.
            let _ = fs::rename(path, aside);
            fresh()
        })
    }

    /// Saves it, atomically and durably.
    ///
    /// # Errors
    /// [`Error::Io`]; what was saved before stays.
    pub fn save(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_vec(self).map_err(|e| Error::Config(format!("state cannot be written: {e}")))?;
        write_bytes_atomic(path, &json)
    }

    /// Logs an event and remembers it.
    pub fn happened(&mut self, event: &str, detail: String) {
        self.note(log::Level::Info, event, detail);
    }

    /// Warns of an event and remembers it.
    pub fn went_wrong(&mut self, event: &str, detail: String) {
        self.note(log::Level::Warn, event, detail);
    }

    fn note(&mut self, level: log::Level, event: &str, detail: String) {
        log::log!(level, "{event} {detail}");
        self.history.push_back(Event { at: clock::rfc3339(clock::unix_s()), event: event.to_string(), detail });
        while self.history.len() > MOST_EVENTS {
            self.history.pop_front();
        }
    }

    /// A failure: nothing is tried again before a time that doubles with each in a row.
    pub fn back_off(&mut self, first_s: u64, most_s: u64) {
        self.failures = self.failures.saturating_add(1);
        let factor = 1u64.checked_shl(self.failures - 1).unwrap_or(u64::MAX);
        self.backoff_until_unix_s = clock::unix_s().saturating_add(first_s.saturating_mul(factor).min(most_s));
    }

    /// A version may serve from now on.
    pub fn accept(&mut self, version: Version) {
        if !self.accepted.contains(&version) {
            self.accepted.push(version);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_read_again_and_a_damaged_one_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let mut state = State::load(&path);
        state.happened("adaptation started", "run=1".into());
        state.accept(Version(3));
        state.accept(Version(3));
        state.save(&path).unwrap();
        assert_eq!(State::load(&path), state);
        assert_eq!(state.accepted, [Version(3)]);
        fs::write(&path, "{\"seen\": ").unwrap();
        assert_eq!(State::load(&path).accepted, []);
        assert!(folder.path().join("state.json.damaged").exists() && !path.exists());
    }

    #[test]
    fn waiting_doubles_up_to_a_limit() {
        let mut state = State::default();
        for seconds in [100, 200, 400, 450, 450] {
            state.back_off(100, 450);
            let left = state.backoff_until_unix_s - clock::unix_s();
            assert!((seconds - 2..=seconds).contains(&left), "{seconds}: {left}");
        }
        state.failures = 200;
        state.back_off(100, 450);
    }

    #[test]
    fn old_events_are_forgotten() {
        let mut state = State::default();
        (0..60).for_each(|n| state.happened("a", n.to_string()));
        assert_eq!((state.history.len(), state.history[0].detail.as_str()), (50, "10"));
    }
}
