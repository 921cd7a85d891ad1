//! An adaptation as a process of its own, so that whatever becomes of it, serving goes on.

mod progress;
mod spawn;

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

pub use progress::{Channels, Losses, Progress};

use super::config::Scheduling;
use super::run::Run;
use crate::board::{resident_bytes_of, signal_child};
use crate::{Error, Result};

/// How an adaptation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The gate accepted the student.
    Accepted,
    /// The gate refused it.
    Refused,
    /// It stopped when it was asked to, and goes on from there.
    Interrupted,
    /// It ended with an error and this exit code.
    Failed(i32),
    /// This signal ended it: out of memory, a fault, a power cut in small.
    Killed(i32),
}

impl Ended {
    fn of(status: ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal()) {
            (Some(0), _) => Self::Accepted,
            (Some(1), _) => Self::Refused,
            (Some(130), _) => Self::Interrupted,
            (Some(code), _) => Self::Failed(code),
            (None, signal) => Self::Killed(signal.unwrap_or(0)),
        }
    }
}

/// An adaptation that runs or is paused. Dropped, it is killed: its last checkpoint stays.
#[derive(Debug)]
pub struct Adaptation {
    process: Child,
    /// What it told so far, earlier sittings included.
    pub progress: Progress,
    paused: Option<Instant>,
    /// Whether it was asked to stop.
    stopping: bool,
}

impl Adaptation {
    /// Starts `run`, or goes on with it from its checkpoint.
    ///
    /// # Errors
    /// [`Error::Io`] if its log cannot be written or the process cannot be started.
    pub fn start(run: &Run, scheduling: Scheduling) -> Result<Self> {
        let path = run.log();
        let log = OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io("open", &path, e))?;
        let process = spawn::spawn(&run.record.arguments, log, scheduling).map_err(|e| Error::io("start", &path, e))?;
        let progress = Progress::of(&run.progress());
        Ok(Self { process, progress, paused: None, stopping: false })
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// How it ended, once it has.
    pub fn poll(&mut self) -> Option<Ended> {
        self.progress.read();
        // It is our child and not waited for elsewhere, so this does not fail.
        self.process.try_wait().ok().flatten().map(Ended::of)
    }

    /// Memory it holds.
    pub fn resident_bytes(&self) -> Option<u64> {
        resident_bytes_of(self.id())
    }

    /// How long it has been paused.
    pub fn paused_for(&self) -> Option<Duration> {
        self.paused.map(|since| since.elapsed())
    }

    /// Whether it was asked to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Stops it where it stands.
    pub fn pause(&mut self) {
        if self.paused.is_none() {
            self.signal(libc::SIGSTOP);
            self.paused = Some(Instant::now());
        }
    }

    /// Lets it go on; returns how long it was paused.
    pub fn resume(&mut self) -> Duration {
        self.signal(libc::SIGCONT);
        self.paused.take().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Asks it to save its state and end.
    pub fn stop(&mut self) {
        if !self.stopping {
            self.stopping = true;
            self.signal(libc::SIGTERM);
            // Otherwise it would not notice.
            self.resume();
        }
    }

    /// Ends it at once; what it has not saved is lost.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
    }

    /// Asks it to save its state, and kills it if that takes longer than `patience`.
    pub fn end(&mut self, patience: Duration) -> Option<Ended> {
        self.stop();
        let begun = Instant::now();
        loop {
            if let Some(ended) = self.poll() {
                return Some(ended);
            }
            if begun.elapsed() >= patience {
                log::warn!("adaptation did not save its state within {} s and is killed", patience.as_secs());
                self.kill();
                return self.process.wait().ok().map(Ended::of);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: i32) {
        // It was not waited for when it was last polled, on this thread.
        signal_child(&self.process, signal);
    }
}

impl Drop for Adaptation {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Why a run failed, by its log: the last line that tells of an error, else the last one.
pub fn failure_reason(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(bytes.get(bytes.len().saturating_sub(2000)..).unwrap_or_default()).into_owned();
    let tells = |line: &&str| line.starts_with("error:") || line.contains(" ERROR] ");
    let line = text.lines().rfind(tells).or_else(|| text.lines().rfind(|line| !line.trim().is_empty()));
    line.unwrap_or("no log").trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn the_reason_of_a_failure_is_the_line_that_tells_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("adapt.log");
        assert_eq!(failure_reason(&log), "no log");
        for (text, reason) in [
            ("first\n[ERROR] no room\n\n", "[ERROR] no room"),
            (
                "error: unexpected argument '--nonsense' found\n\nUsage: x\n\nFor more information, try '--help'.\n",
                "error: unexpected argument '--nonsense' found",
            ),
            ("[t ERROR] x: damaged\n", "[t ERROR] x: damaged"),
            ("[t INFO ] one\n[t INFO ] two\n\n", "[t INFO ] two"),
            ("", "no log"),
        ] {
            std::fs::write(&log, text).unwrap();
            assert_eq!(failure_reason(&log), reason);
        }
    }

    #[test]
    fn exit_statuses_have_meanings() {
        for (raw, ended) in [
            (0, Ended::Accepted),
            (1 << 8, Ended::Refused),
            (2 << 8, Ended::Failed(2)),
            (130 << 8, Ended::Interrupted),
            (9, Ended::Killed(9)),
        ] {
            assert_eq!(Ended::of(ExitStatus::from_raw(raw)), ended);
        }
    }
}
