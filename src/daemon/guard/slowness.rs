//! Whether requests wait longer because of an adaptation.

use std::time::{Duration, Instant};

use super::Reading;
use crate::daemon::config::GuardConfig;
use crate::serve::Counts;

/// Fewer inferences tell no 99 % quantile.
const ENOUGH: u64 = 200;
/// Once so many are counted without adaptation, the older half counts half.
const MANY: u64 = 20_000;
/// The longest pause, which doubles from pause to pause.
const MOST: Duration = Duration::from_secs(600);

/// Compares inference times with and without an adaptation beside them.
#[derive(Debug, Default)]
pub struct Slowness {
    last: Counts,
    idle: Counts,
    busy: Counts,
    idle_p99_s: Option<f64>,
    busy_p99_s: Option<f64>,
    until: Option<Instant>,
    pauses: u32,
}

impl Slowness {
    /// What an earlier process found without adaptation, until this one has figures of its own.
    pub fn remember(&mut self, idle_p99_s: Option<f64>) {
        self.idle_p99_s = idle_p99_s;
    }

    /// The 99 % quantile of inference times without adaptation, in seconds.
    pub fn idle_p99_s(&self) -> Option<f64> {
        self.idle_p99_s
    }

    /// Takes in the inferences since the last look, all of which were beside an adaptation or none.
    pub fn look(&mut self, config: &GuardConfig, running: bool, compute: &Counts) -> Reading {
        let new = compute.since(&self.last);
        self.last = compute.clone();
        if running {
            self.busy.add(&new);
            if self.busy.total() >= ENOUGH {
                self.busy_p99_s = self.busy.quantile(0.99);
                self.busy = Counts::default();
                self.judge(config);
            }
        } else {
            self.busy = Counts::default();
            self.idle.add(&new);
            if self.idle.total() >= ENOUGH {
                self.idle_p99_s = self.idle.quantile(0.99);
            }
            if self.idle.total() >= MANY {
                self.idle.halve();
            }
        }
        let ok = config.max_slowdown <= 0.0 || self.until.is_none_or(|until| Instant::now() >= until);
        let ms = |seconds: Option<f64>| seconds.map_or_else(|| "unknown".into(), |s| format!("{:.1} ms", s * 1e3));
        let (idle, busy) = (ms(self.idle_p99_s), ms(self.busy_p99_s));
        Reading { name: "latency", ok, detail: format!("p99 {idle} idle, {busy} beside an adaptation") }
    }

    fn judge(&mut self, config: &GuardConfig) {
        let (Some(idle), Some(busy)) = (self.idle_p99_s, self.busy_p99_s) else { return };
        if config.max_slowdown > 0.0 && busy > config.max_slowdown * idle {
            let pause = Duration::from_secs_f64(config.min_pause_s).saturating_mul(1 << self.pauses.min(16));
            self.until = Some(Instant::now() + pause.min(MOST));
            self.pauses += 1;
        } else {
            self.pauses = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::config::DaemonConfig;
    use crate::serve::Metrics;

    #[test]
    fn slow_answers_beside_an_adaptation_pause_it_for_ever_longer() {
        let config = GuardConfig { min_pause_s: 0.05, max_slowdown: 2.0, ..DaemonConfig::default().guard };
        let histogram = &Metrics::default().model(&"m".parse().unwrap()).compute_seconds_fine;
        let mut slowness = Slowness::default();
        let mut look = |running, seconds: f64| {
            (0..ENOUGH).for_each(|_| histogram.observe(seconds));
            slowness.look(&config, running, &histogram.counts()).ok
        };
        assert!(look(true, 0.2), "nothing to compare with");
        assert!(look(false, 0.009));
        assert!(look(true, 0.012), "not twice as slow");
        assert!(!look(true, 0.09));
        std::thread::sleep(Duration::from_millis(60));
        assert!(look(false, 0.009));
        assert!(!look(true, 0.09));
        std::thread::sleep(Duration::from_millis(60));
        assert!(!look(false, 0.009), "the second pause is longer");
        std::thread::sleep(Duration::from_millis(60));
        assert!(look(false, 0.009));
    }
}
