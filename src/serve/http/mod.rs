//! Requests to calls, answers to responses.

mod auth;
mod body;
mod classify;
mod health;
mod infer;
mod repository;
mod response;
mod routes;
mod status;
mod trace;
mod versions;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use tokio::sync::{Mutex, Semaphore};

pub use auth::Token;
pub use classify::{ImageHook, SeenImage};
pub use routes::router;

use super::config::ServeConfig;
use super::error::{Code, Refusal};
use super::metrics::Metrics;
use super::models::{Repository, Served};
use super::net::Tls;
use crate::Result;
use crate::store::Version;

/// What an embedding program adds to the server.
#[derive(Default)]
pub struct Extras {
    /// Further routes; `/` is the dashboard's.
    pub routes: Router,
    /// Further routes that change something: off loopback they need the token.
    pub control_routes: Router,
    /// Is shown every image that `/classify` answered.
    pub on_image: Option<ImageHook>,
    /// What `/v1/status` says of adaptation; asked once for every answer, on a thread that may wait a little.
    pub status: Option<Arc<dyn Fn() -> serde_json::Value + Send + Sync>>,
    /// Families that `/metrics` has besides the server's, in Prometheus' text format.
    pub metrics: Option<Arc<dyn Fn() -> String + Send + Sync>>,
}

/// What all requests share.
pub struct App {
    pub repository: Arc<Repository>,
    pub metrics: Arc<Metrics>,
    live: RwLock<Arc<Live>>,
    on_image: Option<ImageHook>,
    status: Option<Arc<dyn Fn() -> serde_json::Value + Send + Sync>>,
    more_metrics: Option<Arc<dyn Fn() -> String + Send + Sync>>,
    /// Memory for bodies, in KiB.
    body_memory: Arc<Semaphore>,
    /// One probe at a time, so that nobody floods an engine by asking whether it works.
    probing: Mutex<()>,
    /// One change at a time waits for a thread.
    changing: Mutex<()>,
    /// One status at a time is put together.
    looking: Mutex<()>,
    stopping: AtomicBool,
}

/// What a reload replaces.
#[derive(Debug)]
pub struct Live {
    pub config: ServeConfig,
    pub token: Option<Token>,
    pub tls: Option<Tls>,
}

impl Live {
    /// Reads the files that `config` names.
    ///
    /// # Errors
    /// Those of [`Token::read`] and [`Tls::read`].
    pub fn new(config: ServeConfig) -> Result<Self> {
        let token = config.token_file.as_ref().map(|path| Token::read(path.as_ref() as &Path)).transpose()?;
        let tls = match (&config.tls_certificate, &config.tls_key) {
            (Some(certificate), Some(key)) => Some(Tls::read(certificate.as_ref(), key.as_ref())?),
            _ => None,
        };
        Ok(Self { config, token, tls })
    }
}

/// Checks the files that `config` names: token, certificate and key.
///
/// # Errors
/// [`crate::Error::Config`] or [`crate::Error::Io`] naming the file.
pub fn check_files(config: &ServeConfig) -> Result<()> {
    Live::new(config.clone()).map(drop)
}

impl App {
    /// The state of a server that has not answered yet.
    pub fn new(repository: Arc<Repository>, live: Live, extras: &Extras) -> Self {
        Self {
            metrics: repository.registry().metrics().clone(),
            repository,
            body_memory: Arc::new(Semaphore::new(live.config.body_memory_bytes.div_ceil(1024))),
            live: RwLock::new(Arc::new(live)),
            on_image: extras.on_image.clone(),
            status: extras.status.clone(),
            more_metrics: extras.metrics.clone(),
            probing: Mutex::default(),
            changing: Mutex::default(),
            looking: Mutex::default(),
            stopping: AtomicBool::new(false),
        }
    }

    /// The settings in force.
    pub fn live(&self) -> Arc<Live> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the settings in force.
    pub fn set_live(&self, live: Live) {
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(live);
    }

    /// From now on the server is not ready.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// The version of model `name` that answers; `version` is the one that the client insists on.
    fn served(&self, name: &str, version: Option<&str>) -> Result<Arc<Served>, Refusal> {
        let served =
            self.repository.registry().get(name).ok_or_else(|| {
                Refusal::new(Code::ModelNotFound, format!("no model {:?} is served", shortened(name)))
            })?;
        match version {
            Some(asked) if asked.parse::<Version>().ok() != Some(served.version) => {
                let message = format!("{name}: version {} is served, not {:?}", served.version, shortened(asked));
                Err(Refusal::new(Code::VersionNotFound, message))
            }
            _ => Ok(served),
        }
    }
}

/// Text from outside, short enough to be repeated.
fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}
