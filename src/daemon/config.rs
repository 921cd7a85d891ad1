//! How the daemon is set up: one struct for each section of the configuration file.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::clock::{DayTime, Hours};
use crate::engine::EngineConfig;
use crate::serve::{PathText, ServeConfig};
use crate::store::ModelName;
use crate::{Error, Result};

/// All sections of the daemon.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented in daemon.toml, in the words that users read")]
pub struct DaemonConfig {
    pub daemon: General,
    pub intake: IntakeConfig,
    pub trigger: TriggerConfig,
    pub adapt: ChildConfig,
    pub guard: GuardConfig,
    pub watch: WatchConfig,
}

/// `[daemon]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented in daemon.toml, in the words that users read")]
pub struct General {
    pub folder: PathBuf,
    pub teacher: PathBuf,
    pub name: ModelName,
    pub keep_versions: usize,
    pub keep_runs: usize,
    pub stop_s: u64,
    pub board_root: PathBuf,
}

/// `[intake]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented in daemon.toml, in the words that users read")]
pub struct IntakeConfig {
    pub inbox: PathBuf,
    pub settle_s: f64,
    pub rescan_s: f64,
    pub max_images: usize,
    pub max_bytes: u64,
    pub max_file_bytes: u64,
    pub max_image_pixels: u64,
    pub duplicate_bits: u32,
    pub quarantine_files: usize,
    pub quarantine_bytes: u64,
    pub classify: bool,
    pub classify_per_minute: u32,
}

/// `[trigger]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented in daemon.toml, in the words that users read")]
pub struct TriggerConfig {
    pub min_images: usize,
    pub new_images: usize,
    pub every_h: f64,
    pub at: DayTime,
    pub drift_window: usize,
    pub drift_confidence: f64,
    pub drift_classes: f64,
    pub drift_features: f64,
}

/// How an adaptation competes for processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduling {
    /// Takes what nobody else wants.
    Idle,
    /// Takes a small share.
    Batch,
    /// As everybody.
    Normal,
}

/// `[adapt]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented in daemon.toml, in the words that users read")]
pub struct ChildConfig {
    pub budget: String,
    pub threads: usize,
    pub arguments: String,
    pub scheduling: Scheduling,
    pub checkpoint_every_s: u64,
    pub max_memory_bytes: u64,
    pub backoff_first_s: u64,
    pub backoff_most_s: u64,
}

/// `[guard]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented in daemon.toml, in the words that users read")]
pub struct GuardConfig {
    pub every_s: f64,
    pub hot_celsius: f64,
    pub cool_celsius: f64,
    pub max_load: f64,
    pub min_memory_bytes: u64,
    pub min_disk_bytes: u64,
    pub on_battery: bool,
    pub quiet_hours: Hours,
    pub max_slowdown: f64,
    pub min_pause_s: f64,
    pub max_pause_s: f64,
}

/// `[watch]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented in daemon.toml, in the words that users read")]
pub struct WatchConfig {
    pub images: usize,
    pub answers: usize,
    pub patience_s: f64,
    pub min_information: f64,
    pub min_diversity: f64,
    pub min_confidence: f64,
    pub min_agreement: f64,
}

/// Given where a student serves already.
pub(super) const REPLACES_ADAPTED: &str = "--replaces-adapted";
/// Arguments of `secateur adapt` that the daemon gives.
const OWN: [&str; 11] = [
    "--teacher",
    "--target",
    "--out",
    "--report",
    "--progress",
    "--threads",
    "--checkpoint",
    "--checkpoint-every",
    "--resume",
    "--restart",
    REPLACES_ADAPTED,
];

impl DaemonConfig {
    /// The sections with their defaults and what every key means.
    pub const DOCUMENTED: &'static str = include_str!("daemon.toml");

    /// Checks what can be checked without opening anything.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key, what was expected and what was found.
    pub fn validate(&self) -> Result<()> {
        let Self { daemon, intake, trigger, adapt, guard, watch } = self;
        let refuse = |key: &str, what: String| Err(Error::Config(format!("{key}: {what}")));
        let most = f64::from(u32::MAX);
        let ranges = [
            ("intake.settle_s", intake.settle_s, 0.0, most),
            ("intake.rescan_s", intake.rescan_s, 0.01, most),
            ("intake.max_images", intake.max_images as f64, 8.0, 1e6),
            ("intake.max_bytes", intake.max_bytes as f64, 1.0, f64::MAX),
            ("intake.max_file_bytes", intake.max_file_bytes as f64, 1.0, f64::MAX),
            ("intake.max_image_pixels", intake.max_image_pixels as f64, 1.0, f64::MAX),
            ("intake.duplicate_bits", f64::from(intake.duplicate_bits), 0.0, 63.0),
            ("trigger.min_images", trigger.min_images as f64, 8.0, intake.max_images as f64),
            ("trigger.new_images", trigger.new_images as f64, 0.0, intake.max_images as f64),
            ("trigger.every_h", trigger.every_h, 0.0, most),
            ("trigger.drift_window", trigger.drift_window as f64, 8.0, 1e5),
            ("trigger.drift_confidence", trigger.drift_confidence, 0.0, 1.0),
            ("trigger.drift_classes", trigger.drift_classes, 0.0, most),
            ("trigger.drift_features", trigger.drift_features, 0.0, most),
            ("adapt.threads", adapt.threads as f64, 0.0, 8.0 * processors() as f64),
            ("adapt.backoff_most_s", adapt.backoff_most_s as f64, adapt.backoff_first_s as f64, most),
            ("daemon.keep_versions", daemon.keep_versions as f64, 2.0, most),
            ("guard.every_s", guard.every_s, 0.01, 3600.0),
            ("guard.cool_celsius", guard.cool_celsius, -273.0, guard.hot_celsius),
            ("guard.max_load", guard.max_load, 0.0, most),
            ("guard.max_slowdown", guard.max_slowdown, 0.0, most),
            ("guard.min_pause_s", guard.min_pause_s, 0.0, most),
            ("guard.max_pause_s", guard.max_pause_s, 0.0, most),
            ("watch.images", watch.images as f64, 8.0, 1e5),
            ("watch.answers", watch.answers as f64, 0.0, 1e6),
            ("watch.patience_s", watch.patience_s, 0.0, most),
            ("watch.min_information", watch.min_information, 0.0, 1.0),
            ("watch.min_diversity", watch.min_diversity, 0.0, 1.0),
            ("watch.min_confidence", watch.min_confidence, 0.0, 1.0),
            ("watch.min_agreement", watch.min_agreement, 0.0, 1.0),
        ];
        if let Some((key, got, least, most)) = ranges.into_iter().find(|(_, got, least, most)| {
            // So that NaN is out of range, too.
            !(*least..=*most).contains(got)
        }) {
            return refuse(key, format!("expected {least} to {most}, got {got}"));
        }
        if adapt.budget.split_whitespace().count() != 1 {
            return refuse("adapt.budget", format!("expected one such as channels=0.5, got {:?}", adapt.budget));
        }
        let mut names = adapt.arguments.split_whitespace().filter_map(|argument| argument.split('=').next());
        if let Some(own) = names.find(|name| OWN.contains(name)) {
            return refuse("adapt.arguments", format!("expected none that the daemon gives itself, got {own}"));
        }
        if daemon.folder.as_os_str().is_empty() {
            return refuse("daemon.folder", "expected a folder, got \"\"".to_string());
        }
        Ok(())
    }

    /// Threads of an adaptation.
    pub fn adapt_threads(&self) -> usize {
        if self.adapt.threads == 0 { (processors() / 2).max(1) } else { self.adapt.threads }
    }

    /// Whether it says which model is the first.
    pub fn names_teacher(&self) -> bool {
        !self.daemon.teacher.as_os_str().is_empty()
    }

    /// The folder of its models.
    pub fn store(&self, serve: &ServeConfig) -> PathBuf {
        serve.store.as_ref().map_or_else(|| self.daemon.folder.join("models"), |store| store.0.clone())
    }

    /// Whether it has a model to start with: one in its store, or the one it names.
    pub fn has_model(&self, serve: &ServeConfig) -> bool {
        self.names_teacher() || self.store(serve).join(self.daemon.name.as_str()).is_dir()
    }

    /// How the daemon serves: `serve` with a store, and with the threads that an adaptation leaves unless it says how
    /// many.
    ///
    /// # Errors
    /// [`Error::Config`] if it names a single model.
    pub fn serving(&self, serve: &ServeConfig) -> Result<ServeConfig> {
        let mut serve = serve.clone();
        if serve.model.is_some() {
            return Err(Error::Config(
                "serve.model: the daemon serves a store; name the file in daemon.teacher".into(),
            ));
        }
        serve.store = Some(PathText(self.store(&serve)));
        if serve.threads == 0 {
            serve.threads = processors().saturating_sub(self.adapt_threads()).max(1);
        }
        Ok(serve)
    }

    /// The keys in which `new` differs from `self` that only a restart can change.
    pub fn needing_restart(&self, new: &Self) -> Vec<&'static str> {
        let (a, b) = (&self.daemon, &new.daemon);
        let keys = [
            ("daemon.folder", a.folder != b.folder),
            ("daemon.teacher", a.teacher != b.teacher),
            ("daemon.name", a.name != b.name),
            ("intake.inbox", self.intake.inbox != new.intake.inbox),
        ];
        keys.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}

/// Processors of this device.
fn processors() -> usize {
    EngineConfig::default().threads
}

impl Default for DaemonConfig {
    fn default() -> Self {
        // A test holds the text to the type.
        #[expect(clippy::expect_used, reason = "the text is part of the program")]
        toml::from_str(Self::DOCUMENTED).expect("the default configuration is valid")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_every_key_is_explained() {
        DaemonConfig::default().validate().unwrap();
        let mut explained = false;
        for line in DaemonConfig::DOCUMENTED.lines() {
            let key = line.contains(" = ") && !line.starts_with('#');
            assert!(!key || explained, "no comment above {line}");
            // Keys that belong together share the comment above them.
            explained = line.starts_with('#') || (key && explained);
        }
    }

    #[test]
    fn values_out_of_range_are_named() {
        let refused = |change: fn(&mut DaemonConfig)| {
            let mut config = DaemonConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert_eq!(refused(|c| c.watch.min_agreement = 2.0), "watch.min_agreement: expected 0 to 1, got 2");
        assert!(refused(|c| c.guard.every_s = f64::NAN).starts_with("guard.every_s: expected"));
        assert!(refused(|c| c.guard.cool_celsius = 80.0).contains("guard.cool_celsius"));
        assert!(refused(|c| c.trigger.min_images = 3000).contains("expected 8 to 2000, got 3000"));
        assert!(refused(|c| c.adapt.budget = "a --no-prune".into()).contains("adapt.budget"));
        assert!(refused(|c| c.adapt.arguments = "--lr-scale 2 --out=/etc/x".into()).ends_with("got --out"));
    }

    #[test]
    fn serving_and_adapting_share_the_processors() {
        let (mut config, serve) = (DaemonConfig::default(), ServeConfig::default());
        let both = config.serving(&serve).unwrap().threads + config.adapt_threads();
        assert!(both <= processors().max(2), "{both}");
        config.adapt.threads = processors();
        assert_eq!(config.serving(&serve).unwrap().threads, 1);
        assert_eq!(config.serving(&ServeConfig { threads: 3, ..serve.clone() }).unwrap().threads, 3);
        assert_eq!(config.serving(&serve).unwrap().store, Some(PathText("/var/lib/secateur/models".into())));
        let single = ServeConfig { model: Some(PathText("a".into())), ..serve };
        assert!(config.serving(&single).unwrap_err().to_string().contains("daemon.teacher"));
    }
}
