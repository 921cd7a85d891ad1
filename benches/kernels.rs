//! Single layers on one thread, beside the plain matrix product of the same size.
//!
//! A layer stands in a small network and its step alone is timed, so that its input comes from the step before, as in a
//! real one. `cargo bench --bench kernels -- FILTER`; criterion's elements are floating-point operations, twice the
//! layer's multiply-accumulates, whatever the algorithm saves of them.

mod shared;

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use gemm::Parallelism;
use secateur::Result;
use secateur::engine::Precision;
use secateur::graph::{Conv2d, Graph, GraphBuilder};

use shared::{Request, noise};

const LAYER: &str = "layer";

/// A convolution on `channels` maps of `side` × `side`.
struct Case {
    name: &'static str,
    channels: usize,
    side: usize,
    conv: Conv2d,
}

/// All layers of ResNet-18, then some of MobileNet and EfficientNet-Lite, a few in the odd widths that pruning leaves.
fn cases() -> Vec<Case> {
    let case = |name, channels, side, conv| Case { name, channels, side, conv };
    let depthwise = |channels, kernel: usize| Conv2d::new(channels, kernel).padding(kernel / 2).groups(channels);
    vec![
        case("7x7 stride 2 3-64 at 224", 3, 224, Conv2d::new(64, 7).padding(3).stride(2)),
        case("3x3 64-64 at 56", 64, 56, Conv2d::new(64, 3).padding(1)),
        case("3x3 128-128 at 28", 128, 28, Conv2d::new(128, 3).padding(1)),
        case("3x3 256-256 at 14", 256, 14, Conv2d::new(256, 3).padding(1)),
        case("3x3 512-512 at 7", 512, 7, Conv2d::new(512, 3).padding(1)),
        case("3x3 stride 2 64-128 at 56", 64, 56, Conv2d::new(128, 3).padding(1).stride(2)),
        case("3x3 stride 2 128-256 at 28", 128, 28, Conv2d::new(256, 3).padding(1).stride(2)),
        case("3x3 stride 2 256-512 at 14", 256, 14, Conv2d::new(512, 3).padding(1).stride(2)),
        case("1x1 stride 2 64-128 at 56", 64, 56, Conv2d::new(128, 1).stride(2)),
        case("1x1 stride 2 128-256 at 28", 128, 28, Conv2d::new(256, 1).stride(2)),
        case("1x1 stride 2 256-512 at 14", 256, 14, Conv2d::new(512, 1).stride(2)),
        case("3x3 27-61 at 56", 27, 56, Conv2d::new(61, 3).padding(1)),
        case("1x1 32-64 at 112", 32, 112, Conv2d::new(64, 1)),
        case("1x1 512-512 at 14", 512, 14, Conv2d::new(512, 1)),
        case("1x1 37-213 at 14", 37, 14, Conv2d::new(213, 1)),
        case("depthwise 3x3 128 at 56", 128, 56, depthwise(128, 3)),
        case("depthwise 3x3 stride 2 96 at 112", 96, 112, depthwise(96, 3).stride(2)),
        case("depthwise 5x5 240 at 28", 240, 28, depthwise(240, 5)),
    ]
}

impl Case {
    /// The layer behind a convolution that gives its channels; an image's three it reads itself, as a first layer does.
    fn graph(&self) -> Result<Graph> {
        let mut b = GraphBuilder::new(self.name, [3, self.side, self.side]);
        let input = match self.channels {
            3 => b.input(),
            channels => b.conv("before", Conv2d::new(channels, 1).with_bias(), b.input()),
        };
        let layer = b.conv(LAYER, self.conv.with_bias(), input);
        b.classifier("after", 10, layer);
        b.finish()
    }
}

fn kernels(c: &mut Criterion) -> Result<()> {
    for case in cases() {
        let graph = case.graph()?;
        let mut group = c.benchmark_group(case.name);
        group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
        for precision in [Precision::F32, Precision::Int8] {
            step(&mut group, Request::compile(&graph, precision, 1)?)?;
        }
        if case.conv.groups == 1 {
            product(&mut group, &case);
        }
        group.finish();
    }
    Ok(())
}

/// The layer's step, under its algorithm's name.
fn step(group: &mut BenchmarkGroup<WallTime>, request: Request) -> Result<()> {
    let Request { mut engine, image, mut logits } = request;
    let steps = engine.profile(&image, &mut logits)?;
    let index = steps.iter().position(|step| step.layer == LAYER).expect("the layer is a step");
    group.throughput(Throughput::Elements(2 * steps[index].macs));
    group.bench_function(&steps[index].kernel, |b| {
        b.iter_custom(|runs| {
            let mut seconds = || engine.profile(&image, &mut logits).expect("it answers")[index].seconds;
            Duration::from_secs_f64((0..runs).map(|_| seconds()).sum())
        });
    });
    Ok(())
}

/// The product a dense convolution comes down to once its input is laid out as a matrix; f32.
fn product(group: &mut BenchmarkGroup<WallTime>, case: &Case) {
    let side = case.side.div_ceil(case.conv.stride[0]);
    let (rows, columns) = (side * side, case.conv.out_channels);
    let inner = case.channels * case.conv.kernel[0] * case.conv.kernel[1];
    let (a, b, mut out) = (noise(rows * inner), noise(inner * columns), vec![0f32; rows * columns]);
    group.bench_function("plain product", |bencher| {
        // SAFETY: row-major matrices of these sizes.
        bencher.iter(|| unsafe {
            gemm::gemm(
                rows,
                columns,
                inner,
                out.as_mut_ptr(),
                1,
                columns as isize,
                false,
                a.as_ptr(),
                1,
                inner as isize,
                b.as_ptr(),
                1,
                columns as isize,
                0.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        });
    });
}

fn all(c: &mut Criterion) {
    kernels(c).expect("these layers compile");
}

criterion_group!(benches, all);
criterion_main!(benches);
