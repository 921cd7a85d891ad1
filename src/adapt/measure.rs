//! Figures of this process and machine.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};

use super::pass::Network;
use crate::Result;
use crate::engine::{Calibration, Engine, EngineConfig};
use crate::model::{Forward, Mode};
use crate::timing::{Timed, in_turns};

const WARM_UPS: usize = 2;
const RUNS: usize = 11;

/// Milliseconds of one image for each network when nothing disturbs it, as served: by the engine on the CPU, in 8 bits where there is a
/// calibration; by the tensor library elsewhere. Networks are timed in turns, before each of which `go_on` may end it.
///
/// # Errors
/// Those of `go_on`; as compiling and running.
pub fn latencies_ms(
    networks: &[(Network, Option<&Calibration>)],
    device: &Device,
    go_on: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<f64>> {
    if !device.is_cpu() {
        return networks.iter().map(|(network, _)| forward_ms(*network, device)).collect();
    }
    let config = EngineConfig { threads: rayon::current_num_threads(), ..EngineConfig::default() };
    let timed = networks.iter().map(|(network, calibration)| {
        let params = network.params.clone();
        let engine = match calibration {
            None => Engine::compile(network.graph, params, config)?,
            Some(calibration) => Engine::compile_int8(network.graph, params, config, calibration)?,
        };
        Timed::new(engine, 1)
    });
    in_turns(&mut timed.collect::<Result<Vec<_>>>()?, go_on)
}

fn forward_ms(network: Network, device: &Device) -> Result<f64> {
    let [c, h, w] = network.graph.input_shape();
    let image = Tensor::zeros((1, c, h, w), DType::F32, device)?;
    let mut times = Vec::with_capacity(RUNS);
    for i in 0..WARM_UPS + RUNS {
        let start = Instant::now();
        let logits = Forward::new(network.graph, network.params, Mode::Eval).run(&image)?.logits;
        // Reading the result waits for the device.
        logits.flatten_all()?.to_vec1::<f32>()?;
        if i >= WARM_UPS {
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[RUNS / 2])
}

/// Peak resident memory of this process in MB (10⁶ bytes); 0 where the system does not tell.
pub fn peak_rss_mb() -> u64 {
    peak_rss_bytes() / 1_000_000
}

/// The same in bytes.
pub fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}
