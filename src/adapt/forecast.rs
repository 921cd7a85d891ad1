//! How long a run will take, told before it starts.
//!
//! A step's time is a + b·images: a is what parameters cost (packing, update), b what activations do. A few steps of parts
//! of a batch tell both, in less time than three whole steps take; the phases' numbers of steps and of passes through the
//! network do the rest.

use std::time::Duration;

use candle_core::Device;

use super::config::{AdaptConfig, SoftMask};
use super::memory::memory_plan;
use super::trial::{StepKind, trial};
use crate::Result;
use crate::graph::ChannelGroups;
use crate::model::{ActivationMemory, LEAST_IMAGES, Teacher};
use crate::prune::{Measure, Selector};

/// Steps of each size; the first warms up, the fastest of the others counts.
const STEPS: usize = 3;
/// A pass through the network without gradients of weights, in plain steps.
const PROBE: f64 = 0.7;
/// Arithmetic of a pass forward, in plain steps: what parts cost that are computed again.
const FORWARD: f64 = 1.0 / 3.0;
/// Batch normalisations of a pass forward, in plain steps.
const NORMALISE: f64 = 0.06;

/// What a run is expected to take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forecast {
    /// Images per second of a plain training step of the whole network.
    pub images_per_s: f64,
    /// Seconds in the training steps of all phases.
    pub seconds: f64,
}

/// Takes a few short steps of `model` and predicts a run by them.
///
/// # Errors
/// [`crate::Error::Config`] if the budget is out of reach; as [`trial`].
pub fn forecast(model: &Teacher, config: &AdaptConfig, device: &Device) -> Result<Forecast> {
    // What cannot be done is told before it is timed.
    config.train.check(&model.graph)?;
    if let Some(budget) = config.budget.filter(|budget| budget.measure != Measure::Latency) {
        Selector::new(&model.graph, &ChannelGroups::new(&model.graph, config.scope), budget, &config.limits)?;
    }
    let ActivationMemory { parts, recomputes } = memory_plan(&model.graph, config)?.memory;
    let most = config.batch_size.div_ceil(parts);
    let sizes = [(most / 4).max(LEAST_IMAGES), (most / 2).max(LEAST_IMAGES)];
    let timed = |images: usize| -> Result<(usize, Duration)> {
        let part = AdaptConfig { batch_size: images, memory_bytes: None, ..config.clone() };
        let times = trial(StepKind::Plain, model, &part, STEPS, device)?;
        Ok((images, times.into_iter().skip(1).min().unwrap_or_default()))
    };
    let step_s = extrapolate([timed(sizes[0])?, timed(sizes[1])?], config.batch_size);
    let again = 1.0 + FORWARD * (parts - 1) as f64 / parts as f64 + if recomputes { NORMALISE } else { 0.0 };
    Ok(Forecast {
        images_per_s: config.batch_size as f64 / (step_s * again),
        seconds: step_s * again * plain_steps(config),
    })
}

/// Seconds of a step of `images`, by the line through two shorter ones.
fn extrapolate([(few, short), (more, long)]: [(usize, Duration); 2], images: usize) -> f64 {
    let (short, long) = (short.as_secs_f64(), long.as_secs_f64());
    if more <= few {
        return long * images as f64 / more as f64;
    }
    // Noise must not make images free, nor parameters: between no constant part and nothing else.
    let each = ((long - short) / (more - few) as f64).clamp(0.0, long / more as f64);
    long + each * (images - more) as f64
}

/// The steps of all phases, in plain steps of the whole network.
fn plain_steps(config: &AdaptConfig) -> f64 {
    let mask = &config.mask;
    let probe = if mask.soft == SoftMask::Adversarial { PROBE / mask.probe_every.max(1) as f64 } else { 0.0 };
    let closings = if mask.soft == SoftMask::Off { 0.0 } else { 1.0 };
    let masks = mask.steps as f64 * if mask.admp { 1.0 + closings + probe } else { 1.0 };
    let pruning = masks + config.fine_tune.steps as f64;
    let adapting = if config.train.is_classifier_alone() { 0.0 } else { config.teacher.steps as f64 };
    adapting + config.budget.map_or(0.0, |_| pruning)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapt::config::TeacherConfig;
    use crate::arch::{ArchOptions, build};
    use crate::model::ModelInfo;
    use crate::model::TrainScope;
    use crate::model::testing::random_params;
    use crate::prune::Budget;
    use crate::rng::Rng;
    use crate::weights::ModelDescription;

    #[test]
    fn a_line_goes_on_and_noise_does_not_bend_it() {
        let ms = Duration::from_millis;
        let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-9, "{got} {want}");
        near(extrapolate([(4, ms(60)), (8, ms(100))], 16), 0.180);
        near(extrapolate([(4, ms(50)), (8, ms(100))], 16), 0.200);
        near(extrapolate([(4, ms(10)), (8, ms(100))], 16), 0.200);
        near(extrapolate([(4, ms(110)), (8, ms(100))], 16), 0.100);
        near(extrapolate([(2, ms(10)), (2, ms(20))], 4), 0.040);
    }

    #[test]
    fn phases_that_are_off_take_no_time() {
        let graph = build("lenet_bn", &ArchOptions { num_classes: 4, input: [1, 28, 28] }).unwrap();
        let params = random_params(&graph, &mut Rng::new(1));
        let info = ModelInfo::resolve("a test".as_ref(), &ModelDescription::default(), &graph).unwrap();
        let model = Teacher { graph, params, info, sha256: String::new(), provenance: None, int8: None };
        let mut config = AdaptConfig::for_model(&model.info);
        config.batch_size = 8;
        config.budget = None;
        let told = forecast(&model, &config, &Device::Cpu).unwrap();
        let steps = config.teacher.steps as f64;
        assert!(told.images_per_s > 0.0 && told.images_per_s.is_finite());
        assert!((told.seconds * told.images_per_s / (8.0 * steps) - 1.0).abs() < 1e-9, "{told:?}");
        let unadapted = AdaptConfig { teacher: TeacherConfig { steps: 0, ..config.teacher.clone() }, ..config.clone() };
        assert!(plain_steps(&unadapted) < steps);
        config.train = TrainScope::Head;
        assert_eq!(plain_steps(&config), 0.0);
        config.budget = Some(Budget::channels(0.5));
        let pruning = (config.mask.steps + config.fine_tune.steps) as f64;
        assert_eq!(plain_steps(&config), pruning);
        config = config.with_admp();
        assert!(plain_steps(&config) > pruning);
        config.budget = Some(Budget::channels(0.999));
        let message = forecast(&model, &config, &Device::Cpu).unwrap_err().to_string();
        assert!(message.starts_with("budget channels=0.999"), "{message}");
    }
}
