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
}

impl Measure {
    const ALL: [(Self, &'static str); 4] =
        [(Self::Channels, "channels"), (Self::Params, "params"), (Self::Macs, "macs"), (Self::Bytes, "bytes")];

    /// The name used on the command line.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(m, _)| *m == self).map_or("", |(_, name)| name)
    }

    /// What the network costs with only `keep` left.
    ///
    /// # Errors
    /// [`Error::Shape`] if `keep` empties a layer.
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
        })
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

    /// Reads `channels=0.6` (a fraction below 1 is the part removed) or `params=2M` (at most this much is left).
    fn from_str(text: &str) -> Result<Self> {
        let fail = |reason: String| Error::Usage(format!("budget {text:?}: {reason}"));
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| fail("expected MEASURE=AMOUNT, for example channels=0.6 or macs=150M".into()))?;
        let measure = Measure::ALL.iter().find(|(_, n)| *n == name).map(|(m, _)| *m).ok_or_else(|| {
            let known: Vec<&str> = Measure::ALL.iter().map(|(_, n)| *n).collect();
            fail(format!("unknown measure {name:?}, expected one of {}", known.join(", ")))
        })?;
        let digits = value.trim_end_matches(['B', 'b']);
        let (digits, factor) = match digits.chars().last() {
            Some('k' | 'K') => (&digits[..digits.len() - 1], 1e3),
            Some('m' | 'M') => (&digits[..digits.len() - 1], 1e6),
            Some('g' | 'G') => (&digits[..digits.len() - 1], 1e9),
            _ => (digits, 1.0),
        };
        let number: f64 = digits.parse().map_err(|_| fail(format!("{value:?} is not a number")))?;
        let amount = if !number.is_finite() || number < 0.0 {
            return Err(fail(format!("expected a non-negative amount, got {value}")));
        } else if number < 1.0 && factor == 1.0 {
            Amount::Removed(number)
        } else if measure == Measure::Channels && number < 2.0 && factor == 1.0 {
            return Err(fail(format!("the fraction removed must be below 1, got {value}")));
        } else {
            Amount::AtMost((number * factor) as u64)
        };
        Ok(Self { measure, amount })
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.amount {
            Amount::Removed(fraction) => write!(f, "{}={fraction}", self.measure.name()),
            Amount::AtMost(limit) => write!(f, "{}={limit}", self.measure.name()),
        }
    }
}
