//! Timing of narrower versions of a network.

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};

use super::{LatencyTable, TableIdentity};
use crate::Result;
use crate::engine::{Calibration, Engine, EngineConfig, Precision, StepProfile};
use crate::graph::{ChannelGroups, Graph, ParamKind};
use crate::model::Params;
use crate::prune::latency::{TimedLayer, TimedNetwork};
use crate::rng::Rng;
use crate::timing::{Stats, Timed, median_profile};

/// Networks measured; the first is whole.
const NETWORKS: usize = 24;
/// Mean fraction of channels left in the second and the last network.
const FRACTIONS: [f32; 2] = [1.15, 0.15];
/// How far the fractions of one network's groups lie from the mean, and the least.
const UNEVEN: f32 = 0.3;
const LEAST_FRACTION: f32 = 0.05;
/// Networks are measured in turns, so that a clock that wanders meets all: at least and at most so often, and anew
/// while there is time.
const TURNS: [usize; 2] = [2, 10];
const TIME: Duration = Duration::from_secs(12);
/// Requests of a network in one turn: as many as take so long, within these bounds.
const TURN_MS: f64 = 40.0;
const REQUESTS: [usize; 2] = [2, 10];
/// Of so many profiles the fastest one is looked at.
const QUIET: usize = 8;
/// Values that random weights are taken from, over and over: drawing millions takes longer than timing them.
const NOISE: usize = 1 << 16;

const STREAM: u64 = 0x4C41_5445;

/// A network under measurement. Its weights are made anew every turn: all networks at once need not fit into memory.
struct Sample {
    graph: Graph,
    calibration: Option<Calibration>,
    whole_ms: Vec<f64>,
    profiles: Vec<Vec<StepProfile>>,
}

impl LatencyTable {
    /// Measures `graph` in random widths of `groups`. `done` is told the part of the work that is done, and may stop it.
    ///
    /// # Errors
    /// Those of `done`; as compiling and running.
    pub fn measure(
        graph: &Graph,
        groups: &ChannelGroups,
        identity: TableIdentity,
        done: &mut dyn FnMut(f64) -> Result<()>,
    ) -> Result<Self> {
        let mut rng = Rng::stream(0, STREAM);
        let noise: Vec<f32> = (0..NOISE).map(|_| rng.range(-1.0, 1.0)).collect();
        let config = identity.engine();
        let mut samples = Vec::new();
        for index in 0..NETWORKS {
            let narrow = narrowed(graph, groups, index, &mut rng)?;
            let calibration = match identity.precision {
                Precision::F32 => None,
                Precision::Int8 => Some(calibrate(&narrow, random_params(&narrow, &noise)?, config)?),
            };
            samples.push(Sample { graph: narrow, calibration, whole_ms: Vec::new(), profiles: Vec::new() });
        }
        let begun = Instant::now();
        for turn in 0..TURNS[1] {
            for (index, sample) in samples.iter_mut().enumerate() {
                let time = begun.elapsed().as_secs_f64() / TIME.as_secs_f64();
                let turns = (turn * NETWORKS + index) as f64 / NETWORKS as f64;
                done((time.min(turns / TURNS[0] as f64)).max(turns / TURNS[1] as f64).min(1.0))?;
                sample.measure(&noise, config)?;
            }
            if turn + 1 >= TURNS[0] && begun.elapsed() >= TIME {
                break;
            }
        }
        done(1.0)?;
        let networks = samples.iter_mut().map(Sample::timed).collect();
        Ok(Self { identity, networks, candidates: Vec::new() })
    }
}

impl Sample {
    fn measure(&mut self, noise: &[f32], config: EngineConfig) -> Result<()> {
        let params = random_params(&self.graph, noise)?;
        let mut timed = Timed::new(compile(&self.graph, params, config, self.calibration.as_ref())?, 1)?;
        let requests = (TURN_MS / timed.fastest_ms).clamp(REQUESTS[0] as f64, REQUESTS[1] as f64) as usize;
        for _ in 0..requests {
            self.whole_ms.push(timed.answer_ms()?);
            self.profiles.push(timed.profile()?);
        }
        Ok(())
    }

    /// What the network takes when nothing disturbs it. Its layers' times are medians of the runs that were disturbed least:
    /// they belong together and add up.
    fn timed(&mut self) -> TimedNetwork {
        let whole = |profile: &[StepProfile]| profile.iter().map(|step| step.seconds).sum::<f64>();
        self.profiles.sort_by(|a, b| whole(a).total_cmp(&whole(b)));
        self.profiles.truncate(self.profiles.len().div_ceil(QUIET));
        let nodes = self.graph.nodes();
        let layer = |step: &StepProfile| {
            // The image's way in is a step, too, of no layer.
            let id = nodes.iter().position(|node| node.name == step.layer).unwrap_or(0);
            let inputs = nodes[id].inputs.first().map_or(0, |&i| self.graph.shape(i).channels());
            let (layer, outputs) = (nodes[id].name.clone(), self.graph.shape(id).channels());
            TimedLayer { layer, inputs, outputs, ns: (1e9 * step.seconds).round() as u64 }
        };
        let ms = Stats::of(std::slice::from_ref(&self.whole_ms)).map_or(0.0, |stats| stats.quiet);
        TimedNetwork { ns: nanoseconds(ms), layers: median_profile(&self.profiles).iter().map(layer).collect() }
    }
}

/// Whole nanoseconds: they read back from a file as they were.
pub(super) fn nanoseconds(ms: f64) -> u64 {
    (1e6 * ms).round() as u64
}

/// An engine for one image at a time.
pub(super) fn compile(
    graph: &Graph,
    params: Params,
    config: EngineConfig,
    calibration: Option<&Calibration>,
) -> Result<Engine> {
    match calibration {
        None => Engine::compile(graph, params, config),
        Some(calibration) => Engine::compile_int8(graph, params, config, calibration),
    }
}

/// Ranges on noise: good enough to measure time.
pub(super) fn calibrate(graph: &Graph, params: Params, config: EngineConfig) -> Result<Calibration> {
    let mut rng = Rng::stream(1, STREAM);
    let image = (0..graph.input_shape().iter().product()).map(|_| rng.normal()).collect();
    Calibration::collect(graph, params, config, [Ok(image)])
}

/// Network `index` of [`NETWORKS`]: every group narrowed by another fraction, all of them less in later networks.
fn narrowed(graph: &Graph, groups: &ChannelGroups, index: usize, rng: &mut Rng) -> Result<Graph> {
    let mut keep = vec![true; groups.len()];
    let progress = index.saturating_sub(1) as f32 / (NETWORKS - 2) as f32;
    let mean = FRACTIONS[0] + (FRACTIONS[1] - FRACTIONS[0]) * progress;
    for group in groups.prunable() {
        let fraction = (mean + rng.range(-UNEVEN, UNEVEN)).clamp(LEAST_FRACTION, 1.0);
        let kept = if index == 0 { group.width } else { (fraction * group.width as f32).ceil() as usize };
        keep[group.entries.clone()].iter_mut().skip(kept.max(1)).for_each(|keep| *keep = false);
    }
    Ok(graph.compact(groups, &keep)?.graph)
}

/// Parameters under which activations stay finite and of ordinary size: weights after He, norms that do nothing.
fn random_params(graph: &Graph, noise: &[f32]) -> Result<Params> {
    let tensor = |spec: crate::graph::ParamSpec| {
        let count: usize = spec.shape.iter().product();
        let values = match spec.kind {
            ParamKind::Weight => {
                let bound = (6.0 / spec.shape.iter().skip(1).product::<usize>().max(1) as f32).sqrt();
                noise.iter().cycle().take(count).map(|x| bound * x).collect()
            }
            ParamKind::NormWeight | ParamKind::RunningVar => vec![1.0; count],
            ParamKind::Bias | ParamKind::NormBias | ParamKind::RunningMean => vec![0.0; count],
        };
        Ok((spec.name, Tensor::from_vec(values, spec.shape, &Device::Cpu)?))
    };
    graph.params().map(tensor).collect()
}
