//! Minding an adaptation while it runs, and what its end means.

use std::time::Duration;

use super::child::{Ended, failure_reason};
use super::clock;
use super::cycle::{Cycle, Doing};
use super::guard::MB;
use super::state::Crashes;
use super::status::Phase;

/// Ends without progress before a run is given up.
const MOST_CRASHES: u32 = 5;
/// A killed run is only given up if such ends have gone on for so long: nothing is wrong with a run that somebody kills
/// again and again, while one that the system kills for its memory is killed at every try, however late.
const KILLED_FOR_S: u64 = 12 * 3600;

/// How an adaptation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// By itself.
    Own,
    /// Something outside killed it: the system, for want of memory, or somebody.
    Killed,
}

impl Cycle {
    /// Pauses, continues or stops the adaptation, and takes note of its end.
    pub fn mind(&mut self) -> Doing {
        let Some(child) = &mut self.child else { return self.doing.clone() };
        if let Some(ended) = child.poll() {
            return self.ended(ended);
        }
        if child.is_stopping() {
            return (Phase::Adapting, "saving its state".into());
        }
        let most = self.config.adapt.max_memory_bytes;
        if let Some(bytes) = child.resident_bytes().filter(|bytes| most > 0 && *bytes > most) {
            self.killed_for = Some(format!("it took {} MB of memory, at most {} allowed", bytes / MB, most / MB));
            child.kill();
            return (Phase::Adapting, "killed for its memory".into());
        }
        if self.guards.out_of_memory() {
            child.stop();
            self.state.happened("adaptation suspended", "guard=memory, it goes on from there later".into());
            return (Phase::Adapting, "saving its state".into());
        }
        match (self.guards.against(), child.paused_for()) {
            (Some(guard), None) => {
                child.pause();
                let text = format!("{}: {}", guard.name, guard.detail);
                self.state.happened("adaptation paused", format!("guard={} detail={:?}", guard.name, guard.detail));
                (Phase::Paused, text)
            }
            (Some(guard), Some(paused)) => {
                let text = format!("{}: {}", guard.name, guard.detail);
                if paused >= Duration::from_secs_f64(self.config.guard.max_pause_s) {
                    self.state.totals.paused_s += paused.as_secs_f64();
                    child.stop();
                    let detail = format!("guard={} paused_s={:.0}", guard.name, paused.as_secs_f64());
                    self.state.happened("adaptation suspended", detail);
                }
                (Phase::Paused, text)
            }
            (None, Some(paused)) if paused >= Duration::from_secs_f64(self.config.guard.min_pause_s) => {
                let paused = child.resume().as_secs_f64();
                self.state.totals.paused_s += paused;
                self.state.happened("adaptation continued", format!("paused_s={paused:.0}"));
                (Phase::Adapting, "nothing is against it any more".into())
            }
            (None, Some(_)) => (Phase::Paused, "nothing is against it any more, a moment longer".into()),
            (None, None) => {
                let progress = &child.progress;
                let steps =
                    if progress.steps > 0 { format!(" {}/{}", progress.step, progress.steps) } else { String::new() };
                (Phase::Adapting, format!("{}{steps}", progress.phase))
            }
        }
    }

    fn ended(&mut self, ended: Ended) -> Doing {
        let furthest = self.child.take().map_or(0, |child| child.progress.furthest());
        let (killed_for, log) = (self.killed_for.take(), self.run.as_ref().map(|run| run.log()).unwrap_or_default());
        let complete = self.run.as_ref().is_some_and(|run| run.is_complete());
        match ended {
            Ended::Accepted | Ended::Refused if complete => (Phase::Judging, "the adaptation has ended".into()),
            Ended::Interrupted => {
                self.state.totals.interrupted += 1;
                (Phase::Waiting, "the adaptation was suspended".into())
            }
            Ended::Killed(signal) => {
                let outside = killed_for.is_none() && signal == libc::SIGKILL;
                let failure = if outside { Failure::Killed } else { Failure::Own };
                let why = killed_for.unwrap_or_else(|| format!("signal {signal} ended it"));
                self.failed(&why, furthest, failure)
            }
            Ended::Accepted | Ended::Refused => self.failed("it left no report", furthest, Failure::Own),
            Ended::Failed(code) => {
                self.failed(&format!("exit code {code}: {}", failure_reason(&log)), furthest, Failure::Own)
            }
        }
    }

    /// The adaptation failed. It goes on after a while, unless it does not get any further.
    pub fn failed(&mut self, why: &str, furthest: u64, failure: Failure) -> Doing {
        let state = &mut self.state;
        state.stuck.count(furthest, clock::unix_s());
        state.totals.failed += 1;
        state.back_off(self.config.adapt.backoff_first_s, self.config.adapt.backoff_most_s);
        let given_up = is_hopeless(&state.stuck, failure, clock::unix_s());
        let id = self.run.as_ref().map_or("", |run| run.id.as_str());
        state.went_wrong("adaptation failed", format!("run={id} given_up={given_up} reason={why:?}"));
        if given_up {
            self.finish_run();
        }
        (Phase::BackingOff, why.to_string())
    }
}

/// Whether a run that ended so, once more, is given up.
fn is_hopeless(crashes: &Crashes, failure: Failure, unix_s: u64) -> bool {
    let lasting = unix_s.saturating_sub(crashes.since_unix_s) >= KILLED_FOR_S;
    crashes.count >= MOST_CRASHES && (failure == Failure::Own || lasting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_given_up_for_its_own_failures_and_for_lasting_kills() {
        let mut crashes = Crashes::default();
        let mut fail = |furthest, unix_s| {
            crashes.count(furthest, unix_s);
            [Failure::Own, Failure::Killed].map(|failure| is_hopeless(&crashes, failure, unix_s))
        };
        for second in 0..4 {
            assert_eq!(fail(7, second), [false, false], "{second}");
        }
        assert_eq!(fail(7, 4), [true, false], "a storm of kills passes");
        assert_eq!(fail(7, KILLED_FOR_S), [true, true]);
        assert_eq!(fail(8, KILLED_FOR_S), [false, false], "it got further");
    }
}
