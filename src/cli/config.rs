//! `secateur config`: what can be configured.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::adapt::AdaptArgs;
use super::output::print;
use crate::config::Config;
use crate::daemon::DaemonConfig;
use crate::serve::check_files;
use crate::{Error, Result};

/// Arguments of `config`.
#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print the default configuration file, every key with what it means
    PrintDefault,
    /// Check a configuration file, the files that it names, and the environment variables that override it
    Check(CheckArgs),
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct CheckArgs {
    /// The file
    file: Option<PathBuf>,
    /// The file, as other commands have it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    pub fn run(self) -> Result<()> {
        match self.what {
            What::PrintDefault => print(Config::documented().trim_end()),
            What::Check(CheckArgs { file, config }) => {
                let file = file.or(config).unwrap_or_default();
                let config = load(Some(&file), [])?;
                check_files(&config.serve)?;
                let missing = match config.unattended() {
                    Some(daemon) if !daemon.has_model(&config.serve) => {
                        "; for `daemon`, name the teacher's file in daemon.teacher"
                    }
                    _ => "",
                };
                print(&format!("{}: good{missing}", file.display()))
            }
        }
    }
}

/// The configuration as [`Config::load`] reads it with the environment, with what the daemon would start `adapt` with
/// checked: a slip is told now, not at night.
///
/// # Errors
/// As [`Config::load`] and [`check_adaptation`].
pub(super) fn load(file: Option<&Path>, flags: impl IntoIterator<Item = (String, String)>) -> Result<Config> {
    let config = Config::load(file, std::env::vars_os(), flags)?;
    check_adaptation(&config.daemon())?;
    Ok(config)
}

/// Reads the arguments that the daemon would start `adapt` with as `adapt` reads them.
///
/// # Errors
/// [`Error::Config`] naming the key that they come from.
fn check_adaptation(config: &DaemonConfig) -> Result<()> {
    let Err(error) = AdaptArgs::read(config.adapt_arguments()).and_then(|run| run.check()) else { return Ok(()) };
    let said = error.to_string();
    let key = if said.contains("--budget") { "adapt.budget" } else { "adapt.arguments" };
    Err(Error::Config(format!("{key}: {said}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_adapt_would_refuse_is_refused_by_key() {
        let said = |budget: &str, arguments: &str| {
            let mut config = DaemonConfig::default();
            (config.adapt.budget, config.adapt.arguments) = (budget.into(), arguments.into());
            check_adaptation(&config).map_err(|error| error.to_string())
        };
        assert_eq!(said("channels=0.5", "--batch-size 16 --train last:3"), Ok(()));
        assert_eq!(said("latency=12ms", ""), Ok(()));
        assert_eq!(said("channels=0.5", "--no-prune"), Ok(()));
        for (budget, arguments, parts) in [
            ("chanels=0.5", "", ["adapt.budget: ", "chanels=0.5"]),
            ("channels=0.5", "--tune-step 9", ["adapt.arguments: ", "--tune-steps"]),
            ("channels=0.5", "--batch-size many", ["adapt.arguments: ", "many"]),
            ("channels=0.5", "--lr-scale 0", ["adapt.arguments: ", "--lr-scale"]),
            ("channels=0.5", "--holdout 3", ["adapt.arguments: ", "3"]),
            ("channels=0.5", "more", ["adapt.arguments: ", "more"]),
            ("channels=0.5", "--help", ["adapt.arguments: ", "got a question"]),
        ] {
            let said = said(budget, arguments).unwrap_err();
            assert!(parts.iter().all(|part| said.contains(part)) && !said.contains('\n'), "{said}");
        }
    }
}
