//! `secateur adapt`: the main job.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::Device;
use clap::{Args, Parser};

use super::model_args::{ComputeArgs, ModelArgs};
use super::output::{print, summary, table};
use super::progress::Progress;
use super::progress_file::Recorded;
use super::run_args::{MB, RunArgs};
use super::signals::stop_flag;
use super::{Cli, Command};
use crate::adapt::latency::{LatencyTable, TableIdentity, default_path};
use crate::adapt::{self, AdaptConfig, ImageSet, Job, Outcome, Safety, forecast, memory_plan, most_pixels, page};
use crate::data::{DEFAULT_CACHE_BYTES, ImageLimits, Source, SourceConfig};
use crate::model::ModelInfo;
use crate::weights::write_bytes_atomic;
use crate::{Error, Result};

/// Stands for a model whose input is not known.
const ANY_INPUT: [usize; 3] = [3, 224, 224];

/// The report's name beside the student, and beside a refused one.
const REPORT: &str = "report.json";
const REFUSED_REPORT: &str = "report.refused.json";

/// Arguments of `adapt`.
#[derive(Debug, Args)]
pub(super) struct AdaptArgs {
    /// The pretrained model: a safetensors file, or a folder with model.safetensors and config.json
    #[arg(long, value_name = "PATH")]
    teacher: PathBuf,
    /// The device's own unlabeled images: a folder, an IDX file or a safetensors file
    #[arg(long, value_name = "PATH")]
    target: PathBuf,
    /// Labelled source images for replay, if there are any on the device
    #[arg(long, value_name = "PATH")]
    source: Option<PathBuf>,
    /// Where to write the student; a refused one goes to FILE.refused
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Also write the adapted, unpruned teacher; that of a refused student goes to FILE.refused
    #[arg(long, value_name = "FILE")]
    adapted_out: Option<PathBuf>,
    /// Where to write the report; a page that shows it goes beside it [default: report.json and report.html beside the
    /// student, report.refused.json and report.refused.html of a refused one]
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// For --budget latency=…: times of layers measured on this device, read if they are there and fit, else measured and
    /// written [default: in ~/.cache/secateur]
    #[arg(long, value_name = "FILE")]
    latency_table: Option<PathBuf>,
    /// Checkpoint file [default: the student's path with .checkpoint]
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Seconds between two checkpoints
    #[arg(long, value_name = "S", default_value_t = 120)]
    checkpoint_every: u64,
    /// Go on from the checkpoint, if there is one
    #[arg(long, conflicts_with = "restart")]
    resume: bool,
    /// Throw an existing checkpoint away
    #[arg(long)]
    restart: bool,
    /// Append to this file how far the run is, one JSON object per line
    #[arg(long, value_name = "FILE")]
    progress: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl AdaptArgs {
    /// The arguments of `secateur`, "adapt" first, as `adapt` would read them.
    ///
    /// # Errors
    /// [`Error::Usage`], on one line, for others than of a run.
    pub fn read(arguments: impl IntoIterator<Item: Into<OsString>>) -> Result<Self> {
        let line = std::iter::once("secateur".into()).chain(arguments.into_iter().map(Into::into));
        Err(Error::Usage(match Cli::try_parse_from(line) {
            Ok(Cli { command: Command::Adapt(arguments) }) => return Ok(*arguments),
            Ok(_) => "expected arguments of adapt".to_string(),
            Err(error) if !error.use_stderr() => "expected arguments of a run, got a question".to_string(),
            Err(error) => on_one_line(&error),
        }))
    }

    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// As [`RunArgs::apply`].
    pub fn check(&self) -> Result<()> {
        self.run.apply(AdaptConfig::for_input(ANY_INPUT)).map(drop)
    }

    /// What a run on its images will do, whose labels are to tell the accuracy.
    ///
    /// # Errors
    /// As a run until it trains; [`Error::Data`] if no image has a label that the teacher knows.
    pub fn labelled_config(&self) -> Result<AdaptConfig> {
        let info = self.model.load(&self.teacher, &Device::Cpu)?.info;
        let config = self.run.apply(AdaptConfig::for_model(&info))?;
        let images = open_images(&self.target, &info, &config)?;
        expect_labels(&images, &self.target, &info)?;
        Ok(self.run.for_images(config, images.good().len()))
    }

    pub fn run(self) -> Result<()> {
        let stop = stop_flag()?;
        let checkpoint = self.checkpoint.unwrap_or_else(|| with_suffix(&self.out, ".checkpoint"));
        let report_path = self.report.clone().unwrap_or_else(|| self.out.with_file_name(REPORT));
        let mut outputs = vec![
            ("--out", self.out.clone()),
            ("a refused --out", refused(&self.out)),
            ("--checkpoint", checkpoint.clone()),
            ("--report", report_path.clone()),
            ("page beside --report", page_path(&report_path)),
        ];
        if self.report.is_none() {
            let path = self.out.with_file_name(REFUSED_REPORT);
            outputs.extend([("page beside a refused --report", page_path(&path)), ("a refused --report", path)]);
        }
        if let Some(path) = &self.adapted_out {
            outputs.extend([("--adapted-out", path.clone()), ("a refused --adapted-out", refused(path))]);
        }
        outputs.extend(self.latency_table.clone().map(|path| ("--latency-table", path)));
        outputs.extend(self.progress.clone().map(|path| ("--progress", path)));
        let mut inputs = vec![("--teacher", &self.teacher), ("--target", &self.target)];
        inputs.extend(self.source.as_ref().map(|path| ("--source", path)));
        check_outputs(&outputs, &inputs)?;
        if checkpoint.exists() && !self.resume && !self.restart {
            return Err(Error::Usage(format!(
                "{}: a checkpoint of an unfinished run is there; go on with --resume or throw it away with --restart",
                checkpoint.display()
            )));
        }
        let resume = self.resume && checkpoint.exists();
        if self.resume && !resume {
            log::info!("no checkpoint, starting anew path={}", checkpoint.display());
        }
        let device = self.compute.device()?;
        let teacher = self.model.load(&self.teacher, &device)?;
        let config = self.run.apply(AdaptConfig::for_model(&teacher.info))?;
        let plan = memory_plan(&teacher.graph, &config)?;
        let identity = TableIdentity::here(&teacher.graph, config.precision, config.scope);
        if let Some(path) = &self.latency_table {
            // Whatever else the file may be, it is not ours to overwrite.
            LatencyTable::load(path, &identity)?;
        }
        let latency_table = self.latency_table.or_else(|| default_path(&identity));
        let open = |path: &Path| open_images(path, &teacher.info, &config);
        let target = open(&self.target)?;
        let source = self.source.as_deref().map(open).transpose()?;
        let config = self.run.for_images(config, target.good().len());
        if let (Some(set), Some(path)) = (&source, &self.source) {
            expect_labels(set, path, &teacher.info)?;
        }
        log::info!(
            "adaptation started teacher={} target={} images={} broken={} threads={}",
            self.teacher.display(),
            self.target.display(),
            target.good().len(),
            target.broken().len(),
            rayon::current_num_threads()
        );
        log::info!(
            "memory planned at_most_mb={} limit_mb={} batch={} parts={} recomputes={}",
            plan.bytes / MB,
            config.memory_bytes.map_or("none".to_string(), |bytes| (bytes / MB).to_string()),
            config.batch_size,
            plan.memory.parts,
            plan.memory.recomputes
        );
        let expected = forecast(&teacher, &config, &device)?;
        log::info!("training expected to take_s={:.0} images_per_s={:.1}", expected.seconds, expected.images_per_s);
        let every = Duration::from_secs(self.checkpoint_every);
        let safety = Safety { checkpoint: Some(checkpoint.clone()), every, stop };
        let teacher_name = self.teacher.display().to_string();
        let job = Job {
            teacher,
            teacher_name: &teacher_name,
            target: &target,
            source: source.as_ref(),
            config: &config,
            device: &device,
            safety: &safety,
            latency_table: latency_table.as_deref(),
            resume,
        };
        let mut observer = Recorded::new(Progress::new(), self.progress.as_deref())?;
        let outcome = adapt::run(job, &mut observer)?;
        let written = write_outcome(&outcome, &self.out, self.adapted_out.as_deref(), self.report.as_deref())?;
        remove(&checkpoint)?;
        print(&if self.json { summary(&outcome.report).to_string() } else { table(&outcome.report) })?;
        log::info!("student written path={} report={}", written.student.display(), written.report.display());
        if let Some(refused) = outcome.report.int8.as_ref().filter(|verdict| !verdict.accepted) {
            log::warn!("the student is for f32 only, int8 was refused: {}", refused.reason);
        }
        match outcome.report.gate.accepted {
            true => Ok(()),
            false => Err(Error::Rejected(format!("the gate refused the student: {}", outcome.report.gate.reason))),
        }
    }
}

/// The readable images at `path`, within the memory that `config` has for one.
fn open_images(path: &Path, info: &ModelInfo, config: &AdaptConfig) -> Result<ImageSet> {
    let limits = ImageLimits { max_pixels: most_pixels(config.memory_bytes), ..ImageLimits::default() };
    let source = Source::open(path, &SourceConfig { limits, ..SourceConfig::default() })?;
    ImageSet::open(source, info, DEFAULT_CACHE_BYTES)
}

/// Refuses images at `path` of which none has a label that the model knows.
fn expect_labels(images: &ImageSet, path: &Path, info: &ModelInfo) -> Result<()> {
    if images.good().iter().any(|&i| images.label(i).is_some()) {
        return Ok(());
    }
    let classes = info.class_names.join(", ");
    Err(Error::data(path, format!("expected images labelled with the teacher's classes ({classes})")))
}

/// What is wrong, without how the command is used.
fn on_one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<&str> = lines.take_while(|line| !line.starts_with("Usage:")).collect();
    lines.join("; ").trim_start_matches("error: ").to_string()
}

/// Where a run's results went.
pub(super) struct Written {
    pub student: PathBuf,
    pub report: PathBuf,
}

/// Writes student, adapted teacher, report and page; the report to `report`, else beside the student. What is refused goes
/// beside what it would replace, never in its place.
pub(super) fn write_outcome(
    outcome: &Outcome,
    out: &Path,
    adapted_out: Option<&Path>,
    report: Option<&Path>,
) -> Result<Written> {
    let accepted = outcome.report.gate.accepted;
    if !accepted && out.exists() {
        log::warn!("the student from before is left as it was path={}", out.display());
    }
    let place = |path: &Path| if accepted { path.to_path_buf() } else { refused(path) };
    let default = if accepted { REPORT } else { REFUSED_REPORT };
    let report_path = report.map_or_else(|| out.with_file_name(default), Path::to_path_buf);
    let student = place(out);
    outcome.student.save(&student)?;
    if let Some(path) = adapted_out {
        outcome.adapted.save(&place(path))?;
    }
    let mut report = serde_json::to_vec_pretty(&outcome.report)
        .map_err(|e| Error::Config(format!("report cannot be written as JSON: {e}")))?;
    report.push(b'\n');
    write_bytes_atomic(&report_path, &report)?;
    write_bytes_atomic(page_path(&report_path), page(&outcome.report).as_bytes())?;
    Ok(Written { student, report: report_path })
}

/// Where the page lies that shows a report.
fn page_path(report: &Path) -> PathBuf {
    report.with_extension("html")
}

/// Where goes what is refused in the place of `path`.
pub(super) fn refused(path: &Path) -> PathBuf {
    with_suffix(path, ".refused")
}

/// `path` with `suffix` behind its whole name.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(suffix);
    PathBuf::from(name)
}

/// Refuses output paths that cannot work before hours of computing.
fn check_outputs(outputs: &[(&str, PathBuf)], inputs: &[(&str, &PathBuf)]) -> Result<()> {
    let mut earlier: Vec<(&str, PathBuf)> = Vec::new();
    for (flag, path) in outputs {
        if path.is_dir() {
            return Err(Error::Usage(format!("{flag} {}: expected a file, got a folder", path.display())));
        }
        if let Some((input, _)) = inputs.iter().find(|(_, input)| is_same_file(path, input)) {
            return Err(Error::Usage(format!("{flag} {}: would overwrite what {input} reads", path.display())));
        }
        if path.exists() && !path.is_file() {
            let path = path.display();
            return Err(Error::Usage(format!("{flag} {path}: expected a file, got a pipe, socket or device")));
        }
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(|e| Error::io("create folder", folder, e))?;
        let resolved = folder.canonicalize().unwrap_or_default().join(path.file_name().unwrap_or_default());
        if let Some((other, _)) = earlier.iter().find(|(_, path)| *path == resolved) {
            return Err(Error::Usage(format!("{flag} {}: expected another file than {other}", path.display())));
        }
        earlier.push((flag, resolved));
        // A name of this process alone: nobody's file is overwritten.
        let probe = with_suffix(path, &format!(".{}.tmp", std::process::id()));
        fs::write(&probe, b"").map_err(|e| Error::io("write into", folder, e))?;
        remove(&probe)?;
    }
    Ok(())
}

/// Whether both names stand for one existing file or folder.
fn is_same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}
