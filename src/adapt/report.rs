//! The record of a run, written as `report.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::gate::Verdict;
use super::latency::TableIdentity;
use super::observer::{Metrics, Phase};
use super::survey::Survey;
use crate::graph::{ChannelGroups, Graph, Keep};

/// One model's figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelFigures {
    /// Percentage of labelled target images answered right; `null` without labels.
    pub accuracy: Option<f64>,
    /// Prunable convolution output channels.
    pub channels: u64,
    /// Trained parameters.
    pub params: u64,
    /// Multiply-accumulates per image.
    pub macs: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Milliseconds of one image on this machine, as served, when nothing disturbs it: one of fifty runs took no longer.
    pub latency_ms: f64,
}

/// One phase's course.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseReport {
    /// Which phase.
    pub phase: Phase,
    /// Steps done.
    pub steps: usize,
    /// Seconds.
    pub wall_s: f64,
    /// Each metric's values; `at` holds their steps.
    pub metrics: BTreeMap<String, Vec<f64>>,
    /// The steps the values belong to.
    pub at: Vec<usize>,
}

impl PhaseReport {
    /// An empty record.
    pub fn new(phase: Phase) -> Self {
        Self { phase, steps: 0, wall_s: 0.0, metrics: BTreeMap::new(), at: Vec::new() }
    }

    /// Adds a step's metrics.
    pub fn record(&mut self, step: usize, metrics: &Metrics) {
        self.steps = step + 1;
        self.at.push(step);
        for (name, value) in metrics {
            self.metrics.entry((*name).to_string()).or_default().push(*value);
        }
    }
}

/// Channels of one group before and after.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupWidth {
    /// The group's first layer.
    pub name: String,
    /// Channels of the teacher.
    pub before: usize,
    /// Channels of the student.
    pub after: usize,
}

impl GroupWidth {
    /// The widths of all prunable groups under `keep`.
    pub fn all(groups: &ChannelGroups, keep: &Keep) -> Vec<Self> {
        let width = |g: &crate::graph::ChannelGroup| Self {
            name: g.name.clone(),
            before: g.width,
            after: keep[g.entries.clone()].iter().filter(|k| **k).count(),
        };
        groups.prunable().map(width).collect()
    }
}

/// Which parameters the run went on with after phase 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdaptedBy {
    /// The teacher as it came.
    Source,
    /// The teacher with batch-norm statistics of the target.
    Statistics,
    /// The teacher trained on the target.
    Training,
}

/// A teacher that phase 1 may go on with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CandidateFigures {
    /// How it came about.
    pub by: AdaptedBy,
    /// Percentage of labelled target images answered right; `null` without labels.
    pub accuracy: Option<f64>,
    /// The gate's verdict on it beside the teacher as it came.
    pub gate: Verdict,
}

/// What a run was given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// The program's version.
    pub version: String,
    /// The teacher's file.
    pub teacher: String,
    /// SHA-256 of it.
    pub teacher_sha256: String,
    /// The teacher's classes, in the order of the logits.
    pub class_names: Vec<String>,
    /// Where the target images lie.
    pub target: String,
    /// Digest of their names and sizes.
    pub target_sha256: String,
    /// Where the replayed source images lie, if there are any.
    pub source: Option<String>,
}

/// Everything a run found out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What it was given.
    #[serde(default)]
    pub inputs: Inputs,
    /// The teacher's figures.
    pub teacher: ModelFigures,
    /// The adapted teacher's.
    pub adapted: ModelFigures,
    /// The student's.
    pub student: ModelFigures,
    /// Whole run, in seconds, work before a resume included.
    pub wall_s: f64,
    /// Peak resident memory of this process, in MB.
    pub peak_rss_mb: u64,
    /// Figures of a budget of latency, if it was one.
    pub latency: Option<LatencyFigures>,
    /// The gate's verdict on the student.
    pub gate: Verdict,
    /// The gate's verdict on the adapted teacher.
    pub teacher_gate: Verdict,
    /// The gate's verdict on 8-bit inference, if it was asked for.
    pub int8: Option<Verdict>,
    /// What phase 1 ended with.
    pub adapted_by: AdaptedBy,
    /// What phase 1 chose among.
    #[serde(default)]
    pub candidates: Vec<CandidateFigures>,
    /// What the untrained teacher's answers told of the images.
    #[serde(default)]
    pub survey: Option<Survey>,
    /// Target images used and left out.
    pub images: ImageCounts,
    /// Channels of each group.
    pub groups: Vec<GroupWidth>,
    /// Largest relative difference of logits between masked and compacted student.
    pub surgery_difference: f32,
    /// The phases' losses.
    pub phases: Vec<PhaseReport>,
    /// The configuration.
    pub config: serde_json::Value,
}

/// What a budget of latency came to, in milliseconds per image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatencyFigures {
    /// The most the student may take.
    pub budget_ms: f64,
    /// What the table of layers says that it takes.
    pub predicted_ms: f64,
    /// What it takes.
    pub measured_ms: f64,
    /// Where and how it was measured.
    pub identity: TableIdentity,
}

/// How many images a run saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageCounts {
    /// Used for training.
    pub train: usize,
    /// Kept out for the gate.
    pub held_out: usize,
    /// Name and reason of each image that could not be read.
    pub broken: Vec<(String, String)>,
}

impl ModelFigures {
    /// Figures of `graph`, of whose prunable channels `channels` are left.
    pub fn new(graph: &Graph, channels: u64, accuracy: Option<f64>, latency_ms: f64) -> Self {
        let cost = graph.cost();
        Self { accuracy, channels, params: cost.params, macs: cost.macs, bytes: cost.bytes, latency_ms }
    }
}
