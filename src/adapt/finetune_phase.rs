//! Phase 3: the compact student learns from the adapted teacher's answers.

use super::checkpoint::Sections;
use super::config::FineTuneConfig;
use super::drive::Steps;
use super::observer::Metrics;
use super::pass::Answers;
use super::train::{Setting, Trainee, imitation, scalar, source_loss};
use crate::Result;
use crate::data::Batch;
use crate::graph::Graph;
use crate::model::{Forward, Mode, Params, Student};
use crate::optim::{Grads, cosine};

pub(super) struct FineTunePhase<'a> {
    setting: Setting<'a>,
    trainee: Trainee,
    teacher: &'a Answers,
}

impl<'a> FineTunePhase<'a> {
    pub fn new(setting: Setting<'a>, graph: &Graph, params: &Params, teacher: &'a Answers) -> Result<Self> {
        Ok(Self { setting, trainee: Trainee::new(Student::new(graph, params)?, setting.config)?, teacher })
    }

    pub fn into_params(self) -> Result<Params> {
        self.trainee.student.snapshot()
    }
}

impl Steps for FineTunePhase<'_> {
    fn step(&mut self, step: usize, batch: &Batch, source: Option<&Batch>) -> Result<Metrics> {
        let FineTuneConfig { steps, lr } = self.setting.config.fine_tune;
        let lr = lr * cosine(step as f64 / steps as f64);
        imitate(self.setting, &mut self.trainee, self.teacher, (batch, source), lr)
    }

    fn save(&self, into: &mut Sections) -> Result<()> {
        self.trainee.save(into)
    }

    fn load(&mut self, from: &Sections) -> Result<()> {
        self.trainee.load(from, self.setting.device)
    }
}

/// One update of `trainee` on the teacher's answers to a batch and, with source replay, on a labelled one.
pub(super) fn imitate(
    setting: Setting,
    trainee: &mut Trainee,
    teacher: &Answers,
    (batch, source): (&Batch, Option<&Batch>),
    lr: f64,
) -> Result<Metrics> {
    let Setting { device, memory, .. } = setting;
    let teacher = teacher.logits_of(&batch.indices)?.to_device(device)?;
    let params = trainee.student.params();
    let forward = Forward::new(trainee.student.graph(), &params, Mode::Train).sparing(memory);
    let output = forward.run(&batch.to_tensor(device)?)?;
    let loss = imitation(&output.logits, &teacher)?;
    let mut metrics = vec![("imitation", scalar(&loss)?)];
    let mut grads = Grads::new();
    trainee.backward((output, &loss), &mut grads, None)?;
    if let (Some(images), Some(batch)) = (setting.source, source) {
        let (output, replay) = source_loss((&trainee.student, &params), images, batch, (device, memory))?;
        metrics.push(("source", scalar(&replay)?));
        trainee.backward((output, &replay), &mut grads, None)?;
    }
    metrics.push(("gradient_norm", trainee.update(grads, lr)?));
    Ok(metrics)
}
