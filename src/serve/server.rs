//! The server as a whole: started, reloaded, stopped.

use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use tokio::runtime::{self, Runtime};
use tokio::sync::watch;

use super::config::ServeConfig;
use super::http::{self, App, Extras, Live};
use super::metrics::Metrics;
use super::models::{Registry, Repository};
use super::net::{self, Listener};
use crate::{Error, Result};

/// File descriptors besides those of connections: logs, store, models, sockets.
const OTHER_FILES: u64 = 128;
/// How often a store is looked at if following was off when the server started.
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// A server that is about to start.
///
/// ```no_run
/// # fn main() -> secateur::Result<()> {
/// use std::sync::Arc;
/// use secateur::serve::{Metrics, Registry, Repository, ServeConfig, Server, Source};
///
/// let config = ServeConfig::default();
/// let registry = Arc::new(Registry::new(config.model_settings(), Arc::new(Metrics::default()), || ()));
/// let repository = Arc::new(Repository::new(Source::None, registry.clone()));
/// let server = Server::new(config, repository).start()?;
/// // registry.deploy(…) puts a model behind it, and puts others in its place.
/// server.stop();
/// # Ok(())
/// # }
/// ```
pub struct Server {
    config: ServeConfig,
    repository: Arc<Repository>,
    extras: Extras,
}

impl Server {
    /// A server of what `repository` loads and others deploy to its registry.
    pub fn new(config: ServeConfig, repository: Arc<Repository>) -> Self {
        Self { config, repository, extras: Extras::default() }
    }

    /// With more routes, and somebody who is shown the images.
    #[must_use]
    pub fn with(mut self, extras: Extras) -> Self {
        self.extras = extras;
        self
    }

    /// Listens, loads the models, and answers from threads of its own until [`ServerHandle::stop`].
    ///
    /// # Errors
    /// As [`Listening::new`] and [`Repository::load_all`].
    pub fn start(self) -> Result<ServerHandle> {
        let listening = Listening::new(&self.config)?;
        self.start_on(listening)
    }

    /// Loads the models and answers where `listening` listens, whose configuration goes before the server's.
    ///
    /// # Errors
    /// As [`Repository::load_all`].
    pub fn start_on(self, listening: Listening) -> Result<ServerHandle> {
        let Self { repository, extras, .. } = self;
        let Listening { live, listeners, address, runtime } = listening;
        let config = live.config.clone();
        repository.load_all()?;
        let app = Arc::new(App::new(repository.clone(), live, &extras));
        let router = http::router(&app, extras);
        let (stop, stopped) = watch::channel(false);
        let (follow, end) = mpsc::channel();
        let no_thread = |e| Error::Config(format!("serve: cannot start a thread: {e}"));
        let following = app.clone();
        let follower =
            Builder::new().name("follow".into()).spawn(move || follow_store(&following, &end)).map_err(no_thread)?;
        let serving = app.clone();
        let http = Builder::new()
            .name("http".into())
            .spawn(move || {
                runtime.block_on(net::serve(listeners, serving, router, stopped));
                // Decoders in progress are not waited for: their clients are gone.
                runtime.shutdown_background();
            })
            .map_err(no_thread)?;
        if let Some(address) = address {
            log::info!("listening address={address}");
        }
        if let Some(path) = &config.socket {
            log::info!("listening socket={path}");
        }
        Ok(ServerHandle { app, address, stop, threads: Some(Threads { http, follower, _follow: follow }) })
    }
}

/// Addresses that are listened on while nobody answers yet: clients wait. So what keeps a server from listening is known
/// before anything is done for it.
pub struct Listening {
    live: Live,
    listeners: Vec<Listener>,
    address: Option<SocketAddr>,
    // Last, for the listeners belong to it.
    runtime: Runtime,
}

impl Listening {
    /// Listens where `config` says.
    ///
    /// # Errors
    /// [`Error::Config`] or [`Error::Io`] naming what is wrong in the configuration or with a file that it names, or the
    /// address that is taken.
    pub fn new(config: &ServeConfig) -> Result<Self> {
        config.validate()?;
        let live = Live::new(config.clone())?;
        raise_file_limit(config.max_connections as u64 + OTHER_FILES);
        let runtime = runtime(config)?;
        let (listeners, address) = {
            let _inside = runtime.enter();
            net::bind(config)?
        };
        Ok(Self { live, listeners, address, runtime })
    }
}

/// Follows the store's pointers until the sender of `end` is gone.
fn follow_store(app: &App, end: &mpsc::Receiver<()>) {
    loop {
        let every = Duration::from_millis(app.live().config.follow_ms);
        let wait = if every.is_zero() { IDLE_LOOK } else { every };
        if end.recv_timeout(wait) != Err(mpsc::RecvTimeoutError::Timeout) {
            return;
        }
        if !every.is_zero() {
            app.repository.follow();
        }
    }
}

fn runtime(config: &ServeConfig) -> Result<Runtime> {
    // One thread for all connections: the processors belong to the engines.
    let mut builder = runtime::Builder::new_current_thread();
    builder.enable_io().enable_time().max_blocking_threads(config.decode_threads).thread_name("decode");
    builder.build().map_err(|e| Error::Config(format!("serve: cannot start: {e}")))
}

/// Asks the system for as many open files as there may be connections.
fn raise_file_limit(wanted: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct is ours and lives through the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 || limit.rlim_cur >= wanted as libc::rlim_t
    {
        return;
    }
    limit.rlim_cur = limit.rlim_max.min(wanted as libc::rlim_t);
    // SAFETY: as above; the soft limit stays within the hard one.
    let raised = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0;
    if !raised || limit.rlim_cur < wanted as libc::rlim_t {
        log::warn!(
            "fewer open files allowed than serve.max_connections needs: expected {wanted}, got {}",
            limit.rlim_cur
        );
    }
}

/// A server that answers. Dropped, it stops.
pub struct ServerHandle {
    app: Arc<App>,
    address: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    threads: Option<Threads>,
}

struct Threads {
    http: JoinHandle<()>,
    follower: JoinHandle<()>,
    /// Its drop ends the follower.
    _follow: mpsc::Sender<()>,
}

impl ServerHandle {
    /// The TCP address it listens on, with the port that the system chose if none was asked for.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The models it serves.
    pub fn registry(&self) -> &Arc<Registry> {
        self.app.repository.registry()
    }

    /// What it counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.app.metrics
    }

    /// Goes over to another configuration without stopping. Limits and the token count from the next request on, how
    /// models are run from the next version on; what only a restart can change is logged.
    ///
    /// # Errors
    /// As [`Server::start`]; then nothing changes.
    pub fn reload(&self, config: ServeConfig) -> Result<()> {
        config.validate()?;
        let running = self.app.live();
        let live = Live::new(running.config.reloaded(config.clone()))?;
        for key in running.config.needing_restart(&config) {
            log::warn!("serve.{key} is changed by a restart only");
        }
        self.registry().set_settings(config.model_settings());
        self.app.set_live(live);
        Ok(())
    }

    /// Takes no more connections, finishes what is in progress, and frees the models.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(Threads { http, follower, _follow: follow }) = self.threads.take() else { return };
        drop(follow);
        // Its receiver is there as long as the thread.
        let _ = self.stop.send(true);
        for thread in [http, follower] {
            if thread.join().is_err() {
                log::error!("a thread of the server panicked");
            }
        }
        self.registry().clear();
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests;
