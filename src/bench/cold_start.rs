//! From the start of a process to its first answer, in a process of its own.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::measure::Case;
use crate::engine::{EngineConfig, Precision};
use crate::model::{Runner, RunnerConfig, Teacher};
use crate::weights::ModelDescription;
use crate::{Error, Result};

/// A first answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ColdStart {
    /// Milliseconds to read and check the file.
    pub load_ms: f64,
    /// Milliseconds to compile the engine.
    pub compile_ms: f64,
    /// Milliseconds from the start of the process to its first answer.
    pub first_answer_ms: f64,
    /// Most memory it held while serving the case, in bytes.
    pub peak_rss_bytes: u64,
}

/// Loads `model`, answers one request and tells how long it took; for [`cold_start`].
///
/// # Errors
/// Whatever keeps the model from being loaded or run.
pub fn serve_once(model: &Path, case: Case, precision: Precision) -> Result<ColdStart> {
    let start = Instant::now();
    let model = Teacher::load(model, ModelDescription::default(), &Device::Cpu)?;
    let loaded = Instant::now();
    let engine = EngineConfig { threads: case.threads, max_batch: case.batch, isa: case.isa };
    let mut runner = Runner::new(model, &RunnerConfig { device: Device::Cpu, precision, engine })?;
    let compiled = Instant::now();
    runner.logits(&vec![0.0; case.batch * runner.input_shape().iter().product::<usize>()])?;
    let ms = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64() * 1e3;
    Ok(ColdStart {
        load_ms: ms(start, loaded),
        compile_ms: ms(loaded, compiled),
        first_answer_ms: ms(start, Instant::now()),
        peak_rss_bytes: crate::adapt::peak_rss_bytes(),
    })
}

/// Starts this program anew on a self-contained model file that the page cache has forgotten.
///
/// # Errors
/// [`Error::Io`] if the program cannot be started; [`Error::Config`] if it fails.
pub fn cold_start(model: &Path, case: Case, precision: Precision) -> Result<ColdStart> {
    let program = std::env::current_exe().map_err(|e| Error::io("find", "this program", e))?;
    let file = File::open(model).map_err(|e| Error::io("open", model, e))?;
    // SAFETY: a hint on an open file.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    let start = Instant::now();
    let output = Command::new(&program)
        .arg("cold-start")
        .arg(model)
        .args(["--threads", &case.threads.to_string(), "--batch", &case.batch.to_string()])
        .args(["--precision", &precision.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| Error::io("run", &program, e))?;
    let whole = start.elapsed().as_secs_f64() * 1e3;
    let measured: ColdStart = serde_json::from_slice(&output.stdout)
        .map_err(|_| Error::Config(format!("{}: the process that measures the start failed", model.display())))?;
    // Starting and ending the process count too.
    Ok(ColdStart { first_answer_ms: whole, ..measured })
}
