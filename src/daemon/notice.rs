//! Log lines that are written when they change, not every time they are true.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A cause that keeps changing its words is told no more often than this.
const AT_MOST_EVERY: Duration = Duration::from_secs(60);

/// What was said last about each subject.
#[derive(Debug, Default)]
pub(super) struct Notices(BTreeMap<&'static str, (String, Instant)>);

impl Notices {
    /// Warns of `text` unless that was the last that was said about `subject`; numbers in it may differ.
    pub fn warn(&mut self, subject: &'static str, text: &str) {
        let words: String = text.chars().filter(|c| !c.is_ascii_digit()).collect();
        let news = self.0.get(subject).is_none_or(|(last, at)| *last != words && at.elapsed() >= AT_MOST_EVERY);
        if news {
            log::warn!("{text}");
            self.0.insert(subject, (words, Instant::now()));
        }
    }

    /// The cause is gone; says so if it had been told.
    pub fn well(&mut self, subject: &'static str, text: &str) {
        if self.0.remove(subject).is_some() {
            log::info!("{text}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_remembered_until_it_is_gone() {
        let mut notices = Notices::default();
        notices.warn("disk", "disk is full: 3 bytes left");
        let told = notices.0["disk"].1;
        notices.warn("disk", "disk is full: 2 bytes left");
        assert_eq!(notices.0["disk"].1, told);
        notices.well("disk", "disk is well again");
        assert!(notices.0.is_empty());
    }
}
