//! One line of results: JSON for machines, a row of a table for people.

use serde::{Deserialize, Serialize};

use super::cold_start::ColdStart;
use super::measure::{Case, Measured, Subject};
use crate::board::Board;
use crate::engine::{Precision, StepProfile};

/// Figures of one model, precision, number of threads and batch size. The fields' order is the JSON's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// File, or architecture of a random model.
    pub model: String,
    /// The numbers computed with.
    pub precision: Precision,
    /// Threads of a request.
    pub threads: usize,
    /// Images of a request.
    pub batch: usize,
    /// Requests measured.
    pub runs: usize,
    /// Milliseconds of a request.
    pub median_ms: f64,
    /// Nine of ten requests took no longer.
    pub p90_ms: f64,
    /// 99 of 100 took no longer.
    pub p99_ms: f64,
    /// How far a repetition may lie off, relative to the median.
    pub noise: f64,
    /// Throughput.
    pub images_per_s: f64,
    /// Milliseconds from the start of a process, its model file not in memory, to its first answer, if measured.
    pub load_ms: Option<f64>,
    /// Most memory that process held, in MiB, if measured.
    pub peak_rss_mb: Option<f64>,
    /// Twice the multiply-accumulates of the graph per second: fast algorithms do fewer.
    pub gflops: f64,
    /// How many times as fast as the first model under the same conditions.
    pub speed_up: f64,
    /// Multiply-accumulates per image.
    pub macs: u64,
    /// Trained parameters.
    pub params: u64,
    /// Bytes of the parameters as f32.
    pub bytes: u64,
    /// Bytes of packed weights in memory.
    pub weights_bytes: usize,
    /// Bytes of activations in memory.
    pub activations_bytes: usize,
    /// The start of that process in parts.
    pub start: Option<ColdStart>,
    /// Instruction set of the kernels.
    pub isa: String,
    /// The board before.
    pub board: Board,
    /// Why not to trust the figures.
    pub warnings: Vec<String>,
    /// Version of this program.
    pub version: String,
    /// Seconds of every layer, if asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<LayerRow>,
}

/// One layer of a profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerRow {
    /// Its name.
    pub layer: String,
    /// The algorithm.
    pub kernel: String,
    /// Output shape of an image.
    pub shape: Vec<usize>,
    /// Multiply-accumulates of the request.
    pub macs: u64,
    /// Milliseconds.
    pub ms: f64,
    /// Percentage of the whole.
    pub percent: f64,
    /// Twice the multiply-accumulates per second.
    pub gflops: f64,
}

impl Row {
    /// Adds what was measured of the start of a process.
    pub fn set_start(&mut self, start: ColdStart) {
        self.load_ms = Some(start.first_answer_ms);
        self.peak_rss_mb = Some(start.peak_rss_bytes as f64 / 1e6);
        self.start = Some(start);
    }

    /// The row of a measurement; `reference_ms` is the first model's median per request.
    pub fn new(subject: &Subject, case: Case, measured: &Measured, reference_ms: f64) -> Self {
        let (cost, stats) = (subject.graph.cost(), measured.stats);
        let per_second = case.batch as f64 / stats.median * 1e3;
        Self {
            model: subject.name.clone(),
            precision: measured.precision,
            threads: case.threads,
            batch: case.batch,
            runs: stats.runs,
            median_ms: stats.median,
            p90_ms: stats.p90,
            p99_ms: stats.p99,
            noise: stats.noise,
            images_per_s: per_second,
            load_ms: None,
            peak_rss_mb: None,
            gflops: 2.0 * cost.macs as f64 * per_second / 1e9,
            speed_up: reference_ms / stats.median,
            macs: cost.macs,
            params: cost.params,
            bytes: cost.bytes,
            weights_bytes: measured.memory.weights,
            activations_bytes: measured.memory.activations,
            start: None,
            isa: case.isa.to_string(),
            board: Board::default(),
            warnings: Vec::new(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            profile: layers(&measured.profile),
        }
    }

    /// Model, precision, threads and batch, as one reads them.
    pub fn case(&self) -> String {
        format!("{} {} threads={} batch={}", self.model, self.precision, self.threads, self.batch)
    }
}

fn layers(steps: &[StepProfile]) -> Vec<LayerRow> {
    let whole: f64 = steps.iter().map(|step| step.seconds).sum();
    let row = |step: &StepProfile| LayerRow {
        layer: step.layer.clone(),
        kernel: step.kernel.clone(),
        shape: step.shape.clone(),
        macs: step.macs,
        ms: step.seconds * 1e3,
        percent: 100.0 * step.seconds / whole.max(f64::MIN_POSITIVE),
        gflops: 2.0 * step.macs as f64 / step.seconds.max(f64::MIN_POSITIVE) / 1e9,
    };
    steps.iter().map(row).collect()
}

/// The rows as a table.
pub fn table(rows: &[Row]) -> String {
    let name = rows.iter().map(|row| row.model.chars().count()).max().unwrap_or(0).clamp(5, 40);
    let mut lines = vec![format!(
        "{:<name$} {:>5} {:>7} {:>5} {:>10} {:>10} {:>10} {:>9} {:>9} {:>8}",
        "model", "prec.", "threads", "batch", "median", "p90", "p99", "images/s", "GFLOP/s", "speed-up"
    )];
    for row in rows {
        lines.push(format!(
            "{:<name$} {:>5} {:>7} {:>5} {:>7.2} ms {:>7.2} ms {:>7.2} ms {:>9.1} {:>9.1} {:>7.2}x",
            shortened(&row.model, name),
            row.precision.to_string(),
            row.threads,
            row.batch,
            row.median_ms,
            row.p90_ms,
            row.p99_ms,
            row.images_per_s,
            row.gflops,
            row.speed_up
        ));
    }
    for row in rows {
        if let Some(start) = row.start {
            lines.push(format!(
                "{}: first answer {:.0} ms after the start (file {:.0} ms, compiling {:.0} ms), peak memory {} MB",
                row.case(),
                start.first_answer_ms,
                start.load_ms,
                start.compile_ms,
                start.peak_rss_bytes >> 20
            ));
        }
        if !row.profile.is_empty() {
            lines.push(format!("\n{}, by layer", row.case()));
            lines.extend(profile_lines(&row.profile));
        }
    }
    let warnings: std::collections::BTreeSet<&String> = rows.iter().flat_map(|row| &row.warnings).collect();
    lines.extend(warnings.into_iter().map(|warning| format!("not to be trusted: {warning}")));
    lines.join("\n")
}

fn profile_lines(layers: &[LayerRow]) -> Vec<String> {
    let name = layers.iter().map(|l| l.layer.chars().count()).max().unwrap_or(0).max(5);
    let mut lines = vec![format!(
        "{:<name$} {:<13} {:>15} {:>8} {:>9} {:>6} {:>8}",
        "layer", "kernel", "shape", "MMACs", "ms", "%", "GFLOP/s"
    )];
    for l in layers {
        let shape: Vec<String> = l.shape.iter().map(ToString::to_string).collect();
        let (shape, mmacs) = (shape.join("×"), l.macs as f64 / 1e6);
        lines.push(format!(
            "{:<name$} {:<13} {shape:>15} {mmacs:>8.2} {:>9.3} {:>6.1} {:>8.1}",
            l.layer, l.kernel, l.ms, l.percent, l.gflops
        ));
    }
    lines
}

/// The end of a long name: paths differ there.
fn shortened(name: &str, most: usize) -> String {
    let count = name.chars().count();
    if count <= most {
        name.to_string()
    } else {
        format!("…{}", name.chars().skip(count - most + 1).collect::<String>())
    }
}
