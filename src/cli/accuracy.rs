//! `secateur bench accuracy`: methods side by side on labelled tasks.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clap::Args;

use super::adapt::{AdaptArgs, refused};
use super::output::print;
use super::signals::stop_flag;
use crate::accuracy::{
    Case, Method, Outcome, Results, Settings, Stage, Start, Steps, Suite, Task, Trial, markdown, page, trials,
};
use crate::adapt::Report;
use crate::board::{end_with_parent, signal_child};
use crate::data::{Source, SourceConfig};
use crate::store::Lock;
use crate::weights::{sha256_file, write_bytes_atomic};
use crate::{Error, Result};

/// Arguments of `bench accuracy`.
#[derive(Debug, Args)]
pub(super) struct AccuracyArgs {
    /// digits, office31 or cifar-camera
    #[arg(long)]
    pub(super) suite: Suite,
    /// Folder of the suite's labelled images
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Folder of its teachers, NAME-DOMAIN.safetensors
    #[arg(long, value_name = "DIR")]
    teachers: PathBuf,
    /// Folder of the results; what the same settings, teachers and images gave there is not computed again, what was
    /// interrupted goes on
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
    /// Only tasks with this in their name; repeatable
    #[arg(long, value_name = "PART")]
    task: Vec<String>,
    /// Methods to compare: source, statistics, adapted, prune-then-adapt, magnitude, taylor (what adapt does),
    /// taylor-at-once, tcp (its criterion), tcp-no-distillation (its training, too), admp-no-adversary, admp-random,
    /// admp-no-admm, admp; docs/accuracy.md tells more [default: all]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    methods: Vec<Method>,
    /// Fractions of the channels that pruning methods remove
    #[arg(long, value_name = "FRACTION,…", value_delimiter = ',', default_value = "0.6", value_parser = parse_fraction)]
    removed: Vec<f64>,
    /// Runs of each, with the seeds 0, 1, …
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub(super) seeds: u64,
    /// Adapt by the default to bad samples of the tasks' images instead and remove 60 % of the channels, see --cases
    #[arg(long, conflicts_with_all = ["methods", "removed"])]
    worst: bool,
    /// Which samples: few (32 images), missing-class (none of one), one-class (80 % of one), noise (random pixels), sorted (all, by
    /// class), stream (the first quarter of these), in-a-row (five times, each another fifth) [default: all]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', requires = "worst")]
    pub(super) cases: Vec<Case>,
    /// Updates of phase 1 [default: as adapt with what stands behind --]
    #[arg(long, value_name = "N")]
    adapt_steps: Option<usize>,
    /// Updates of phase 2, at least 1; methods without phase 2, as taylor-at-once, have them in phase 3 [default: likewise]
    #[arg(long, value_name = "N")]
    mask_steps: Option<std::num::NonZeroUsize>,
    /// Updates of phase 3 [default: likewise]
    #[arg(long, value_name = "N")]
    tune_steps: Option<usize>,
    /// Print the outcomes as JSON lines
    #[arg(long)]
    pub(super) json: bool,
    /// More arguments for every run of `adapt`, behind --
    #[arg(last = true, value_name = "ARGUMENTS")]
    pub(super) arguments: Vec<String>,
}

fn parse_fraction(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(fraction) if fraction > 0.0 && fraction < 1.0 => Ok(fraction),
        _ => Err(format!("expected a number between 0 and 1, got {text:?}")),
    }
}

impl AccuracyArgs {
    pub fn run(self) -> Result<()> {
        let stop = stop_flag()?;
        let chosen =
            |task: &Task| self.task.is_empty() || self.task.iter().any(|part| task.name.contains(part.as_str()));
        let mut tasks = self.suite.tasks(&self.data, &self.teachers)?;
        let names: Vec<String> = tasks.iter().map(|task| task.name.clone()).collect();
        tasks.retain(chosen);
        if tasks.is_empty() {
            let (asked, all) = (self.task.join(" "), names.join(", "));
            return Err(Error::Usage(format!("--task {asked}: expected a part of a name of {}: {all}", self.suite)));
        }
        let tasks: Vec<Prepared> = tasks.into_iter().map(|task| self.prepare(task)).collect::<Result<_>>()?;
        if self.worst {
            return self.run_worst(&tasks, &stop);
        }
        let methods = if self.methods.is_empty() { &Method::ALL[..] } else { &self.methods };
        let mut planned: Vec<(Trial, &Prepared, Vec<Stage>)> = Vec::new();
        for prepared in &tasks {
            let trials = trials(&prepared.task, methods, &self.removed, self.seeds).into_iter();
            planned.extend(trials.map(|trial| {
                let stages = trial.stages(&self.out, prepared.steps);
                (trial, prepared, stages)
            }));
        }
        for (_, prepared, stages) in &planned {
            stages.iter().try_for_each(|stage| self.check(stage, &prepared.task))?;
        }
        let _lock = self.lock()?;
        let mut results = Results::open(self.out.join("results.jsonl"))?;
        let comparable = |o: &Outcome| is_comparable(&tasks, &o.trial.task, &o.settings);
        for (index, (trial, Prepared { task, settings, .. }, stages)) in planned.iter().enumerate() {
            log::info!("trial {}/{} {trial}", index + 1, planned.len());
            let reports = stages.iter().map(|stage| self.adapt(stage, task, &stop)).collect::<Result<Vec<Report>>>()?;
            results.add(Outcome::of(trial, settings, &reports, &trial.folder(&self.out))?)?;
            let title = format!("secateur bench accuracy: {}", self.suite);
            let outcomes = results.by(comparable);
            write_bytes_atomic(self.out.join("results.md"), markdown(&outcomes).as_bytes())?;
            write_bytes_atomic(self.out.join("results.html"), page(&title, &outcomes).as_bytes())?;
        }
        let outcomes = results.by(comparable);
        log::info!("results written path={}", self.out.join("results.html").display());
        if self.json {
            return outcomes.iter().try_for_each(|outcome| print(&serde_json::json!(outcome).to_string()));
        }
        print(&markdown(&outcomes))
    }

    /// Looks at teacher and images: the updates of the phases are those of `adapt`, but for those that were asked for.
    fn prepare(&self, task: Task) -> Result<Prepared> {
        let plain = Stage {
            student: self.out.join("student.safetensors"),
            report: self.out.join("student.json"),
            arguments: Vec::new(),
            teacher: Start::Source,
            classes_asked: false,
        };
        let config = self.read(&plain, &task)?.labelled_config()?;
        let mask_steps = self.mask_steps.map(std::num::NonZero::get);
        let steps = Steps {
            adapt: self.adapt_steps.unwrap_or(config.teacher.steps),
            mask: mask_steps.unwrap_or(config.mask.steps),
            tune: self.tune_steps.unwrap_or(config.fine_tune.steps),
        };
        let given =
            [("--adapt-steps", self.adapt_steps), ("--mask-steps", mask_steps), ("--tune-steps", self.tune_steps)];
        let given = given.into_iter().filter_map(|(flag, steps)| Some([flag.to_string(), steps?.to_string()]));
        let arguments = self.arguments.iter().cloned().chain(given.flatten()).collect();
        let settings = Settings::here(arguments, inputs(&task.teacher, &task.target)?.join(" "));
        Ok(Prepared { task, steps, settings })
    }

    /// The results' folder, for this process alone as long as the lock lives.
    pub(super) fn lock(&self) -> Result<Lock> {
        fs::create_dir_all(&self.out).map_err(|e| Error::io("create folder", &self.out, e))?;
        Lock::take(&self.out.join(".lock"), Duration::ZERO)
    }

    /// What `adapt` is asked for in `stage`, wherever it reads and writes.
    fn wishes(&self, stage: &Stage) -> Vec<String> {
        let mut arguments: Vec<String> = stage.arguments.iter().chain(&self.arguments).cloned().collect();
        if stage.classes_asked && !self.arguments.iter().any(|argument| argument.starts_with("--min-class-share")) {
            arguments.extend(["--min-class-share", "0"].map(String::from));
        }
        arguments
    }

    /// The command line of `stage`.
    fn command(&self, stage: &Stage, task: &Task) -> Vec<OsString> {
        let teacher = start(stage, task);
        let paths = [
            ("--teacher", &teacher),
            ("--target", &task.target),
            ("--out", &stage.student),
            ("--report", &stage.report),
        ];
        let paths = paths.into_iter().flat_map(|(flag, path)| [flag.into(), path.clone().into_os_string()]);
        let wishes = self.wishes(stage).into_iter().map(OsString::from);
        std::iter::once("adapt".into()).chain(paths).chain(wishes).collect()
    }

    /// The run of `stage` as `adapt` will read it.
    ///
    /// # Errors
    /// [`Error::Usage`] for what it will not understand or refuse.
    fn read(&self, stage: &Stage, task: &Task) -> Result<AdaptArgs> {
        let read = AdaptArgs::read(self.command(stage, task)).and_then(|run| run.check().map(|()| run));
        let beside = match &stage.arguments[..] {
            [] => String::new(),
            own => format!(", beside {}", own.join(" ")),
        };
        let told = |error| Error::Usage(format!("arguments behind --{beside}: {error}"));
        read.map_err(told)
    }

    /// Whether `adapt` will understand what it is asked for in `stage`: told before hours of other stages.
    pub(super) fn check(&self, stage: &Stage, task: &Task) -> Result<()> {
        self.read(stage, task).map(drop)
    }

    /// Runs `adapt`, or goes on with it, unless it was done before with the same arguments, teacher, images and version.
    pub(super) fn adapt(&self, stage: &Stage, task: &Task, stop: &AtomicBool) -> Result<Report> {
        if let Some(folder) = stage.report.parent() {
            fs::create_dir_all(folder).map_err(|e| Error::io("create folder", folder, e))?;
        }
        let version = [env!("CARGO_PKG_VERSION").to_string()];
        let inputs = inputs(&start(stage, task), &task.target)?;
        let wishes = [&self.wishes(stage)[..], &version, &inputs].concat().join("\n");
        let record = stage.report.with_extension("arguments");
        let same = fs::read_to_string(&record).is_ok_and(|earlier| earlier == wishes);
        if same && stage.report.exists() && written(&stage.student).exists() {
            log::info!("done before report={}", stage.report.display());
            return read(&stage.report);
        }
        for stale in [&stage.report, &stage.student, &refused(&stage.student)] {
            if stale.exists() {
                fs::remove_file(stale).map_err(|e| Error::io("remove", stale, e))?;
            }
        }
        write_bytes_atomic(&record, wishes.as_bytes())?;
        let mut arguments = self.command(stage, task);
        arguments.push(if same { "--resume" } else { "--restart" }.into());
        self.child(&arguments, &stage.report.with_extension("log"), stop)?;
        read(&stage.report)
    }

    /// This program with `arguments`; what it says goes to `log`. Asked to stop, it saves its state.
    fn child(&self, arguments: &[OsString], log: &Path, stop: &AtomicBool) -> Result<()> {
        let interrupted =
            || Error::Interrupted(format!("stopped; repeat the command to go on, --out {}", self.out.display()));
        if stop.load(Ordering::Relaxed) {
            return Err(interrupted());
        }
        let file = OpenOptions::new().create(true).append(true).open(log).map_err(|e| Error::io("open", log, e))?;
        let output = file.try_clone().map_err(|e| Error::io("open", log, e))?;
        let program = std::env::current_exe().map_err(|e| Error::io("find this program", Path::new("secateur"), e))?;
        let failed = |e| Error::io("start", &program, e);
        let mut command = Command::new(&program);
        command.args(arguments).stdin(Stdio::null()).stdout(output).stderr(file);
        // In a group of its own, so that a Ctrl-C does not reach it twice, but never left alone.
        let parent = std::process::id();
        command.process_group(0);
        // SAFETY: between fork and exec only system calls, on values made before.
        unsafe { command.pre_exec(move || end_with_parent(parent)) };
        let mut child = command.spawn().map_err(failed)?;
        let mut asked = false;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                break status;
            }
            if stop.load(Ordering::Relaxed) && !asked {
                asked = true;
                signal_child(&child, libc::SIGTERM);
            }
            thread::sleep(Duration::from_millis(20));
        };
        match status.code() {
            Some(0 | 1) => Ok(()),
            Some(130) => Err(interrupted()),
            _ => {
                let command: Vec<_> = arguments.iter().map(|argument| argument.to_string_lossy()).collect();
                let folder = log.parent().unwrap_or(log).display();
                let reason = format!(
                    "secateur {} ended with {status}; this log says why. To begin anew remove {folder}",
                    command.join(" ")
                );
                Err(Error::data(log, reason))
            }
        }
    }
}

/// A task with what its runs are given.
pub(super) struct Prepared {
    pub(super) task: Task,
    pub(super) steps: Steps,
    pub(super) settings: Settings,
}

/// Whether an outcome on the task of this name may stand beside those of `tasks`.
pub(super) fn is_comparable(tasks: &[Prepared], name: &str, settings: &Settings) -> bool {
    match tasks.iter().find(|prepared| prepared.task.name == name) {
        Some(prepared) => prepared.settings == *settings,
        None => tasks.iter().any(|prepared| prepared.settings.same_but_inputs(settings)),
    }
}

/// Digests of a teacher's file and of images.
fn inputs(teacher: &Path, images: &Path) -> Result<[String; 2]> {
    Ok([sha256_file(teacher)?, Source::open(images, &SourceConfig::default())?.digest()])
}

/// The model that `stage` starts from.
fn start(stage: &Stage, task: &Task) -> PathBuf {
    match &stage.teacher {
        Start::Source => task.teacher.clone(),
        Start::Student(path) => written(path),
    }
}

/// Where the student of an ended run lies, whatever the gate said.
pub(super) fn written(student: &Path) -> PathBuf {
    if student.exists() { student.to_path_buf() } else { refused(student) }
}

fn read(report: &Path) -> Result<Report> {
    let bytes = fs::read(report).map_err(|e| Error::io("read", report, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::data(report, format!("not a report: {e}")))
}
