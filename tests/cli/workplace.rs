//! A fresh folder with a teacher and images.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::program::{self, Finished};
use super::{shapes, teacher};

/// Images of each shape.
pub const PER_CLASS: usize = 15;

/// The main job, without settings.
pub const JOB: &str = "adapt --teacher teacher.safetensors --target images --out student.safetensors --threads 1";
/// Few steps, through all phases.
pub const SHORT: &str = "--batch-size 16 --holdout 0.3 --adapt-steps 6 --admp --mask-steps 20 --tune-steps 200";

/// A folder with `teacher.safetensors` and `images/`, removed at the end.
pub struct Workplace(TempDir);

impl Workplace {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        teacher::write(&folder.path().join("teacher.safetensors"));
        shapes::write_folders(&folder.path().join("images"), PER_CLASS);
        Self(folder)
    }

    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// Runs the program in this folder.
    pub fn run(&self, arguments: &str) -> Finished {
        program::run(self.folder(), arguments)
    }

    /// Runs a short job with more arguments, half of the channels to go; fails unless the student is accepted.
    #[track_caller]
    pub fn adapt(&self, more: &str) -> Finished {
        self.run(&format!("{JOB} {SHORT} --budget channels=0.5 {more}")).ends_with(&[0])
    }

    /// Puts a teacher of five layers with random weights in the place of the trained one, whose layers all fit into one
    /// block of the engine's kernels: removing their channels saves no time.
    pub fn with_wide_teacher(self) -> Self {
        let wide = "export --arch lenet_bn --size 12 --num-classes 4 --safetensors teacher.safetensors";
        self.run(wide).ends_with(&[0]);
        self
    }

    #[track_caller]
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    #[track_caller]
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    /// The report beside the student.
    #[track_caller]
    pub fn report(&self) -> Value {
        serde_json::from_slice(&self.bytes("report.json")).unwrap()
    }

    /// What a run wrote under `name`, or, refused, under `name` with `.refused`.
    #[track_caller]
    pub fn outcome(&self, name: &str) -> Vec<u8> {
        let refused = format!("{name}.refused");
        self.bytes(if self.path(name).exists() { name } else { &refused })
    }

    /// The report beside a refused student.
    #[track_caller]
    pub fn refused_report(&self) -> Value {
        serde_json::from_slice(&self.bytes("report.refused.json")).unwrap()
    }
}
