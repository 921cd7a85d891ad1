//! An adaptation on disk: its images, how it was started, what it wrote.
//!
//! A run whose images are there is not finished; there is at most one. It appears by a rename once it is complete, and
//! is finished when its images are gone, so a crash never leaves half of one.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::clock;
use super::config::{DaemonConfig, REPLACES_ADAPTED};
use super::folders::Folders;
use super::intake::Reservoir;
use crate::store::Version;
use crate::weights::{sync_folder, write_bytes_atomic};
use crate::{Error, Result};

const IMAGES: &str = "images";
const RECORD: &str = "run.json";
const STUDENT: &str = "student.safetensors";
const REPORT: &str = "report.json";
const TEACHER: &str = "--teacher";

/// How a run was started; a resumed one is started the same way, whatever the configuration says by then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// When, in seconds since 1970.
    pub started_unix_s: u64,
    /// The teacher's version.
    pub teacher: Version,
    /// How many images.
    pub images: usize,
    /// Number of the latest of them.
    pub latest: u64,
    /// Why it was started.
    pub reason: String,
    /// Arguments of the program.
    pub arguments: Vec<String>,
    /// Threads it computes with.
    pub threads: usize,
}

/// A run and its folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Its name.
    pub id: String,
    folder: PathBuf,
    /// How it was started.
    pub record: RunRecord,
}

/// What to start a run with.
pub struct Plan<'a> {
    /// The teacher's version and file.
    pub teacher: (Version, &'a Path),
    /// Why.
    pub reason: String,
    /// Whether a student serves, not the teacher.
    pub replaces_adapted: bool,
    /// The settings.
    pub config: &'a DaemonConfig,
}

impl Run {
    /// Makes a run on all images of the reservoir.
    ///
    /// # Errors
    /// [`Error::Io`], for instance on a full disk; nothing is left of it.
    pub fn create(folders: &Folders, reservoir: &Reservoir, plan: Plan) -> Result<Self> {
        let started_unix_s = clock::unix_s();
        let id = (1..)
            .map(|n| format!("{}-{n}", clock::compact(started_unix_s)))
            .find(|id| !folders.runs.join(id).exists())
            .unwrap_or_default();
        let folder = folders.runs.join(&id);
        let mut arguments = arguments(&folder, folders, plan.teacher.1, plan.config);
        if plan.replaces_adapted {
            arguments.push(REPLACES_ADAPTED.to_string());
        }
        let record = RunRecord {
            started_unix_s,
            teacher: plan.teacher.0,
            images: reservoir.len(),
            latest: reservoir.latest(),
            reason: plan.reason,
            arguments,
            threads: plan.config.adapt_threads(),
        };
        let hidden = folders.runs.join(format!(".{id}"));
        let make = || {
            reservoir.link_into(&hidden.join(IMAGES))?;
            let json = serde_json::json!(record).to_string();
            write_bytes_atomic(hidden.join(RECORD), json.as_bytes())?;
            sync_folder(hidden.join(IMAGES))?;
            fs::rename(&hidden, &folder).map_err(|e| Error::io("rename to", &folder, e))?;
            sync_folder(&folders.runs)
        };
        make().inspect_err(|_| drop(fs::remove_dir_all(&hidden)))?;
        Ok(Self { id, folder, record })
    }

    /// The run that is not finished, if there is one. Removes what a crash left of others, and logs what it cannot read.
    pub fn unfinished(folders: &Folders) -> Option<Self> {
        let mut names: Vec<String> = fs::read_dir(&folders.runs)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        for hidden in names.iter().filter(|name| name.starts_with('.')) {
            // A leftover that stays does no harm.
            let _ = fs::remove_dir_all(folders.runs.join(hidden));
        }
        names.into_iter().filter(|name| !name.starts_with('.')).find_map(|id| {
            let folder = folders.runs.join(&id);
            if !folder.join(IMAGES).is_dir() {
                return None;
            }
            let record = fs::read(folder.join(RECORD)).ok().and_then(|json| serde_json::from_slice(&json).ok());
            let Some(record) = record else {
                log::warn!("run cannot be read and is given up run={id}");
                let _ = fs::remove_dir_all(folder.join(IMAGES));
                return None;
            };
            Some(Self { id, folder, record })
        })
    }

    /// Goes on with another version of the same teacher.
    ///
    /// # Errors
    /// [`Error::Io`] if the record cannot be written; the run is unchanged then.
    pub fn take_teacher(&mut self, version: Version, file: &Path) -> Result<()> {
        let mut record = self.record.clone();
        record.teacher = version;
        let named = record.arguments.iter().position(|argument| argument == TEACHER);
        if let Some(path) = named.and_then(|named| record.arguments.get_mut(named + 1)) {
            *path = file.display().to_string();
        }
        write_bytes_atomic(self.folder.join(RECORD), serde_json::json!(record).to_string().as_bytes())?;
        self.record = record;
        Ok(())
    }

    /// The student, once the gate accepted it.
    pub fn student(&self) -> PathBuf {
        self.folder.join(STUDENT)
    }

    /// What the program logged.
    pub fn log(&self) -> PathBuf {
        self.folder.join("adapt.log")
    }

    /// Where it tells how far it is.
    pub fn progress(&self) -> PathBuf {
        self.folder.join("progress.jsonl")
    }

    /// Whether the program came to its end: the report is written after the student, and then the checkpoint is removed.
    pub fn is_complete(&self) -> bool {
        self.folder.join(REPORT).exists() && !self.folder.join(format!("{STUDENT}.checkpoint")).exists()
    }

    /// The gate's verdict, once the run is complete.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Data`] if the report cannot be read.
    pub fn verdict(&self) -> Result<Value> {
        let path = self.folder.join(REPORT);
        let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let mut report: Value = serde_json::from_slice(&bytes).map_err(|e| Error::data(&path, e.to_string()))?;
        match report["gate"].take() {
            gate @ Value::Object(_) => Ok(gate),
            _ => Err(Error::data(path, "expected the gate's verdict, got none")),
        }
    }

    /// The run is over, whatever came of it: images and student go, report and log stay.
    pub fn finish(&self) {
        // The images last: they say that it is not finished.
        for name in [format!("{STUDENT}.checkpoint"), STUDENT.to_string()] {
            let _ = fs::remove_file(self.folder.join(name));
        }
        if let Err(error) = fs::remove_dir_all(self.folder.join(IMAGES)) {
            log::warn!("images of the run cannot be removed run={}: {error}", self.id);
        }
    }
}

/// Removes the oldest finished runs beyond `keep`.
pub fn retain(folders: &Folders, keep: usize) {
    let entries = fs::read_dir(&folders.runs).into_iter().flatten().flatten();
    let mut finished: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.join(RECORD).exists() && !path.join(IMAGES).exists())
        .collect();
    finished.sort_unstable();
    finished.truncate(finished.len().saturating_sub(keep));
    for path in finished {
        if let Err(error) = fs::remove_dir_all(&path) {
            log::warn!("run cannot be removed path={}: {error}", path.display());
        }
    }
}

impl DaemonConfig {
    /// The arguments of the program that adaptations are started with, for a run of a made-up name: to be checked.
    pub fn adapt_arguments(&self) -> Vec<String> {
        let folders = Folders::of(self);
        arguments(&folders.runs.join("run"), &folders, Path::new("teacher.safetensors"), self)
    }
}

/// The arguments of `secateur` for a run in `folder`.
fn arguments(folder: &Path, folders: &Folders, teacher: &Path, config: &DaemonConfig) -> Vec<String> {
    let path = |path: PathBuf| path.display().to_string();
    let mut arguments = vec!["adapt".to_string()];
    let mut add = |name: &str, value: String| arguments.extend([name.to_string(), value]);
    add(TEACHER, path(teacher.to_path_buf()));
    add("--target", path(folder.join(IMAGES)));
    add("--out", path(folder.join(STUDENT)));
    add("--report", path(folder.join(REPORT)));
    add("--progress", path(folder.join("progress.jsonl")));
    add("--threads", config.adapt_threads().to_string());
    add("--checkpoint-every", config.adapt.checkpoint_every_s.to_string());
    let more: Vec<String> = config.adapt.arguments.split_whitespace().map(str::to_string).collect();
    if !more.iter().any(|argument| argument == "--no-prune") {
        add("--budget", config.adapt.budget.clone());
    }
    if config.adapt.budget.starts_with("latency") {
        add("--latency-table", path(folders.root.join("latency.json")));
    }
    arguments.push("--resume".to_string());
    arguments.extend(more);
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::intake::Bounds;

    fn place() -> (tempfile::TempDir, Folders, Reservoir) {
        let place = tempfile::tempdir().unwrap();
        let mut config = DaemonConfig::default();
        config.daemon.folder = place.path().to_path_buf();
        let folders = Folders::of(&config);
        folders.create().unwrap();
        let mut reservoir = Reservoir::open(&folders.reservoir, Bounds { images: 9, bytes: 999 });
        for class in 0..3 {
            let put = |path: &Path| fs::write(path, "x").map_err(|e| Error::io("write", path, e));
            reservoir.keep((class as u64, class, "png"), 1, 0, put).unwrap();
        }
        (place, folders, reservoir)
    }

    fn create(folders: &Folders, reservoir: &Reservoir) -> Run {
        create_instead_of(false, folders, reservoir)
    }

    fn create_instead_of(replaces_adapted: bool, folders: &Folders, reservoir: &Reservoir) -> Run {
        let (teacher, config) = (Path::new("teacher.safetensors"), &DaemonConfig::default());
        let plan = Plan { teacher: (Version(1), teacher), reason: "3 new images".into(), replaces_adapted, config };
        Run::create(folders, reservoir, plan).unwrap()
    }

    #[test]
    fn the_gate_is_told_when_a_student_serves() {
        let (_place, folders, reservoir) = place();
        let told = |replaces_adapted| {
            let run = create_instead_of(replaces_adapted, &folders, &reservoir);
            run.record.arguments.iter().any(|argument| argument == "--replaces-adapted")
        };
        assert_eq!((told(false), told(true)), (false, true));
    }

    #[test]
    fn a_run_is_found_again_until_it_is_finished() {
        let (_place, folders, reservoir) = place();
        assert_eq!(Run::unfinished(&folders), None);
        fs::create_dir(folders.runs.join(".20200101-000000-1")).unwrap();
        let run = create(&folders, &reservoir);
        assert_eq!(Run::unfinished(&folders), Some(run.clone()));
        assert_eq!((run.record.images, run.record.latest, run.is_complete()), (3, 3, false));
        assert_eq!(fs::read_dir(&folders.runs).unwrap().count(), 1, "leftovers are removed");
        fs::write(run.folder.join(REPORT), "{\"gate\": {\"accepted\": true}}").unwrap();
        fs::write(run.folder.join("student.safetensors.checkpoint"), "").unwrap();
        assert!(!run.is_complete());
        fs::remove_file(run.folder.join("student.safetensors.checkpoint")).unwrap();
        assert!(run.is_complete() && run.verdict().unwrap()["accepted"] == true);
        run.finish();
        assert_eq!(Run::unfinished(&folders), None);
        assert!(run.verdict().is_ok(), "the report stays");
    }

    #[test]
    fn old_runs_go_and_unfinished_ones_stay() {
        let (_place, folders, reservoir) = place();
        let runs: Vec<Run> = (0..4).map(|_| create(&folders, &reservoir)).collect();
        runs[..3].iter().for_each(Run::finish);
        retain(&folders, 1);
        let left: Vec<bool> = runs.iter().map(|run| run.folder.exists()).collect();
        assert_eq!(left, [false, false, true, true]);
    }

    #[test]
    fn what_cannot_be_read_is_given_up() {
        let (_place, folders, reservoir) = place();
        let run = create(&folders, &reservoir);
        fs::write(run.folder.join(RECORD), "{").unwrap();
        assert_eq!(Run::unfinished(&folders), None);
        assert!(!run.folder.join(IMAGES).exists());
    }
}
