//! The time of day, and dates as people read them.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Zoned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use crate::serve::rfc3339;

/// Seconds since 1970 by the device's clock, which may jump.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A moment in a form that sorts and is good for names of files: `20261124-210530`, in UTC.
pub fn compact(unix_s: u64) -> String {
    let digits = rfc3339(unix_s).replace(['-', ':', 'Z'], "");
    digits.replace('T', "-")
}

/// Minutes since midnight, local time.
pub fn minute_of_day() -> u32 {
    let now = Zoned::now();
    60 * u32::try_from(now.hour()).unwrap_or(0) + u32::try_from(now.minute()).unwrap_or(0)
}

/// A time of day, or none: `"03:00"`, `""`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DayTime(pub Option<u32>);

/// A span of the day, which may go past midnight, or none: `"22:00-06:00"`, `""`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hours(pub Option<(u32, u32)>);

impl Hours {
    /// Whether a minute of the day lies within; the end does not.
    pub fn contain(self, minute: u32) -> bool {
        match self.0 {
            None => false,
            Some((from, to)) if from <= to => (from..to).contains(&minute),
            Some((from, to)) => minute >= from || minute < to,
        }
    }
}

fn minute(text: &str) -> Result<u32, String> {
    let parts = text.split_once(':').and_then(|(h, m)| Some((h.parse::<u32>().ok()?, m.parse::<u32>().ok()?)));
    match parts {
        Some((h @ 0..=23, m @ 0..=59)) => Ok(60 * h + m),
        _ => Err(format!("expected a time of day such as 03:00, got {text:?}")),
    }
}

impl FromStr for DayTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() { Ok(Self(None)) } else { minute(text).map(|at| Self(Some(at))) }
    }
}

impl FromStr for Hours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let wrong = || format!("expected a span such as 22:00-06:00, got {text:?}");
        let (from, to) = text.split_once('-').ok_or_else(wrong)?;
        Ok(Self(Some((minute(from.trim())?, minute(to.trim())?))))
    }
}

fn shown(minute: u32) -> String {
    format!("{:02}:{:02}", minute / 60, minute % 60)
}

impl fmt::Display for DayTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.map(shown).unwrap_or_default())
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.map(|(from, to)| format!("{}-{}", shown(from), shown(to))).unwrap_or_default())
    }
}

macro_rules! as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
as_text!(DayTime, Hours);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(compact(951_782_461), "20000229-000101");
        assert!(minute_of_day() < 24 * 60);
    }

    #[test]
    fn spans_may_go_past_midnight() {
        let night: Hours = "22:00-06:30".parse().unwrap();
        let inside = [22 * 60, 23 * 60 + 59, 0, 6 * 60 + 29];
        assert!(inside.iter().all(|m| night.contain(*m)) && !night.contain(6 * 60 + 30) && !night.contain(12 * 60));
        let noon: Hours = "12:00-13:00".parse().unwrap();
        assert!(noon.contain(12 * 60) && !noon.contain(13 * 60));
        assert!(!"".parse::<Hours>().unwrap().contain(0));
        assert_eq!(night.to_string(), "22:00-06:30");
    }

    #[test]
    fn other_texts_are_refused() {
        for wrong in ["24:00", "1", "03:60", "a:b", "-1:00"] {
            assert!(wrong.parse::<DayTime>().is_err(), "{wrong}");
        }
        assert!("22:00".parse::<Hours>().is_err());
        assert_eq!("03:05".parse(), Ok(DayTime(Some(185))));
    }
}
