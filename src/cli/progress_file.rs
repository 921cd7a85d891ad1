//! Progress for programs: one JSON object per line, appended to a file.
//!
//! `{"phase", "step", "steps", "eta_s", "losses"}` after a step, the first three when a phase starts, `{"note"}` for work
//! between phases, `{"channels": [{"group", "before", "after"}]}` once it is decided what stays. A resumed run appends;
//! steps after its checkpoint come again.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use serde_json::{Map, Value, json};

use crate::adapt::{GroupWidth, Metrics, NO_LOSSES, Observer, Phase};
use crate::{Error, Result};

/// Passes everything on to another observer and writes it down.
#[derive(Debug)]
pub(super) struct Recorded<O> {
    inner: O,
    file: Option<File>,
    begun: Instant,
    from: usize,
    steps: usize,
}

impl<O: Observer> Recorded<O> {
    /// Writes to the end of the file at `path`, if there is one.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened.
    pub fn new(inner: O, path: Option<&Path>) -> Result<Self> {
        let open = |path| {
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            // Ends a line that a power cut has cut in two.
            file.write_all(b"\n").map(|()| file)
        };
        let file = path.map(|path| open(path).map_err(|e| Error::io("write", path, e))).transpose()?;
        Ok(Self { inner, file, begun: Instant::now(), from: 0, steps: 0 })
    }

    fn write(&mut self, line: &Value) {
        let Some(file) = &mut self.file else { return };
        if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
            log::warn!("progress can no longer be written: {error}");
            self.file = None;
        }
    }
}

impl<O: Observer> Observer for Recorded<O> {
    fn phase(&mut self, phase: Phase, from: usize, steps: usize) {
        (self.begun, self.from, self.steps) = (Instant::now(), from, steps);
        self.write(&json!({ "phase": phase, "step": from, "steps": steps }));
        self.inner.phase(phase, from, steps);
    }

    fn step(&mut self, phase: Phase, step: usize, metrics: &Metrics) {
        let (done, steps) = (step + 1, self.steps);
        let each = self.begun.elapsed().as_secs_f64() / done.saturating_sub(self.from).max(1) as f64;
        let eta_s = (each * steps.saturating_sub(done) as f64).round();
        let losses: Map<String, Value> = (metrics.iter())
            .filter(|(name, _)| !NO_LOSSES.contains(name))
            .map(|(name, value)| (name.to_string(), json!(value)))
            .collect();
        self.write(&json!({ "phase": phase, "step": done, "steps": steps, "eta_s": eta_s, "losses": losses }));
        self.inner.step(phase, step, metrics);
    }

    fn work(&mut self, name: &str, part: f64) {
        self.inner.work(name, part);
    }

    fn channels(&mut self, groups: &[GroupWidth]) {
        let channels: Vec<Value> =
            groups.iter().map(|g| json!({ "group": g.name, "before": g.before, "after": g.after })).collect();
        self.write(&json!({ "channels": channels }));
        self.inner.channels(groups);
    }

    fn note(&mut self, text: &str) {
        self.write(&json!({ "note": text }));
        self.inner.note(text);
    }

    fn checkpoint(&mut self, phase: Phase, step: usize) {
        self.inner.checkpoint(phase, step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapt::Silent;

    #[test]
    fn every_line_is_json_and_a_resumed_run_appends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("progress");
        let run = || {
            let mut recorded = Recorded::new(Silent, Some(&path)).unwrap();
            recorded.note("statistics");
            recorded.phase(Phase::Prune, 3, 5);
            recorded.step(Phase::Prune, 3, &vec![("imitation", 0.5), ("gradient_norm", 9.0)]);
            recorded.channels(&[GroupWidth { name: "a".into(), before: 8, after: 3 }]);
        };
        run();
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"cut").unwrap();
        run();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let once = [
            json!({"note": "statistics"}),
            json!({"phase": "prune", "step": 3, "steps": 5}),
            json!({"phase": "prune", "step": 4, "steps": 5, "eta_s": 0.0, "losses": {"imitation": 0.5}}),
            json!({"channels": [{"group": "a", "before": 8, "after": 3}]}),
        ];
        assert_eq!(lines, [&once[..], &once].concat());
    }
}
