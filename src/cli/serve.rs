//! `secateur serve`: models over HTTP.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::Config;
use crate::serve::{Metrics, Registry, Repository, ServeConfig, Server, ServerHandle, Source};
use crate::store::{ModelName, Store};
use crate::{Error, Result};

/// Arguments of `serve`. Each goes before the key of its name in the configuration.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Configuration file; `secateur config print-default` prints one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of a model store; of every model the active version is served
    #[arg(long, value_name = "DIR", conflicts_with = "model")]
    store: Option<String>,
    /// A single model file instead of a store
    #[arg(long, value_name = "FILE")]
    model: Option<String>,
    /// What the single model is called in addresses [default: the file's name]
    #[arg(long, value_name = "NAME", requires = "model")]
    name: Option<String>,
    /// Address to listen on [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Unix socket to listen on
    #[arg(long, value_name = "PATH")]
    socket: Option<String>,
    /// File with the bearer token that requests must bring
    #[arg(long, value_name = "FILE")]
    token_file: Option<String>,
    /// Threads that work on one inference [default: all processors]
    #[arg(long, value_name = "N")]
    threads: Option<u16>,
    /// The numbers to compute with: f32 or int8
    #[arg(long, value_name = "PRECISION")]
    precision: Option<String>,
}

impl ServeArgs {
    /// Serves until SIGTERM or SIGINT; a second one ends the program at once. SIGHUP reads the configuration again.
    /// `release_memory` gives back what the allocator keeps.
    pub fn run(self, release_memory: fn()) -> Result<()> {
        // Before anything is started, so that a signal during the start is not lost.
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
            .map_err(|e| Error::Config(format!("signals cannot be handled: {e}")))?;
        let config = self.config()?;
        let source = source(&config)?;
        let registry = Arc::new(Registry::new(config.model_settings(), Arc::new(Metrics::default()), release_memory));
        let server = Server::new(config, Arc::new(Repository::new(source, registry))).start()?;
        for signal in signals.forever() {
            if signal == SIGHUP {
                self.reload(&server);
            } else {
                log::info!("stopping after the requests in progress; a second signal ends the program at once");
                break;
            }
        }
        let handle = signals.handle();
        std::thread::spawn(move || {
            if signals.forever().any(|signal| signal != SIGHUP) {
                std::process::exit(130);
            }
        });
        server.stop();
        handle.close();
        Ok(())
    }

    fn config(&self) -> Result<ServeConfig> {
        Ok(Config::load(self.config.as_deref(), std::env::vars_os(), self.flags())?.serve)
    }

    fn flags(&self) -> Vec<(String, String)> {
        let given = [
            ("store", &self.store),
            ("model", &self.model),
            ("name", &self.name),
            ("listen", &self.listen),
            ("socket", &self.socket),
            ("token_file", &self.token_file),
            ("threads", &self.threads.map(|n| n.to_string())),
            ("precision", &self.precision),
        ];
        let mut flags: Vec<_> =
            given.into_iter().filter_map(|(key, value)| Some((format!("serve.{key}"), value.clone()?))).collect();
        // A flag for one source puts aside the other one of the file.
        for (given, other) in [(&self.store, "serve.model"), (&self.model, "serve.store")] {
            flags.extend(given.as_ref().map(|_| (other.to_string(), String::new())));
        }
        flags
    }

    fn reload(&self, server: &ServerHandle) {
        match self.config().and_then(|config| server.reload(config)) {
            Ok(()) => log::info!("configuration read again"),
            Err(error) => log::error!("configuration refused, the one before stays: {error}"),
        }
    }
}

fn source(config: &ServeConfig) -> Result<Source> {
    match (&config.store, &config.model) {
        (Some(root), _) => Ok(Source::Store(Store::open(root.as_ref())?)),
        (None, Some(path)) => {
            let path: &Path = path.as_ref();
            let name = if config.name.is_empty() { name_of(path)? } else { config.name.parse()? };
            Ok(Source::File(name, path.to_path_buf()))
        }
        (None, None) => Err(Error::Usage("expected --store DIR or --model FILE".into())),
    }
}

/// The file's name without its ending.
fn name_of(path: &Path) -> Result<ModelName> {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy()).unwrap_or_default();
    stem.parse().map_err(|e| Error::Usage(format!("{}: {e}; give it one with --name", path.display())))
}
