//! Figures of this process and machine.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};

use super::pass::Network;
use crate::Result;
use crate::engine::{Engine, EngineConfig};
use crate::model::{Forward, Mode};

const WARM_UPS: usize = 2;
const RUNS: usize = 11;

/// Median milliseconds of one image, as served: by the engine on the CPU, by the tensor library elsewhere.
///
/// # Errors
/// As compiling and running.
pub fn latency_ms(network: Network, device: &Device) -> Result<f64> {
    let [c, h, w] = network.graph.input_shape();
    if device.is_cpu() {
        let threads = rayon::current_num_threads();
        let config = EngineConfig { threads, ..EngineConfig::default() };
        let mut engine = Engine::compile(network.graph, network.params.clone(), config)?;
        let (image, mut logits) = (vec![0.0; c * h * w], vec![0.0; engine.num_classes()]);
        return median_ms(|| engine.infer(&image, &mut logits));
    }
    let image = Tensor::zeros((1, c, h, w), DType::F32, device)?;
    median_ms(|| {
        let logits = Forward::new(network.graph, network.params, Mode::Eval).run(&image)?.logits;
        // Reading the result waits for the device.
        logits.flatten_all()?.to_vec1::<f32>()?;
        Ok(())
    })
}

fn median_ms(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::with_capacity(RUNS);
    for i in 0..WARM_UPS + RUNS {
        let start = Instant::now();
        run()?;
        if i >= WARM_UPS {
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[RUNS / 2])
}

/// Peak resident memory of this process in MB (2²⁰ bytes); 0 where the system does not tell.
pub fn peak_rss_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) / 1024
}
