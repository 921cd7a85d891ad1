//! Timing engines in turns.

use std::time::Instant;

use super::stats::Stats;
use crate::engine::{Calibration, Engine, EngineConfig, Isa, MemoryUse, Precision, StepProfile};
use crate::graph::Graph;
use crate::model::Params;
use crate::rng::Rng;
use crate::{Error, Result};

/// Turns in which the engines are timed.
const BLOCKS: usize = 10;
const WARM_UPS: usize = 3;
/// Runs of which a profile is the median, step by step.
const PROFILES: usize = 9;

/// A model to measure.
#[derive(Debug, Clone)]
pub struct Subject {
    /// What to call it.
    pub name: String,
    /// Architecture.
    pub graph: Graph,
    /// Tensors.
    pub params: Params,
    /// What 8-bit inference needs, if it was calibrated.
    pub int8: Option<Calibration>,
}

/// What is measured of every subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// Threads that work on a request.
    pub threads: usize,
    /// Images per request.
    pub batch: usize,
    /// Instruction set.
    pub isa: Isa,
}

/// How long to measure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Seconds per model and case.
    pub seconds: f64,
    /// Exactly so many runs instead, if given.
    pub runs: Option<usize>,
    /// Whether to time every layer.
    pub profile: bool,
}

/// What came out for one subject and precision.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Which subject.
    pub subject: usize,
    /// The numbers it computed with.
    pub precision: Precision,
    /// Milliseconds per request.
    pub stats: Stats,
    /// Bytes its engine holds.
    pub memory: MemoryUse,
    /// Seconds of every layer, if asked for.
    pub profile: Vec<StepProfile>,
}

struct Runner {
    subject: usize,
    engine: Engine,
    images: Vec<f32>,
    logits: Vec<f32>,
    blocks: Vec<Vec<f64>>,
    per_block: usize,
}

impl Runner {
    fn milliseconds(&mut self) -> Result<f64> {
        let start = Instant::now();
        self.engine.infer(&self.images, &mut self.logits)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }
}

/// Measures every subject in every precision it can be run in, in turns. `turn` is told after each turn, with the part
/// of the work that is done.
///
/// # Errors
/// As [`Engine::compile`]; [`Error::Config`] if 8 bits are asked for of a model without calibration.
pub fn measure(
    subjects: &[Subject],
    precisions: &[Precision],
    case: Case,
    limits: Limits,
    turn: &mut dyn FnMut(f64),
) -> Result<Vec<Measured>> {
    let mut runners = Vec::new();
    for (index, subject) in subjects.iter().enumerate() {
        for &precision in precisions {
            runners.push(prepare((index, subject), precision, case, limits)?);
        }
    }
    for block in 0..BLOCKS {
        for runner in &mut runners {
            let times = (0..runner.per_block).map(|_| runner.milliseconds()).collect::<Result<_>>()?;
            runner.blocks.push(times);
        }
        turn((block + 1) as f64 / BLOCKS as f64);
    }
    runners.into_iter().map(|runner| finish(runner, limits)).collect()
}

fn prepare((index, subject): (usize, &Subject), precision: Precision, case: Case, limits: Limits) -> Result<Runner> {
    let config = EngineConfig { threads: case.threads, max_batch: case.batch, isa: case.isa };
    let params = subject.params.clone();
    let engine = match (precision, &subject.int8) {
        (Precision::F32, _) => Engine::compile(&subject.graph, params, config)?,
        (Precision::Int8, Some(calibration)) => Engine::compile_int8(&subject.graph, params, config, calibration)?,
        (Precision::Int8, None) => {
            let reason = format!("{}: not calibrated for int8: run `secateur quantize` on it", subject.name);
            return Err(Error::Config(reason));
        }
    };
    let values = case.batch * engine.input_shape().iter().product::<usize>();
    let mut rng = Rng::new(0);
    let mut runner = Runner {
        subject: index,
        images: (0..values).map(|_| rng.normal()).collect(),
        logits: vec![0.0; case.batch * engine.num_classes()],
        engine,
        blocks: Vec::new(),
        per_block: 1,
    };
    let mut fastest = f64::INFINITY;
    for _ in 0..WARM_UPS {
        fastest = fastest.min(runner.milliseconds()?);
    }
    runner.per_block = match limits.runs {
        Some(runs) => runs.div_ceil(BLOCKS),
        None => (limits.seconds * 1e3 / BLOCKS as f64 / fastest).ceil() as usize,
    };
    Ok(runner)
}

fn finish(mut runner: Runner, limits: Limits) -> Result<Measured> {
    let stats = Stats::of(&runner.blocks)
        .ok_or_else(|| Error::Config("bench: expected at least one run, got none".to_string()))?;
    let mut profile: Vec<StepProfile> = Vec::new();
    if limits.profile {
        let mut seconds: Vec<Vec<f64>> = Vec::new();
        for _ in 0..PROFILES {
            profile = runner.engine.profile(&runner.images, &mut runner.logits)?;
            seconds.resize(profile.len(), Vec::new());
            seconds.iter_mut().zip(&profile).for_each(|(all, step)| all.push(step.seconds));
        }
        for (step, mut all) in profile.iter_mut().zip(seconds) {
            all.sort_by(f64::total_cmp);
            step.seconds = all[PROFILES / 2];
        }
    }
    Ok(Measured {
        subject: runner.subject,
        precision: runner.engine.precision(),
        stats,
        memory: runner.engine.memory(),
        profile,
    })
}
