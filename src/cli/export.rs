//! `secateur export`: a model for other runtimes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::Device;
use clap::Args;
use serde_json::{Value, json};

use super::model_source::{ModelSource, SourcedModel};
use super::output::{print, short};
use crate::Result;
use crate::model::metadata;
use crate::onnx::{self, ExportInfo};
use crate::weights::{write_atomic, write_bytes_atomic};

/// Arguments of `export`.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// The model: teacher or student. Without it, --arch or --graph makes one with random weights
    model: Option<PathBuf>,
    /// Where to write it as ONNX
    #[arg(long, value_name = "FILE", required_unless_present = "safetensors")]
    onnx: Option<PathBuf>,
    /// Where to write it as a safetensors file that carries its own graph
    #[arg(long, value_name = "FILE")]
    safetensors: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: ModelSource,
}

impl ExportArgs {
    pub fn run(self) -> Result<()> {
        let model = self.source.load(self.model.as_deref(), &Device::Cpu)?;
        if let Some(path) = &self.onnx {
            write_bytes_atomic(path, &onnx::export(&model.graph, &model.params, &export_info(&model))?)?;
        }
        if let Some(path) = &self.safetensors {
            write_atomic(path, &model.params, &all_metadata(&model))?;
        }
        let files = [&self.onnx, &self.safetensors].into_iter().flatten();
        print(&if self.json { as_json(&model, files).to_string() } else { as_text(&model, files) })
    }
}

fn export_info(model: &SourcedModel) -> ExportInfo {
    let mut metadata = all_metadata(model);
    // An ONNX file is a graph already, and has its own kind of calibration.
    metadata.retain(|key, _| !["graph", "secateur.int8"].contains(&key.as_str()));
    ExportInfo { producer: env!("CARGO_PKG_NAME").into(), version: env!("CARGO_PKG_VERSION").into(), metadata }
}

fn all_metadata(model: &SourcedModel) -> BTreeMap<String, String> {
    metadata((&model.graph, &model.info), model.provenance.as_ref(), model.int8.as_ref())
}

fn as_json<'a>(model: &SourcedModel, files: impl Iterator<Item = &'a PathBuf>) -> Value {
    let cost = model.graph.cost();
    json!({
        "model": model.name, "arch": model.graph.name(), "input": model.graph.input_shape(),
        "classes": model.graph.num_classes(), "params": cost.params, "macs": cost.macs,
        "files": files.map(|path| path.display().to_string()).collect::<Vec<_>>(),
    })
}

fn as_text<'a>(model: &SourcedModel, files: impl Iterator<Item = &'a PathBuf>) -> String {
    let (cost, [channels, height, width]) = (model.graph.cost(), model.graph.input_shape());
    let files: Vec<String> = files.map(|path| path.display().to_string()).collect();
    format!(
        "{}: {}, {} [N, {channels}, {height}, {width}], {} [N, {}], {} parameters, {} MACs",
        files.join(", "),
        model.name,
        onnx::INPUT,
        onnx::OUTPUT,
        model.graph.num_classes(),
        short(cost.params),
        short(cost.macs)
    )
}
