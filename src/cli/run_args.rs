//! Arguments that become an [`AdaptConfig`], shared by `adapt` and `demo`.

use clap::{Args, ValueEnum};

use crate::adapt::{AdaptConfig, SoftMask};
use crate::engine::Precision;
use crate::graph::Scope;
use crate::model::TrainScope;
use crate::prune::Budget;
use crate::prune::importance::Criterion;
use crate::{Error, Result};

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ScopeArg {
    /// Insides of blocks only
    Inner,
    /// Residual streams too
    All,
}

impl From<ScopeArg> for Scope {
    fn from(arg: ScopeArg) -> Self {
        match arg {
            ScopeArg::Inner => Self::Inner,
            ScopeArg::All => Self::All,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum SoftArg {
    /// Gradient ascent on the discrepancy
    Adversarial,
    /// Noise of the same range (control)
    Random,
    /// No soft mask
    Off,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum CriterionArg {
    /// Empirical Fisher information: squared first-order Taylor terms
    Fisher,
    /// Norm of the weights
    Magnitude,
    /// First-order Taylor term of phase 1's loss, information maximisation and pseudo labels (TCP)
    Transfer,
}

/// How to adapt and prune.
#[derive(Debug, Args)]
#[command(next_help_heading = "Adaptation")]
pub(super) struct RunArgs {
    /// What has to go: channels=0.6 removes 60 %; params=2M, macs=150M, bytes=5MB or latency=12ms (on this device, with
    /// --threads and --precision as given) is what may be left at most
    #[arg(long, value_name = "MEASURE=AMOUNT", default_value = "channels=0.6")]
    budget: Budget,
    /// Adapt the teacher only, remove nothing
    #[arg(long, conflicts_with = "budget")]
    no_prune: bool,
    /// Prune the teacher without adapting its weights first (ablation)
    #[arg(long)]
    no_adapt: bool,
    /// Which channels may go
    #[arg(long, value_enum, default_value = "inner")]
    scope: ScopeArg,
    /// Smallest fraction of each layer's channels that stays [default: 0.1]
    #[arg(long, value_name = "FRACTION")]
    min_keep: Option<f64>,
    /// Layer widths left are multiples of this [default: 1]
    #[arg(long, value_name = "N")]
    round_to: Option<usize>,
    /// Largest fraction removed from one layer; repeatable
    #[arg(long, value_name = "LAYER=FRACTION", value_parser = parse_cap)]
    cap: Vec<(String, f64)>,
    /// Seed of every random draw [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Images per step [default: 32; 64 for inputs up to 64 pixels]
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// Most memory the process may take, as in 600MB: batches then go through the network in parts, each normalised by its
    /// own statistics. The parts are told at the start. Images whose decoding would take a quarter of it are left out
    /// [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// What is trained: all, head (the classifier), bn (scales and shifts of batch norms) or last:N (layers)
    #[arg(long, value_name = "WHAT", default_value_t = TrainScope::All)]
    train: TrainScope,
    /// Height and width of training images, where they shall differ from the default
    #[arg(long, value_name = "SIDE", value_parser = clap::value_parser!(u16).range(8..=4096))]
    train_size: Option<u16>,
    /// Fraction of the images kept out of training, for the gate [default: 0.1]
    #[arg(long, value_name = "FRACTION")]
    holdout: Option<f64>,
    /// Share of the images, relative to an even one, below which a class seems not to come, 0 to 1: training may forget it or
    /// see it in other images, and the student is refused unless training repaired more. A standard error less is forgiven.
    /// 0 asks for no class; then measure with labels [default: 0.25]
    #[arg(long, value_name = "FRACTION", allow_negative_numbers = true)]
    min_class_share: Option<f64>,
    /// The student is to replace one that was adapted already, not the teacher: what training repairs of the teacher is no
    /// gain then, and a class that seems not to come is reason enough to refuse
    #[arg(long)]
    replaces_adapted: bool,
    /// Updates of phase 1 (teacher) [default: six passes over the images, at least 160 and at most 480; 300 to 900 for inputs
    /// up to 64 pixels]
    #[arg(long, value_name = "N")]
    adapt_steps: Option<usize>,
    /// Find the channels by ADMP, with an adversarial soft mask and a hard mask by ADMM, instead of by ranking in rounds
    #[arg(long)]
    admp: bool,
    /// Updates of phase 2 ("prune") in all: spread evenly between the six rounds in which channels go, or of ADMP's masks.
    /// Without ADMP 0 removes all at once, and less than 5 makes fewer rounds [default: 100; 200 for inputs up to 64 pixels]
    #[arg(long, value_name = "N")]
    mask_steps: Option<usize>,
    /// Updates of phase 3 (fine-tuning) [default: six passes over the images, at least 170 and at most 510; 400 to 1200 for
    /// inputs up to 64 pixels]
    #[arg(long, value_name = "N")]
    tune_steps: Option<usize>,
    /// Multiplies every learning rate
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    lr_scale: f64,
    /// What the student shall be served in: f32, or int8 if the gate finds that its answers stay
    #[arg(long, value_name = "PRECISION", default_value = "f32")]
    precision: Precision,
    /// What moves ADMP's soft mask; others than adversarial are ablations
    #[arg(long, value_enum, default_value = "adversarial", requires = "admp")]
    soft_mask: SoftArg,
    /// ADMP without ADMM: the ranking decides at once (ablation)
    #[arg(long, requires = "admp")]
    no_admm: bool,
    /// How channels are ranked
    #[arg(long, value_enum, default_value = "fisher")]
    importance: CriterionArg,
    /// Train the pruned student by phase 1's loss, information maximisation and pseudo labels made of its teacher's answers,
    /// instead of by distillation; not with --admp (ablation; with --importance transfer, TCP without source images)
    #[arg(long, conflicts_with_all = ["admp", "no_prune"])]
    no_distillation: bool,
}

fn parse_cap(text: &str) -> Result<(String, f64), String> {
    let (name, fraction) = text.rsplit_once('=').ok_or("expected LAYER=FRACTION")?;
    Ok((name.to_string(), fraction.parse().map_err(|_| format!("{fraction:?} is not a number"))?))
}

/// Bytes of a megabyte, wherever this program speaks of one.
pub(super) const MB: u64 = 1_000_000;

/// A size such as 600MB, 2G, 512MiB or 900000000.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    const KIB: f64 = 1024.0;
    let binary = [("kib", KIB), ("mib", KIB * KIB), ("gib", KIB * KIB * KIB)];
    let decimal = [("kb", 1e3), ("mb", 1e6), ("gb", 1e9), ("k", 1e3), ("m", 1e6), ("g", 1e9), ("b", 1.0), ("", 1.0)];
    let lower = text.to_ascii_lowercase();
    let found = binary.iter().chain(&decimal).find_map(|(unit, bytes)| Some((lower.strip_suffix(unit)?, bytes)));
    let wrong = || format!("expected a size such as 600MB, 2GB or 512MiB, got {text:?}");
    let (number, unit) = found.ok_or_else(wrong)?;
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    let bytes = (number * unit).round();
    match bytes.is_finite() && bytes >= 1e6 {
        true => Ok(bytes as u64),
        false => Err(format!("expected a size of at least 1MB, such as 600MB, got {text:?}, {bytes} bytes")),
    }
}

impl RunArgs {
    /// Lays the arguments over a model's defaults.
    ///
    /// # Errors
    /// [`Error::Config`] for a value out of range.
    pub fn apply(&self, config: AdaptConfig) -> Result<AdaptConfig> {
        let mut config = if self.admp { config.with_admp() } else { config };
        config.budget = (!self.no_prune).then_some(self.budget);
        config.scope = self.scope.into();
        config.mask.soft = match self.soft_mask {
            SoftArg::Adversarial => SoftMask::Adversarial,
            SoftArg::Random => SoftMask::Random,
            SoftArg::Off => SoftMask::Off,
        };
        config.mask.criterion = match self.importance {
            CriterionArg::Fisher => Criterion::Fisher,
            CriterionArg::Magnitude => Criterion::Magnitude,
            CriterionArg::Transfer => Criterion::Transfer,
        };
        config.distillation = !self.no_distillation;
        config.precision = self.precision;
        config.mask.use_admm = !self.no_admm;
        config.limits.caps = self.cap.iter().cloned().collect();
        set(&mut config.limits.min_keep, self.min_keep);
        set(&mut config.limits.round_to, self.round_to);
        set(&mut config.seed, self.seed);
        set(&mut config.batch_size, self.batch_size);
        config.memory_bytes = self.memory;
        config.train = self.train;
        if let Some(side) = self.train_size.map(usize::from) {
            config.augment.train_size = Some([side, side]);
        }
        set(&mut config.holdout, self.holdout);
        set(&mut config.gate.min_class_share, self.min_class_share);
        config.gate.replaces_adapted = self.replaces_adapted;
        set(&mut config.teacher.steps, self.adapt_steps);
        set(&mut config.mask.steps, self.mask_steps);
        set(&mut config.fine_tune.steps, self.tune_steps);
        if self.no_adapt {
            config.teacher.steps = 0;
        }
        if !(self.lr_scale.is_finite() && self.lr_scale > 0.0) {
            return Err(Error::Usage(format!("--lr-scale: expected a positive number, got {}", self.lr_scale)));
        }
        for lr in [&mut config.teacher.lr, &mut config.mask.lr, &mut config.fine_tune.lr] {
            *lr *= self.lr_scale;
        }
        config.validate()?;
        Ok(config)
    }

    /// [`AdaptConfig::for_images`], but for updates that the arguments settle.
    pub fn for_images(&self, config: AdaptConfig, images: usize) -> AdaptConfig {
        let (teacher, tune) = (config.teacher.steps, config.fine_tune.steps);
        let mut config = config.for_images(images);
        if self.adapt_steps.is_some() {
            config.teacher.steps = teacher;
        }
        if self.tune_steps.is_some() {
            config.fine_tune.steps = tune;
        }
        config
    }
}

fn set<T>(value: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *value = given;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        run: RunArgs,
    }

    #[test]
    fn many_images_mean_more_updates_unless_they_are_given() {
        let steps = |arguments: &str| {
            let run = Command::parse_from(format!("secateur {arguments}").split_whitespace()).run;
            let config = run.for_images(run.apply(AdaptConfig::for_input([3, 224, 224])).unwrap(), 2000);
            [config.teacher.steps, config.mask.steps, config.fine_tune.steps]
        };
        assert_eq!(steps(""), [375, 100, 375]);
        assert_eq!(steps("--batch-size 64"), [188, 100, 188]);
        assert_eq!(steps("--adapt-steps 7"), [7, 100, 375]);
        assert_eq!(steps("--tune-steps 9"), [375, 100, 9]);
        assert_eq!(steps("--no-adapt --adapt-steps 7"), [0, 100, 375]);
        assert_eq!(steps("--no-adapt"), [0, 100, 375]);
        let most = usize::MAX;
        assert_eq!(steps(&format!("--adapt-steps {most} --tune-steps {most}")), [most, 100, most]);
    }
}
