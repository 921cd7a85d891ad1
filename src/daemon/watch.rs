//! Whether a version that has begun to serve deserves to.
//!
//! It answers images of the reservoir, and its answers are compared with those of the last accepted version to the same
//! images; then the answers it gives are compared with those given before. Images that arrived after the adaptation
//! began come first: no student was trained on those.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::ask::Asker;
use super::config::WatchConfig;
use super::intake::{Kept, Shared};
use super::recent::{Recent, Window};
use super::score::Scores;
use super::state::Baseline;
use crate::data::{ImageLimits, read_image};
use crate::model::rank;
use crate::store::Version;
use crate::{Error, Result};

/// Answers that are not finite, before a version is given up.
const MOST_FAILURES: u64 = 3;
/// Fewer images tell nothing.
const FEWEST: usize = 8;

/// A version under watch.
#[derive(Debug, Serialize)]
pub(super) struct Watch {
    /// The version.
    pub version: Version,
    /// What its answers to images of the reservoir came to, once they are known.
    pub scored: Option<String>,
    /// Answers given so far.
    pub answers: usize,
    /// Answers wanted.
    pub wanted: usize,
    #[serde(skip)]
    begun: Instant,
}

/// What the watch found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing yet.
    Open,
    /// It may stay.
    Good(String),
    /// It has to go.
    Bad(String),
}

impl Watch {
    pub fn new(version: Version, config: &WatchConfig) -> Self {
        Self { version, scored: None, answers: 0, wanted: config.answers, begun: Instant::now() }
    }

    /// Looks once more.
    pub fn look(
        &mut self,
        config: &WatchConfig,
        baseline: Option<&Baseline>,
        (asker, shared): (&Asker, &Shared),
    ) -> Found {
        if shared.recent.failures() >= MOST_FAILURES {
            return Found::Bad("its answers are not finite".into());
        }
        if self.scored.is_none() {
            match self.score(config, baseline, asker, shared) {
                Ok(Found::Good(text)) => self.scored = Some(text),
                Ok(other) => return other,
                Err(Error::Numeric(why)) => return Found::Bad(why),
                Err(error) => log::debug!("version cannot be scored yet version={}: {error}", self.version),
            }
        }
        let live = self.live(config, baseline, &shared.recent);
        match (live, self.begun.elapsed() >= Duration::from_secs_f64(config.patience_s)) {
            (Found::Open, true) => Found::Good(format!("{} answers in the time given", self.answers)),
            (Found::Good(live), _) => {
                Found::Good(format!("{}; {live}", self.scored.as_deref().unwrap_or("not scored")))
            }
            (found, _) => found,
        }
    }

    fn score(
        &self,
        config: &WatchConfig,
        baseline: Option<&Baseline>,
        asker: &Asker,
        shared: &Shared,
    ) -> Result<Found> {
        let Some(baseline) = baseline else { return Ok(Found::Good("nothing to compare with".into())) };
        let sample = same_images(shared, baseline);
        if sample.len() < FEWEST {
            return Ok(Found::Good("its images are gone".into()));
        }
        let new = measure(asker, shared, self.version, &sample)?;
        let pairs = baseline.answers.iter().filter_map(|(number, class)| {
            let (_, other) = new.answers.iter().find(|(n, _)| n == number)?;
            Some(class == other)
        });
        let agreeing: Vec<bool> = pairs.collect();
        let agreement = agreeing.iter().filter(|same| **same).count() as f64 / agreeing.len().max(1) as f64;
        Ok(compare(config, &baseline.scores, &new.scores, agreement))
    }

    /// What is served: mean confidence, and how many classes are named, against the same number of answers before.
    fn live(&mut self, config: &WatchConfig, baseline: Option<&Baseline>, recent: &Recent) -> Found {
        let (now, before) = recent.windows();
        self.answers = now.answers;
        if now.answers < config.answers {
            return Found::Open;
        }
        let known = before.answers >= (config.answers / 2).max(1);
        // Without answers before there is only what the reservoir's images said.
        let confidence = if known { Some(before.confidence) } else { baseline.map(|b| b.scores.confidence) };
        let diversity = known.then_some(before.diversity);
        judge_live(config, &now, confidence, diversity)
    }
}

fn judge_live(config: &WatchConfig, now: &Window, confidence: Option<f64>, diversity: Option<f64>) -> Found {
    let checks = [
        ("confidence of what it serves", now.confidence, confidence.map(|c| c * config.min_confidence)),
        ("diversity of what it serves", now.diversity, diversity.map(|d| d * config.min_diversity)),
    ];
    verdict(&checks, now.answers, "answers")
}

/// Compares a version's answers with the last accepted one's to the same images.
fn compare(config: &WatchConfig, old: &Scores, new: &Scores, agreement: f64) -> Found {
    let part = |part: f64, of: f64| Some(part * of.max(0.0));
    let checks = [
        ("mutual information", new.information(), part(config.min_information, old.information())),
        ("diversity", new.diversity, part(config.min_diversity, old.diversity)),
        ("confidence", new.confidence, part(config.min_confidence, old.confidence)),
        ("agreement with the version before", agreement, Some(config.min_agreement)),
    ];
    verdict(&checks, new.images, "images")
}

fn verdict(checks: &[(&str, f64, Option<f64>)], count: usize, of: &str) -> Found {
    let failed = checks.iter().find(|(_, got, least)| least.is_some_and(|least| got.is_nan() || *got < least));
    if let Some((what, got, Some(least))) = failed {
        return Found::Bad(format!("{what} is {got:.3}, expected at least {least:.3} (on {count} {of})"));
    }
    let told: Vec<String> = checks.iter().map(|(what, got, _)| format!("{what} {got:.3}")).collect();
    Found::Good(format!("{} (on {count} {of})", told.join(", ")))
}

/// The images of a baseline that are still kept.
fn same_images(shared: &Shared, baseline: &Baseline) -> Vec<Kept> {
    let reservoir = shared.reservoir();
    let asked: std::collections::BTreeSet<u64> = baseline.answers.iter().map(|(number, _)| *number).collect();
    reservoir.images().filter(|kept| asked.contains(&kept.number)).cloned().collect()
}

/// The latest images of the reservoir, at most `most`.
pub(super) fn latest_images(shared: &Shared, most: usize) -> Vec<Kept> {
    shared.reservoir().images().rev().take(most).cloned().collect()
}

/// How `version` answers images of the reservoir; those that are gone meanwhile are left out.
///
/// # Errors
/// [`Error::Numeric`] if an answer is not finite; [`Error::Overloaded`] if the version does not answer now.
pub(super) fn measure(asker: &Asker, shared: &Shared, version: Version, images: &[Kept]) -> Result<Baseline> {
    let served = asker.served().filter(|served| served.version == version);
    let served = served.ok_or_else(|| Error::Overloaded(format!("version {version} does not serve")))?;
    let (mut answers, mut rows) = (Vec::new(), Vec::new());
    for kept in images {
        let path = shared.reservoir().path(kept);
        let Ok(image) = read_image(&path, &ImageLimits::default()) else { continue };
        let logits = asker.logits(&served, &image)?;
        answers.extend(rank(&logits, 1).first().map(|(class, _)| (kept.number, *class)));
        rows.push(logits);
    }
    Ok(Baseline { version, answers, scores: Scores::of(rows.iter().map(Vec::as_slice)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::config::DaemonConfig;

    fn scores(rows: &[[f32; 3]]) -> Scores {
        Scores::of(rows.iter().map(|row| row.as_slice()))
    }

    fn config() -> WatchConfig {
        DaemonConfig::default().watch
    }

    #[test]
    fn a_good_version_stays_and_collapse_and_confusion_do_not() {
        let good = scores(&[[9., 0., 0.], [0., 9., 0.], [0., 0., 9.]]);
        let same = compare(&config(), &good, &good, 1.0);
        assert!(
            matches!(&same, Found::Good(text) if text.contains("agreement") && text.contains("3 images")),
            "{same:?}"
        );
        for (bad, agreement, word) in [
            (scores(&[[9., 0., 0.]; 3]), 0.33, "mutual information"),
            (scores(&[[0.1, 0., 0.], [0., 0.1, 0.], [0., 0., 0.1]]), 1.0, "mutual information"),
            (scores(&[[0., 9., 0.], [0., 0., 9.], [9., 0., 0.]]), 0.0, "agreement"),
        ] {
            let found = compare(&config(), &good, &bad, agreement);
            assert!(matches!(&found, Found::Bad(text) if text.contains(word)), "{found:?}");
        }
    }

    #[test]
    fn live_answers_are_held_against_those_before() {
        let window = |confidence, diversity| Window { answers: 100, confidence, diversity };
        let judge = |now, diversity| judge_live(&config(), &now, Some(0.8), diversity);
        assert!(matches!(judge(window(0.7, 1.0), Some(1.2)), Found::Good(_)));
        assert!(matches!(judge(window(0.5, 1.0), Some(1.2)), Found::Bad(why) if why.contains("confidence")));
        assert!(matches!(judge(window(0.7, 0.1), Some(1.2)), Found::Bad(why) if why.contains("diversity")));
        assert!(matches!(judge(window(0.7, 0.0), None), Found::Good(_)), "one thing may be before the camera");
    }

    #[test]
    fn numbers_that_are_none_are_bad() {
        let good = scores(&[[9., 0., 0.], [0., 9., 0.]]);
        let broken = Scores { diversity: f64::NAN, ..good.clone() };
        assert!(matches!(compare(&config(), &good, &broken, 1.0), Found::Bad(_)));
    }
}
