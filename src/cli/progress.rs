//! Progress for people: bars on a terminal, plain log lines otherwise.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::adapt::{Metrics, Observer, Phase};

/// The bar on the screen, so that log lines are written above it and not through it.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn bar() -> Option<ProgressBar> {
    BAR.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn show(new: Option<ProgressBar>) {
    *BAR.lock().unwrap_or_else(PoisonError::into_inner) = new;
}

/// Starts logging to stderr: level `info` unless `RUST_LOG` says otherwise.
pub fn start_logging() {
    let env = env_logger::Env::default().default_filter_or("info");
    let style = if io::stderr().is_terminal() { env_logger::WriteStyle::Always } else { env_logger::WriteStyle::Auto };
    env_logger::Builder::from_env(env)
        .format_target(false)
        .write_style(style)
        .target(env_logger::Target::Pipe(Box::new(AboveBar)))
        .init();
}

struct AboveBar;

impl Write for AboveBar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match bar() {
            Some(bar) => bar.suspend(|| io::stderr().write(bytes)),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Time between two log lines of a phase where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows a run's progress.
#[derive(Debug)]
pub(super) struct Progress {
    terminal: bool,
    begun: Instant,
    from: usize,
    steps: usize,
    last_line: Instant,
}

impl Progress {
    pub fn new() -> Self {
        let now = Instant::now();
        Self { terminal: io::stderr().is_terminal(), begun: now, from: 0, steps: 0, last_line: now }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = bar() {
            bar.finish_and_clear();
        }
        show(None);
    }
}

impl Observer for Progress {
    fn phase(&mut self, phase: Phase, from: usize, steps: usize) {
        (self.begun, self.from, self.steps, self.last_line) = (Instant::now(), from, steps, Instant::now());
        if let Some(bar) = bar() {
            bar.finish_and_clear();
        }
        log::info!("phase started phase={:?} step={from} steps={steps}", phase.name());
        if !self.terminal {
            return;
        }
        let bar = ProgressBar::new(steps as u64).with_position(from as u64).with_prefix(phase.name());
        if let Ok(style) = ProgressStyle::with_template("{prefix:>14} {wide_bar} {pos}/{len} eta {eta} {msg}") {
            bar.set_style(style);
        }
        show(Some(bar));
    }

    fn step(&mut self, phase: Phase, step: usize, metrics: &Metrics) {
        let named = |(name, value): &(&str, f64)| format!("{name}={value:.4}");
        if let Some(bar) = bar() {
            bar.set_position(step as u64 + 1);
            bar.set_message(metrics.first().map(named).unwrap_or_default());
        }
        let last = step + 1 == self.steps;
        if last || (!self.terminal && self.last_line.elapsed() >= LINE_EVERY) {
            self.last_line = Instant::now();
            let each = self.begun.elapsed().as_secs_f64() / (step + 1 - self.from).max(1) as f64;
            let eta = each * (self.steps - step - 1) as f64;
            let all: Vec<String> = metrics.iter().map(named).collect();
            let done = step + 1;
            log::info!("phase={:?} step={done}/{} eta_s={eta:.0} {}", phase.name(), self.steps, all.join(" "));
        }
    }

    fn work(&mut self, name: &str, part: f64) {
        if !self.terminal {
            return;
        }
        let shown = bar().unwrap_or_else(|| {
            let bar = ProgressBar::new(100).with_prefix(name.to_string());
            if let Ok(style) = ProgressStyle::with_template("{prefix:>14} {wide_bar} {percent:>3} % eta {eta}") {
                bar.set_style(style);
            }
            show(Some(bar.clone()));
            bar
        });
        shown.set_position((100.0 * part) as u64);
        if part >= 1.0 {
            shown.finish_and_clear();
            show(None);
        }
    }

    fn note(&mut self, text: &str) {
        log::info!("{text}");
    }

    fn checkpoint(&mut self, phase: Phase, step: usize) {
        log::debug!("checkpoint written phase={:?} step={step}", phase.name());
    }
}
