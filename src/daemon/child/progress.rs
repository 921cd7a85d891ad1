//! What an adaptation tells of itself: the lines that `adapt --progress` writes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Points kept of each loss.
const MOST_POINTS: usize = 200;

/// One line.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Step { phase: String, step: usize, steps: usize, eta_s: f64, losses: BTreeMap<String, f64> },
    Phase { phase: String, step: usize, steps: usize },
    Channels { channels: Vec<Channels> },
    Note { note: String },
}

/// Channels of a group of layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channels {
    /// The group's first layer.
    pub group: String,
    /// Of the teacher.
    pub before: usize,
    /// Of the student.
    pub after: usize,
}

/// The course of one loss in one phase.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Losses {
    /// Step and value, in order.
    pub points: Vec<(usize, f64)>,
    #[serde(skip)]
    stride: usize,
}

impl Losses {
    fn add(&mut self, step: usize, value: f64) {
        // A resumed run repeats what it had not saved.
        self.points.retain(|(at, _)| *at < step);
        if !step.is_multiple_of(self.stride.max(1)) {
            return;
        }
        self.points.push((step, value));
        if self.points.len() > MOST_POINTS {
            self.stride = 2 * self.stride.max(1);
            self.points.retain(|(at, _)| at.is_multiple_of(self.stride));
        }
    }
}

/// How far an adaptation is, read from the file it appends to.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    path: PathBuf,
    read: u64,
    /// A line that was not whole yet.
    rest: String,
    /// The phases that have begun, in order, and the most steps done in the latest of them.
    begun: Vec<String>,
    most: usize,
    /// The phase, or what goes on outside the phases.
    pub phase: String,
    /// Steps of the phase that are done, and how many it has.
    pub step: usize,
    /// How many steps it has.
    pub steps: usize,
    /// Seconds until the phase ends.
    pub eta_s: f64,
    /// Losses by phase and name.
    pub losses: BTreeMap<String, Losses>,
    /// Channels before and after, once that is decided.
    pub channels: Vec<Channels>,
}

impl Progress {
    /// What stands in the file at `path`, which need not be there yet.
    pub fn of(path: &Path) -> Self {
        let mut progress = Self { path: path.to_path_buf(), phase: "starting".into(), ..Self::default() };
        progress.read();
        progress
    }

    /// Reads what was appended. A file that cannot be read tells nothing new.
    pub fn read(&mut self) {
        let Ok(mut file) = File::open(&self.path) else { return };
        let mut bytes = Vec::new();
        if file.seek(SeekFrom::Start(self.read)).and_then(|_| file.read_to_end(&mut bytes)).is_err() {
            return;
        }
        self.read += bytes.len() as u64;
        self.rest.push_str(&String::from_utf8_lossy(&bytes));
        while let Some((line, rest)) = self.rest.split_once('\n') {
            let (line, rest) = (serde_json::from_str(line), rest.to_string());
            // A line that a power cut has cut in two is told again by the resumed run.
            if let Ok(line) = line {
                self.take(line);
            }
            self.rest = rest;
        }
    }

    /// How far it has come, as a number that grows: a resumed run that only repeats does not move it.
    pub fn furthest(&self) -> u64 {
        self.begun.len() as u64 * 1_000_000 + self.most as u64
    }

    fn reached(&mut self, phase: &str, step: usize) {
        if !self.begun.iter().any(|begun| begun == phase) {
            self.begun.push(phase.to_string());
            self.most = 0;
        }
        if self.begun.last().is_some_and(|latest| latest == phase) {
            self.most = self.most.max(step);
        }
    }

    fn take(&mut self, line: Line) {
        match line {
            Line::Step { phase, step, steps, eta_s, losses } => {
                for (name, value) in losses {
                    self.losses.entry(format!("{phase} {name}")).or_default().add(step, value);
                }
                self.reached(&phase, step);
                (self.phase, self.step, self.steps, self.eta_s) = (phase, step, steps, eta_s);
            }
            Line::Phase { phase, step, steps } => {
                self.reached(&phase, step);
                (self.phase, self.step, self.steps, self.eta_s) = (phase, step, steps, 0.0);
            }
            Line::Channels { channels } => self.channels = channels,
            Line::Note { note } => (self.phase, self.step, self.steps, self.eta_s) = (note, 0, 0, 0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn step(step: usize, value: f64) -> String {
        format!(
            "{{\"phase\":\"prune\",\"step\":{step},\"steps\":900,\"eta_s\":1.5,\"losses\":{{\"imitation\":{value}}}}}\n"
        )
    }

    #[test]
    fn lines_are_read_as_they_come() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("progress");
        let mut progress = Progress::of(&path);
        assert_eq!((progress.phase.as_str(), progress.furthest()), ("starting", 0));
        let whole = format!("{{\"note\":\"statistics\"}}\n{}{}", step(1, 0.5), step(2, 0.25));
        fs::write(&path, &whole[..whole.len() - 9]).unwrap();
        progress.read();
        assert_eq!((progress.phase.as_str(), progress.step, progress.steps), ("prune", 1, 900));
        let furthest = progress.furthest();
        let more = format!("{whole}{{\"channels\":[{{\"group\":\"a\",\"before\":8,\"after\":3}}]}}\nnonsense\n");
        fs::write(&path, more).unwrap();
        progress.read();
        assert_eq!(progress.losses["prune imitation"].points, [(1, 0.5), (2, 0.25)]);
        assert_eq!((progress.channels[0].after, progress.eta_s), (3, 1.5));
        assert!(progress.furthest() > furthest);
        assert_eq!(Progress::of(&path).losses, progress.losses);
    }

    #[test]
    fn long_courses_are_thinned_and_repeated_steps_replaced() {
        let mut losses = Losses::default();
        (0..1000).for_each(|step| losses.add(step, step as f64));
        assert!(losses.points.len() <= MOST_POINTS && losses.points.len() > MOST_POINTS / 3);
        assert_eq!(losses.points[1], (losses.stride, losses.stride as f64));
        (900..1000).for_each(|step| losses.add(step, 0.0));
        assert!(losses.points.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(losses.points.iter().all(|(step, value)| (*value == 0.0) == (*step == 0 || *step >= 900)));
    }
}
