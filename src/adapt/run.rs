//! A whole run: phases in order, the gate, the report.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;

use super::checkpoint::RunIdentity;
use super::config::AdaptConfig;
use super::drive::Safety;
use super::gate::{Expect, Testimony, Verdict, judge};
use super::int8::{calibrate_int8, int8_gate};
use super::measure::{latencies_ms, peak_rss_mb};
use super::memory::memory_plan;
use super::observer::Observer;
use super::pass::{Answers, Network, PassConfig, answer, answer_views, estimate_statistics};
use super::report::{AdaptedBy, GroupWidth, ImageCounts, Inputs, LatencyFigures, ModelFigures, Report};
use super::stages::{Pruned, Stages};
use super::target::ImageSet;
use super::teacher_choice::Adapted;
use super::train::Setting;
use crate::data::{Augment, Transform};
use crate::engine::Precision;
use crate::graph::{ChannelGroups, Graph};
use crate::loss;
use crate::model::{ActivationMemory, CompactModel, Mode, Params, Provenance, Student, Teacher};
use crate::prune::Measure;
use crate::{Error, Result};

/// What a run works on.
#[derive(Debug)]
pub struct Job<'a> {
    /// The teacher. Its parameters are dropped as soon as an adapted teacher has taken its place.
    pub teacher: Teacher,
    /// What to call it in the report: its file.
    pub teacher_name: &'a str,
    /// The device's own images.
    pub target: &'a ImageSet,
    /// Labelled source images for replay, if the device has any.
    pub source: Option<&'a ImageSet>,
    /// Settings.
    pub config: &'a AdaptConfig,
    /// Where to compute.
    pub device: &'a Device,
    /// Checkpoints and interruption.
    pub safety: &'a Safety,
    /// Where times measured for a budget of latency are kept from run to run; `None` measures anew.
    pub latency_table: Option<&'a Path>,
    /// Go on from the checkpoint instead of starting anew.
    pub resume: bool,
}

/// What a run yields. Whether the student may be used is in `report.gate`.
#[derive(Debug)]
pub struct Outcome {
    /// The compact student.
    pub student: CompactModel,
    /// The adapted, unpruned teacher.
    pub adapted: CompactModel,
    /// The record.
    pub report: Report,
}

/// What the phases of a run share and none of them changes.
pub(super) struct Context<'a> {
    pub teacher: &'a Teacher,
    pub teacher_name: &'a str,
    pub images: &'a ImageSet,
    pub source: Option<&'a ImageSet>,
    /// Images to train on.
    pub train: Vec<usize>,
    /// Images the gate judges by.
    pub held: Vec<usize>,
    pub config: &'a AdaptConfig,
    /// How activations are kept.
    pub memory: ActivationMemory,
    pub device: &'a Device,
    pub safety: &'a Safety,
    pub groups: &'a ChannelGroups,
    pub latency_table: Option<&'a Path>,
}

impl<'a> Context<'a> {
    pub fn pass(&self) -> PassConfig<'a> {
        let Self { teacher, config, memory, device, safety, .. } = *self;
        let (preprocess, batch_size) = (&teacher.info.preprocess, config.batch_size);
        PassConfig { preprocess, batch_size, memory, device, safety: Some(safety) }
    }

    pub fn setting(&self) -> Setting<'a> {
        let Self { teacher, groups, source, config, memory, device, .. } = *self;
        Setting { graph: &teacher.graph, groups, source, config, memory, device }
    }

    /// The network's parameters with batch-norm statistics of `images`.
    ///
    /// # Errors
    /// As [`estimate_statistics`].
    pub fn with_statistics(&self, network: Network, images: &[usize]) -> Result<Params> {
        let statistics = estimate_statistics(network, self.images, images, self.config.seed, &self.pass())?;
        let mut student = Student::new(network.graph, network.params)?;
        student.set_statistics(&statistics);
        student.snapshot()
    }

    /// Answers of a served network for all readable target images, and how stable they are on those of the gate.
    pub fn answer(&self, graph: &Graph, params: &Params) -> Result<Answers> {
        let network = Network { graph, params };
        let mut answers = answer(network, self.images, self.images.good(), Mode::Eval, &self.pass())?;
        answers.stability = Some(self.stability(network, &answers, self.judged_on())?);
        Ok(answers)
    }

    /// Fraction of the images at `indices` whose class a random change, as in training, leaves as it is.
    pub fn stability(&self, network: Network, answers: &Answers, indices: &[usize]) -> Result<f64> {
        let augment = Augment { train_size: None, ..self.config.augment.clone() };
        let changed = Transform::Train(self.teacher.info.preprocess.clone(), augment);
        let views = answer_views(network, self.images, indices, (Mode::Eval, changed), &self.pass())?;
        loss::agreement(&views.logits, &answers.logits_of(&views.indices)?)
    }

    /// The held-out images; all if none were held out.
    fn judged_on(&self) -> &[usize] {
        if self.held.is_empty() { self.images.good() } else { &self.held }
    }

    /// What the gate hears of `answers`.
    pub fn testimony(&self, answers: &Answers) -> Result<Testimony> {
        Ok(Testimony { logits: answers.logits_of(self.judged_on())?, stability: answers.stability })
    }

    /// The gate.
    pub fn judge(&self, expect: Expect, candidate: &Answers, reference: &Answers) -> Result<Verdict> {
        judge(&self.config.gate, expect, &self.testimony(candidate)?, &self.testimony(reference)?)
    }
}

/// Adapts, prunes and fine-tunes.
///
/// # Errors
/// [`crate::Error::Interrupted`] after a requested stop; [`crate::Error::Config`] for settings out of range, a budget
/// out of reach or a checkpoint of another run; [`crate::Error::Numeric`] if training diverges; errors of reading and
/// writing.
pub fn run(mut job: Job, observer: &mut dyn Observer) -> Result<Outcome> {
    let params = std::mem::take(&mut job.teacher.params);
    let job = &job;
    job.config.validate()?;
    job.config.train.check(&job.teacher.graph)?;
    let plan = memory_plan(&job.teacher.graph, job.config)?;
    if job.config.memory_bytes.is_some() && !job.device.is_cpu() {
        return Err(Error::Config("memory: a limit can be kept with --device cpu only".into()));
    }
    let groups = ChannelGroups::new(&job.teacher.graph, job.config.scope);
    let (train, held) = job.target.split(job.config.holdout, job.config.seed);
    let context = Context {
        teacher: &job.teacher,
        teacher_name: job.teacher_name,
        images: job.target,
        source: job.source,
        train,
        held,
        config: job.config,
        memory: plan.memory,
        device: job.device,
        safety: job.safety,
        groups: &groups,
        latency_table: job.latency_table,
    };
    let (judges, least) = (context.judged_on().len(), job.config.gate.min_images);
    if judges < least {
        log::warn!("too few images to judge a student by, it will be refused held_out={judges} expected={least}");
    }
    let mut stages = Stages::new(job, &context, observer)?;
    // A budget out of reach is refused before hours of work, not after.
    let mut selector = stages.selector()?;
    if let Some(selector) = selector.as_ref().filter(|selector| selector.limit(1.0) >= selector.full()) {
        log::warn!("the teacher is within the budget as it is, nothing will be removed budget={}", selector.budget());
    }
    stages.note("the teacher answers the target images")?;
    let before = context.answer(&job.teacher.graph, &params)?;
    let adapted = stages.adapt_teacher(params, &before)?;
    let pruned = match &mut selector {
        Some(selector) => stages.prune(selector, &adapted)?,
        None => Pruned {
            graph: job.teacher.graph.clone(),
            params: adapted.params.clone(),
            keep: vec![true; groups.len()],
            surgery_difference: 0.0,
        },
    };
    let goal = selector.map(|selector| selector.limit(1.0));
    finish(&stages, (&before, &adapted, &pruned), goal)
}

/// Judges and reports; `goal` is how much of the budget's measure may be left.
fn finish(
    stages: &Stages,
    (before, adapted, pruned): (&Answers, &Adapted, &Pruned),
    goal: Option<u64>,
) -> Result<Outcome> {
    let context = stages.context;
    let (teacher, groups) = (context.teacher, context.groups);
    let after = context.answer(&pruned.graph, &pruned.params)?;
    let all = vec![true; groups.len()];
    let int8 = match context.config.precision {
        Precision::F32 => None,
        Precision::Int8 => {
            let network = Network { graph: &pruned.graph, params: &pruned.params };
            let preprocess = &teacher.info.preprocess;
            Some(calibrate_int8(network, preprocess, context.images, &int8_gate(), context.config.seed)?)
        }
    };
    let accepted = int8.as_ref().filter(|outcome| outcome.verdict.accepted).map(|outcome| &outcome.calibration);
    // The adapted teacher takes as long as the teacher.
    let networks = [
        (Network { graph: &teacher.graph, params: &adapted.params }, None),
        (Network { graph: &pruned.graph, params: &pruned.params }, accepted),
    ];
    let latencies =
        latencies_ms(&networks, context.device, &mut || context.safety.go_on("while the student was timed"))?;
    let figures = |index: usize, keep: &[bool], answers: &Answers| -> Result<ModelFigures> {
        let channels = Measure::Channels.of(&teacher.graph, groups, keep)?;
        let accuracy = answers.accuracy(context.images)?;
        Ok(ModelFigures::new(networks[index].0.graph, channels, accuracy, latencies[index]))
    };
    let identity = stages.identity();
    let report = Report {
        inputs: inputs(context, identity),
        teacher: figures(0, &all, before)?,
        adapted: figures(0, &all, &adapted.answers)?,
        student: figures(1, &pruned.keep, &after)?,
        latency: latency_figures(stages, goal, (&pruned.graph, latencies[1]))?,
        wall_s: stages.wall_s(),
        peak_rss_mb: peak_rss_mb(),
        gate: verdict(stages, (before, adapted, &after))?,
        teacher_gate: adapted.verdict.clone(),
        int8: int8.as_ref().map(|outcome| outcome.verdict.clone()),
        adapted_by: adapted.by,
        candidates: stages.candidate_figures().to_vec(),
        survey: stages.survey().cloned(),
        images: ImageCounts {
            train: context.train.len(),
            held_out: context.held.len(),
            broken: context.images.broken().to_vec(),
        },
        groups: GroupWidth::all(groups, &pruned.keep),
        surgery_difference: pruned.surgery_difference,
        phases: stages.reports().to_vec(),
        config: identity.config.clone(),
    };
    let provenance = Provenance {
        version: env!("CARGO_PKG_VERSION").to_string(),
        teacher_sha256: identity.teacher_sha256.clone(),
        data_sha256: identity.data_sha256.clone(),
        config: identity.config.clone(),
        widths_before: widths_before(teacher),
    };
    let compact = |graph: &Graph, params: &Params| CompactModel {
        graph: graph.clone(),
        params: params.clone(),
        info: teacher.info.clone(),
        provenance: provenance.clone(),
        int8: None,
    };
    Ok(Outcome {
        student: CompactModel { int8: accepted.cloned(), ..compact(&pruned.graph, &pruned.params) },
        adapted: compact(&teacher.graph, &adapted.params),
        report,
    })
}

fn inputs(context: &Context, identity: &RunIdentity) -> Inputs {
    let shown = |images: &ImageSet| images.path().display().to_string();
    Inputs {
        version: env!("CARGO_PKG_VERSION").to_string(),
        teacher: context.teacher_name.to_string(),
        teacher_sha256: identity.teacher_sha256.clone(),
        class_names: context.teacher.info.class_names.clone(),
        target: shown(context.images),
        target_sha256: identity.data_sha256.clone(),
        source: context.source.map(shown),
    }
}

/// The gate on the student. Images that ruin a training teach a student no better, whatever it started from, nor do images
/// without some class teach that.
fn verdict(stages: &Stages, (before, adapted, after): (&Answers, &Adapted, &Answers)) -> Result<Verdict> {
    let context = stages.context;
    let verdict = match context.config.budget {
        Some(_) => context.judge(Expect::SameAnswers, after, &adapted.answers)?,
        None => adapted.verdict.clone(),
    };
    let mut reasons = Vec::new();
    if let Some(rare) = stages.rare_classes() {
        // Answers are about as often right as they are steady.
        let right = stages.survey().map_or(1.0, |survey| survey.source_stability);
        let former = before.logits_of(&adapted.answers.indices)?;
        let confidences = loss::calibrated_confidences(&former, right)?;
        let former: Vec<(u32, f64)> = former.argmax(1)?.to_vec1()?.into_iter().zip(confidences).collect();
        let repaired = match context.config.gate.replaces_adapted {
            true => 0.0,
            false => rare.repaired(&former, &adapted.answers.classes()?, 1.0 - right),
        };
        log::info!("classes hardly come at_stake={:.3} repaired={:.3}", rare.at_stake(), repaired.max(0.0));
        reasons.extend(rare.complaint(repaired));
    }
    let trained = stages.candidate_figures().iter().find(|c| c.by == AdaptedBy::Training);
    // That the images are too few is told once, of the student.
    let told = context.judged_on().len() >= context.config.gate.min_images;
    if let Some(ruined) = trained.filter(|c| told && !c.gate.accepted) {
        reasons.push(format!("training the teacher on these images failed: {}", ruined.gate.reason));
    }
    if reasons.is_empty() {
        return Ok(verdict);
    }
    if !verdict.accepted {
        reasons.push(verdict.reason);
    }
    Ok(Verdict { accepted: false, reason: reasons.join("; "), ..verdict })
}

/// What a budget of latency came to.
fn latency_figures(
    stages: &Stages,
    goal: Option<u64>,
    (graph, measured_ms): (&Graph, f64),
) -> Result<Option<LatencyFigures>> {
    let (Some(goal), Some(table)) = (goal, stages.latency()) else { return Ok(None) };
    let predicted = table.model(&stages.context.teacher.graph)?.nanoseconds(graph);
    let (budget_ms, predicted_ms) = (goal as f64 / 1e6, predicted as f64 / 1e6);
    if measured_ms > 1.1 * budget_ms {
        log::warn!("the student misses its budget of latency budget_ms={budget_ms:.3} measured_ms={measured_ms:.3}");
    }
    Ok(Some(LatencyFigures { budget_ms, predicted_ms, measured_ms, identity: table.identity.clone() }))
}

/// Channels of every producing layer before any pruning: an earlier run's, if the teacher was a student itself.
fn widths_before(teacher: &Teacher) -> BTreeMap<String, usize> {
    let graph = &teacher.graph;
    let now = (0..graph.nodes().len())
        .filter(|&id| graph.produces(id))
        .map(|id| (graph.nodes()[id].name.clone(), graph.shape(id).channels()));
    let mut widths: BTreeMap<String, usize> = now.collect();
    widths.extend(teacher.provenance.iter().flat_map(|p| p.widths_before.clone()));
    widths
}
