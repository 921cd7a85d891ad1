//! `secateur quantize`: what 8-bit inference needs, learnt from images.

use std::path::PathBuf;

use candle_core::Device;
use clap::Args;
use serde_json::json;

use super::model_args::ModelArgs;
use super::output::print;
use crate::adapt::{ImageSet, Network, calibrate_int8, int8_gate};
use crate::data::{Source, SourceConfig};
use crate::{Error, Result};

/// Arguments of `quantize`.
#[derive(Debug, Args)]
pub(super) struct QuantizeArgs {
    /// The model: teacher or student
    model: PathBuf,
    /// Unlabeled images like those it will see: a folder, an IDX file or a safetensors file
    #[arg(long, value_name = "PATH")]
    images: PathBuf,
    /// Where to write the model with its calibration; the weights stay f32 and are rounded when it is loaded
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Least fraction of the images on which 8-bit and f32 answers name the same class
    #[arg(long, value_name = "FRACTION", default_value_t = int8_gate().min_agreement)]
    min_agreement: f64,
    /// Seed that chooses the images
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    args: ModelArgs,
}

impl QuantizeArgs {
    pub fn run(self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.min_agreement) {
            return Err(Error::Usage(format!("--min-agreement: expected 0 to 1, got {}", self.min_agreement)));
        }
        let mut model = self.args.load(&self.model, &Device::Cpu)?;
        let images = ImageSet::open(Source::open(&self.images, &SourceConfig::default())?, &model.info, 0)?;
        let gate = crate::adapt::gate::GateConfig { min_agreement: self.min_agreement, ..int8_gate() };
        let network = Network { graph: &model.graph, params: &model.params };
        let outcome = calibrate_int8(network, &model.info.preprocess, &images, &gate, self.seed)?;
        let verdict = &outcome.verdict;
        if self.json {
            print(
                &json!({
                    "model": self.model.display().to_string(), "accepted": verdict.accepted, "reason": verdict.reason,
                    "agreement": verdict.agreement, "calibrated_on": outcome.calibration.images,
                    "judged_on": verdict.images,
                })
                .to_string(),
            )?;
        } else {
            let word = if verdict.accepted { "accepted" } else { "REFUSED" };
            print(&format!("int8: {word}: {}; calibrated on {} others", verdict.reason, outcome.calibration.images))?;
        }
        if !verdict.accepted {
            return Err(Error::Rejected(format!("int8 costs too much, nothing was written: {}", verdict.reason)));
        }
        model.int8 = Some(outcome.calibration);
        model.save(&self.out)?;
        log::info!("calibrated model written path={}", self.out.display());
        Ok(())
    }
}
