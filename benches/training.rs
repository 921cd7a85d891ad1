//! Kernels of training, forward and backward, on a batch of 16 and all threads.
//!
//! `cargo bench --bench training -- FILTER`, with the program's allocator and threads. Convolutions count floating-point
//! operations as elements, twice the multiply-accumulates that the definition takes of each pass: one forward, two backward;
//! what only moves memory counts the bytes of its map.

#[allow(dead_code, reason = "other benchmarks use the rest")]
mod shared;

use std::time::Duration;

use candle_core::{Device, Tensor, Var};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use secateur::Result;
use secateur::cli::ReusingAllocator;
use secateur::graph::{Activation, Conv2d};
use secateur::nn::{NormValues, Tape, Value};

use shared::noise;

#[global_allocator]
static ALLOCATOR: ReusingAllocator = ReusingAllocator::new();

const BATCH: usize = 16;

fn tensor(shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_vec(noise(shape.iter().product()), shape, &Device::Cpu)?)
}

fn variable(shape: &[usize]) -> Result<Var> {
    Ok(Var::from_tensor(&tensor(shape)?)?)
}

/// Times `run` on a tape, then the way back from what it returns; elements of either.
fn both_ways(
    c: &mut Criterion,
    name: &str,
    throughput: [Throughput; 2],
    run: impl Fn(&mut Tape) -> Result<Value>,
) -> Result<()> {
    let mut group = c.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    let [forward, backward] = throughput;
    group.throughput(forward);
    group.bench_function("forward", |b| b.iter(|| run(&mut Tape::new()).expect("it fits")));
    let gradient = tensor(run(&mut Tape::new())?.tensor().dims())?;
    let forward = || {
        let mut tape = Tape::new();
        let y = run(&mut tape).expect("it fits");
        (tape, y)
    };
    group.throughput(backward);
    group.bench_function("backward", |b| {
        b.iter_batched(
            forward,
            |(tape, y)| tape.backward(&y, &gradient).expect("it has gradients"),
            BatchSize::PerIteration,
        );
    });
    group.finish();
    Ok(())
}

fn convolutions(c: &mut Criterion) -> Result<()> {
    let depthwise = |channels, kernel: usize| Conv2d::new(channels, kernel).padding(kernel / 2).groups(channels);
    let cases: [(&str, usize, usize, Conv2d); 10] = [
        ("3x3 64-64 at 56", 64, 56, Conv2d::new(64, 3).padding(1)),
        ("3x3 256-256 at 14", 256, 14, Conv2d::new(256, 3).padding(1)),
        ("3x3 512-512 at 7", 512, 7, Conv2d::new(512, 3).padding(1)),
        ("3x3 stride 2 64-128 at 56", 64, 56, Conv2d::new(128, 3).padding(1).stride(2)),
        ("1x1 16-96 at 112", 16, 112, Conv2d::new(96, 1)),
        ("1x1 96-24 at 56", 96, 56, Conv2d::new(24, 1)),
        ("1x1 512-512 at 14", 512, 14, Conv2d::new(512, 1)),
        ("depthwise 3x3 96 at 112", 96, 112, depthwise(96, 3)),
        ("depthwise 3x3 stride 2 96 at 112", 96, 112, depthwise(96, 3).stride(2)),
        ("depthwise 5x5 240 at 28", 240, 28, depthwise(240, 5)),
    ];
    for (name, channels, side, conv) in cases {
        let [kh, kw] = conv.kernel;
        let (x, weight) = (
            variable(&[BATCH, side, side, channels])?,
            variable(&[conv.out_channels, channels / conv.groups, kh, kw])?,
        );
        let pixels: usize = conv.output_size([side, side]).expect("the kernel fits").iter().product();
        let flops = 2 * (BATCH * pixels * conv.out_channels * channels / conv.groups * kh * kw) as u64;
        both_ways(c, name, [Throughput::Elements(flops), Throughput::Elements(2 * flops)], |tape| {
            let (x, weight) = (tape.parameter(x.as_tensor())?, tape.parameter(weight.as_tensor())?);
            tape.conv2d(&x, &weight, None, &conv, false)
        })?;
    }
    Ok(())
}

fn elementwise(c: &mut Criterion) -> Result<()> {
    for (channels, side) in [(96, 112), (64, 56), (512, 14)] {
        let x = variable(&[BATCH, side, side, channels])?;
        let (weight, bias) = (variable(&[channels])?, variable(&[channels])?);
        let bytes = Throughput::Bytes((4 * BATCH * side * side * channels) as u64);
        let name = format!("{channels} at {side}");
        both_ways(c, &format!("batch norm, relu6 {name}"), [bytes.clone(), bytes.clone()], |tape| {
            let x = tape.parameter(x.as_tensor())?;
            let weight = &tape.parameter(weight.as_tensor())?;
            let bias = &tape.parameter(bias.as_tensor())?;
            let norm = NormValues { weight, bias, eps: 1e-5, activation: Some(Activation::Relu6) };
            Ok(tape.batch_norm_train(&x, norm)?.0)
        })?;
        both_ways(c, &format!("sum, relu {name}"), [bytes.clone(), bytes], |tape| {
            let x = tape.parameter(x.as_tensor())?;
            tape.add(&[&x, &x], Some(Activation::Relu))
        })?;
    }
    Ok(())
}

fn all(c: &mut Criterion) {
    ALLOCATOR.keep_small_blocks();
    rayon::ThreadPoolBuilder::new().use_current_thread().build_global().expect("nobody made one before");
    convolutions(c).and_then(|()| elementwise(c)).expect("these kernels take these shapes");
}

criterion_group!(benches, all);
criterion_main!(benches);
