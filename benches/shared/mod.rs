//! What the benchmarks share: networks with random weights, compiled, and their clock.

use std::time::{Duration, Instant};

use candle_core::Device;
use secateur::Result;
use secateur::bench::random_params;
use secateur::engine::{Calibration, Engine, EngineConfig, Isa, Precision, StepProfile};
use secateur::graph::Graph;
use secateur::rng::Rng;

/// A compiled network with one image of noise to answer.
pub struct Timed {
    engine: Engine,
    image: Vec<f32>,
    logits: Vec<f32>,
}

impl Timed {
    /// Compiles `graph` with random weights; ranges for 8 bits are those of the image.
    pub fn compile(graph: &Graph, precision: Precision, threads: usize) -> Result<Self> {
        let params = random_params(graph, 0, &Device::Cpu)?;
        let config = EngineConfig { threads, max_batch: 1, isa: Isa::detect() };
        let image = noise(graph.input_shape().iter().product());
        let engine = match precision {
            Precision::F32 => Engine::compile(graph, params, config)?,
            Precision::Int8 => {
                let ranges = Calibration::collect(graph, params.clone(), config, [Ok(image.clone())])?;
                Engine::compile_int8(graph, params, config, &ranges)?
            }
        };
        Ok(Self { image, logits: vec![0.0; graph.num_classes()], engine })
    }

    /// How long `runs` answers take.
    pub fn answer(&mut self, runs: u64) -> Result<Duration> {
        let start = Instant::now();
        for _ in 0..runs {
            self.engine.infer(&self.image, &mut self.logits)?;
        }
        Ok(start.elapsed())
    }

    /// Answers once, with the time of every step.
    pub fn profile(&mut self) -> Result<Vec<StepProfile>> {
        self.engine.profile(&self.image, &mut self.logits)
    }
}

/// Standard normal values.
pub fn noise(count: usize) -> Vec<f32> {
    let mut rng = Rng::new(0);
    (0..count).map(|_| rng.normal()).collect()
}
