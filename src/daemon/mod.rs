//! The daemon: it serves, collects, adapts, judges and swaps, for months without anybody.
//!
//! One thread makes all decisions, a few times a second, from what it reads: `cycle` holds them together, and every
//! other file answers one question. Images are taken in on a second thread (`intake`), requests are answered by the server's,
//! and an adaptation is a process of its own (`child`), so nothing that it does can end the daemon. What must survive a
//! power cut is on disk before it is acted on, and where two steps cannot be one, doing them again changes nothing.
//!
//! How a student is made is not known here: a run is a command line, an exit status and a report.

mod ask;
mod child;
mod clock;
mod config;
mod cycle;
mod folders;
mod follow;
mod guard;
mod intake;
mod judge;
mod metrics;
mod mind;
mod notice;
mod notify;
mod recent;
mod run;
mod score;
mod state;
mod status;
mod teacher;
mod tell;
mod trigger;
mod watch;

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

pub use config::{
    ChildConfig, DaemonConfig, General, GuardConfig, IntakeConfig, Scheduling, TriggerConfig, WatchConfig,
};

use ask::Asker;
use cycle::Cycle;
use folders::Folders;
use intake::{Intake, Shared, uploads};
use notify::Supervisor;
use state::State;
use tell::Told;

use crate::serve::{Extras, Listening, Metrics, Registry, Repository, ServeConfig, Server, ServerHandle, Source};
use crate::store::Store;
use crate::{Error, Result};

/// How long a daemon that was killed may take to be gone.
const DYING: Duration = Duration::from_secs(1);
/// How often decisions are made.
const TICK: Duration = Duration::from_millis(200);
/// How long the first inference may take.
const FIRST: Duration = Duration::from_secs(60);
/// How long the watchdog's inference may take.
const PROBE: Duration = Duration::from_secs(5);

/// What the daemon is told from outside.
#[derive(Debug)]
pub enum Order {
    /// Go over to another configuration.
    Reload(Box<(ServeConfig, DaemonConfig)>),
    /// End.
    Stop,
}

/// Runs the daemon until it is told to stop, or the sender of orders is gone. Must be called on a thread that lives as
/// long as the process, since adaptations end with it. `release_memory` gives back what the allocator keeps.
///
/// # Errors
/// What keeps it from serving: [`Error::Config`], a teacher that cannot be read, a store that cannot be listed, an
/// address that is taken, another daemon in the same folder. Once it serves, everything else is logged and tried again.
pub fn run(serve: &ServeConfig, config: DaemonConfig, orders: &Receiver<Order>, release_memory: fn()) -> Result<()> {
    config.validate()?;
    let config = Arc::new(config);
    let serving = config.serving(serve)?;
    let folders = Folders::of(&config);
    // A daemon that dies may still hold its address; its folder, if there is one, is waited for first.
    let held = folders.root.is_dir().then(|| lock(&folders.root)).transpose()?;
    let listening = Listening::new(&serving)?;
    if let Err(error) = folders.create() {
        // On a disk that cannot be written to it serves all the same.
        log::warn!("{error}");
    }
    let _only = held.map_or_else(|| lock(&folders.root), Ok)?;
    let store = serving.store.as_ref().map(|root| Store::open(root.as_ref())).transpose()?;
    let store = store.ok_or_else(|| Error::Config("serve.store: expected a folder".into()))?;
    let mut state = State::load(&folders.state);
    teacher::settle(&config.daemon, &store, &mut state)?;
    let registry = Arc::new(Registry::new(serving.model_settings(), Arc::new(Metrics::default()), release_memory));
    let repository = Arc::new(Repository::new(Source::Store(store.clone()), registry.clone()));
    let shared = Arc::new(Shared::new(config.clone(), &folders));
    let (uploads, images) = uploads(&shared);
    let asker = || Asker::new(registry.clone(), config.daemon.name.clone());
    let stored = (store, repository.clone());
    let mut cycle = Cycle::new(config.clone(), folders.clone(), stored, asker()?, (shared.clone(), state));
    let told = Arc::new(Told::default());
    told.tell(&cycle);
    let server = Server::new(serving, repository).with(extras(uploads, &told)).start_on(listening)?;
    let mut supervisor = Supervisor::from_environment();
    cycle.asker.probe(FIRST)?;
    supervisor.ready();
    // Before an image comes in, so that its answer counts as this version's.
    cycle.follow(false);
    let intake = Intake::start(&shared, &folders, asker()?, images)?;
    loop {
        match orders.recv_timeout(TICK) {
            Ok(Order::Reload(new)) => {
                supervisor.reloading();
                reload(&mut cycle, &server, *new);
                supervisor.ready();
            }
            Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        cycle.tick(&told);
        supervisor.status(&told.line());
        if supervisor.is_hungry() {
            match cycle.asker.probe(PROBE) {
                Ok(()) if intake.is_alive() => supervisor.feed(),
                Ok(()) => log::error!("watchdog is not fed: the intake has died"),
                Err(error) => log::error!("watchdog is not fed: {error}"),
            }
        }
    }
    supervisor.stopping();
    cycle.ask_to_stop();
    drop(intake);
    server.stop();
    cycle.end();
    Ok(())
}

fn extras(uploads: intake::Uploads, told: &Arc<Told>) -> Extras {
    let (status, metrics) = (told.clone(), told.clone());
    Extras {
        on_image: Some(Arc::new(move |image| uploads.seen(image))),
        status: Some(Arc::new(move || status.json())),
        metrics: Some(Arc::new(move || metrics.metrics())),
        ..Extras::default()
    }
}

/// Goes over to a configuration, or says why not.
fn reload(cycle: &mut Cycle, server: &ServerHandle, (serve, config): (ServeConfig, DaemonConfig)) {
    let changed = config.validate().and_then(|()| config.serving(&serve)).and_then(|serving| server.reload(serving));
    match changed {
        Ok(()) => {
            cycle.set_config(Arc::new(config));
            log::info!("configuration read again");
        }
        Err(error) => log::error!("configuration refused, the one before stays: {error}"),
    }
}

/// The right to be the only daemon in a folder; the system takes it back from a process that dies.
fn lock(folder: &Path) -> Result<File> {
    let fail = |e| Error::io("lock", folder, e);
    let file = File::open(folder).map_err(fail)?;
    let begun = Instant::now();
    let mut locked = file.try_lock();
    while matches!(locked, Err(TryLockError::WouldBlock)) && begun.elapsed() < DYING {
        std::thread::sleep(Duration::from_millis(20));
        locked = file.try_lock();
    }
    match locked {
        Err(TryLockError::WouldBlock) => {
            Err(Error::Overloaded(format!("{}: another daemon keeps its things here", folder.display())))
        }
        Err(TryLockError::Error(e)) if e.kind() != std::io::ErrorKind::Unsupported => Err(fail(e)),
        _ => Ok(file),
    }
}

#[cfg(test)]
mod lines;
