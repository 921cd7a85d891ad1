//! The models a command works on: files, or one architecture with random weights.

use std::path::Path;

use candle_core::Device;
use clap::Args;

use super::model_args::ModelArgs;
use crate::arch::{self, ArchOptions};
use crate::bench::{narrowed, random_params};
use crate::engine::Calibration;
use crate::graph::Graph;
use crate::model::{ModelInfo, Params, Provenance, Teacher};
use crate::weights::ModelDescription;
use crate::{Error, Result};

/// Classes of a random model, where nobody says: those of ImageNet.
const CLASSES: usize = 1000;

/// Where models come from. A command adds its own argument for their files.
#[derive(Debug, Args)]
pub(super) struct ModelSource {
    #[command(flatten)]
    args: ModelArgs,
    #[command(flatten)]
    random: RandomArgs,
}

/// A model without a file.
#[derive(Debug, Args)]
#[command(next_help_heading = "Random weights (--arch or --graph without a model file)")]
struct RandomArgs {
    /// Height and width of the input [default: the architecture's]
    #[arg(long, value_name = "SIDE", conflicts_with = "input_size", value_parser = clap::value_parser!(u16).range(1..))]
    size: Option<u16>,
    /// Channels of the input [default: the architecture's]
    #[arg(long, value_name = "N", conflicts_with = "input_size", value_parser = clap::value_parser!(u16).range(1..))]
    in_channels: Option<u16>,
    /// Fraction of the prunable channels that is left, unevenly over the layers as pruning leaves them
    #[arg(long, value_name = "FRACTION")]
    channels: Option<f64>,
    /// Seed of weights and widths [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// A model from either source.
#[derive(Debug)]
pub(super) struct SourcedModel {
    /// What to call it: the file's path, or the architecture and what is left of its channels.
    pub name: String,
    /// Architecture.
    pub graph: Graph,
    /// Tensors, f32.
    pub params: Params,
    /// Classes and preprocessing.
    pub info: ModelInfo,
    /// Where it comes from, if this program made it.
    pub provenance: Option<Provenance>,
    /// What 8-bit inference needs, if the model was calibrated.
    pub int8: Option<Calibration>,
}

impl ModelSource {
    /// The model in `file`; without a file the one that `--arch` or `--graph` describes, with random weights.
    ///
    /// # Errors
    /// [`Error::Usage`] if neither or both are given; whatever else keeps a model from being loaded or made.
    pub fn load(&self, file: Option<&Path>, device: &Device) -> Result<SourcedModel> {
        let Some(path) = file else { return self.random(device) };
        let RandomArgs { size, in_channels, channels, seed } = &self.random;
        if size.is_some() || in_channels.is_some() || channels.is_some() || seed.is_some() {
            return Err(Error::Usage(format!(
                "{}: --size, --in-channels, --channels and --seed make a model with random weights and go without a \
                 model file",
                path.display()
            )));
        }
        let Teacher { graph, params, info, provenance, int8, .. } = self.args.load(path, device)?;
        Ok(SourcedModel { name: path.display().to_string(), graph, params, info, provenance, int8 })
    }

    fn random(&self, device: &Device) -> Result<SourcedModel> {
        let seed = self.random.seed.unwrap_or(0);
        let description = self.args.description()?;
        let origin = Path::new("command line");
        description.check(origin)?;
        let mut graph = self.whole_graph(&description)?;
        let mut name = graph.name().to_string();
        if let Some(fraction) = self.random.channels {
            graph = narrowed(&graph, fraction, seed)?;
            name = format!("{name} channels={fraction}");
        }
        Ok(SourcedModel {
            name,
            params: random_params(&graph, seed, device)?,
            info: ModelInfo::resolve(origin, &description, &graph)?,
            graph,
            provenance: None,
            int8: None,
        })
    }

    fn whole_graph(&self, description: &ModelDescription) -> Result<Graph> {
        match (&description.graph, &description.arch) {
            (Some(json), _) => {
                let graph = Graph::from_json(json)?;
                let [channels, height, width] = self.input(description, graph.input_shape());
                if channels != graph.input_shape()[0] {
                    return Err(Error::Usage(format!(
                        "--graph: its input has {} channels, got {channels}",
                        graph.input_shape()[0]
                    )));
                }
                graph.resized(height, width)
            }
            (None, Some(name)) => {
                let input = self.input(description, arch::default_input(name)?);
                let num_classes = description.classes().unwrap_or(CLASSES);
                arch::build(name, &ArchOptions { num_classes, input })
            }
            (None, None) => {
                Err(Error::Usage("expected a model file, or --arch or --graph for a model with random weights".into()))
            }
        }
    }

    /// The input size asked for, else `default`.
    fn input(&self, description: &ModelDescription, default: [usize; 3]) -> [usize; 3] {
        let [channels, height, width] = description.input_size.unwrap_or(default);
        let [height, width] = self.random.size.map_or([height, width], |side| [usize::from(side); 2]);
        [self.random.in_channels.map_or(channels, usize::from), height, width]
    }
}
