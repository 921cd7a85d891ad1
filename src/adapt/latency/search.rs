//! Meeting a budget of latency by what candidates really take.

/// Networks that are tried at most.
pub(in crate::adapt) const CANDIDATES: usize = 6;
/// A network that takes this part of the budget is good enough, and the part that is aimed at.
const ENOUGH: [f64; 2] = [0.96, 1.0];
const AIM: f64 = 0.98;

/// Looks for the scale of predictions under which the chosen network meets the budget: at a larger one, more channels go.
#[derive(Debug, Default)]
pub(in crate::adapt) struct Search {
    /// The logarithm of the scale.
    scale: f64,
    /// The largest of which a network was too slow, the smallest of which one was fast enough.
    slow: Option<f64>,
    fast: Option<f64>,
}

impl Search {
    /// How far a network is off that takes `part` of the budget; more than the budget is worse than less.
    pub fn miss(part: f64) -> f64 {
        if part > 1.0 { 3.0 * (part - 1.0) } else { 1.0 - part }
    }

    /// By how much to multiply predictions now that a network takes `part` of the budget, and `error` times as long as
    /// predicted; `None` if it is good enough.
    ///
    /// Time jumps where a layer's channels fill another block. So once a network on either side of the budget is known the
    /// scale is searched by halving: following the error alone would go to and fro.
    pub fn correction(&mut self, part: f64, error: f64) -> Option<f64> {
        if (ENOUGH[0]..=ENOUGH[1]).contains(&part) {
            return None;
        }
        if part > AIM {
            self.slow = Some(self.slow.map_or(self.scale, |slow| slow.max(self.scale)));
        } else {
            self.fast = Some(self.fast.map_or(self.scale, |fast| fast.min(self.scale)));
        }
        let next = match (self.slow, self.fast) {
            (Some(slow), Some(fast)) => (slow + fast) / 2.0,
            _ => self.scale + (error / AIM).ln(),
        };
        let factor = (next - self.scale).exp();
        self.scale = next;
        Some(factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tries candidates whose time is `time` of the channels left, under a selector that believes `believed`, and returns
    /// the times.
    fn tried(budget: f64, believed: impl Fn(f64) -> f64, time: impl Fn(f64) -> f64) -> Vec<f64> {
        let (mut search, mut factor, mut times) = (Search::default(), 1.0, Vec::new());
        for _ in 0..CANDIDATES {
            let left = (0..=1000).rev().map(|i| f64::from(i) / 1000.0);
            let left = left.clone().find(|left| factor * believed(*left) <= budget).unwrap_or(0.0);
            times.push(time(left));
            match search.correction(time(left) / budget, time(left) / (factor * believed(left))) {
                Some(correction) => factor *= correction,
                None => break,
            }
        }
        times
    }

    #[test]
    fn a_constant_error_is_made_good_at_once() {
        for error in [0.4, 0.9, 1.1, 2.5] {
            let times = tried(0.3, |left| left, |left| error * left);
            assert_eq!(times.len(), 2, "{error}: {times:?}");
            assert!(times[1] <= 0.3 && times[1] > 0.28, "{error}: {times:?}");
        }
        assert_eq!(tried(0.3, |left| left, |left| 0.98 * left).len(), 1, "nothing to do");
    }

    #[test]
    fn jumps_are_closed_in_on_from_both_sides() {
        // 0.2 below 0.5 channels, then 0.28 and more: 0.3 lies above the jump, which the belief does not know.
        let time = |left: f64| if left < 0.5 { 0.4 * left } else { 0.28 + 0.1 * (left - 0.5) };
        let times = tried(0.3, |left| 0.5 * left, time);
        let best =
            times.iter().copied().min_by(|a, b| Search::miss(a / 0.3).total_cmp(&Search::miss(b / 0.3))).unwrap();
        assert!((0.27..=0.3).contains(&best), "{times:?}");
    }

    #[test]
    fn too_slow_is_worse_than_too_fast() {
        assert!(Search::miss(1.05) > Search::miss(0.9) && Search::miss(0.99) < Search::miss(0.95));
    }
}
