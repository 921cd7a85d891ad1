//! When it is time to adapt.

use super::config::TriggerConfig;
use super::score::Drift;

/// Fewer hours between two adaptations at the same time of day are one and the same night.
const NIGHT_S: u64 = 12 * 3600;
/// How long after its time of day an adaptation may still start.
const LATE_MINUTES: u32 = 60;
const DAY_MINUTES: u32 = 24 * 60;

/// What the decision is made from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Situation {
    /// Images kept.
    pub images: usize,
    /// Of which arrived since the last adaptation.
    pub new: usize,
    /// Seconds since the last adaptation, or since the first start.
    pub since_s: u64,
    /// Minutes since midnight.
    pub minute: u32,
    /// How far answers have moved.
    pub drift: Option<Drift>,
}

/// Why an adaptation should start now, if it should.
pub fn due(config: &TriggerConfig, now: &Situation) -> Option<String> {
    if now.images < config.min_images || now.new == 0 {
        return None;
    }
    if config.new_images > 0 && now.new >= config.new_images {
        return Some(format!("{} new images", now.new));
    }
    let hours = now.since_s as f64 / 3600.0;
    if config.every_h > 0.0 && hours >= config.every_h {
        return Some(format!("{hours:.1} h since the last one"));
    }
    if let Some(at) = config.at.0
        && (now.minute + DAY_MINUTES - at) % DAY_MINUTES < LATE_MINUTES
        && now.since_s >= NIGHT_S
    {
        return Some(format!("it is {}", config.at));
    }
    drifted(config, &now.drift?)
}

/// Which statistics moved too far, if one did.
fn drifted(config: &TriggerConfig, drift: &Drift) -> Option<String> {
    [
        ("confidence fell by", drift.confidence, config.drift_confidence),
        ("class stability index", drift.classes, config.drift_classes),
        ("features moved by", drift.features, config.drift_features),
    ]
    .into_iter()
    .find(|(_, got, most)| *most > 0.0 && got >= most)
    .map(|(what, got, most)| format!("drift: {what} {got:.3}, at most {most} is no reason"))
}

/// Images that are still missing before their number alone is a reason.
pub fn needed(config: &TriggerConfig, images: usize, new: usize) -> usize {
    config.min_images.saturating_sub(images).max(config.new_images.saturating_sub(new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::clock::DayTime;
    use crate::daemon::config::DaemonConfig;

    fn config() -> TriggerConfig {
        TriggerConfig {
            min_images: 100,
            new_images: 50,
            every_h: 24.0,
            at: DayTime(Some(23 * 60 + 30)),
            ..DaemonConfig::default().trigger
        }
    }

    const NOW: Situation = Situation { images: 100, new: 1, since_s: 7200, minute: 600, drift: None };

    #[test]
    fn number_schedule_and_time_of_day_are_reasons() {
        let reason = |now: Situation| due(&config(), &now);
        assert_eq!(reason(NOW), None);
        assert_eq!(reason(Situation { new: 50, ..NOW }).unwrap(), "50 new images");
        assert_eq!(reason(Situation { new: 50, images: 99, ..NOW }), None, "too few in all");
        assert_eq!(due(&TriggerConfig { new_images: 0, ..config() }, &Situation { new: 90, ..NOW }), None);
        assert_eq!(reason(Situation { since_s: 25 * 3600, ..NOW }).unwrap(), "25.0 h since the last one");
        assert_eq!(reason(Situation { since_s: 25 * 3600, new: 0, ..NOW }), None, "nothing to learn");
        let night = Situation { since_s: 20 * 3600, minute: 10, ..NOW };
        assert_eq!(reason(night).unwrap(), "it is 23:30");
        assert_eq!(reason(Situation { minute: 40, ..night }), None, "too late");
        assert_eq!(reason(Situation { since_s: 3600, ..night }), None, "it was done this night");
    }

    #[test]
    fn drift_is_a_reason_by_each_of_its_measures() {
        let still = Drift { confidence: 0.0, classes: 0.0, features: 0.0 };
        for (drift, word) in [
            (Drift { confidence: 0.2, ..still }, "confidence"),
            (Drift { classes: 0.6, ..still }, "class"),
            (Drift { features: 1.0, ..still }, "features"),
        ] {
            let reason = due(&config(), &Situation { drift: Some(drift), ..NOW }).unwrap();
            assert!(reason.contains(word), "{reason}");
        }
        assert_eq!(due(&config(), &Situation { drift: Some(still), ..NOW }), None);
        let off = TriggerConfig { drift_features: 0.0, ..config() };
        assert_eq!(drifted(&off, &Drift { features: 9.0, ..still }), None);
    }

    #[test]
    fn what_is_missing_is_the_larger_gap() {
        assert_eq!((needed(&config(), 90, 45), needed(&config(), 40, 45), needed(&config(), 200, 90)), (10, 60, 0));
    }
}
