//! The command line: arguments to typed configuration, one file per subcommand.

mod accuracy;
mod adapt;
mod allocator;
mod bench;
mod config;
mod daemon;
mod demo;
mod doctor;
mod eval;
mod export;
mod inspect;
mod model_args;
mod model_source;
mod models;
mod output;
mod predict;
mod progress;
mod progress_file;
mod quantize;
mod run_args;
mod serve;
mod signals;
mod status;
mod worst;

use clap::{Parser, Subcommand};

pub use allocator::ReusingAllocator;
pub use progress::start_logging;

use crate::Result;

/// Adapts a pretrained vision model to a device's own unlabeled images, removes its channels, writes the compact
/// student.
#[derive(Debug, Parser)]
#[command(
    name = "secateur",
    version,
    about = "Adapt a pretrained vision model to a device's own unlabeled images and prune it to a compact student",
    after_help = "Exit codes: 0 done, 1 the gate refused the result, 2 error, 130 interrupted (resume with --resume).\n\
                  Logging: RUST_LOG=debug|info|warn|error (default info, to stderr); results go to stdout."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Adapt a teacher to unlabeled images, prune it, write the student
    Adapt(Box<adapt::AdaptArgs>),
    /// Measure a model's accuracy on labelled images
    Eval(eval::EvalArgs),
    /// Name the most likely classes of images, or run raw tensors
    Predict(predict::PredictArgs),
    /// Show layers, channels, channel groups and cost of a model
    Inspect(inspect::InspectArgs),
    /// Calibrate a model for 8-bit inference on unlabeled images
    Quantize(quantize::QuantizeArgs),
    /// Write a model for other runtimes, as ONNX
    Export(export::ExportArgs),
    /// Keep versions of models in a store: publish, activate, roll back, verify
    Models(models::ModelsArgs),
    /// Measure latency, throughput and memory of models on this board
    Bench(Box<bench::BenchArgs>),
    /// Serve models over HTTP, in the Open Inference Protocol
    Serve(Box<serve::ServeArgs>),
    /// Serve, collect images, adapt to them and swap in the student: unattended
    Daemon(daemon::DaemonArgs),
    /// Show what the daemon is doing
    Status(status::StatusArgs),
    /// Look whether this board is fit to work: heat, clock, memory, folders; with advice
    Doctor(doctor::DoctorArgs),
    /// Print or check the configuration of `serve` and `daemon`
    Config(config::ConfigArgs),
    #[command(hide = true)]
    ColdStart(bench::ColdStartArgs),
    /// Adapt and prune an embedded MNIST network for another scanner's digits
    Demo(demo::DemoArgs),
}

impl Cli {
    /// Runs the chosen command. `release_memory` gives back what the program's allocator keeps.
    ///
    /// # Errors
    /// Whatever stopped it; see [`crate::Error::exit_code`].
    pub fn run(self, release_memory: fn()) -> Result<()> {
        match self.command {
            Command::Adapt(args) => args.run(),
            Command::Eval(args) => args.run(),
            Command::Predict(args) => args.run(),
            Command::Inspect(args) => args.run(),
            Command::Quantize(args) => args.run(),
            Command::Export(args) => args.run(),
            Command::Models(args) => args.run(),
            Command::Bench(args) => args.run(),
            Command::Serve(args) => args.run(release_memory),
            Command::Daemon(args) => args.run(release_memory),
            Command::Status(args) => args.run(),
            Command::Doctor(args) => args.run(),
            Command::Config(args) => args.run(),
            Command::ColdStart(args) => args.run(),
            Command::Demo(args) => args.run(),
        }
    }
}
