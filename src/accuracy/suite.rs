//! The tasks.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::{Error, Result};

/// A set of tasks that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// MNIST → USPS, USPS → MNIST, MNIST → optdigits: the test images.
    Digits,
    /// The six ways between *amazon*, *dslr* and *webcam*.
    Office31,
    /// CIFAR-10 under the noise, low light, low contrast and shake of a camera.
    CifarCamera,
}

/// A teacher and the images it meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// `TEACHER-to-TARGET`, fit for a folder's name.
    pub name: String,
    /// The teacher's file.
    pub teacher: PathBuf,
    /// The images.
    pub target: PathBuf,
}

impl Suite {
    /// All suites.
    pub const ALL: [Self; 3] = [Self::Digits, Self::Office31, Self::CifarCamera];

    /// Domain of the teacher, domain of the images, and their file or folder.
    const fn ways(self) -> &'static [[&'static str; 3]] {
        const USPS: &str = "usps-test-images-idx3-ubyte.gz";
        const MNIST: &str = "mnist-t10k-images-idx3-ubyte.gz";
        const OPTDIGITS: &str = "optdigits-images-idx3-ubyte.gz";
        match self {
            Self::Digits => &[["mnist", "usps", USPS], ["usps", "mnist", MNIST], ["mnist", "optdigits", OPTDIGITS]],
            Self::Office31 => &[
                ["amazon", "webcam", "webcam"],
                ["amazon", "dslr", "dslr"],
                ["webcam", "amazon", "amazon"],
                ["webcam", "dslr", "dslr"],
                ["dslr", "amazon", "amazon"],
                ["dslr", "webcam", "webcam"],
            ],
            Self::CifarCamera => &[
                ["cifar10", "noise", "noise.safetensors"],
                ["cifar10", "lowlight", "lowlight.safetensors"],
                ["cifar10", "contrast", "contrast.safetensors"],
                ["cifar10", "blur", "blur.safetensors"],
            ],
        }
    }

    /// The suite's tasks: every file `teachers/…-DOMAIN.safetensors` is a teacher of that domain, images lie in `data`. Tasks
    /// without a teacher or images are left out with a warning.
    ///
    /// # Errors
    /// [`Error::Io`] if `teachers` cannot be listed; [`Error::Usage`] if no task is left.
    pub fn tasks(self, data: &Path, teachers: &Path) -> Result<Vec<Task>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(teachers).map_err(|e| Error::io("list", teachers, e))? {
            files.push(entry.map_err(|e| Error::io("list", teachers, e))?.path());
        }
        files.sort();
        let mut tasks = Vec::new();
        for [from, to, images] in self.ways() {
            let ending = format!("-{from}.safetensors");
            let target = data.join(images);
            if !target.exists() {
                log::warn!("a task is left out: no images path={}", target.display());
                continue;
            }
            let before = tasks.len();
            for teacher in &files {
                let name = teacher.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                if let Some(stem) = name.strip_suffix(".safetensors").filter(|_| name.ends_with(&ending)) {
                    let (teacher, target) = (teacher.clone(), target.clone());
                    tasks.push(Task { name: format!("{stem}-to-{to}"), teacher, target });
                }
            }
            if tasks.len() == before {
                log::warn!("a task is left out: no teacher path={}", teachers.join(format!("*{ending}")).display());
            }
        }
        if tasks.is_empty() {
            let (data, teachers) = (data.display(), teachers.display());
            return Err(Error::Usage(format!(
                "{self}: no task has both its images in {data} and a teacher in {teachers}"
            )));
        }
        Ok(tasks)
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Digits => "digits",
            Self::Office31 => "office31",
            Self::CifarCamera => "cifar-camera",
        })
    }
}

impl FromStr for Suite {
    type Err = Error;

    /// # Errors
    /// [`Error::Usage`] for other names than those of [`Suite::ALL`].
    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|suite| suite.to_string() == text);
        found.ok_or_else(|| Error::Usage(format!("expected digits, office31 or cifar-camera, got {text:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_what_has_teacher_and_images() {
        let folder = tempfile::tempdir().unwrap();
        let (data, teachers) = (folder.path().join("data"), folder.path().join("teachers"));
        std::fs::create_dir_all(data.join("webcam")).unwrap();
        std::fs::create_dir_all(data.join("dslr")).unwrap();
        std::fs::create_dir_all(&teachers).unwrap();
        assert!(Suite::Office31.tasks(&data, &teachers).unwrap_err().to_string().contains("no task"));
        for name in ["net-amazon.safetensors", "big-amazon.safetensors", "net-webcam.safetensors", "net-dslr.txt"] {
            std::fs::write(teachers.join(name), b"").unwrap();
        }
        let names = |suite: Suite| -> Vec<String> {
            suite.tasks(&data, &teachers).unwrap().into_iter().map(|task| task.name).collect()
        };
        let expected = [
            "big-amazon-to-webcam",
            "net-amazon-to-webcam",
            "big-amazon-to-dslr",
            "net-amazon-to-dslr",
            "net-webcam-to-dslr",
        ];
        assert_eq!(names(Suite::Office31), expected);
    }

    #[test]
    fn suites_have_names() {
        for suite in Suite::ALL {
            assert_eq!(suite.to_string().parse::<Suite>().unwrap(), suite);
        }
        assert!("imagenet".parse::<Suite>().is_err());
    }
}
