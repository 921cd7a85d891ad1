//! Order statistics of timings.

/// Milliseconds of repeated runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stats {
    /// Number of runs.
    pub runs: usize,
    /// One of fifty runs took no longer: what a run takes when nothing disturbs it.
    pub quiet: f64,
    /// Half of the runs took no longer.
    pub median: f64,
    /// Nine of ten took no longer.
    pub p90: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
    /// Half the distance between the quartiles of the blocks' medians, relative to the median: how far a repetition may
    /// lie off.
    pub noise: f64,
}

impl Stats {
    /// Statistics of runs that were taken in blocks; `None` without any run.
    pub fn of(blocks: &[Vec<f64>]) -> Option<Self> {
        let all = sorted(blocks.iter().flatten().copied().collect());
        let medians =
            sorted(blocks.iter().filter(|b| !b.is_empty()).map(|b| quantile(&sorted(b.clone()), 0.5)).collect());
        if all.is_empty() {
            return None;
        }
        let median = quantile(&all, 0.5);
        let spread = quantile(&medians, 0.75) - quantile(&medians, 0.25);
        Some(Self {
            runs: all.len(),
            quiet: quantile(&all, 0.02),
            median,
            p90: quantile(&all, 0.9),
            p99: quantile(&all, 0.99),
            noise: spread / 2.0 / median.max(f64::MIN_POSITIVE),
        })
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// The value that a part `q` of the sorted values does not exceed (nearest rank); 0 of none.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_ranks() {
        let stats = Stats::of(&[(1..=50).map(f64::from).collect(), (51..=100).map(f64::from).collect()]).unwrap();
        assert_eq!((stats.runs, stats.median, stats.p90, stats.p99), (100, 50.0, 90.0, 99.0));
        assert_eq!(stats.quiet, 2.0);
        assert_eq!(Stats::of(&[vec![], vec![]]), None);
    }

    #[test]
    fn noise_is_the_spread_of_blocks_not_of_runs() {
        let even = Stats::of(&vec![vec![1.0, 10.0, 19.0]; 8]).unwrap();
        assert_eq!(even.noise, 0.0);
        let uneven: Vec<Vec<f64>> = (0..8).map(|i| vec![10.0 + f64::from(i % 2)]).collect();
        assert!((Stats::of(&uneven).unwrap().noise - 0.05).abs() < 0.006);
    }
}
