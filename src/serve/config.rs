//! How the server is set up.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::models::ModelSettings;
use crate::data::ImageLimits;
use crate::engine::{EngineConfig, Precision};
use crate::{Error, Result};

/// More threads than this only wait for each other.
const THREADS_PER_PROCESSOR: usize = 8;
/// The smallest buffer the HTTP library reads a header into.
const MIN_HEADER_BYTES: usize = 8192;

/// Every setting of the server. [`ServeConfig::DOCUMENTED`] says what each means; no two differ in their default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented in config.toml, in the words that users read")]
pub struct ServeConfig {
    #[serde(with = "empty_is_none")]
    pub listen: Option<SocketAddr>,
    #[serde(with = "empty_is_none")]
    pub socket: Option<PathText>,
    #[serde(with = "empty_is_none")]
    pub store: Option<PathText>,
    #[serde(with = "empty_is_none")]
    pub model: Option<PathText>,
    pub name: String,
    #[serde(with = "empty_is_none")]
    pub token_file: Option<PathText>,
    #[serde(with = "empty_is_none")]
    pub tls_certificate: Option<PathText>,
    #[serde(with = "empty_is_none")]
    pub tls_key: Option<PathText>,
    pub allowed_hosts: String,
    pub threads: usize,
    pub precision: Precision,
    pub max_batch: usize,
    pub batch_target_ms: u64,
    pub queue_images: usize,
    pub deadline_ms: u64,
    pub max_body_bytes: usize,
    pub body_memory_bytes: usize,
    pub body_timeout_ms: u64,
    pub max_header_bytes: usize,
    pub header_timeout_ms: u64,
    pub write_timeout_ms: u64,
    pub max_connections: usize,
    pub max_image_pixels: u64,
    pub decode_threads: usize,
    pub follow_ms: u64,
    pub drain_ms: u64,
    pub access_log: bool,
}

/// A path in a text file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathText(pub PathBuf);

impl std::str::FromStr for PathText {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.into()))
    }
}

impl std::fmt::Display for PathText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.display().fmt(f)
    }
}

impl AsRef<Path> for PathText {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

/// TOML has no null: an empty text stands for what is left out.
mod empty_is_none {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub fn serialize<T: Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&value.as_ref().map(ToString::to_string).unwrap_or_default())
    }

    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr,
        T::Err: Display,
        D: Deserializer<'de>,
    {
        match String::deserialize(deserializer)?.as_str() {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|e| D::Error::custom(format!("{text:?}: {e}"))),
        }
    }
}

impl ServeConfig {
    /// The section `[serve]` with its defaults and what every key means.
    pub const DOCUMENTED: &'static str = include_str!("config.toml");

    /// Checks what can be checked without opening anything.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key, what was expected and what was found.
    pub fn validate(&self) -> Result<()> {
        let refuse = |key: &str, what: String| Err(Error::Config(format!("serve.{key}: {what}")));
        let processors = EngineConfig::default().threads;
        let least = [
            ("max_batch", self.max_batch as u64, 1),
            ("batch_target_ms", self.batch_target_ms, 1),
            ("queue_images", self.queue_images as u64, 1),
            ("deadline_ms", self.deadline_ms, 1),
            ("max_body_bytes", self.max_body_bytes as u64, 1),
            ("body_memory_bytes", self.body_memory_bytes as u64, self.max_body_bytes as u64),
            ("body_timeout_ms", self.body_timeout_ms, 1),
            ("max_header_bytes", self.max_header_bytes as u64, MIN_HEADER_BYTES as u64),
            ("header_timeout_ms", self.header_timeout_ms, 1),
            ("write_timeout_ms", self.write_timeout_ms, 1),
            ("max_connections", self.max_connections as u64, 1),
            ("max_image_pixels", self.max_image_pixels, 1),
            ("decode_threads", self.decode_threads as u64, 1),
        ];
        if let Some((key, got, least)) = least.into_iter().find(|(_, got, least)| got < least) {
            return refuse(key, format!("expected at least {least}, got {got}"));
        }
        for (key, got, most) in [
            ("threads", self.threads, THREADS_PER_PROCESSOR * processors),
            ("max_batch", self.max_batch, 1024),
            ("decode_threads", self.decode_threads, 256),
        ] {
            if got > most {
                return refuse(key, format!("expected at most {most}, got {got}"));
            }
        }
        if self.listen.is_none() && self.socket.is_none() {
            return refuse("listen", "expected an address, or a path in serve.socket".to_string());
        }
        if self.store.is_some() && self.model.is_some() {
            return refuse("model", "expected a store or a model, got both".to_string());
        }
        if self.tls_certificate.is_some() != self.tls_key.is_some() {
            return refuse("tls_key", "expected tls_certificate and tls_key, or neither".to_string());
        }
        Ok(())
    }

    /// Whether it is reached from this device alone, as far as addresses go.
    pub(super) fn is_on_loopback(&self) -> bool {
        self.listen.is_some_and(|address| address.ip().to_canonical().is_loopback())
    }

    /// How models are run.
    pub fn model_settings(&self) -> ModelSettings {
        let all = EngineConfig::default();
        let threads = if self.threads == 0 { all.threads } else { self.threads };
        ModelSettings {
            engine: EngineConfig { threads, max_batch: self.max_batch, ..all },
            precision: self.precision,
            queue_images: self.queue_images,
            batch_target: Duration::from_millis(self.batch_target_ms),
        }
    }

    /// What an image may cost.
    pub(super) fn image_limits(&self) -> ImageLimits {
        // Decoders may need a few bytes for each pixel besides the pixels themselves.
        let max_bytes = self.max_image_pixels.saturating_mul(8).max(self.max_body_bytes as u64);
        ImageLimits { max_pixels: self.max_image_pixels, max_bytes }
    }

    /// What is in force after `new` is read: its values, except those that only a restart can change.
    pub(super) fn reloaded(&self, new: Self) -> Self {
        let kept = self.clone();
        let (tls_certificate, tls_key) = match kept.tls_certificate.is_some() == new.tls_certificate.is_some() {
            true => (new.tls_certificate, new.tls_key),
            false => (kept.tls_certificate, kept.tls_key),
        };
        Self {
            listen: kept.listen,
            socket: kept.socket,
            store: kept.store,
            model: kept.model,
            name: kept.name,
            body_memory_bytes: kept.body_memory_bytes,
            decode_threads: kept.decode_threads,
            tls_certificate,
            tls_key,
            ..new
        }
    }

    /// The keys in which `new` differs from `self` that only a restart can change.
    pub(super) fn needing_restart(&self, new: &Self) -> Vec<&'static str> {
        let keys = [
            ("listen", self.listen != new.listen),
            ("socket", self.socket != new.socket),
            ("store", self.store != new.store),
            ("model", self.model != new.model),
            ("name", self.name != new.name),
            ("body_memory_bytes", self.body_memory_bytes != new.body_memory_bytes),
            ("decode_threads", self.decode_threads != new.decode_threads),
            ("tls_certificate", self.tls_certificate.is_some() != new.tls_certificate.is_some()),
        ];
        keys.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}

impl Default for ServeConfig {
    fn default() -> Self {
        #[derive(Deserialize)]
        struct Section {
            serve: ServeConfig,
        }
        // A test holds the text to the type.
        #[expect(clippy::expect_used, reason = "the text is part of the program")]
        toml::from_str::<Section>(Self::DOCUMENTED).expect("the default configuration is valid").serve
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_every_key_is_explained() {
        let default = ServeConfig::default();
        default.validate().unwrap();
        let mut explained = false;
        for line in ServeConfig::DOCUMENTED.lines().skip(1) {
            let key = line.contains(" = ") && !line.starts_with('#');
            // `tls_key` shares the comment above it.
            assert!(!key || explained || line.starts_with("tls_key"), "no comment above {line}");
            explained = line.starts_with('#');
        }
    }

    #[test]
    fn values_out_of_range_are_named() {
        let refused = |change: fn(&mut ServeConfig)| {
            let mut config = ServeConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert_eq!(refused(|c| c.max_batch = 0), "serve.max_batch: expected at least 1, got 0");
        assert!(refused(|c| c.threads = 1_000_000).contains("serve.threads: expected at most"));
        assert!(refused(|c| c.max_header_bytes = 100).contains("at least 8192"));
        assert!(refused(|c| c.body_memory_bytes = 5).contains("serve.body_memory_bytes"));
        assert!(refused(|c| c.listen = None).contains("serve.listen"));
        assert!(refused(|c| c.tls_key = Some(PathText("key".into()))).contains("tls_certificate"));
        let both = |c: &mut ServeConfig| (c.store, c.model) = (Some(PathText("a".into())), Some(PathText("b".into())));
        assert!(refused(both).contains("got both"));
    }

    #[test]
    fn what_only_a_restart_changes_is_told() {
        let old = ServeConfig::default();
        let new = ServeConfig { listen: None, max_batch: 2, decode_threads: 1, ..old.clone() };
        assert_eq!(old.needing_restart(&new), ["listen", "decode_threads"]);
        let running = old.reloaded(new.clone());
        assert_eq!(running, ServeConfig { max_batch: 2, ..old.clone() });
        assert_eq!(running.needing_restart(&new), ["listen", "decode_threads"], "as often as it is read");
        assert!(running.needing_restart(&old).is_empty(), "it was put back");
        let tls = Some(PathText("a".into()));
        let secured = ServeConfig { tls_certificate: tls.clone(), tls_key: tls, ..old.clone() };
        assert_eq!((old.reloaded(secured.clone()), secured.reloaded(old.clone())), (old, secured));
    }
}
