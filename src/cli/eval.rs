//! `secateur eval`: accuracy on labelled images.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::model_args::{InferArgs, ModelArgs};
use super::output::print;
use crate::adapt::{ImageSet, answer_by};
use crate::data::{Source, SourceConfig};
use crate::{Error, Result};

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    /// The model: teacher or student
    model: PathBuf,
    /// Labelled images: a folder with class sub-folders, an IDX file with labels beside it, or a safetensors file
    data: PathBuf,
    /// Accuracy of every class
    #[arg(long)]
    per_class: bool,
    /// The confusion matrix: rows are true classes, columns are answers
    #[arg(long)]
    confusion: bool,
    /// Images per forward
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    args: ModelArgs,
    #[command(flatten)]
    infer: InferArgs,
}

impl EvalArgs {
    pub fn run(self) -> Result<()> {
        let load = |device: &_| self.args.load(&self.model, device);
        let mut model = self.infer.runner(self.batch_size as usize, load)?;
        let images = ImageSet::open(Source::open(&self.data, &SourceConfig::default())?, &model.info, 0)?;
        let labelled: Vec<usize> = images.good().iter().copied().filter(|&i| images.label(i).is_some()).collect();
        if labelled.is_empty() {
            let names = model.info.class_names.join(", ");
            return Err(Error::data(
                &self.data,
                format!("expected images in sub-folders named as the model's classes ({names}), got no labelled image"),
            ));
        }
        let (indices, logits) = answer_by(&mut model, &images, &labelled)?;
        let classes = model.info.class_names.len();
        let mut confusion = vec![vec![0u64; classes]; classes];
        for (&index, answer) in indices.iter().zip(logits.argmax(1)?.to_vec1::<u32>()?) {
            if let Some(label) = images.label(index) {
                confusion[label][answer as usize] += 1;
            }
        }
        self.report(&model.info.class_names, &confusion)
    }

    fn report(&self, names: &[String], confusion: &[Vec<u64>]) -> Result<()> {
        let right: Vec<u64> = confusion.iter().enumerate().map(|(class, row)| row[class]).collect();
        let totals: Vec<u64> = confusion.iter().map(|row| row.iter().sum()).collect();
        let (correct, images): (u64, u64) = (right.iter().sum(), totals.iter().sum());
        let percent = |part: u64, whole: u64| (whole > 0).then(|| 100.0 * part as f64 / whole as f64);
        let accuracy = percent(correct, images).unwrap_or(0.0);
        if self.json {
            let mut object = json!({
                "model": self.model.display().to_string(), "images": images, "correct": correct, "accuracy": accuracy,
            });
            if self.per_class {
                let row =
                    |class: usize| json!({ "class": names[class], "images": totals[class], "correct": right[class] });
                object["per_class"] = (0..names.len()).map(row).collect();
            }
            if self.confusion {
                object["confusion"] = json!(confusion);
            }
            return print(&object.to_string());
        }
        print(&format!("{}: {correct} of {images} images right, accuracy {accuracy:.2} %", self.model.display()))?;
        if self.per_class {
            let width = names.iter().map(|n| n.chars().count()).max().unwrap_or(0);
            for (class, name) in names.iter().enumerate() {
                let part = percent(right[class], totals[class]).map_or("-".to_string(), |p| format!("{p:.1} %"));
                print(&format!("{name:width$}  {:>5} images  {part:>8}", totals[class]))?;
            }
        }
        if self.confusion {
            for (name, row) in names.iter().zip(confusion) {
                let cells: Vec<String> = row.iter().map(|n| format!("{n:>4}")).collect();
                print(&format!("{}  {name}", cells.join(" ")))?;
            }
        }
        Ok(())
    }
}
