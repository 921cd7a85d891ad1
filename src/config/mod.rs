//! The configuration file: TOML, overridden by the environment, overridden by the command line.
//!
//! The documented default is the one list of keys: what it does not name is refused, with the nearest name that it
//! does, and a value must be of the type that it has there. Sections belong to the modules that they configure.

mod keys;
mod layers;

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use layers::Layers;

use crate::daemon::{ChildConfig, DaemonConfig, General, GuardConfig, IntakeConfig, TriggerConfig, WatchConfig};
use crate::serve::ServeConfig;
use crate::{Error, Result};

/// Every section.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[serve]`.
    pub serve: ServeConfig,
    daemon: General,
    intake: IntakeConfig,
    trigger: TriggerConfig,
    adapt: ChildConfig,
    guard: GuardConfig,
    watch: WatchConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self::new(ServeConfig::default(), DaemonConfig::default())
    }
}

impl Config {
    fn new(serve: ServeConfig, daemon: DaemonConfig) -> Self {
        let DaemonConfig { daemon, intake, trigger, adapt, guard, watch } = daemon;
        Self { serve, daemon, intake, trigger, adapt, guard, watch }
    }

    /// The sections of the daemon.
    pub fn daemon(&self) -> DaemonConfig {
        let Self { daemon, intake, trigger, adapt, guard, watch, .. } = self.clone();
        DaemonConfig { daemon, intake, trigger, adapt, guard, watch }
    }

    /// The sections of the daemon, if this is meant for it: if it names a teacher, or nothing that a server alone serves.
    pub fn unattended(&self) -> Option<DaemonConfig> {
        let daemon = self.daemon();
        let serves_only = self.serve.store.is_some() || self.serve.model.is_some();
        (daemon.names_teacher() || !serves_only).then_some(daemon)
    }

    /// The default configuration as a file, every key with what it means.
    pub fn documented() -> String {
        let head = "# Configuration of secateur, as TOML. Every key can be left out; these are the defaults.\n\
                    # Environment variables such as SECATEUR_SERVE__LISTEN go before this file, flags before both.\n";
        [head, ServeConfig::DOCUMENTED, DaemonConfig::DOCUMENTED].join("\n")
    }

    /// The defaults, overridden by `file`, overridden by `environment`, overridden by `flags`: pairs of a key such as
    /// `serve.listen` and a value as the environment would have it.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::Config`] naming the file, variable or key: not TOML, a key
    /// that does not exist, a value of another type or out of range.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        flags: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self> {
        let mut layers = Layers::<Self>::new(&Self::documented())?;
        if let Some(path) = file {
            let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
            layers.add_file(&path.display().to_string(), &text)?;
        }
        layers.add_environment(environment)?;
        for (key, value) in flags {
            layers.set("command line", &key, &value)?;
        }
        let config = layers.finish();
        config.serve.validate()?;
        config.daemon().validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests;
