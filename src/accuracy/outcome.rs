//! What came of a trial, and the file that collects it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::method::Method;
use super::settings::Settings;
use super::trial::Trial;
use crate::adapt::gate::Verdict;
use crate::adapt::{AdaptedBy, Report};
use crate::weights::write_bytes_atomic;
use crate::{Error, Result};

/// One line of results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// What was tried.
    #[serde(flatten)]
    pub trial: Trial,
    /// Percentage of target images answered right.
    pub accuracy: f64,
    /// The same of what the gate compared with: the adapted teacher, or the teacher of an adapted one.
    pub reference_accuracy: f64,
    /// Prunable convolution output channels.
    pub channels: u64,
    /// Trained parameters.
    pub params: u64,
    /// Multiply-accumulates per image.
    pub macs: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Milliseconds per image on this machine.
    pub latency_ms: f64,
    /// The gate's verdict without labels: on a student beside the adapted teacher, on an adapted one beside the teacher.
    pub gate: Verdict,
    /// Seconds of the runs it took, shared ones included.
    pub wall_s: f64,
    /// Peak resident memory of the runs, in MB.
    pub peak_rss_mb: u64,
    /// What else its runs were given.
    #[serde(flatten)]
    pub settings: Settings,
}

impl Outcome {
    /// The outcome of `trial` by the `reports` of its stages.
    ///
    /// # Errors
    /// [`Error::Data`] at `path` if the images have no labels, or if a figure is missing.
    pub fn of(trial: &Trial, settings: &Settings, reports: &[Report], path: &Path) -> Result<Self> {
        let missing = |what: &str| Error::data(path, format!("the report has no {what}"));
        let last = reports.last().ok_or_else(|| missing("run"))?;
        let by = match trial.method {
            Method::Source => Some(AdaptedBy::Source),
            Method::Statistics => Some(AdaptedBy::Statistics),
            _ => None,
        };
        let candidate = |by: AdaptedBy| last.candidates.iter().find(|c| c.by == by).ok_or_else(|| missing("candidate"));
        let (accuracy, gate) = match by {
            Some(by) => candidate(by).map(|c| (c.accuracy, c.gate.clone()))?,
            None => (last.student.accuracy, last.gate.clone()),
        };
        let compared = match trial.method {
            Method::PruneThenAdapt => &last.teacher,
            method if method.prunes() => &last.adapted,
            _ => &last.teacher,
        };
        let no_labels = || missing("accuracy: the images have no labels of the teacher's classes");
        let figures = if by.is_some() { &last.teacher } else { &last.student };
        Ok(Self {
            trial: trial.clone(),
            accuracy: accuracy.ok_or_else(no_labels)?,
            reference_accuracy: compared.accuracy.ok_or_else(no_labels)?,
            channels: figures.channels,
            params: figures.params,
            macs: figures.macs,
            bytes: figures.bytes,
            latency_ms: figures.latency_ms,
            gate,
            // Few digits: read again, they are the same number.
            wall_s: (reports.iter().map(|report| report.wall_s).sum::<f64>() * 1e3).round() / 1e3,
            peak_rss_mb: reports.iter().map(|report| report.peak_rss_mb).max().unwrap_or(0),
            settings: settings.clone(),
        })
    }
}

/// The outcomes in a file, one JSON object per line.
#[derive(Debug)]
pub struct Results {
    path: PathBuf,
    outcomes: Vec<Outcome>,
}

impl Results {
    /// Those at `path`; none if there is no such file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] naming the line that is no outcome.
    pub fn open(path: PathBuf) -> Result<Self> {
        let text = match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read.map_err(|e| Error::io("read", &path, e))?,
        };
        let parse = |(index, line)| {
            serde_json::from_str(line).map_err(|e| Error::data(&path, format!("line {}: no outcome: {e}", index + 1)))
        };
        let outcomes = text.lines().enumerate().map(parse).collect::<Result<_>>()?;
        Ok(Self { path, outcomes })
    }

    /// Those that may be compared.
    pub fn by(&self, comparable: impl Fn(&Outcome) -> bool) -> Vec<Outcome> {
        self.outcomes.iter().filter(|outcome| comparable(outcome)).cloned().collect()
    }

    /// Puts an outcome in the place of an earlier one of the same trial and settings, and writes the file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add(&mut self, outcome: Outcome) -> Result<()> {
        let same = |earlier: &&mut Outcome| earlier.trial == outcome.trial && earlier.settings == outcome.settings;
        match self.outcomes.iter_mut().find(same) {
            Some(earlier) => *earlier = outcome,
            None => self.outcomes.push(outcome),
        }
        let lines: String = self.outcomes.iter().map(|o| format!("{}\n", serde_json::json!(o))).collect();
        write_bytes_atomic(&self.path, lines.as_bytes())
    }
}
