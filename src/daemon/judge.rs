//! From a finished adaptation to a version that serves.

use super::clock;
use super::cycle::{Cycle, Doing};
use super::mind::Failure;
use super::run::retain;
use super::state::Crashes;
use super::status::Phase;
use super::teacher::same_or_new;
use super::watch::{latest_images, measure};
use crate::store::Version;
use crate::{Error, Result};

impl Cycle {
    /// Takes the gate's word: publishes and activates the student, or waits for other images. Where the system refuses a
    /// step it is tried again, and every step that was done already is passed over.
    pub fn judge(&mut self) -> Doing {
        let Some(run) = &self.run else { return (Phase::Collecting, String::new()) };
        let verdict = match run.verdict() {
            Ok(verdict) => verdict,
            Err(error) => {
                let why = error.to_string();
                self.finish_run();
                return self.failed(&why, 0, Failure::Own);
            }
        };
        let reason = verdict["reason"].as_str().unwrap_or_default().to_string();
        let accepted = verdict["accepted"] == true;
        self.state.gate = Some(verdict);
        if !accepted {
            self.state.totals.refused += 1;
            // The same images would make the same student: others have to come first.
            self.finish_run();
            self.state.back_off(self.config.adapt.backoff_first_s, self.config.adapt.backoff_most_s);
            self.state.happened("student refused", format!("reason={reason:?}"));
            return (Phase::BackingOff, format!("the gate refused the student: {reason}"));
        }
        match self.swap() {
            Ok(version) => {
                self.notices.well("swap", "students can be published again");
                (Phase::Watching, format!("version {version}: has just begun to serve"))
            }
            // A student that the store refuses will not become another one.
            Err(error @ (Error::Weights { .. } | Error::Numeric(_))) => {
                self.finish_run();
                self.failed(&error.to_string(), 0, Failure::Own)
            }
            Err(error) => self.try_again("swap", Phase::Judging, &format!("student cannot be published yet: {error}")),
        }
    }

    fn swap(&mut self) -> Result<Version> {
        let Some(run) = &self.run else { return Err(Error::Usage("no run".into())) };
        let (id, student) = (run.id.clone(), run.student());
        let name = self.name().clone();
        let before = self.store.active(&name)?;
        let version = same_or_new(&self.store, &name, &student)?;
        if before != Some(version) {
            if let Some(served) = self.asker.served().filter(|served| self.state.accepted.contains(&served.version)) {
                let sample = latest_images(&self.shared, self.config.watch.images);
                self.state.baseline = Some(measure(&self.asker, &self.shared, served.version, &sample)?);
            }
            // What it will be held against, and whose it is, must survive a power cut, too.
            self.state.student = Some(version);
            self.save();
            self.store.activate(&name, version)?;
        }
        self.state.totals.accepted += 1;
        let from = before.map_or_else(String::new, |version| version.to_string());
        self.state.happened("student activated", format!("model={name} version={version} from={from} run={id}"));
        self.finish_run();
        self.repository.follow();
        self.retain_versions();
        Ok(version)
    }

    /// The run is over: its images are no longer new.
    pub fn finish_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        self.state.seen = self.state.seen.max(run.record.latest);
        self.state.last_unix_s = clock::unix_s();
        self.state.stuck = Crashes::default();
        self.shared.given.store(self.state.seen, std::sync::atomic::Ordering::Relaxed);
        // Before the images go, which say that there is something to do.
        self.save();
        run.finish();
        retain(&self.folders, self.config.daemon.keep_runs);
    }

    /// Removes old versions, but never the teacher, what serves, or what would serve next. Those that were accepted and
    /// the others are counted apart, so that many bad ones do not push a good one out.
    fn retain_versions(&mut self) {
        let name = self.name().clone();
        let Ok(numbers) = self.store.numbers(&name) else { return };
        let keep = self.config.daemon.keep_versions;
        let (good, others): (Vec<Version>, Vec<Version>) =
            numbers.iter().rev().partition(|version| self.state.accepted.contains(version));
        let mut spared: Vec<Version> = good.into_iter().take(keep).chain(others.into_iter().take(keep)).collect();
        spared.extend(self.state.teacher.map(|record| record.version));
        spared.extend(self.state.current);
        spared.extend(self.store.candidates(&name).unwrap_or_default().into_iter().take(2));
        for version in numbers.into_iter().filter(|version| !spared.contains(version)) {
            match self.store.remove(&name, version) {
                Ok(()) => self.state.accepted.retain(|accepted| *accepted != version),
                Err(error) => log::warn!("old version cannot be removed model={name} version={version}: {error}"),
            }
        }
    }
}
