//! An engine at work, with its clock.

use std::time::{Duration, Instant};

use super::stats::Stats;
use crate::Result;
use crate::engine::{Engine, StepProfile};
use crate::rng::Rng;

const WARM_UPS: usize = 3;
/// Turns of [`in_turns`]: at least and at most, and the time for each engine after which the least are enough.
const TURNS: [usize; 2] = [10, 60];
const TIME: Duration = Duration::from_secs(3);
/// How long an engine's turn is.
const TURN_MS: f64 = 30.0;

/// An engine that answers one request again and again, and how long each took.
#[derive(Debug)]
pub struct Timed {
    /// The engine.
    pub engine: Engine,
    images: Vec<f32>,
    logits: Vec<f32>,
    blocks: Vec<Vec<f64>>,
    /// What the fastest warm-up took, in milliseconds.
    pub fastest_ms: f64,
}

impl Timed {
    /// Warms `engine` up with requests of `batch` images of noise.
    ///
    /// # Errors
    /// As [`Engine::infer`].
    pub fn new(engine: Engine, batch: usize) -> Result<Self> {
        let values = batch * engine.input_shape().iter().product::<usize>();
        let mut rng = Rng::new(0);
        let mut timed = Self {
            images: (0..values).map(|_| rng.normal()).collect(),
            logits: vec![0.0; batch * engine.num_classes()],
            engine,
            blocks: Vec::new(),
            fastest_ms: f64::INFINITY,
        };
        for _ in 0..WARM_UPS {
            timed.fastest_ms = timed.fastest_ms.min(timed.answer_ms()?);
        }
        Ok(timed)
    }

    /// Answers once; milliseconds.
    ///
    /// # Errors
    /// As [`Engine::infer`].
    pub fn answer_ms(&mut self) -> Result<f64> {
        let start = Instant::now();
        self.engine.infer(&self.images, &mut self.logits)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    /// Answers `runs` times and keeps the times.
    ///
    /// # Errors
    /// As [`Engine::infer`].
    pub fn block(&mut self, runs: usize) -> Result<()> {
        let times = (0..runs).map(|_| self.answer_ms()).collect::<Result<_>>()?;
        self.blocks.push(times);
        Ok(())
    }

    /// Answers once, with the time of every step.
    ///
    /// # Errors
    /// As [`Engine::profile`].
    pub fn profile(&mut self) -> Result<Vec<StepProfile>> {
        self.engine.profile(&self.images, &mut self.logits)
    }

    /// What the blocks come to; `None` without any run.
    pub fn stats(&self) -> Option<Stats> {
        Stats::of(&self.blocks)
    }
}

/// Milliseconds of a run of each of `timed` when nothing disturbs it ([`Stats::quiet`]). Taken in turns: a wandering clock
/// and others' work meet all. `go_on` may end it before each turn.
///
/// # Errors
/// Those of `go_on`; as [`Engine::infer`].
pub fn in_turns(timed: &mut [Timed], go_on: &mut dyn FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let begun = Instant::now();
    for turn in 0..TURNS[1] {
        go_on()?;
        if turn >= TURNS[0] && begun.elapsed() > TIME * timed.len() as u32 {
            break;
        }
        for timed in &mut *timed {
            timed.block((TURN_MS / timed.fastest_ms).ceil() as usize)?;
        }
    }
    Ok(timed.iter().map(|timed| timed.stats().map_or(f64::NAN, |stats| stats.quiet)).collect())
}

/// The median of profiles, step by step.
pub fn median_profile(profiles: &[Vec<StepProfile>]) -> Vec<StepProfile> {
    let Some(first) = profiles.first() else { return Vec::new() };
    let median = |index: usize| {
        let mut all: Vec<f64> = profiles.iter().filter_map(|profile| Some(profile.get(index)?.seconds)).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
    };
    first.iter().enumerate().map(|(index, step)| StepProfile { seconds: median(index), ..step.clone() }).collect()
}
