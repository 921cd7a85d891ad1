//! `secateur bench accuracy --worst`: adaptation to targets that nobody would choose.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use serde_json::json;

use super::accuracy::{AccuracyArgs, Prepared, is_comparable, written};
use super::output::print;
use crate::accuracy::{Case, Method, Stage, Start, Steps, Task, WorstOutcome, worst_markdown, worst_page};
use crate::data::{Source, SourceConfig};
use crate::weights::write_bytes_atomic;
use crate::{Error, Result};

/// Fraction of the channels that the first adaptation removes.
const REMOVED: f64 = 0.6;

impl AccuracyArgs {
    /// Every case on every task with every seed. Adaptations that are done already are not repeated.
    pub(super) fn run_worst(&self, tasks: &[Prepared], stop: &AtomicBool) -> Result<()> {
        let cases = if self.cases.is_empty() { &Case::ALL[..] } else { &self.cases };
        for Prepared { task, steps, .. } in tasks {
            for round in 0..cases.iter().map(|case| case.rounds()).max().unwrap_or(0) {
                self.check(&stage(&self.out, *steps, round, 0), task)?;
            }
        }
        let _lock = self.lock()?;
        let mut outcomes = earlier(&self.out.join("worst.jsonl"))?;
        let comparable = |outcomes: &[WorstOutcome]| -> Vec<WorstOutcome> {
            outcomes.iter().filter(|o| is_comparable(tasks, &o.task, &o.settings)).cloned().collect()
        };
        for prepared in tasks {
            let images = Source::open(&prepared.task.target, &SourceConfig::default())?;
            for seed in 0..self.seeds {
                for case in Case::ALL.into_iter().filter(|case| cases.contains(case)) {
                    self.worst_case(case, (prepared, &images), seed, stop, &mut outcomes)?;
                    let lines: String = outcomes.iter().map(|o| format!("{}\n", json!(o))).collect();
                    write_bytes_atomic(self.out.join("worst.jsonl"), lines.as_bytes())?;
                    let comparable = comparable(&outcomes);
                    write_bytes_atomic(self.out.join("worst.md"), worst_markdown(&comparable).as_bytes())?;
                    let title = format!("secateur bench accuracy: {}, worst cases", self.suite);
                    write_bytes_atomic(self.out.join("worst.html"), worst_page(&title, &comparable).as_bytes())?;
                }
            }
        }
        let comparable = comparable(&outcomes);
        log::info!("results written path={}", self.out.join("worst.html").display());
        if self.json {
            return comparable.iter().try_for_each(|outcome| print(&json!(outcome).to_string()));
        }
        print(&worst_markdown(&comparable))
    }

    fn worst_case(
        &self,
        case: Case,
        (Prepared { task, steps, settings }, images): (&Prepared, &Source),
        seed: u64,
        stop: &AtomicBool,
        outcomes: &mut Vec<WorstOutcome>,
    ) -> Result<()> {
        log::info!("worst case task={} case={case} seed={seed}", task.name);
        let folder = self.out.join("worst").join(&task.name).join(format!("{case}-seed{seed}"));
        fs::create_dir_all(&folder).map_err(|e| Error::io("create folder", &folder, e))?;
        let (mut in_use, mut replaced) = (task.teacher.clone(), accuracy(&task.teacher, &task.target)?);
        for round in 0..case.rounds() {
            let sample = folder.join(format!("images-{round}.safetensors"));
            let count = case.write(images, round, seed, &sample)?;
            let stage = stage(&folder, *steps, round, seed);
            let sampled = Task { name: task.name.clone(), teacher: in_use.clone(), target: sample };
            let report = self.adapt(&stage, &sampled, stop)?;
            let student = written(&stage.student);
            let accuracy = accuracy(&student, &task.target)?;
            let published = report.gate.accepted;
            let outcome = WorstOutcome {
                task: task.name.clone(),
                case,
                seed,
                round,
                images: count,
                replaced,
                accuracy,
                adapted_by: report.adapted_by,
                teacher_gate: report.teacher_gate,
                gate: report.gate,
                settings: settings.clone(),
            };
            match outcomes.iter_mut().find(|earlier| outcome.is_again(earlier)) {
                Some(earlier) => *earlier = outcome,
                None => outcomes.push(outcome),
            }
            if published {
                (in_use, replaced) = (student, accuracy);
            }
        }
        Ok(())
    }
}

/// What is in the results' file already, if there is one.
fn earlier(path: &Path) -> Result<Vec<WorstOutcome>> {
    let text = match fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(|e| Error::io("read", path, e))?,
    };
    let line = |(index, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| Error::data(path, format!("line {}: {e}", index + 1)))
    };
    text.lines().enumerate().map(line).collect()
}

/// The run of `round`: the first one prunes, those after it only adapt what it left.
fn stage(folder: &Path, steps: Steps, round: usize, seed: u64) -> Stage {
    let mut arguments = vec!["--seed".to_string(), seed.to_string()];
    if round == 0 {
        arguments.extend(["--budget".to_string(), format!("channels={REMOVED}")]);
        arguments.extend(Method::Taylor.arguments(steps));
    } else {
        arguments.extend(Method::Adapted.arguments(steps));
    }
    Stage {
        student: folder.join(format!("student-{round}.safetensors")),
        report: folder.join(format!("student-{round}.json")),
        arguments,
        teacher: Start::Source,
        classes_asked: false,
    }
}

/// Percentage of the labelled `images` that `model` answers right, as `eval` says.
fn accuracy(model: &Path, images: &Path) -> Result<f64> {
    let program = std::env::current_exe().map_err(|e| Error::io("find this program", Path::new("secateur"), e))?;
    let output = (Command::new(&program).arg("eval").args([model, images]).arg("--json"))
        .output()
        .map_err(|e| Error::io("start", &program, e))?;
    let told = serde_json::from_slice::<serde_json::Value>(&output.stdout).ok();
    told.and_then(|told| told["accuracy"].as_f64()).ok_or_else(|| {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_string();
        Error::data(model, format!("eval on {} ended with {}: {reason}", images.display(), output.status))
    })
}
