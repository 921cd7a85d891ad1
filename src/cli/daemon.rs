//! `secateur daemon`: serving, collecting, adapting, unattended.

use std::path::PathBuf;
use std::sync::mpsc;

use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::config::load;
use crate::daemon::{self, DaemonConfig, Order};
use crate::serve::ServeConfig;
use crate::{Error, Result};

/// Arguments of `daemon`. Each goes before the key of its name in the configuration.
#[derive(Debug, Args)]
#[command(
    after_help = "Images are put into FOLDER/inbox. SIGTERM ends the daemon after the requests in progress, SIGHUP \
                        reads the configuration again. `secateur config print-default` prints every setting with what it \
                        means; what is interrupted is gone on with at the next start."
)]
pub(super) struct DaemonArgs {
    /// Configuration file; `secateur config print-default` prints one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of all that the daemon keeps [default: /var/lib/secateur]
    #[arg(long, value_name = "DIR")]
    folder: Option<String>,
    /// The model that all adaptations begin with, and that serves until a student is accepted
    #[arg(long, value_name = "PATH")]
    teacher: Option<String>,
    /// Address to listen on [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
}

impl DaemonArgs {
    /// Runs until SIGTERM or SIGINT; a second one ends the program at once.
    pub fn run(self, release_memory: fn()) -> Result<()> {
        // Before anything is started, so that a signal during the start is not lost.
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
            .map_err(|e| Error::Config(format!("signals cannot be handled: {e}")))?;
        let (serve, config) = self.config()?;
        let (sender, orders) = mpsc::channel();
        std::thread::spawn(move || {
            let mut stopping = false;
            for signal in signals.forever() {
                let order = match signal {
                    SIGHUP => match self.config() {
                        Ok(config) => Order::Reload(Box::new(config)),
                        Err(error) => {
                            log::error!("configuration refused, the one before stays: {error}");
                            continue;
                        }
                    },
                    _ if stopping => std::process::exit(130),
                    _ => {
                        log::info!("stopping after the requests in progress; a second signal ends the program at once");
                        stopping = true;
                        Order::Stop
                    }
                };
                // The daemon may have ended already.
                let _ = sender.send(order);
            }
        });
        // On this thread, which ends last: adaptations end with it.
        daemon::run(&serve, config, &orders, release_memory)
    }

    fn config(&self) -> Result<(ServeConfig, DaemonConfig)> {
        let flags =
            [("daemon.folder", &self.folder), ("daemon.teacher", &self.teacher), ("serve.listen", &self.listen)];
        let given = flags.into_iter().filter_map(|(key, value)| Some((key.to_string(), value.clone()?)));
        let config = load(self.config.as_deref(), given)?;
        let daemon = config.daemon();
        Ok((config.serve, daemon))
    }
}
