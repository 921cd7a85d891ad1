//! What the phases share: a student with its optimiser, and the losses several of them use.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};

use super::checkpoint::Sections;
use super::config::AdaptConfig;
use super::lesson::Lesson;
use super::observer::Metrics;
use super::target::ImageSet;
use crate::data::Batch;
use crate::graph::{ChannelGroups, Graph};
use crate::loss;
use crate::model::{ActivationMemory, Forward, Mode, Output, Params, Student};
use crate::nn;
use crate::optim::{Grads, Optimizer, Sgd, SgdConfig, clip_grad_norm, take_grads};
use crate::{Error, Result};

/// What the steps of the later phases work with.
#[derive(Clone, Copy)]
pub(super) struct Setting<'a> {
    /// The whole network.
    pub graph: &'a Graph,
    pub groups: &'a ChannelGroups,
    /// Labelled images to replay.
    pub source: Option<&'a ImageSet>,
    pub config: &'a AdaptConfig,
    /// How activations are kept.
    pub memory: ActivationMemory,
    pub device: &'a Device,
}

/// A student, the variables to train and the optimiser.
pub(super) struct Trainee {
    pub student: Student,
    vars: BTreeMap<String, Var>,
    sgd: Sgd,
    clip_norm: f64,
}

impl Trainee {
    pub fn new(student: Student, config: &AdaptConfig) -> Result<Self> {
        let student = student.train_only(config.train);
        let sgd =
            SgdConfig { momentum: 0.9, nesterov: true, weight_decay: config.weight_decay, ..SgdConfig::default() };
        Ok(Self { vars: student.trainable(), student, sgd: Sgd::new(sgd)?, clip_norm: config.clip_norm })
    }

    /// Gradients of `loss`, a function of `output`, with respect to the variables, added to `grads`, and those of `extra`.
    pub fn backward(
        &self,
        (output, loss): (Output, &Tensor),
        grads: &mut Grads,
        extra: Option<&Var>,
    ) -> Result<Option<Vec<f32>>> {
        let mut store = output.backward(loss)?;
        for (name, grad) in take_grads(&self.vars, &mut store) {
            let sum = match grads.remove(&name) {
                Some(sum) if sum.device().is_cpu() => {
                    nn::add_to(&sum, &grad.contiguous()?)?;
                    sum
                }
                Some(sum) => (sum + grad)?,
                None => grad,
            };
            // Detached, or the whole tape would stay alive behind the gradient.
            grads.insert(name, sum.detach().contiguous()?);
        }
        extra.and_then(|var| store.remove(var)).map(|g| Ok(g.to_vec1()?)).transpose()
    }

    /// Clips and applies `grads`; returns their norm before clipping.
    pub fn update(&mut self, mut grads: Grads, lr: f64) -> Result<f64> {
        let norm = clip_grad_norm(&mut grads, self.clip_norm)?;
        if norm.is_finite() {
            self.sgd.step(&self.vars, &grads, lr)?;
        }
        Ok(norm)
    }

    pub fn save(&self, into: &mut Sections) -> Result<()> {
        into.put("student", self.student.frozen_params());
        into.put("sgd", self.sgd.state()?);
        Ok(())
    }

    pub fn load(&mut self, from: &Sections, device: &Device) -> Result<()> {
        self.student.restore(&from.get("student", device)?)?;
        self.vars = self.student.trainable();
        self.sgd.load_state(&self.vars, &from.get("sgd", device)?)
    }
}

/// One update of `trainee` on a lesson's batch and, with source replay, on a labelled one. Returns its losses and the
/// gradient's norm.
///
/// # Errors
/// As [`Lesson::loss`], the network and the optimiser.
pub(super) fn learn(
    setting: Setting,
    trainee: &mut Trainee,
    lesson: &Lesson,
    (batch, source): (&Batch, Option<&Batch>),
    lr: f64,
) -> Result<Metrics> {
    let Setting { device, memory, .. } = setting;
    let params = trainee.student.params();
    let forward = Forward::new(trainee.student.graph(), &params, Mode::Train).sparing(memory);
    let output = forward.run(&batch.to_tensor(device)?)?;
    let (name, loss) = lesson.loss(&output.logits, &batch.indices)?;
    let mut metrics = vec![(name, scalar(&loss)?)];
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

/// The network's output on a labelled source batch, and its cross-entropy.
pub(super) fn source_loss(
    student: (&Student, &Params),
    source: &ImageSet,
    batch: &Batch,
    (device, memory): (&Device, ActivationMemory),
) -> Result<(Output, Tensor)> {
    let labels = batch
        .indices
        .iter()
        .map(|&i| {
            source.label(i).map(|l| l as u32).ok_or_else(|| Error::data("source", format!("image {i} has no label")))
        })
        .collect::<Result<Vec<u32>>>()?;
    let labels = Tensor::from_vec(labels, batch.indices.len(), device)?;
    let forward = Forward::new(student.0.graph(), student.1, Mode::Train).sparing(memory);
    let output = forward.run(&batch.to_tensor(device)?)?;
    let loss = loss::cross_entropy(&output.logits, &labels, None)?;
    Ok((output, loss))
}

pub(super) fn scalar(loss: &Tensor) -> Result<f64> {
    Ok(f64::from(loss.to_scalar::<f32>()?))
}
