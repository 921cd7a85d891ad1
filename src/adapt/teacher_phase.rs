//! Phase 1: the teacher adapts to the target without labels and, by default, without source data.
//!
//! # Source
//! Liang, Hu, Feng 2020, "Do We Really Need to Access the Source Data?" (SHOT), arXiv:2002.08546: frozen classifier,
//! information maximisation, centroid pseudo labels. Deviations, measured: entropy weighted by certainty, pseudo-label
//! loss weighted by whether the classifier agrees.

use std::collections::HashMap;

use candle_core::Tensor;

use super::checkpoint::Sections;
use super::drive::Steps;
use super::observer::Metrics;
use super::pass::{Network, PassConfig, answer};
use super::run::Context;
use super::train::{Trainee, scalar, source_loss};
use crate::Result;
use crate::data::Batch;
use crate::loss;
use crate::model::{Forward, Mode, Params, Student};
use crate::optim::{Grads, inverse_power};
use crate::rng::Rng;

pub(super) struct TeacherPhase<'a> {
    context: &'a Context<'a>,
    trainee: Trainee,
    /// What batch norms go by.
    mode: Mode,
    /// Pseudo label and its weight, by source index.
    labels: HashMap<usize, (u32, f32)>,
}

impl<'a> TeacherPhase<'a> {
    /// From `params`, by statistics of each batch or by those that `params` have.
    pub fn new(context: &'a Context<'a>, params: &Params, mode: Mode) -> Result<Self> {
        let student = Student::new(&context.teacher.graph, params)?.freeze_classifier();
        Ok(Self { context, trainee: Trainee::new(student, context.config)?, mode, labels: HashMap::new() })
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
        let labels = loss::pseudo_labels(&answers.features, &answers.logits)?;
        let weights = labels.confidence_weights(teacher.graph.num_classes());
        let rows = answers.indices.iter().zip(labels.labels.iter().zip(weights));
        self.labels = rows.map(|(&index, (&label, weight))| (index, (label, weight))).collect();
        Ok(())
    }
}

/// L = information maximisation + `weight`·CE of pseudo labels, and its two terms; `labels` holds label and weight by source
/// index.
pub(super) fn transfer_loss(
    logits: &Tensor,
    indices: &[usize],
    labels: &HashMap<usize, (u32, f32)>,
    weight: f64,
) -> Result<(Tensor, [Tensor; 2])> {
    let rows = indices.iter().map(|i| labels.get(i).copied().unwrap_or((0, 0.0)));
    let (labels, weights): (Vec<u32>, Vec<f32>) = rows.unzip();
    let labels = Tensor::from_vec(labels, indices.len(), logits.device())?;
    let weights = Tensor::from_vec(weights, indices.len(), logits.device())?;
    let information = loss::information_maximisation(logits)?;
    let pseudo = loss::cross_entropy(logits, &labels, Some(&weights))?;
    Ok(((&information + (&pseudo * weight)?)?, [information, pseudo]))
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
            transfer_loss(&output.logits, &batch.indices, &self.labels, teacher.pseudo_label_weight)?;
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
        let mut rows: Vec<_> = self.labels.iter().collect();
        rows.sort_unstable_by_key(|(index, _)| **index);
        // f32 holds indices and classes exactly up to 2²⁴, far beyond what a board stores.
        into.put_list("labels", "index", &rows.iter().map(|(i, _)| **i as f32).collect::<Vec<_>>())?;
        into.put_list("labels", "class", &rows.iter().map(|(_, (c, _))| *c as f32).collect::<Vec<_>>())?;
        into.put_list("labels", "weight", &rows.iter().map(|(_, (_, w))| *w).collect::<Vec<_>>())?;
        Ok(())
    }

    fn load(&mut self, from: &Sections) -> Result<()> {
        self.trainee.load(from, self.context.device)?;
        let indices = from.get_list("labels", "index")?;
        let classes = from.get_list("labels", "class")?;
        let weights = from.get_list("labels", "weight")?;
        let rows = indices.into_iter().zip(classes).zip(weights);
        self.labels = rows.map(|((i, c), w)| (i as usize, (c as u32, w))).collect();
        Ok(())
    }
}
