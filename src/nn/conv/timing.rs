//! Speed of the kernels beside plain matrix products of the same size; run by hand in an optimised build.

use std::time::{Duration, Instant};

use gemm::Parallelism;

use super::*;
use crate::nn::gemm::{Mat, MatMut, add_product};
use crate::nn::threads::threads;
use crate::rng::Rng;

/// Least of a few runs: the machine's noise only ever adds time.
fn best(mut f: impl FnMut()) -> Duration {
    f();
    let runs = (0..7).map(|_| {
        let start = Instant::now();
        f();
        start.elapsed()
    });
    runs.min().unwrap_or_default()
}

fn filled(len: usize) -> Vec<f32> {
    let mut rng = Rng::new(len as u64);
    (0..len).map(|_| rng.normal()).collect()
}

#[test]
#[ignore = "prints timings"]
fn convolutions_beside_matrix_products() {
    let cases: [(&str, usize, usize, Conv2d); 12] = [
        ("1x1 64-256", 64, 56, Conv2d::new(256, 1)),
        ("1x1 256-64", 256, 56, Conv2d::new(64, 1)),
        ("1x1 1024-256", 1024, 14, Conv2d::new(256, 1)),
        ("1x1 s2 256-512", 256, 56, Conv2d::new(512, 1).stride(2)),
        ("3x3 64", 64, 56, Conv2d::new(64, 3).padding(1)),
        ("3x3 256", 256, 14, Conv2d::new(256, 3).padding(1)),
        ("3x3 512", 512, 7, Conv2d::new(512, 3).padding(1)),
        ("3x3 s2 64-128", 64, 56, Conv2d::new(128, 3).padding(1).stride(2)),
        ("7x7 s2 3-64", 3, 224, Conv2d::new(64, 7).padding(3).stride(2)),
        ("dw3 96", 96, 112, Conv2d::new(96, 3).padding(1).groups(96)),
        ("dw3 s2 96", 96, 112, Conv2d::new(96, 3).padding(1).groups(96).stride(2)),
        ("dw5 240", 240, 28, Conv2d::new(240, 5).padding(2).groups(240)),
    ];
    println!("{:<16}{:>9}{:>9}{:>9}{:>9}   GFLOP/s", "batch 16", "gemm", "fwd", "dx", "dw");
    for (name, channels, size, conv) in cases {
        let g = Geometry::new(Dims { batch: 16, channels, size: [size, size] }, &conv).unwrap();
        let (rows, filter) = (g.out_rows(), g.taps() * g.group_in());
        let (x, weight, dy) =
            (filled(g.batch * size * size * channels), filled(g.out_channels * filter), filled(rows * g.out_channels));
        let flops = 2.0 * (rows * g.out_channels * filter) as f64;
        let rate = |t: Duration| flops / t.as_secs_f64() / 1e9;
        let times = if g.is_depthwise() {
            [
                Duration::MAX,
                best(|| drop(depthwise::forward(&g, &x, &weight, None, false))),
                best(|| drop(depthwise::input_gradient(&g, &weight, &dy))),
                best(|| drop(depthwise::weight_gradient(&g, &x, &dy))),
            ]
        } else {
            let columns = filled(rows * filter);
            let mut out = vec![0f32; rows * g.out_channels];
            let product = best(|| {
                let dst = MatMut::rows(&mut out, [rows, g.out_channels], g.out_channels);
                let rhs = Mat::rows(&weight, [g.out_channels, filter], filter).t();
                add_product(dst, Mat::rows(&columns, [rows, filter], filter), rhs, Parallelism::Rayon(threads()));
            });
            [
                product,
                best(|| drop(dense::forward(&g, &x, &weight, None, false))),
                best(|| drop(dense::input_gradient(&g, &weight, &dy))),
                best(|| drop(dense::weight_gradient(&g, &x, &dy))),
            ]
        };
        println!("{name:<16}{}", times.map(|t| format!("{:>9.1}", rate(t))).concat());
    }
}
