//! `secateur demo`: the whole job on embedded real data.

use std::fs;
use std::path::PathBuf;

use candle_core::Device;
use clap::Args;

use super::adapt::write_outcome;
use super::model_args::ComputeArgs;
use super::output::{print, summary, table};
use super::progress::Progress;
use super::signals::stop_flag;
use crate::adapt::{self, AdaptConfig, ImageSet, Job, Safety};
use crate::data::Source;
use crate::model::Teacher;
use crate::prune::Budget;
use crate::weights::{ModelDescription, write_bytes_atomic};
use crate::{Error, Result};

static TEACHER: &[u8] = include_bytes!("../../models/digits-mnist.safetensors");
static IMAGES: &[u8] = include_bytes!("../../models/optdigits-images-idx3-ubyte.gz");
static LABELS: &[u8] = include_bytes!("../../models/optdigits-labels-idx1-ubyte.gz");

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// What has to go
    #[arg(long, value_name = "MEASURE=AMOUNT", default_value = "channels=0.6")]
    budget: Budget,
    /// Seed of every random draw
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Updates of each phase, of phase 2 at most 100, for a quick look [default: 120, 100 and 300]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// The first N images alone, for a quicker one
    #[arg(long, value_name = "N")]
    images: Option<usize>,
    /// Keep teacher, adapted teacher, student and report in this folder
    #[arg(long, value_name = "DIR")]
    out_dir: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl DemoArgs {
    pub fn run(self) -> Result<()> {
        let stop = stop_flag()?;
        let device = self.compute.device()?;
        let teacher = load_teacher(&device)?;
        let source = Source::idx_from_bytes("optdigits", IMAGES, Some(LABELS))?;
        let mut target = ImageSet::open(source, &teacher.info, 0)?;
        if let Some(images) = self.images {
            target.keep_first(images)?;
        }
        let mut config = AdaptConfig::for_model(&teacher.info);
        // Shorter than the defaults, so that the demo ends within two minutes on two slow cores.
        (config.teacher.steps, config.teacher.label_refreshes) = (120, 4);
        (config.mask.steps, config.fine_tune.steps) = (100, 300);
        config.budget = Some(self.budget);
        config.seed = self.seed;
        if let Some(steps) = self.steps {
            (config.teacher.steps, config.mask.steps, config.fine_tune.steps) = (steps, steps.min(100), steps);
        }
        log::info!(
            "demo: a network trained on MNIST meets {} digits of another scanner, without their labels",
            target.good().len()
        );
        let safety = Safety { checkpoint: None, stop, ..Safety::default() };
        let job = Job {
            teacher,
            teacher_name: "the embedded teacher of MNIST",
            target: &target,
            source: None,
            config: &config,
            device: &device,
            safety: &safety,
            latency_table: None,
            resume: false,
        };
        let outcome = adapt::run(job, &mut Progress::new())?;
        if let Some(folder) = &self.out_dir {
            fs::create_dir_all(folder).map_err(|e| Error::io("create folder", folder, e))?;
            write_bytes_atomic(folder.join("teacher.safetensors"), TEACHER)?;
            let (student, adapted) = (folder.join("student.safetensors"), folder.join("adapted.safetensors"));
            let written = write_outcome(&outcome, &student, Some(&adapted), None)?;
            log::info!("student written path={} report={}", written.student.display(), written.report.display());
        }
        print(&if self.json { summary(&outcome.report).to_string() } else { table(&outcome.report) })?;
        match outcome.report.gate.accepted {
            true => Ok(()),
            false => Err(Error::Rejected(format!("the gate refused the student: {}", outcome.report.gate.reason))),
        }
    }
}

/// Loads the embedded teacher the way a user's file is loaded: from disk, fully checked.
fn load_teacher(device: &Device) -> Result<Teacher> {
    let path = std::env::temp_dir().join(format!("secateur-demo-{}.safetensors", std::process::id()));
    write_bytes_atomic(&path, TEACHER)?;
    let teacher = Teacher::load(&path, ModelDescription::default(), device);
    fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
    teacher
}
