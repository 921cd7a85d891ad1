//! Small models for tests.

use std::sync::Arc;
use std::time::Duration;

use super::{ModelSettings, Registry};
use crate::arch::{ArchOptions, build};
use crate::engine::{EngineConfig, Precision};
use crate::model::testing::random_params;
use crate::model::{ModelInfo, Teacher};
use crate::rng::Rng;
use crate::serve::metrics::Metrics;
use crate::weights::ModelDescription;

/// Values of an image.
pub const PER_IMAGE: usize = 28 * 28;

/// A small network with random weights.
pub fn model(seed: u64) -> Teacher {
    let graph = build("lenet_bn", &ArchOptions { num_classes: 10, input: [1, 28, 28] }).unwrap();
    let params = random_params(&graph, &mut Rng::new(seed));
    let info = ModelInfo::resolve("test".as_ref(), &ModelDescription::default(), &graph).unwrap();
    Teacher { graph, params, info, sha256: String::new(), provenance: None, int8: None }
}

/// Images of noise.
pub fn images(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    (0..count * PER_IMAGE).map(|_| rng.normal()).collect()
}

/// A registry of engines with one thread, whose queues take `queue_images`.
pub fn registry(queue_images: usize) -> Arc<Registry> {
    let settings = ModelSettings {
        engine: EngineConfig { threads: 1, max_batch: 2, ..EngineConfig::default() },
        precision: Precision::F32,
        queue_images,
        batch_target: Duration::from_millis(20),
    };
    Arc::new(Registry::new(settings, Arc::new(Metrics::default()), || ()))
}
