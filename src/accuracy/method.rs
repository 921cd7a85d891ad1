//! What can be done with a teacher, the target's images and a budget.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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
    /// One-shot pruning of the adapted teacher by the norm of weights, then distillation.
    Magnitude,
    /// One-shot pruning of the adapted teacher by the squared first-order Taylor term (empirical Fisher), then distillation.
    Taylor,
    /// ADMP without the adversarial soft mask.
    AdmpNoAdversary,
    /// ADMP with a soft mask of random numbers of the same range instead: the adversary's control.
    AdmpRandom,
    /// ADMP without ADMM: the ranking decides at once.
    AdmpNoAdmm,
    /// The whole method.
    Admp,
}

/// Updates of the phases after the first: one-shot methods get those of both as fine-tuning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OneShot {
    /// Updates of fine-tuning.
    pub tune_steps: usize,
}

impl Method {
    /// All methods, in the table's order.
    pub const ALL: [Self; 10] = [
        Self::Source,
        Self::Statistics,
        Self::Adapted,
        Self::PruneThenAdapt,
        Self::Magnitude,
        Self::Taylor,
        Self::AdmpNoAdversary,
        Self::AdmpRandom,
        Self::AdmpNoAdmm,
        Self::Admp,
    ];

    /// Whether it removes channels.
    pub const fn prunes(self) -> bool {
        !matches!(self, Self::Source | Self::Statistics | Self::Adapted)
    }

    /// Arguments of `adapt` that make it this method and not the whole one.
    pub fn arguments(self, one_shot: OneShot) -> Vec<String> {
        let steps = one_shot.tune_steps.to_string();
        let once = ["--no-admm", "--soft-mask", "off", "--mask-steps", "1"];
        let arguments: Vec<&str> = match self {
            Self::Source | Self::Statistics | Self::Adapted => vec!["--no-prune"],
            Self::PruneThenAdapt => [&once[..], &["--importance", "magnitude", "--tune-steps", "0"]].concat(),
            Self::Magnitude => [&once[..], &["--importance", "magnitude", "--tune-steps", &steps]].concat(),
            Self::Taylor => [&once[..], &["--importance", "fisher", "--tune-steps", &steps]].concat(),
            Self::AdmpNoAdversary => vec!["--soft-mask", "off"],
            Self::AdmpRandom => vec!["--soft-mask", "random"],
            Self::AdmpNoAdmm => vec!["--no-admm"],
            Self::Admp => Vec::new(),
        };
        arguments.into_iter().map(str::to_string).collect()
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
        Self::ALL.into_iter().find(|method| method.to_string() == text).ok_or_else(|| {
            let names: Vec<String> = Self::ALL.iter().map(ToString::to_string).collect();
            Error::Usage(format!("expected one of {}, got {text:?}", names.join(", ")))
        })
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
        assert!("tcp".parse::<Method>().unwrap_err().to_string().contains("admp-no-admm"));
    }
}
