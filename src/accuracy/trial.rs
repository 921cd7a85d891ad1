//! One method on one task with one seed, as runs of `adapt`.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::method::{Method, Steps};
use super::suite::Task;

/// What is tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The task's name.
    pub task: String,
    /// The method.
    pub method: Method,
    /// Fraction of the prunable channels that goes; 0 for methods that remove none.
    pub removed: f64,
    /// Seed of every random draw.
    pub seed: u64,
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task={} method={} removed={} seed={}", self.task, self.method, self.removed, self.seed)
    }
}

/// One run of `adapt`.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// Where its student goes, `.refused` behind the name if the gate says so.
    pub student: PathBuf,
    /// Where its report goes.
    pub report: PathBuf,
    /// Arguments without teacher, target and outputs.
    pub arguments: Vec<String>,
    /// What it starts from.
    pub teacher: Start,
    /// Whether another stage asks which classes come: a whole run asks once, of the teacher that it adapts.
    pub classes_asked: bool,
}

/// Where a stage starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// The task's teacher.
    Source,
    /// The student of an earlier stage, whatever the gate said.
    Student(PathBuf),
}

impl Trial {
    /// The trial's folder in the results' one.
    pub fn folder(&self, results: &Path) -> PathBuf {
        let removed = if self.method.prunes() { format!("-{}", self.removed) } else { String::new() };
        let run = if self.method.prunes() { self.method } else { Method::Adapted };
        results.join(&self.task).join(format!("{run}{removed}-seed{}", self.seed))
    }

    /// The runs it takes, in order. Methods that remove nothing share one; those that start from the adapted teacher take
    /// that from the same run.
    pub fn stages(&self, results: &Path, steps: Steps) -> Vec<Stage> {
        let folder = self.folder(results);
        let seed = ["--seed".to_string(), self.seed.to_string()];
        let stage = |name: &str, teacher: Start, arguments: Vec<String>| Stage {
            student: folder.join(format!("{name}.safetensors")),
            report: folder.join(format!("{name}.json")),
            arguments: [&seed[..], &arguments].concat(),
            teacher,
            classes_asked: false,
        };
        let budget = ["--no-adapt".to_string(), "--budget".to_string(), format!("channels={}", self.removed)];
        let arguments = self.method.arguments(steps);
        if !self.method.prunes() {
            return vec![stage("student", Start::Source, arguments)];
        }
        let pruning = [&budget[..], &arguments].concat();
        if self.method == Method::PruneThenAdapt {
            let pruned = Stage { classes_asked: true, ..stage("pruned", Start::Source, pruning) };
            let arguments = Method::Adapted.arguments(steps.in_adapting());
            let adapting = stage("student", Start::Student(pruned.student.clone()), arguments);
            return vec![pruned, adapting];
        }
        let adapted = Self { method: Method::Adapted, removed: 0.0, ..self.clone() };
        let mut stages = adapted.stages(results, steps);
        let start = Start::Student(stages[0].student.clone());
        stages.push(Stage { classes_asked: true, ..stage("student", start, pruning) });
        stages
    }
}

/// All trials of a task, in an order in which what is shared comes first.
pub fn trials(task: &Task, methods: &[Method], removed: &[f64], seeds: u64) -> Vec<Trial> {
    let mut trials = Vec::new();
    for seed in 0..seeds {
        for &method in methods {
            let fractions = if method.prunes() { removed } else { &[0.0] };
            let trial = |&removed| Trial { task: task.name.clone(), method, removed, seed };
            trials.extend(fractions.iter().map(trial));
        }
    }
    trials
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: Steps = Steps { adapt: 300, mask: 200, tune: 400 };

    fn trial(method: Method) -> Trial {
        Trial { task: "a-to-b".into(), method, removed: if method.prunes() { 0.6 } else { 0.0 }, seed: 2 }
    }

    #[test]
    fn pruning_starts_from_the_adapted_teacher_of_the_same_seed() {
        let results = Path::new("out");
        let adapted = trial(Method::Adapted).stages(results, STEPS);
        assert_eq!(adapted, trial(Method::Source).stages(results, STEPS), "they share a run");
        for method in Method::ALL.into_iter().filter(|m| m.prunes() && *m != Method::PruneThenAdapt) {
            let stages = trial(method).stages(results, STEPS);
            assert_eq!(stages[0], adapted[0], "{method}");
            assert_eq!(stages.iter().map(|stage| stage.classes_asked).collect::<Vec<_>>(), [false, true], "{method}");
            assert_eq!(stages[1].teacher, Start::Student(adapted[0].student.clone()), "{method}");
            assert!(stages[1].arguments.join(" ").starts_with("--seed 2 --no-adapt --budget channels=0.6"), "{method}");
        }
        let stages = trial(Method::PruneThenAdapt).stages(results, STEPS);
        assert_eq!(stages[0].teacher, Start::Source);
        assert_eq!(stages[1].teacher, Start::Student(stages[0].student.clone()));
        assert!(stages[1].arguments.join(" ").contains("--adapt-steps 900"), "{:?}", stages[1].arguments);
    }

    #[test]
    fn every_combination_is_tried_once() {
        let task = Task { name: "t".into(), teacher: "t.safetensors".into(), target: "images".into() };
        let all = trials(&task, &[Method::Adapted, Method::Admp], &[0.4, 0.6], 3);
        assert_eq!(all.len(), 3 * (1 + 2));
        assert!(all.iter().all(|trial| trial.method.prunes() == (trial.removed > 0.0)));
    }
}
