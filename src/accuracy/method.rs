//! What can be done with a teacher, the target's images and a budget.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::names::by_name;
use crate::{Error, Result};

/// A way to a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The teacher as it comes.
    Source,
    /// The teacher with the target's batch-norm statistics.
    Statistics,
    /// The teacher after phase 1: what the other methods but one start from.
    Adapted,
    /// Prune the source model by magnitude, then adapt what is left: the paper's naive combination.
    PruneThenAdapt,
    /// Pruning of the adapted teacher in rounds by the norm of weights, with distillation.
    Magnitude,
    /// Pruning of the adapted teacher in rounds by the squared first-order Taylor term (empirical Fisher), with distillation:
    /// what `adapt` does.
    Taylor,
    /// The same at once, then distillation.
    TaylorAtOnce,
    /// Pruning of the adapted teacher in rounds by TCP's criterion, the first-order Taylor term of phase 1's loss, with
    /// distillation.
    Tcp,
    /// The same with TCP's training, too: by that loss, without distillation.
    TcpNoDistillation,
    /// ADMP without the adversarial soft mask.
    AdmpNoAdversary,
    /// ADMP with a soft mask of random numbers of the same range instead: the adversary's control.
    AdmpRandom,
    /// ADMP without ADMM: the ranking decides at once.
    AdmpNoAdmm,
    /// The whole method.
    Admp,
}

/// Updates of the phases. Methods without one of them get its updates in another, so that all have the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steps {
    /// Adapting the teacher.
    pub adapt: usize,
    /// Finding the masks.
    pub mask: usize,
    /// Fine-tuning.
    pub tune: usize,
}

impl Steps {
    /// All in adapting.
    pub(super) const fn in_adapting(self) -> Self {
        Self { adapt: self.adapt.saturating_add(self.mask).saturating_add(self.tune), ..self }
    }

    /// All others in fine-tuning.
    const fn at_once(self) -> Self {
        Self { mask: 0, tune: self.mask.saturating_add(self.tune), ..self }
    }

    pub(super) fn arguments(self) -> Vec<String> {
        let steps = [("--adapt-steps", self.adapt), ("--tune-steps", self.tune), ("--mask-steps", self.mask)];
        steps.into_iter().flat_map(|(flag, steps)| [flag.to_string(), steps.to_string()]).collect()
    }
}

impl Method {
    /// All methods, in the table's order.
    pub const ALL: [Self; 13] = [
        Self::Source,
        Self::Statistics,
        Self::Adapted,
        Self::PruneThenAdapt,
        Self::Magnitude,
        Self::Taylor,
        Self::TaylorAtOnce,
        Self::Tcp,
        Self::TcpNoDistillation,
        Self::AdmpNoAdversary,
        Self::AdmpRandom,
        Self::AdmpNoAdmm,
        Self::Admp,
    ];

    /// Whether it removes channels.
    pub const fn prunes(self) -> bool {
        !matches!(self, Self::Source | Self::Statistics | Self::Adapted)
    }

    /// Arguments of `adapt` that make it this method.
    pub fn arguments(self, steps: Steps) -> Vec<String> {
        let (named, steps): (&[&str], Steps) = match self {
            Self::Source | Self::Statistics | Self::Adapted => (&["--no-prune"], Steps { mask: 0, ..steps }),
            Self::PruneThenAdapt => (&["--importance", "magnitude"], Steps { adapt: 0, mask: 0, tune: 0 }),
            Self::Magnitude => (&["--importance", "magnitude"], steps),
            Self::Taylor => (&["--importance", "fisher"], steps),
            Self::TaylorAtOnce => (&["--importance", "fisher"], steps.at_once()),
            Self::Tcp => (&["--importance", "transfer"], steps),
            Self::TcpNoDistillation => (&["--importance", "transfer", "--no-distillation"], steps),
            Self::AdmpNoAdversary => (&["--admp", "--soft-mask", "off"], steps),
            Self::AdmpRandom => (&["--admp", "--soft-mask", "random"], steps),
            Self::AdmpNoAdmm => (&["--admp", "--no-admm"], steps),
            Self::Admp => (&["--admp"], steps),
        };
        named.iter().map(ToString::to_string).chain(steps.arguments()).collect()
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Statistics => "statistics",
            Self::Adapted => "adapted",
            Self::PruneThenAdapt => "prune-then-adapt",
            Self::Magnitude => "magnitude",
            Self::Taylor => "taylor",
            Self::TaylorAtOnce => "taylor-at-once",
            Self::Tcp => "tcp",
            Self::TcpNoDistillation => "tcp-no-distillation",
            Self::AdmpNoAdversary => "admp-no-adversary",
            Self::AdmpRandom => "admp-random",
            Self::AdmpNoAdmm => "admp-no-admm",
            Self::Admp => "admp",
        })
    }
}

impl FromStr for Method {
    type Err = Error;

    /// # Errors
    /// [`Error::Usage`] for other names than those of [`Method::ALL`].
    fn from_str(text: &str) -> Result<Self> {
        by_name(Self::ALL, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_files() {
        for method in Method::ALL {
            assert_eq!(method.to_string().parse::<Method>().unwrap(), method);
            assert_eq!(serde_json::to_value(method).unwrap(), method.to_string());
        }
        assert!("shot".parse::<Method>().unwrap_err().to_string().contains("admp-no-admm"));
    }
}
