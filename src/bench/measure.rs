//! Timing engines in turns.

use crate::engine::{Calibration, Engine, EngineConfig, Isa, MemoryUse, Precision, StepProfile};
use crate::graph::Graph;
use crate::model::Params;
use crate::timing::{Stats, Timed, median_profile};
use crate::{Error, Result};

/// Turns in which the engines are timed.
const BLOCKS: usize = 10;
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
    timed: Timed,
    per_block: usize,
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
            runner.timed.block(runner.per_block)?;
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
    let timed = Timed::new(engine, case.batch)?;
    let per_block = match limits.runs {
        Some(runs) => runs.div_ceil(BLOCKS),
        None => (limits.seconds * 1e3 / BLOCKS as f64 / timed.fastest_ms).ceil() as usize,
    };
    Ok(Runner { subject: index, timed, per_block })
}

fn finish(mut runner: Runner, limits: Limits) -> Result<Measured> {
    let stats = (runner.timed.stats())
        .ok_or_else(|| Error::Config("bench: expected at least one run, got none".to_string()))?;
    let count = if limits.profile { PROFILES } else { 0 };
    let profiles = (0..count).map(|_| runner.timed.profile()).collect::<Result<Vec<_>>>()?;
    Ok(Measured {
        subject: runner.subject,
        precision: runner.timed.engine.precision(),
        stats,
        memory: runner.timed.engine.memory(),
        profile: median_profile(&profiles),
    })
}
