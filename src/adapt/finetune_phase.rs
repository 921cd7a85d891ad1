//! Phase 3: the compact student learns from the adapted teacher.

use super::checkpoint::Sections;
use super::config::FineTuneConfig;
use super::drive::Steps;
use super::lesson::Lesson;
use super::observer::Metrics;
use super::pass::Answers;
use super::train::{Setting, Trainee, learn};
use crate::Result;
use crate::data::Batch;
use crate::graph::Graph;
use crate::model::{Params, Student};
use crate::optim::cosine;

pub(super) struct FineTunePhase<'a> {
    setting: Setting<'a>,
    trainee: Trainee,
    lesson: Lesson<'a>,
}

impl<'a> FineTunePhase<'a> {
    pub fn new(setting: Setting<'a>, graph: &Graph, params: &Params, teacher: &'a Answers) -> Result<Self> {
        let trainee = Trainee::new(Student::new(graph, params)?, setting.config)?;
        Ok(Self { setting, trainee, lesson: Lesson::new(teacher, setting.config)? })
    }

    pub fn into_params(self) -> Result<Params> {
        self.trainee.student.snapshot()
    }
}

impl Steps for FineTunePhase<'_> {
    fn step(&mut self, step: usize, batch: &Batch, source: Option<&Batch>) -> Result<Metrics> {
        let FineTuneConfig { steps, lr } = self.setting.config.fine_tune;
        let lr = lr * cosine(step as f64 / steps as f64);
        learn(self.setting, &mut self.trainee, &self.lesson, (batch, source), lr)
    }

    fn save(&self, into: &mut Sections) -> Result<()> {
        self.trainee.save(into)
    }

    fn load(&mut self, from: &Sections) -> Result<()> {
        self.trainee.load(from, self.setting.device)
    }
}
