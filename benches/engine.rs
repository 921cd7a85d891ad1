//! Whole networks, one image at a time: dense, and with 40 % of their channels in uneven widths.
//!
//! `cargo bench --bench engine -- FILTER`; criterion's elements are floating-point operations, twice the graph's
//! multiply-accumulates.

mod shared;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use secateur::Result;
use secateur::arch::{ArchOptions, build};
use secateur::bench::narrowed;
use secateur::engine::Precision;

use shared::Request;

const NETWORKS: [&str; 4] = ["resnet18", "mobilenetv1_100", "mobilenetv2_100", "efficientnet_lite0"];
/// Fractions of the channels that are left.
const WIDTHS: [f64; 2] = [1.0, 0.4];

fn networks(c: &mut Criterion) -> Result<()> {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = if processors > 1 { vec![1, processors] } else { vec![1] };
    for name in NETWORKS {
        let whole = build(name, &ArchOptions { num_classes: 1000, input: [3, 224, 224] })?;
        for left in WIDTHS {
            let graph = narrowed(&whole, left, 0)?;
            let mut group = c.benchmark_group(format!("{name} channels={left}"));
            group.sample_size(20).throughput(Throughput::Elements(2 * graph.cost().macs));
            for precision in [Precision::F32, Precision::Int8] {
                for &threads in &threads {
                    // Compiled when the filter lets it through, and once.
                    let mut request = None;
                    group.bench_function(BenchmarkId::new(precision.to_string(), threads), |b| {
                        let Request { engine, image, logits } = request
                            .get_or_insert_with(|| Request::compile(&graph, precision, threads).expect("it compiles"));
                        b.iter(|| engine.infer(image, logits).expect("it answers"));
                    });
                }
            }
            group.finish();
        }
    }
    Ok(())
}

fn all(c: &mut Criterion) {
    networks(c).expect("these architectures exist in these widths");
}

criterion_group!(benches, all);
criterion_main!(benches);
