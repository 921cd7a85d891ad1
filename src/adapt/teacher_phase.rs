//! Phase 1: the teacher adapts to the target without labels and, by default, without source data.
//!
//! # Source
//! Liang, Hu, Feng 2020, "Do We Really Need to Access the Source Data?" (SHOT), arXiv:2002.08546: frozen classifier,
//! information maximisation, centroid pseudo labels. Deviations, measured: entropy weighted by certainty, pseudo-label
//! loss weighted by whether the classifier agrees.

use super::checkpoint::Sections;
use super::drive::Steps;
use super::lesson::ImageLabels;
use super::observer::Metrics;
use super::pass::{Network, PassConfig, answer};
use super::run::Context;
use super::train::{Trainee, scalar, source_loss};
use crate::Result;
use crate::data::Batch;
use crate::model::{Forward, Mode, Params, Student};
use crate::optim::{Grads, inverse_power};
use crate::rng::Rng;

pub(super) struct TeacherPhase<'a> {
    context: &'a Context<'a>,
    trainee: Trainee,
    /// What batch norms go by.
    mode: Mode,
    labels: ImageLabels,
}

impl<'a> TeacherPhase<'a> {
    /// From `params`, by statistics of each batch or by those that `params` have.
    pub fn new(context: &'a Context<'a>, params: &Params, mode: Mode) -> Result<Self> {
        let student = Student::new(&context.teacher.graph, params)?.freeze_classifier();
        Ok(Self { context, trainee: Trainee::new(student, context.config)?, mode, labels: ImageLabels::default() })
    }

    pub fn into_params(self) -> Result<Params> {
        self.trainee.student.snapshot()
    }

    /// Computes pseudo labels anew, with statistics as in training.
    fn refresh_labels(&mut self, step: usize) -> Result<()> {
        let Context { images, train, config, teacher, .. } = self.context;
        let mut order = train.clone();
        Rng::stream(config.seed ^ 0x4C41_4245, step as u64).shuffle(&mut order);
        let params = self.trainee.student.frozen_params();
        let network = Network { graph: &teacher.graph, params: &params };
        let within_a_step = PassConfig { safety: None, ..self.context.pass() };
        let answers = answer(network, images, &order, self.mode, &within_a_step)?;
        self.labels = ImageLabels::of(&answers)?;
        Ok(())
    }
}

impl Steps for TeacherPhase<'_> {
    fn step(&mut self, step: usize, batch: &Batch, source: Option<&Batch>) -> Result<Metrics> {
        let Context { config, device, memory, .. } = *self.context;
        let teacher = &config.teacher;
        if step.is_multiple_of(teacher.steps.div_ceil(teacher.label_refreshes)) {
            self.refresh_labels(step)?;
        }
        let params = self.trainee.student.params();
        let forward = Forward::new(self.trainee.student.graph(), &params, self.mode).sparing(memory);
        let output = forward.run(&batch.to_tensor(device)?)?;
        let (total, [information, pseudo]) =
            self.labels.loss(&output.logits, &batch.indices, teacher.pseudo_label_weight)?;
        let mut metrics = vec![("information_maximisation", scalar(&information)?), ("pseudo_label", scalar(&pseudo)?)];
        let mut grads = Grads::new();
        self.trainee.backward((output, &total), &mut grads, None)?;
        if let (Some(images), Some(batch)) = (self.context.source, source) {
            let (output, replay) = source_loss((&self.trainee.student, &params), images, batch, (device, memory))?;
            metrics.push(("source", scalar(&replay)?));
            self.trainee.backward((output, &replay), &mut grads, None)?;
        }
        let lr = teacher.lr * inverse_power(step as f64 / teacher.steps as f64);
        metrics.push(("gradient_norm", self.trainee.update(grads, lr)?));
        Ok(metrics)
    }

    fn save(&self, into: &mut Sections) -> Result<()> {
        self.trainee.save(into)?;
        self.labels.save(into)
    }

    fn load(&mut self, from: &Sections) -> Result<()> {
        self.trainee.load(from, self.context.device)?;
        self.labels = ImageLabels::load(from)?;
        Ok(())
    }
}
