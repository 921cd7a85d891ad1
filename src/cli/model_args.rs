//! Arguments that say what a model file does not say itself, and where to compute.

use std::path::{Path, PathBuf};

use candle_core::Device;
use clap::Args;

use crate::engine::{EngineConfig, Precision};
use crate::model::{Runner, RunnerConfig, Teacher};
use crate::weights::ModelDescription;
use crate::{Error, Result};

/// What a model's files do not say.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(super) struct ModelArgs {
    /// Architecture by torchvision or timm name, where the files do not tell
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
    /// Architecture as a JSON graph
    #[arg(long, value_name = "FILE", conflicts_with = "arch")]
    graph: Option<PathBuf>,
    /// Number of classes
    #[arg(long, visible_alias = "classes", value_name = "N")]
    num_classes: Option<usize>,
    /// Class names, comma separated, in the order of the logits
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    class_names: Option<Vec<String>>,
    /// Mean of each channel, for pixels in 0..1
    #[arg(long, value_name = "R,G,B", value_delimiter = ',')]
    mean: Option<Vec<f64>>,
    /// Standard deviation of each channel
    #[arg(long, value_name = "R,G,B", value_delimiter = ',')]
    std: Option<Vec<f64>>,
    /// Input channels, height, width
    #[arg(long, value_name = "C,H,W", value_delimiter = ',')]
    input_size: Option<Vec<usize>>,
}

impl ModelArgs {
    /// Loads the model at `path` under these arguments.
    pub fn load(&self, path: &Path, device: &Device) -> Result<Teacher> {
        Teacher::load(path, self.description()?, device)
    }

    /// What the arguments say.
    pub fn description(&self) -> Result<ModelDescription> {
        let graph = match &self.graph {
            None => None,
            Some(file) => {
                let text = std::fs::read_to_string(file).map_err(|e| Error::io("read", file, e))?;
                let json = serde_json::from_str(&text)
                    .map_err(|e| Error::Usage(format!("--graph {}: not JSON: {e}", file.display())))?;
                Some(json)
            }
        };
        let input_size = match self.input_size.clone() {
            None => None,
            Some(sides) => Some(sides.try_into().map_err(|sides: Vec<usize>| {
                Error::Usage(format!("--input-size: expected three numbers C,H,W, got {}", sides.len()))
            })?),
        };
        Ok(ModelDescription {
            arch: self.arch.clone(),
            graph,
            num_classes: self.num_classes,
            class_names: self.class_names.clone(),
            mean: self.mean.clone(),
            std: self.std.clone(),
            input_size,
            ..ModelDescription::default()
        })
    }
}

/// Where and how wide to compute.
#[derive(Debug, Args)]
#[command(next_help_heading = "Compute")]
pub(super) struct ComputeArgs {
    /// Where to compute: cpu or cuda:N
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: String,
    /// Threads to compute with [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

/// How to run a model.
#[derive(Debug, Args)]
#[command(next_help_heading = "Compute")]
pub(super) struct InferArgs {
    /// The numbers to compute with: f32, or int8 for a model calibrated with `quantize` or `adapt --precision int8`
    #[arg(long, value_name = "PRECISION", default_value = "f32")]
    precision: Precision,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl InferArgs {
    /// Compiles a model for up to `max_batch` images at a time; `load` gets the device its tensors shall be on.
    pub fn runner(&self, max_batch: usize, load: impl FnOnce(&Device) -> Result<Teacher>) -> Result<Runner> {
        let device = self.compute.device()?;
        let threads = rayon::current_num_threads();
        let engine = EngineConfig { threads, max_batch, ..EngineConfig::default() };
        let model = load(&device)?;
        Runner::new(model, &RunnerConfig { device, precision: self.precision, engine })
    }
}

/// More threads than this only wait for each other; a thousand of them take hours for what two do in seconds.
const THREADS_PER_PROCESSOR: usize = 8;

impl ComputeArgs {
    /// Sets the number of threads and opens the device.
    pub fn device(&self) -> Result<Device> {
        let mut pool = rayon::ThreadPoolBuilder::new();
        if let Some(threads) = self.threads {
            let most = THREADS_PER_PROCESSOR * std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            if usize::from(threads) > most {
                return Err(Error::Usage(format!(
                    "--threads {threads}: expected at most {most}, {THREADS_PER_PROCESSOR} for each processor"
                )));
            }
            pool = pool.num_threads(usize::from(threads));
        }
        // This thread is one of them: from outside, each parallel loop would wake another thread and wait for it.
        pool.use_current_thread().build_global().map_err(|e| Error::Config(format!("threads: {e}")))?;
        let index = match self.device.split_once(':') {
            None if self.device == "cpu" => return Ok(Device::Cpu),
            None if self.device == "cuda" => 0,
            Some(("cuda", index)) => index
                .parse()
                .map_err(|_| Error::Usage(format!("--device {}: expected cuda:N with a number", self.device)))?,
            _ => return Err(Error::Usage(format!("--device: expected cpu or cuda:N, got {}", self.device))),
        };
        if !cfg!(feature = "cuda") {
            return Err(Error::Usage(format!(
                "--device {}: this build has no CUDA; build with --features cuda",
                self.device
            )));
        }
        Ok(Device::new_cuda(index)?)
    }
}
