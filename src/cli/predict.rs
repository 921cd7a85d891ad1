//! `secateur predict`: the most likely classes of images, or logits of raw tensors.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use clap::Args;
use serde_json::{Value, json};

use super::model_args::{InferArgs, ModelArgs};
use super::output::print;
use crate::data::{Image, ImageLimits, images_below, read_image};
use crate::model::Runner;
use crate::weights::{TensorFile, write_atomic};
use crate::{Error, Result};

/// Arguments of `predict`.
#[derive(Debug, Args)]
pub(super) struct PredictArgs {
    /// The model: teacher or student
    model: PathBuf,
    /// Image files, or folders with images in and below them
    #[arg(required_unless_present = "input", conflicts_with = "input")]
    images: Vec<PathBuf>,
    /// How many classes to name
    #[arg(long, value_name = "K", default_value = "3")]
    top: NonZeroUsize,
    /// A safetensors file with a normalised f32 tensor `input` [N, C, H, W], instead of images
    #[arg(long, value_name = "FILE", requires = "output")]
    input: Option<PathBuf>,
    /// Where to write the tensor `logits` [N, classes]
    #[arg(long, value_name = "FILE", requires = "input", conflicts_with = "images")]
    output: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    args: ModelArgs,
    #[command(flatten)]
    infer: InferArgs,
}

impl PredictArgs {
    pub fn run(self) -> Result<()> {
        let mut model = self.infer.runner(BATCH, |device| self.args.load(&self.model, device))?;
        match (&self.input, &self.output) {
            (Some(input), Some(output)) => run_tensors(&mut model, input, output),
            _ => run_images(&mut model, &self.images, self.top.get(), self.json),
        }
    }
}

/// Images at a time, for tensors of many.
const BATCH: usize = 4;

fn run_tensors(model: &mut Runner, input: &Path, output: &Path) -> Result<()> {
    let file = TensorFile::open(input)?;
    let (_, shape) = file.info("input")?;
    let expected = model.input_shape();
    if shape.len() != 4 || shape[0] == 0 || shape[1..] != expected {
        let reason =
            format!("input: expected shape [N, {}, {}, {}], got {shape:?}", expected[0], expected[1], expected[2]);
        return Err(Error::weights(input, reason));
    }
    let logits = model.logits(&file.read_f32("input")?)?;
    let logits = Tensor::from_vec(logits, (shape[0], model.num_classes()), &Device::Cpu)?;
    write_atomic(output, &BTreeMap::from([("logits".to_string(), logits)]), &BTreeMap::new())
}

fn run_images(model: &mut Runner, paths: &[PathBuf], top: usize, as_json: bool) -> Result<()> {
    let mut failed = None;
    let mut results = Vec::new();
    let mut answer = |path: &Path, image: Result<Image>| -> Result<()> {
        let name = path.display().to_string();
        // One broken image does not keep the others from their answer.
        match image.and_then(|image| predict(model, &image, top)) {
            Ok(ranked) => {
                if !as_json {
                    let named: Vec<String> = ranked.iter().map(|(n, p)| format!("{n} {:.1} %", 100.0 * p)).collect();
                    print(&format!("{name}: {}", named.join(", ")))?;
                }
                let classes: Vec<Value> =
                    ranked.iter().map(|(name, p)| json!({ "class": name, "probability": p })).collect();
                results.push(json!({ "image": name, "classes": classes }));
            }
            Err(error) => {
                log::warn!("{error}");
                results.push(json!({ "image": name, "error": error.to_string() }));
                failed.get_or_insert(error);
            }
        }
        Ok(())
    };
    for path in paths {
        let files = if path.is_dir() { images_below(path) } else { Ok(vec![path.clone()]) };
        match files {
            Ok(files) => files.iter().try_for_each(|file| answer(file, read_image(file, &ImageLimits::default())))?,
            Err(error) => answer(path, Err(error))?,
        }
    }
    if as_json {
        print(&json!({ "predictions": results }).to_string())?;
    }
    failed.map_or(Ok(()), Err)
}

fn predict(model: &mut Runner, image: &Image, top: usize) -> Result<Vec<(String, f32)>> {
    let ranked = model.classify(image, top)?;
    Ok(ranked.into_iter().map(|(class, p)| (model.info.class_names[class].clone(), p)).collect())
}
