//! Which version serves, whoever activated it, and whether it may.

use std::time::{Duration, Instant};

use super::cycle::Cycle;
use super::status::Phase;
use super::watch::{Found, Watch, latest_images, measure};
use crate::Result;
use crate::data::{ImageLimits, read_image};
use crate::model::rank;
use crate::store::Version;

/// How long the server may take to load an activated version.
const LOADING: Duration = Duration::from_secs(30);
/// Fewer images make no baseline.
const FEWEST: usize = 8;
/// More pointers than this lead nowhere.
const MOST_STEPS_BACK: usize = 20;

impl Cycle {
    /// Notices another version, and watches it until it is accepted or rolled back. `looks`: whether things that need not
    /// be known at once are looked at, too.
    pub fn follow(&mut self, looks: bool) {
        let Some(served) = self.asker.served().map(|served| served.version) else { return };
        self.shared.recent.serves(served);
        if looks || !self.state.accepted.contains(&served) {
            let active = self.store.active(self.name()).ok().flatten();
            if active.is_some_and(|active| active != served) {
                return self.unserved(active.unwrap_or(served));
            }
            self.unserved = None;
        }
        if self.state.accepted.contains(&served) {
            self.watch = None;
            self.is_current(served);
            if looks {
                self.remember_answers(served);
            }
            return;
        }
        let watch = match self.watch.take() {
            Some(watch) if watch.version == served => watch,
            _ => {
                let from = self.state.current.map_or_else(|| "none".to_string(), |version| version.to_string());
                self.state.happened("watch started", format!("version={served} before={from}"));
                Watch::new(served, &self.config.watch)
            }
        };
        self.look_at(watch);
    }

    fn look_at(&mut self, mut watch: Watch) {
        let found = watch.look(&self.config.watch, self.state.baseline.as_ref(), (&self.asker, &self.shared));
        match found {
            Found::Open => self.watch = Some(watch),
            Found::Good(why) => {
                let version = watch.version;
                self.state.accept(version);
                (self.state.failures, self.state.backoff_until_unix_s) = (0, 0);
                self.state.happened("version accepted", format!("version={version} reason={why:?}"));
                self.is_current(version);
                self.relabel = self.shared.reservoir().images().map(|kept| kept.number).collect();
            }
            Found::Bad(why) => {
                if self.is_trying_again() {
                    self.watch = Some(watch);
                } else if let Err(error) = self.roll_back(watch.version, &why) {
                    self.try_again("rollback", Phase::Watching, &format!("version cannot be rolled back: {error}"));
                    self.watch = Some(watch);
                }
            }
        }
    }

    /// An accepted version serves.
    fn is_current(&mut self, version: Version) {
        if self.state.current == Some(version) {
            return;
        }
        if let Some(before) = self.state.current {
            self.state.happened("version serves", format!("version={version} before={before}"));
        }
        self.state.current = Some(version);
        (self.state.baseline, self.state.arrivals) = (None, None);
    }

    /// Another version is active than the one that serves: it is being loaded, or it cannot be.
    fn unserved(&mut self, active: Version) {
        let since = *self.unserved.get_or_insert_with(Instant::now);
        if since.elapsed() < LOADING || self.state.accepted.contains(&active) {
            return;
        }
        self.unserved = None;
        if let Err(error) = self.roll_back(active, "it cannot be loaded") {
            self.notices.warn("rollback", &format!("version cannot be rolled back: {error}"));
        }
    }

    fn roll_back(&mut self, bad: Version, why: &str) -> Result<()> {
        let name = self.name().clone();
        let accepted = |version: &Version| self.state.accepted.contains(version);
        let mut back = None;
        for _ in 0..MOST_STEPS_BACK {
            back = self.store.rollback(&name).ok();
            if back.as_ref().is_none_or(accepted) {
                break;
            }
        }
        let teacher = self.state.teacher.map(|record| record.version);
        let back = match (back.filter(accepted), self.state.current.or(teacher)) {
            (Some(back), _) => back,
            (None, fallback) => {
                let fallback = fallback.filter(accepted).or(teacher).unwrap_or(bad);
                self.store.activate(&name, fallback)?;
                fallback
            }
        };
        self.notices.well("rollback", "versions can be rolled back again");
        self.state.totals.rolled_back += 1;
        // What somebody else activated says nothing of what an adaptation would bring.
        if self.state.student == Some(bad) {
            self.state.back_off(self.config.adapt.backoff_first_s, self.config.adapt.backoff_most_s);
        }
        self.state.went_wrong("version rolled back", format!("version={bad} to={back} reason={why:?}"));
        if self.run.as_ref().is_some_and(|run| run.is_complete()) {
            // A crash came before it was noted that this is its student.
            self.finish_run();
        }
        self.repository.follow();
        Ok(())
    }

    /// Keeps what later versions are held against, from more images as they come.
    fn remember_answers(&mut self, version: Version) {
        if self.state.arrivals.is_none() {
            self.state.arrivals = self.shared.recent.first_arrivals(self.config.trigger.drift_window);
        }
        let (images, wanted) = (self.shared.reservoir().len(), self.config.watch.images);
        let known = self.state.baseline.as_ref().filter(|b| b.version == version).map_or(0, |b| b.answers.len());
        let more = images >= wanted || images >= 2 * known;
        if images >= FEWEST && known < wanted.min(images) && more {
            let sample = latest_images(&self.shared, wanted);
            match measure(&self.asker, &self.shared, version, &sample) {
                Ok(baseline) => self.state.baseline = Some(baseline).filter(|b| b.answers.len() >= FEWEST),
                Err(error) => log::debug!("no baseline yet: {error}"),
            }
        }
    }

    /// Lets the accepted version name the class of one more image that an earlier version named.
    pub fn relabel_one(&mut self) {
        let Some(number) = self.relabel.pop_front() else { return };
        let Some(served) = self.asker.served() else { return };
        let path = {
            let reservoir = self.shared.reservoir();
            let Some(kept) = reservoir.images().find(|kept| kept.number == number) else { return };
            reservoir.path(kept)
        };
        let Ok(image) = read_image(&path, &ImageLimits::default()) else { return };
        let Ok(logits) = self.asker.logits(&served, &image) else { return };
        let Some((class, _)) = rank(&logits, 1).first().copied() else { return };
        if let Err(error) = self.shared.reservoir().relabel(number, class) {
            self.notices.warn("relabel", &error.to_string());
        }
    }
}
