//! `secateur config`: what can be configured.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::output::print;
use crate::Result;
use crate::config::Config;

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
    /// Check a configuration file, and the environment variables that override it
    Check {
        /// The file
        file: PathBuf,
    },
}

impl ConfigArgs {
    pub fn run(self) -> Result<()> {
        match self.what {
            What::PrintDefault => print(Config::documented().trim_end()),
            What::Check { file } => {
                Config::load(Some(&file), std::env::vars_os(), [])?;
                print(&format!("{}: good", file.display()))
            }
        }
    }
}
