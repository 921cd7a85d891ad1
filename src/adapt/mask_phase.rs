//! Phase 2, ADMP: weights, the hard mask under ADMM, and the adversarial soft mask.
//!
//! # Source
//! Feng, Yuan, Wang, Liu 2020, arXiv:2006.04127; the details the abstract leaves open are written down in
//! ARCHITECTURE.md. Fit and close are one update; the probe moves the soft mask against it.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};

use super::checkpoint::Sections;
use super::config::SoftMask;
use super::drive::Steps;
use super::lesson::imitation;
use super::observer::Metrics;
use super::pass::Answers;
use super::train::{Setting, Trainee, scalar, source_loss};
use crate::Result;
use crate::data::Batch;
use crate::loss;
use crate::model::{ChannelMask, Forward, Mode, Params, Student};
use crate::optim::{Adam, AdamConfig, Grads, Optimizer, cosine};
use crate::prune::{Admm, Selector};
use crate::rng::Rng;

/// The adversary's logits start here: sigmoid(3) = 0.95, almost no damping.
const SOFT_START: f32 = 3.0;
/// And never leave ± this.
const SOFT_BOUND: f32 = 4.0;

pub(super) struct MaskPhase<'a> {
    setting: Setting<'a>,
    trainee: Trainee,
    layout: ChannelMask,
    admm: Admm,
    selector: &'a Selector<'a>,
    adversary: Adversary,
    /// The adapted teacher's answers on clean views.
    teacher: &'a Answers,
}

/// The soft mask s = s_min + (1 − s_min)·sigmoid(a).
struct Adversary {
    logits: BTreeMap<String, Var>,
    adam: Adam,
}

const NAME: &str = "a";

impl<'a> MaskPhase<'a> {
    pub fn new(
        setting: Setting<'a>,
        params: &Params,
        selector: &'a Selector<'a>,
        rank: Vec<f32>,
        teacher: &'a Answers,
    ) -> Result<Self> {
        let config = &setting.config.mask;
        let groups = setting.groups;
        let admm = match config.use_admm {
            true => Admm::new(rank, config.admm.clone()),
            false => Admm::at_rank(rank, config.admm.clone(), selector)?,
        };
        let start = Tensor::full(SOFT_START, groups.len(), setting.device)?;
        Ok(Self {
            trainee: Trainee::new(Student::new(setting.graph, params)?, setting.config)?,
            layout: ChannelMask::new(groups, setting.device)?,
            adversary: Adversary {
                logits: BTreeMap::from([(NAME.to_string(), Var::from_tensor(&start)?)]),
                adam: Adam::new(AdamConfig::default())?,
            },
            setting,
            admm,
            selector,
            teacher,
        })
    }

    /// The trained weights, and the mask to harden.
    pub fn finish(self) -> Result<(Params, Admm)> {
        Ok((self.trainee.student.snapshot()?, self.admm))
    }

    /// The soft mask, with gradient into the adversary's logits.
    fn soft(&self, logits: &Tensor) -> Result<Tensor> {
        let low = self.setting.config.mask.soft_min;
        let sigmoid = ((logits.neg()?.exp()? + 1.0)?.recip()? * (1.0 - low))?;
        Ok((sigmoid + low)?)
    }

    fn soft_values(&self, step: usize) -> Result<Option<Tensor>> {
        let config = &self.setting.config;
        let logits = &self.adversary.logits[NAME];
        match config.mask.soft {
            SoftMask::Off => Ok(None),
            SoftMask::Adversarial => Ok(Some(self.soft(&logits.as_tensor().detach())?)),
            SoftMask::Random => {
                let mut rng = Rng::stream(config.seed ^ 0x534F_4654, step as u64);
                let low = config.mask.soft_min.max(0.5) as f32;
                let values: Vec<f32> = (0..self.layout.len()).map(|_| rng.range(low, 1.0)).collect();
                Ok(Some(Tensor::from_vec(values, self.layout.len(), self.setting.device)?))
            }
        }
    }

    /// Moves the adversary one step: it looks for channels whose damping drives the student from the teacher while
    /// the student still solves the task.
    fn probe(&mut self, images: &Tensor, teacher: &Tensor) -> Result<(f64, f64)> {
        let config = &self.setting.config.mask;
        let var = self.adversary.logits[NAME].clone();
        let hard = self.hard_mask()?;
        let masks = self.layout.gather(&(self.soft(var.as_tensor())? * hard)?)?;
        let params = self.trainee.student.frozen_params();
        let forward = Forward::new(self.trainee.student.graph(), &params, Mode::Train).sparing(self.setting.memory);
        let output = forward.masked(masks).run(images)?;
        let (labels, weights) = loss::teacher_labels(teacher)?;
        let task = loss::cross_entropy(&output.logits, &labels, Some(&weights))?;
        let distance = loss::discrepancy(&output.logits, teacher)?;
        let objective = (task - (&distance * config.probe_weight)?)?;
        let mut store = output.backward(&objective)?;
        let grads = crate::optim::take_grads(&self.adversary.logits, &mut store);
        self.adversary.adam.step(&self.adversary.logits, &grads, config.probe_lr)?;
        var.set(&var.as_tensor().detach().clamp(-SOFT_BOUND, SOFT_BOUND)?)?;
        let mean = self.soft(&var.as_tensor().detach())?.mean_all()?.to_scalar::<f32>()?;
        Ok((scalar(&distance)?, f64::from(mean)))
    }

    fn hard_mask(&self) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.admm.primal, self.layout.len(), self.setting.device)?)
    }
}

impl Steps for MaskPhase<'_> {
    fn step(&mut self, step: usize, batch: &Batch, source: Option<&Batch>) -> Result<Metrics> {
        let Setting { config, device, memory, .. } = self.setting;
        let images = batch.to_tensor(device)?;
        let teacher = self.teacher.logits_of(&batch.indices)?.to_device(device)?;
        let params = self.trainee.student.params();
        let mut grads = Grads::new();
        let mut metrics = Metrics::new();

        // Fit and close on the hard mask.
        let hard = Var::from_tensor(&self.hard_mask()?)?;
        let forward = Forward::new(self.trainee.student.graph(), &params, Mode::Train).sparing(memory);
        let output = forward.masked(self.layout.gather(hard.as_tensor())?).run(&images)?;
        let fit = imitation(&output.logits, &teacher)?;
        let distance = loss::discrepancy(&output.logits, &teacher)?;
        metrics.push(("imitation", scalar(&fit)?));
        metrics.push(("discrepancy", scalar(&distance)?));
        let total = (fit + distance)?;
        let mask_grad = self.trainee.backward((output, &total), &mut grads, Some(&hard))?;
        let mut mask_grad = mask_grad.unwrap_or_default();

        // Close on the soft mask.
        if let Some(soft) = self.soft_values(step)? {
            let values = (hard.as_tensor() * soft)?;
            let forward = Forward::new(self.trainee.student.graph(), &params, Mode::Train).sparing(memory);
            let output = forward.masked(self.layout.gather(&values)?).run(&images)?;
            let distance = loss::discrepancy(&output.logits, &teacher)?;
            metrics.push(("soft_discrepancy", scalar(&distance)?));
            let more = self.trainee.backward((output, &distance), &mut grads, Some(&hard))?.unwrap_or_default();
            mask_grad.iter_mut().zip(more).for_each(|(sum, g)| *sum += g);
        }
        if let (Some(images), Some(batch)) = (self.setting.source, source) {
            let (output, replay) = source_loss((&self.trainee.student, &params), images, batch, (device, memory))?;
            metrics.push(("source", scalar(&replay)?));
            self.trainee.backward((output, &replay), &mut grads, None)?;
        }
        let lr = config.mask.lr * cosine(step as f64 / config.mask.steps as f64);
        metrics.push(("gradient_norm", self.trainee.update(grads, lr)?));
        if config.mask.use_admm {
            self.admm.step(&mask_grad, step, config.mask.steps, self.selector)?;
        }
        metrics.push(("primal_residual", self.admm.primal_residual()));
        let kept = self.admm.auxiliary.iter().filter(|z| **z > 0.5).count();
        metrics.push(("entries_kept", kept as f64));

        if config.mask.soft == SoftMask::Adversarial && step.is_multiple_of(config.mask.probe_every) {
            let (distance, mean) = self.probe(&images, &teacher)?;
            metrics.push(("probe_discrepancy", distance));
            metrics.push(("soft_mask_mean", mean));
        }
        Ok(metrics)
    }

    fn save(&self, into: &mut Sections) -> Result<()> {
        self.trainee.save(into)?;
        into.put_list("admm", "primal", &self.admm.primal)?;
        into.put_list("admm", "auxiliary", &self.admm.auxiliary)?;
        into.put_list("admm", "scaled_dual", &self.admm.scaled_dual)?;
        let logits = self.adversary.logits.iter().map(|(name, var)| (name.clone(), var.as_tensor().detach()));
        into.put("adversary", logits);
        into.put("adam", self.adversary.adam.state()?);
        Ok(())
    }

    fn load(&mut self, from: &Sections) -> Result<()> {
        self.trainee.load(from, self.setting.device)?;
        self.admm.primal = from.get_list("admm", "primal")?;
        self.admm.auxiliary = from.get_list("admm", "auxiliary")?;
        self.admm.scaled_dual = from.get_list("admm", "scaled_dual")?;
        let device = self.setting.device;
        for (name, value) in from.get("adversary", device)? {
            if let Some(var) = self.adversary.logits.get(&name) {
                var.set(&value)?;
            }
        }
        self.adversary.adam.load_state(&self.adversary.logits, &from.get("adam", device)?)
    }
}
