//! What the benchmarks share: networks with random weights, compiled, and what they are asked.

use candle_core::Device;
use secateur::Result;
use secateur::bench::random_params;
use secateur::engine::{Calibration, Engine, EngineConfig, Isa, Precision};
use secateur::graph::Graph;
use secateur::rng::Rng;

/// A compiled network with one image of noise to answer.
pub struct Request {
    pub engine: Engine,
    pub image: Vec<f32>,
    pub logits: Vec<f32>,
}

impl Request {
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
}

/// Standard normal values.
pub fn noise(count: usize) -> Vec<f32> {
    let mut rng = Rng::new(0);
    (0..count).map(|_| rng.normal()).collect()
}
