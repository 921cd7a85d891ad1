//! How much of a network may be left.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::graph::{ChannelGroups, Graph, Keep};
use crate::{Error, Result};

/// What a budget counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Prunable convolution output channels (the paper's measure).
    Channels,
    /// Trained parameters.
    Params,
    /// Multiply-accumulates per image.
    Macs,
    /// Bytes of the saved tensors.
    Bytes,
    /// Nanoseconds per image on the device at hand.
    Latency,
}

impl Measure {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Channels, "channels"),
        (Self::Params, "params"),
        (Self::Macs, "macs"),
        (Self::Bytes, "bytes"),
        (Self::Latency, "latency"),
    ];

    /// The name used on the command line.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(m, _)| *m == self).map_or("", |(_, name)| name)
    }

    /// An amount with its unit.
    pub fn show(self, amount: u64) -> String {
        match self {
            Self::Latency if amount >= 1_000_000 => format!("{:.2} ms", amount as f64 / 1e6),
            Self::Latency => format!("{:.1} us", amount as f64 / 1e3),
            Self::Channels | Self::Params | Self::Macs | Self::Bytes => amount.to_string(),
        }
    }

    /// What the network costs with only `keep` left.
    ///
    /// # Errors
    /// [`Error::Shape`] if `keep` empties a layer; [`Error::Config`] for [`Measure::Latency`], which only a
    /// [`super::LatencyModel`] knows.
    pub fn of(self, graph: &Graph, groups: &ChannelGroups, keep: &Keep) -> Result<u64> {
        if self == Self::Channels {
            let kept = groups.conv_channels().iter().zip(keep).filter(|(_, k)| **k);
            return Ok(kept.map(|(n, _)| *n as u64).sum());
        }
        let cost = graph.compact(groups, keep)?.graph.cost();
        Ok(match self {
            Self::Channels | Self::Params => cost.params,
            Self::Macs => cost.macs,
            Self::Bytes => cost.bytes,
            Self::Latency => return Err(Error::Config("budget latency: expected times of this device".into())),
        })
    }
}

impl Measure {
    /// Splits the unit off an amount: the digits, and what they are to be multiplied with, if there is a unit.
    fn unit(self, value: &str) -> (&str, Option<f64>) {
        let units: &[(&str, f64)] = match self {
            Self::Latency => &[("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9)],
            Self::Bytes => &[("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("k", 1e3), ("M", 1e6), ("G", 1e9), ("B", 1.0)],
            Self::Channels | Self::Params | Self::Macs => &[("k", 1e3), ("M", 1e6), ("G", 1e9)],
        };
        let ends = |unit: &str| {
            let at = value.len().checked_sub(unit.len())?;
            let (digits, end) = (value.get(..at)?, value.get(at..)?);
            end.eq_ignore_ascii_case(unit).then_some(digits)
        };
        let found = units.iter().find_map(|(unit, factor)| Some((ends(unit)?, Some(*factor))));
        found.unwrap_or((value, None))
    }
}

/// The part of a network that has to go.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// What is counted.
    pub measure: Measure,
    /// How much may be left.
    pub amount: Amount,
}

/// A relative or absolute amount.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Amount {
    /// Fraction removed, in [0, 1).
    Removed(f64),
    /// At most this much is left.
    AtMost(u64),
}

impl Budget {
    /// Removes `fraction` of the prunable channels.
    pub const fn channels(fraction: f64) -> Self {
        Self { measure: Measure::Channels, amount: Amount::Removed(fraction) }
    }

    /// How much may be left of `full` when `progress` (0 to 1) of the way has been gone.
    pub fn limit(&self, full: u64, progress: f64) -> u64 {
        let goal = match self.amount {
            Amount::Removed(fraction) => full as f64 * (1.0 - fraction),
            Amount::AtMost(limit) => (limit as f64).min(full as f64),
        };
        // The small term keeps 0.6 of 1000 channels from becoming 399 by rounding.
        (full as f64 - (full as f64 - goal) * progress.clamp(0.0, 1.0) + 1e-6).floor() as u64
    }
}

impl FromStr for Budget {
    type Err = Error;

    /// Reads `channels=0.6` (a fraction below 1 is the part removed), `params=2M` or `latency=12ms` (at most this much is
    /// left).
    fn from_str(text: &str) -> Result<Self> {
        let fail = |reason: String| Error::Usage(format!("budget {text:?}: {reason}"));
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| fail("expected MEASURE=AMOUNT, for example channels=0.6 or macs=150M".into()))?;
        let measure = Measure::ALL.iter().find(|(_, n)| *n == name).map(|(m, _)| *m).ok_or_else(|| {
            let known: Vec<&str> = Measure::ALL.iter().map(|(_, n)| *n).collect();
            fail(format!("unknown measure {name:?}, expected one of {}", known.join(", ")))
        })?;
        let (digits, factor) = measure.unit(value);
        let number: f64 = digits.parse().map_err(|_| fail(format!("{value:?} is not a number")))?;
        let amount = if !number.is_finite() || number < 0.0 {
            return Err(fail(format!("expected a non-negative amount, got {value}")));
        } else if number < 1.0 && factor.is_none() {
            Amount::Removed(number)
        } else if measure == Measure::Latency && factor.is_none() {
            return Err(fail(format!("expected a unit (us, ms, s) or a fraction below 1, got {value}")));
        } else if measure == Measure::Channels && number < 2.0 && factor.is_none() {
            return Err(fail(format!("the fraction removed must be below 1, got {value}")));
        } else {
            // Rounded: 4.1 · 1e6 is 4099999.99… in binary.
            Amount::AtMost((number * factor.unwrap_or(1.0)).round() as u64)
        };
        Ok(Self { measure, amount })
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.amount {
            Amount::Removed(fraction) => write!(f, "{}={fraction}", self.measure.name()),
            // Shortest digits that read back, not those of `show`.
            Amount::AtMost(limit) if self.measure == Measure::Latency => {
                write!(f, "{}={}ms", self.measure.name(), limit as f64 / 1e6)
            }
            Amount::AtMost(limit) => write!(f, "{}={limit}", self.measure.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(text: &str) -> f64 {
        match text.parse::<Budget>().unwrap().amount {
            Amount::Removed(fraction) => fraction,
            other @ Amount::AtMost(_) => panic!("{text}: {other:?}"),
        }
    }

    fn at_most(text: &str) -> u64 {
        match text.parse::<Budget>().unwrap().amount {
            Amount::AtMost(limit) => limit,
            other @ Amount::Removed(_) => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn fractions_and_units_are_read() {
        assert_eq!((removed("channels=0.6"), removed("params=0"), removed("macs=0.999")), (0.6, 0.0, 0.999));
        assert_eq!((at_most("channels=120"), at_most("bytes=1"), at_most("params=1e3")), (120, 1, 1000));
        assert_eq!((at_most("params=2M"), at_most("macs=150m"), at_most("bytes=0.5k")), (2_000_000, 150_000_000, 500));
        assert_eq!(
            (at_most("bytes=8MB"), at_most("bytes=900b"), at_most("macs=1.5G")),
            (8_000_000, 900, 1_500_000_000)
        );
        assert_eq!((at_most("latency=12ms"), at_most("latency=0.5s")), (12_000_000, 500_000_000));
        assert_eq!((at_most("latency=850us"), at_most("latency=1.5µs")), (850_000, 1500));
        assert_eq!((removed("latency=0.4"), at_most("latency=0.25ms")), (0.4, 250_000));
        for (measure, name) in Measure::ALL {
            assert_eq!(format!("{name}=0.5").parse::<Budget>().unwrap().measure, measure);
            assert_eq!(measure.name(), name);
        }
    }

    #[test]
    fn decimal_amounts_lose_nothing_to_binary_fractions() {
        for tenths in 1..1000_u64 {
            let text = format!("params={}.{}M", tenths / 10, tenths % 10);
            assert_eq!(at_most(&text), tenths * 100_000, "{text}");
            let text = format!("bytes={}.{}k", tenths / 10, tenths % 10);
            assert_eq!(at_most(&text), tenths * 100, "{text}");
        }
    }

    #[test]
    fn bad_budgets_are_refused_with_their_text() {
        for (text, expected) in [
            ("", "MEASURE=AMOUNT"),
            ("0.6", "MEASURE=AMOUNT"),
            ("flops=0.6", "channels, params, macs, bytes, latency"),
            ("Channels=0.6", "unknown measure"),
            ("channels=", "not a number"),
            ("channels=M", "not a number"),
            ("channels=60%", "not a number"),
            ("channels=1", "below 1"),
            ("channels=1.5", "below 1"),
            ("params=-0.5", "non-negative"),
            ("params=NaN", "non-negative"),
            ("params=inf", "non-negative"),
            ("params=2T", "not a number"),
            ("params=2ms", "not a number"),
            ("latency=12", "expected a unit (us, ms, s)"),
            ("latency=12M", "not a number"),
            ("latency=ms", "not a number"),
            ("latency=-1ms", "non-negative"),
        ] {
            let error = text.parse::<Budget>().unwrap_err();
            assert!(matches!(error, Error::Usage(_)), "{text}: {error}");
            let message = error.to_string();
            assert!(message.contains(expected) && message.contains(&format!("{text:?}")), "{text}: {message}");
        }
    }

    #[test]
    fn what_is_shown_reads_back() {
        for text in ["channels=0.6", "params=2000000", "macs=0", "bytes=1", "latency=12.345678ms", "latency=0.5"] {
            let budget: Budget = text.parse().unwrap();
            assert_eq!(budget.to_string(), text);
            assert_eq!(budget.to_string().parse::<Budget>().unwrap(), budget);
        }
    }

    #[test]
    fn amounts_have_units() {
        let shown = [2_400_000, 850_000].map(|ns| Measure::Latency.show(ns));
        assert_eq!((shown, Measure::Macs.show(12)), (["2.40 ms".into(), "850.0 us".into()], "12".into()));
    }

    #[test]
    fn the_limit_goes_from_everything_to_the_goal() {
        let budget = Budget::channels(0.6);
        assert_eq!([0.0, 0.5, 1.0].map(|p| budget.limit(1000, p)), [1000, 700, 400]);
        assert_eq!([-1.0, 2.0].map(|p| budget.limit(1000, p)), [1000, 400]);
        assert_eq!((budget.limit(7, 1.0), budget.limit(0, 1.0)), (2, 0));
        let absolute: Budget = "macs=300".parse().unwrap();
        assert_eq!([0.0, 0.5, 1.0].map(|p| absolute.limit(1000, p)), [1000, 650, 300]);
        assert_eq!(absolute.limit(200, 1.0), 200, "a network below the amount stays whole");
        for percent in 0..100 {
            let budget = Budget::channels(f64::from(percent) / 100.0);
            assert_eq!(budget.limit(1000, 1.0), 1000 - 10 * percent as u64);
        }
    }
}
