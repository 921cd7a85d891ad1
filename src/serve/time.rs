//! Moments as text.

use jiff::Timestamp;

/// A moment as RFC 3339 has it, in UTC, from the seconds since 1970.
pub fn rfc3339(unix_s: u64) -> String {
    let moment = i64::try_from(unix_s).ok().and_then(|s| Timestamp::from_second(s).ok());
    moment.unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_have_their_date_and_impossible_ones_none() {
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(u64::MAX), "1970-01-01T00:00:00Z");
    }
}
