//! Median latency of an ONNX model in tract: `tract-latency MODEL.onnx THREADS RUNS`, one line of JSON.

use std::error::Error;
use std::time::Instant;

use tract_linalg::multithread::{Executor, set_default_executor};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid;
use tract_onnx::tract_hir::internal::DimLike;

const WARM_UPS: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, threads, runs] = arguments.as_slice() else {
        return Err("usage: tract-latency MODEL.onnx THREADS RUNS".into());
    };
    let (threads, runs) = (threads.parse()?, runs.parse::<usize>()?.max(1));
    if threads > 1 {
        set_default_executor(Executor::multithread(threads));
    }
    let model = tract_onnx::onnx().model_for_path(path)?;
    // The number of images is free: one.
    let dims = model.input_fact(0)?.shape.concretize().ok_or("the input has no shape")?;
    let shape: Vec<usize> = dims.iter().map(|dim| dim.to_usize().unwrap_or(1)).collect();
    let model = model.with_input_fact(0, f32::fact(&shape).into())?.into_optimized()?.into_runnable()?;
    // Any values do: no operation here is faster on some than on others.
    let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i as f32 * 0.7).sin()).collect();
    let image: TValue = Tensor::from_shape(&shape, &values)?.into_tvalue();
    let mut times = Vec::with_capacity(runs);
    for run in 0..WARM_UPS + runs {
        let start = Instant::now();
        model.run(tvec!(image.clone()))?;
        if run >= WARM_UPS {
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    println!("{{\"median_ms\":{}}}", times[times.len() / 2]);
    Ok(())
}
