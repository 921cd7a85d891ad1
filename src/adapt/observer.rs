//! What a run tells whoever watches it.

use serde::{Deserialize, Serialize};

use super::report::GroupWidth;

/// The parts of a run, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Phase 1: the teacher adapts to the target.
    Teacher,
    /// Phase 2: channels are removed in rounds, or masks find those to remove (ADMP).
    #[serde(alias = "mask")]
    Prune,
    /// Phase 3: the compact student learns from the adapted teacher.
    FineTune,
}

impl Phase {
    /// Name for people and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Teacher => "adapt teacher",
            Self::Prune => "prune",
            Self::FineTune => "fine-tune",
        }
    }
}

/// Named losses and measurements of one step.
pub type Metrics = Vec<(&'static str, f64)>;

/// Receives progress. All methods may do nothing.
pub trait Observer {
    /// A phase starts at step `from` of `steps`.
    fn phase(&mut self, _phase: Phase, _from: usize, _steps: usize) {}
    /// A step is done.
    fn step(&mut self, _phase: Phase, _step: usize, _metrics: &Metrics) {}
    /// Work outside the steps is done to this part, 0 to 1.
    fn work(&mut self, _name: &str, _part: f64) {}
    /// It is decided which channels stay.
    fn channels(&mut self, _groups: &[GroupWidth]) {}
    /// Something outside the steps goes on, for example "statistics of the target".
    fn note(&mut self, _text: &str) {}
    /// A checkpoint was written.
    fn checkpoint(&mut self, _phase: Phase, _step: usize) {}
}

/// An observer that ignores everything.
#[derive(Debug, Default)]
pub struct Silent;

impl Observer for Silent {}

#[cfg(test)]
mod tests {
    use super::Phase;

    #[test]
    fn a_checkpoint_that_calls_phase_2_by_its_former_name_is_read() {
        let read = |name: &str| serde_json::from_str::<Phase>(name).unwrap();
        assert_eq!((read("\"mask\""), read("\"prune\"")), (Phase::Prune, Phase::Prune));
        assert_eq!(serde_json::to_string(&Phase::Prune).unwrap(), "\"prune\"");
    }
}
