//! A model ready to answer.

use candle_core::{Device, Tensor};

use super::{Forward, Mode, ModelInfo, Params, Teacher};
use crate::data::Image;
use crate::engine::{Engine, EngineConfig, Folded, Precision};
use crate::graph::Graph;
use crate::{Error, Result};

/// A network compiled for inference, with what an image needs before it and an answer after it: the engine on the CPU,
/// the folded graph through the tensor library elsewhere.
#[derive(Debug)]
pub struct Runner {
    /// Classes and preprocessing.
    pub info: ModelInfo,
    input: [usize; 3],
    classes: usize,
    compiled: Compiled,
}

#[derive(Debug)]
enum Compiled {
    Cpu(Box<Engine>),
    Device { graph: Graph, params: Params, device: Device, max_batch: usize },
}

/// How a model is to run.
#[derive(Debug, Clone)]
pub struct RunnerConfig {
    /// Where to compute; a device other than the CPU runs in f32.
    pub device: Device,
    /// The numbers to compute with.
    pub precision: Precision,
    /// Threads, images at a time, instruction set.
    pub engine: EngineConfig,
}

impl Runner {
    /// Compiles a model. Takes it by value, so that its tensors are freed as they are packed.
    ///
    /// # Errors
    /// [`Error::Config`] for [`Precision::Int8`] if the model carries no calibration or the device is not the CPU; as
    /// [`Engine::compile`].
    pub fn new(model: Teacher, config: &RunnerConfig) -> Result<Self> {
        let Teacher { graph, params, info, int8, .. } = model;
        let (input, classes) = (graph.input_shape(), graph.num_classes());
        let compiled = match (&config.device, config.precision, int8) {
            (Device::Cpu, Precision::F32, _) => {
                Compiled::Cpu(Box::new(Engine::compile(&graph, params, config.engine)?))
            }
            (Device::Cpu, Precision::Int8, Some(calibration)) => {
                Compiled::Cpu(Box::new(Engine::compile_int8(&graph, params, config.engine, &calibration)?))
            }
            (Device::Cpu, Precision::Int8, None) => {
                return Err(Error::Config(format!(
                    "{}: not calibrated for int8: run `secateur quantize` on it, or `secateur adapt --precision int8`",
                    graph.name()
                )));
            }
            (_, Precision::Int8, _) => {
                return Err(Error::Config("int8: expected the CPU, other devices run in f32".to_string()));
            }
            (device, Precision::F32, _) => {
                let Folded { graph, params } = Folded::new(&graph, params)?;
                let max_batch = config.engine.max_batch;
                Compiled::Device { graph, params, device: device.clone(), max_batch }
            }
        };
        Ok(Self { info, input, classes, compiled })
    }

    /// Channels, height, width of an image.
    pub const fn input_shape(&self) -> [usize; 3] {
        self.input
    }

    /// Length of one image's logits.
    pub const fn num_classes(&self) -> usize {
        self.classes
    }

    /// Raw logits of any number of images, one row after the other.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]`, normalised; the result `[N, classes]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the images are not whole; errors of the device.
    pub fn logits(&mut self, images: &[f32]) -> Result<Vec<f32>> {
        let [c, h, w] = self.input;
        let per_image = c * h * w;
        if images.is_empty() || !images.len().is_multiple_of(per_image) {
            return Err(Error::Shape(format!(
                "expected whole images of {c}×{h}×{w} = {per_image} values, got {} values",
                images.len()
            )));
        }
        let mut logits = vec![0.0; images.len() / per_image * self.classes];
        let most = match &self.compiled {
            Compiled::Cpu(engine) => engine.config().max_batch,
            Compiled::Device { max_batch, .. } => *max_batch,
        };
        let batches = images.chunks(most * per_image).zip(logits.chunks_mut(most * self.classes));
        for (images, logits) in batches {
            match &mut self.compiled {
                Compiled::Cpu(engine) => engine.infer(images, logits)?,
                Compiled::Device { graph, params, device, .. } => {
                    let images = Tensor::from_slice(images, (images.len() / per_image, c, h, w), device)?;
                    let rows = Forward::new(graph, params, Mode::Eval).run(&images)?.logits;
                    logits.copy_from_slice(&rows.flatten_all()?.to_vec1::<f32>()?);
                }
            }
        }
        Ok(logits)
    }

    /// The most likely classes of an image with their probabilities, the likeliest first.
    ///
    /// # Errors
    /// As [`Runner::logits`].
    pub fn classify(&mut self, image: &Image, top: usize) -> Result<Vec<(usize, f32)>> {
        Ok(rank(&self.logits(&self.info.preprocess.eval(image))?, top))
    }
}

/// The `top` largest of one image's logits, the largest first, as classes and their probabilities.
pub fn rank(logits: &[f32], top: usize) -> Vec<(usize, f32)> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f32> = logits.iter().map(|x| (x - highest).exp()).collect();
    let sum: f32 = exp.iter().sum();
    let mut ranked: Vec<(usize, f32)> = exp.iter().map(|e| e / sum).enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked.truncate(top);
    ranked
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{ArchOptions, build};
    use crate::model::testing::{random_images, random_params, values};
    use crate::rng::Rng;

    fn model() -> Teacher {
        let graph = build("cifar_resnet20", &ArchOptions { num_classes: 10, input: [3, 32, 32] }).unwrap();
        let params = random_params(&graph, &mut Rng::new(1));
        let description = crate::weights::ModelDescription::default();
        let info = ModelInfo::resolve("test".as_ref(), &description, &graph).unwrap();
        Teacher { graph, params, info, sha256: String::new(), provenance: None, int8: None }
    }

    fn config(max_batch: usize) -> RunnerConfig {
        let engine = EngineConfig { threads: 1, max_batch, ..EngineConfig::default() };
        RunnerConfig { device: Device::Cpu, precision: Precision::F32, engine }
    }

    #[test]
    fn any_number_of_images_is_cut_into_batches() {
        let model = model();
        let images = random_images(&model.graph, 5, &mut Rng::new(2));
        let want = values(&Forward::new(&model.graph, &model.params, Mode::Eval).run(&images).unwrap().logits);
        let got = Runner::new(model, &config(2)).unwrap().logits(&values(&images)).unwrap();
        assert_eq!(got.len(), 50);
        assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-3), "{got:?} {want:?}");
    }

    #[test]
    fn parts_of_images_and_missing_calibrations_are_refused() {
        let mut runner = Runner::new(model(), &config(1)).unwrap();
        for len in [0, 1, 3 * 32 * 32 + 1] {
            let message = runner.logits(&vec![0.0; len]).unwrap_err().to_string();
            assert!(message.contains("3×32×32"), "{message}");
        }
        let int8 = RunnerConfig { precision: Precision::Int8, ..config(1) };
        let message = Runner::new(model(), &int8).unwrap_err().to_string();
        assert!(message.contains("secateur quantize"), "{message}");
    }
}
