//! What the daemon counts, for Prometheus.

use super::guard::Reading;
use super::state::{ImageTotals, Totals};
use super::status::Phase;
use crate::serve::MetricsText;

/// The figures of one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Figures {
    pub phase: Phase,
    /// Images and bytes of the reservoir.
    pub reservoir: (usize, u64),
    pub intake: ImageTotals,
    /// Things in the inbox that are no files.
    pub left_alone: usize,
    pub totals: Totals,
    /// Resident memory of the adaptation, 0 without one.
    pub child_bytes: u64,
    pub guards: Vec<Reading>,
}

impl Figures {
    /// In Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = MetricsText::default();
        text.family("secateur_daemon_state", "gauge", "What the daemon is doing: 1 for one of its states.");
        for phase in Phase::ALL {
            text.sample("secateur_daemon_state", &[("state", phase.name())], u8::from(phase == self.phase));
        }
        text.single(("secateur_reservoir_images", "gauge"), "Images kept to learn from.", self.reservoir.0);
        text.single(("secateur_reservoir_bytes", "gauge"), "Bytes of their files.", self.reservoir.1);
        text.family("secateur_intake_images_total", "counter", "Images by what became of them, since the first start.");
        let ImageTotals { kept, duplicates, quarantined, evicted } = self.intake;
        for (result, count) in
            [("kept", kept), ("duplicate", duplicates), ("quarantined", quarantined), ("evicted", evicted)]
        {
            text.sample("secateur_intake_images_total", &[("result", result)], count);
        }
        let help = "Links, folders and the like in the inbox, which are not taken.";
        text.single(("secateur_inbox_left_alone", "gauge"), help, self.left_alone);
        let totals = &self.totals;
        text.family("secateur_adaptations_total", "counter", "Adaptations by their outcome, since the first start.");
        for (outcome, count) in [
            ("accepted", totals.accepted),
            ("refused", totals.refused),
            ("failed", totals.failed),
            ("interrupted", totals.interrupted),
        ] {
            text.sample("secateur_adaptations_total", &[("outcome", outcome)], count);
        }
        let help = "Versions rolled back because of their answers, since the first start.";
        text.single(("secateur_rollbacks_total", "counter"), help, totals.rolled_back);
        let help = "Time that adaptations were paused, since the first start.";
        text.single(("secateur_adaptation_paused_seconds_total", "counter"), help, totals.paused_s);
        let help = "Resident memory of the adaptation, 0 without one.";
        text.single(("secateur_adaptation_resident_bytes", "gauge"), help, self.child_bytes);
        text.family("secateur_guard_ok", "gauge", "Whether a guard lets an adaptation run.");
        for guard in &self.guards {
            text.sample("secateur_guard_ok", &[("guard", guard.name)], u8::from(guard.ok));
        }
        text.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_samples() {
        let guards = vec![Reading { name: "temperature", ok: false, detail: String::new() }];
        let intake = ImageTotals { kept: 8, duplicates: 2, quarantined: 1, evicted: 0 };
        let figures = Figures { phase: Phase::Paused, reservoir: (7, 99), intake, guards, ..Figures::default() };
        let text = figures.render();
        for line in [
            "secateur_daemon_state{state=\"paused\"} 1",
            "secateur_daemon_state{state=\"adapting\"} 0",
            "secateur_reservoir_images 7",
            "secateur_intake_images_total{result=\"duplicate\"} 2",
            "secateur_guard_ok{guard=\"temperature\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
