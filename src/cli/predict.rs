//! `secateur predict`: the most likely classes of images, or logits of raw tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use clap::Args;
use serde_json::{Value, json};

use super::model_args::{ComputeArgs, ModelArgs};
use super::output::print;
use crate::data::{ImageLimits, read_image};
use crate::model::{Forward, Mode, Teacher};
use crate::weights::{TensorFile, write_atomic};
use crate::{Error, Result};

/// Arguments of `predict`.
#[derive(Debug, Args)]
pub(super) struct PredictArgs {
    /// The model: teacher or student
    model: PathBuf,
    /// Image files
    #[arg(required_unless_present = "input", conflicts_with = "input")]
    images: Vec<PathBuf>,
    /// How many classes to name
    #[arg(long, value_name = "K", default_value_t = 3)]
    top: usize,
    /// A safetensors file with a normalised f32 tensor `input` [N, C, H, W], instead of images
    #[arg(long, value_name = "FILE", requires = "output")]
    input: Option<PathBuf>,
    /// Where to write the tensor `logits` [N, classes]
    #[arg(long, value_name = "FILE", requires = "input")]
    output: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    args: ModelArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl PredictArgs {
    pub fn run(self) -> Result<()> {
        let device = self.compute.device()?;
        let model = self.args.load(&self.model, &device)?;
        match (&self.input, &self.output) {
            (Some(input), Some(output)) => run_tensors(&model, input, output, &device),
            _ => run_images(&model, &self.images, (self.top, self.json), &device),
        }
    }
}

fn run_tensors(model: &Teacher, input: &Path, output: &Path, device: &Device) -> Result<()> {
    let file = TensorFile::open(input)?;
    let (_, shape) = file.info("input")?;
    let expected = model.graph.input_shape();
    if shape.len() != 4 || shape[1..] != expected {
        let reason =
            format!("input: expected shape [N, {}, {}, {}], got {shape:?}", expected[0], expected[1], expected[2]);
        return Err(Error::weights(input, reason));
    }
    let images = Tensor::from_vec(file.read_f32("input")?, shape, device)?;
    let logits = Forward::new(&model.graph, &model.params, Mode::Eval).run(&images)?.logits;
    write_atomic(output, &BTreeMap::from([("logits".to_string(), logits.to_device(&Device::Cpu)?)]), &BTreeMap::new())
}

fn run_images(model: &Teacher, paths: &[PathBuf], (top, as_json): (usize, bool), device: &Device) -> Result<()> {
    let mut failed = None;
    let mut results = Vec::new();
    for path in paths {
        // One broken image does not keep the others from their answer.
        match predict(model, path, top, device) {
            Ok(ranked) => {
                if !as_json {
                    let named: Vec<String> = ranked.iter().map(|(n, p)| format!("{n} {:.1} %", 100.0 * p)).collect();
                    print(&format!("{}: {}", path.display(), named.join(", ")))?;
                }
                let classes: Vec<Value> =
                    ranked.iter().map(|(name, p)| json!({ "class": name, "probability": p })).collect();
                results.push(json!({ "image": path.display().to_string(), "classes": classes }));
            }
            Err(error) => {
                log::warn!("{error}");
                results.push(json!({ "image": path.display().to_string(), "error": error.to_string() }));
                failed.get_or_insert(error);
            }
        }
    }
    if as_json {
        print(&json!({ "predictions": results }).to_string())?;
    }
    failed.map_or(Ok(()), Err)
}

fn predict(model: &Teacher, path: &Path, top: usize, device: &Device) -> Result<Vec<(String, f32)>> {
    let image = read_image(path, &ImageLimits::default())?;
    let p = &model.info.preprocess;
    let input = Tensor::from_vec(p.eval(&image), (1, p.channels, p.height, p.width), device)?.to_dtype(DType::F32)?;
    let logits = Forward::new(&model.graph, &model.params, Mode::Eval).run(&input)?.logits;
    let probs: Vec<f32> = candle_nn::ops::softmax(&logits, 1)?.squeeze(0)?.to_vec1()?;
    let mut ranked: Vec<(String, f32)> = model.info.class_names.iter().cloned().zip(probs).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked.truncate(top);
    Ok(ranked)
}
