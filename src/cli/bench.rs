//! `secateur bench`: how fast models are on this board.

use std::path::{Path, PathBuf};

use candle_core::Device;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::accuracy::AccuracyArgs;
use super::model_args::ComputeArgs;
use super::model_source::{ModelSource, SourcedModel};
use super::output::print;
use super::run_args::parse_bytes;
use crate::adapt::{AdaptConfig, StepKind};
use crate::bench::{
    Baseline, Case, Comparison, Limits, Row, Subject, cold_start, measure, page, serve_once, table, training_speed,
};
use crate::board::{Board, warnings};
use crate::engine::{Isa, Precision};
use crate::model::{Teacher, TrainScope, metadata};
use crate::weights::{write_atomic, write_bytes_atomic};
use crate::{Error, Result};

/// Arguments of `bench`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    inference: InferenceArgs,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Speed and memory of an adaptation step instead of inference
    Adapt(TrainingArgs),
    /// Methods of adapting and pruning side by side, on images with labels
    Accuracy(AccuracyArgs),
}

/// What to measure of inference.
#[derive(Debug, Args)]
struct InferenceArgs {
    /// Model files; the others are compared with the first. Without one, --arch makes a model with random weights
    models: Vec<PathBuf>,
    /// Numbers of threads [default: 1 and all processors]
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<Vec<u16>>,
    /// Images per request
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,8", value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch: Vec<u16>,
    /// f32, int8 or both
    #[arg(long, value_name = "PRECISION,…", value_delimiter = ',', default_value = "f32")]
    precision: Vec<Precision>,
    /// Seconds of measuring for each model and case
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    seconds: f64,
    /// Requests for each model and case, instead of --seconds
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,
    /// Time every layer
    #[arg(long)]
    profile: bool,
    /// Do not measure how long a process takes from its start to the first answer, and its memory
    #[arg(long)]
    no_cold_start: bool,
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
    /// Also write a page with plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// JSON lines of an earlier run; exit code 1 if a case got slower beyond noise
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    #[command(flatten)]
    source: ModelSource,
}

impl BenchArgs {
    pub fn run(self) -> Result<()> {
        match self.what {
            Some(What::Adapt(args)) => args.run(),
            Some(What::Accuracy(args)) => args.run(),
            None => self.inference.run(),
        }
    }
}

impl InferenceArgs {
    fn run(self) -> Result<()> {
        if !(self.seconds.is_finite() && self.seconds > 0.0) {
            return Err(Error::Usage(format!("--seconds: expected a positive number, got {}", self.seconds)));
        }
        let baseline = self.baseline.as_deref().map(Baseline::open).transpose()?;
        let models = self.load()?;
        let subjects: Vec<Subject> = (models.iter())
            .map(|m| Subject {
                name: m.name.clone(),
                graph: m.graph.clone(),
                params: m.params.clone(),
                int8: m.int8.clone(),
            })
            .collect();
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {percent:>3} % eta {eta} {msg}") {
            bar.set_style(style);
        }
        let cases = self.cases();
        bar.set_length(100 * cases.len() as u64);
        let mut rows = Vec::new();
        for case in cases {
            rows.extend(self.measure(&subjects, case, &bar)?);
            bar.set_position(bar.position().next_multiple_of(100));
        }
        if !self.no_cold_start {
            self.cold_starts(&models, &mut rows)?;
        }
        bar.finish_and_clear();
        let slower = match &baseline {
            Some(baseline) => self.regressions(baseline, &subjects, &mut rows)?,
            None => Vec::new(),
        };
        if let Some(path) = &self.html {
            write_bytes_atomic(path, page(&rows).as_bytes())?;
            log::info!("page written path={}", path.display());
        }
        if self.json {
            for row in &rows {
                print(&json!(row).to_string())?;
            }
        } else {
            print(&table(&rows))?;
        }
        if slower.is_empty() {
            return Ok(());
        }
        Err(Error::Rejected(format!("slower than the baseline: {}", slower.join("; "))))
    }

    fn load(&self) -> Result<Vec<SourcedModel>> {
        if self.models.is_empty() {
            return Ok(vec![self.source.load(None, &Device::Cpu)?]);
        }
        self.models.iter().map(|path| self.source.load(Some(path), &Device::Cpu)).collect()
    }

    fn cases(&self) -> Vec<Case> {
        let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut threads: Vec<usize> = match &self.threads {
            Some(threads) => threads.iter().map(|&n| usize::from(n)).collect(),
            None => vec![1, all],
        };
        threads.dedup();
        let isa = Isa::detect();
        let batches = self.batch.iter().map(|&n| usize::from(n));
        batches.flat_map(|batch| threads.iter().map(move |&threads| Case { threads, batch, isa })).collect()
    }

    fn limits(&self) -> Limits {
        Limits { seconds: self.seconds, runs: self.runs.map(|n| n as usize), profile: self.profile }
    }

    /// One row per model and precision.
    fn measure(&self, subjects: &[Subject], case: Case, bar: &ProgressBar) -> Result<Vec<Row>> {
        bar.set_message(format!("{} threads, batch {}", case.threads, case.batch));
        let (start, before) = (bar.position(), Board::read());
        let mut turn = |part: f64| bar.set_position(start + (99.0 * part) as u64);
        let measured = measure(subjects, &self.precision, case, self.limits(), &mut turn)?;
        let warnings = warnings(&before, &Board::read());
        let reference = measured.first().map_or(f64::NAN, |m| m.stats.median);
        Ok((measured.iter())
            .map(|m| Row {
                board: before.clone(),
                warnings: warnings.clone(),
                ..Row::new(&subjects[m.subject], case, m, reference)
            })
            .collect())
    }

    /// Adds the start of a process to every row.
    fn cold_starts(&self, models: &[SourcedModel], rows: &mut [Row]) -> Result<()> {
        for model in models {
            let file = TemporaryModel::write(model)?;
            for row in rows.iter_mut().filter(|row| row.model == model.name) {
                row.set_start(cold_start(&file.0, case(row), row.precision)?);
            }
        }
        Ok(())
    }

    /// What got slower than the baseline, and again when measured a second time.
    fn regressions(&self, baseline: &Baseline, subjects: &[Subject], rows: &mut [Row]) -> Result<Vec<String>> {
        let suspects: Vec<Comparison> = baseline.compare(rows).into_iter().filter(Comparison::regressed).collect();
        let mut slower = Vec::new();
        for suspect in suspects {
            let row = &mut rows[suspect.row];
            let subject: Vec<Subject> = subjects.iter().filter(|s| s.name == row.model).take(1).cloned().collect();
            let limits = Limits { profile: false, ..self.limits() };
            let again = measure(&subject, &[row.precision], case(row), limits, &mut |_| {})?;
            let second = again.first().map_or(f64::INFINITY, |m| m.stats.median);
            let now = Comparison { now_ms: second.min(suspect.now_ms), ..suspect };
            if now.regressed() {
                let change = 100.0 * (now.now_ms / now.before_ms - 1.0);
                slower.push(format!(
                    "{}: {:.3} ms → {:.3} ms (+{change:.0} %, noise explains {:.0} %)",
                    row.case(),
                    now.before_ms,
                    now.now_ms,
                    100.0 * now.tolerance
                ));
            }
        }
        Ok(slower)
    }
}

fn case(row: &Row) -> Case {
    Case { threads: row.threads, batch: row.batch, isa: Isa::detect() }
}

/// A self-contained copy of a model, removed at the end.
struct TemporaryModel(PathBuf);

impl TemporaryModel {
    fn write(model: &SourcedModel) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("secateur-bench-{}.safetensors", std::process::id()));
        let own = metadata((&model.graph, &model.info), model.provenance.as_ref(), model.int8.as_ref());
        write_atomic(&path, &model.params, &own)?;
        Ok(Self(path))
    }
}

impl Drop for TemporaryModel {
    fn drop(&mut self) {
        // Nothing is lost if it stays.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Arguments of `bench adapt`.
#[derive(Debug, Args)]
struct TrainingArgs {
    /// Model files. Without one, --arch makes a model with random weights
    models: Vec<PathBuf>,
    /// Images per step [default: what `adapt` takes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(2..))]
    batch: Option<u16>,
    /// Height and width of the images [default: --size, or what `adapt` takes for a file]
    #[arg(long, value_name = "SIDE", value_parser = clap::value_parser!(u16).range(8..=4096))]
    train_size: Option<u16>,
    /// Most memory to take, as in 600MB: batches then go through the network in parts
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// What is trained: all, head, bn or last:N
    #[arg(long, value_name = "WHAT", default_value_t = TrainScope::All)]
    train: TrainScope,
    /// plain: forward, backward, update; admp: fit, close and probe with their updates
    #[arg(long, value_name = "STEP", default_value_t = StepKind::Plain)]
    step: StepKind,
    /// Steps to measure
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    steps: u16,
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: ModelSource,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl TrainingArgs {
    fn run(self) -> Result<()> {
        let device = self.compute.device()?;
        let files: Vec<Option<&Path>> =
            if self.models.is_empty() { vec![None] } else { self.models.iter().map(|p| Some(p.as_path())).collect() };
        for file in files {
            let SourcedModel { name, graph, params, info, provenance, int8 } = self.source.load(file, &device)?;
            let model = Teacher { graph, params, info, sha256: String::new(), provenance, int8 };
            let mut config = AdaptConfig::for_model(&model.info);
            if let Some(batch) = self.batch {
                config.batch_size = usize::from(batch);
            }
            (config.memory_bytes, config.train) = (self.memory, self.train);
            if file.is_none() {
                config.augment.train_size = None;
            }
            if let Some(side) = self.train_size.map(usize::from) {
                config.augment.train_size = Some([side, side]);
            }
            let speed = training_speed((&name, self.step), &model, &config, usize::from(self.steps), &device)?;
            print(&match self.json {
                true => json!(speed).to_string(),
                false => format!(
                    "{name}: {:.2} images/s ({:.2} expected of a plain step), {:.0} ms a {} step of {} images, \
                     {} threads, {} parts{}, peak memory {} MB ({} expected), a run at most {} MB",
                    speed.images_per_s,
                    speed.expected_images_per_s,
                    speed.step_ms,
                    speed.step,
                    speed.batch,
                    speed.threads,
                    speed.parts,
                    if speed.recomputes { ", normalised again" } else { "" },
                    speed.peak_rss_mb,
                    speed.expected_mb,
                    speed.planned_mb
                ),
            })?;
        }
        Ok(())
    }
}

/// Arguments of the hidden command that `bench` starts to measure a start.
#[derive(Debug, Args)]
pub(super) struct ColdStartArgs {
    model: PathBuf,
    #[arg(long)]
    threads: usize,
    #[arg(long)]
    batch: usize,
    #[arg(long)]
    precision: Precision,
}

impl ColdStartArgs {
    pub fn run(self) -> Result<()> {
        let case = Case { threads: self.threads, batch: self.batch, isa: Isa::detect() };
        print(&json!(serve_once(&self.model, case, self.precision)?).to_string())
    }
}
