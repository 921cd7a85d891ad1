//! Telling systemd how things are.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// The supervisor's socket, if there is a supervisor.
///
/// # Source
/// `sd_notify(3)`: datagrams of `NAME=VALUE` lines to the socket that `NOTIFY_SOCKET` names, `@` for an abstract one.
#[derive(Debug, Default)]
pub(super) struct Supervisor {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// How often it wants to hear that all is well.
    watchdog: Option<Duration>,
    fed: Option<Instant>,
    status: String,
}

impl Supervisor {
    /// The one that the environment names.
    pub fn from_environment() -> Self {
        let socket = std::env::var("NOTIFY_SOCKET").ok().and_then(|name| match connect(&name) {
            Ok(socket) => Some(socket),
            Err(error) => {
                log::warn!("supervisor cannot be told anything socket={name}: {error}");
                None
            }
        });
        let micros = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok());
        let ours = std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let watchdog = micros.filter(|_| ours).map(|micros: u64| Duration::from_micros(micros) / 2);
        Self { socket, watchdog, ..Self::default() }
    }

    /// Whether it is time to show that all is well.
    pub fn is_hungry(&self) -> bool {
        self.watchdog.is_some_and(|every| self.fed.is_none_or(|fed| fed.elapsed() >= every))
    }

    /// All is well.
    pub fn feed(&mut self) {
        self.fed = Some(Instant::now());
        self.tell("WATCHDOG=1");
    }

    /// The service answers.
    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// The configuration is read again; [`Supervisor::ready`] follows.
    pub fn reloading(&self) {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: a struct of ours that lives through the call.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
        let micros = Duration::new(now.tv_sec as u64, now.tv_nsec as u32).as_micros();
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    /// The service ends.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// One line about what goes on, told when it changes.
    pub fn status(&mut self, text: &str) {
        if self.status != text {
            self.status = text.to_string();
            self.tell(&format!("STATUS={}", text.replace('\n', " ")));
        }
    }

    fn tell(&self, text: &str) {
        let Some((socket, address)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(text.as_bytes(), address) {
            log::debug!("supervisor was not told {text:?}: {error}");
        }
    }
}

fn connect(name: &str) -> std::io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix('@') {
        Some(hidden) => SocketAddr::from_abstract_name(hidden)?,
        None => SocketAddr::from_pathname(name)?,
    };
    Ok((UnixDatagram::unbound()?, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_arrive_at_both_kinds_of_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let hidden = format!("secateur-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&hidden).unwrap();
        for (receiver, name) in [
            (UnixDatagram::bind(&path).unwrap(), path.display().to_string()),
            (UnixDatagram::bind_addr(&abstract_address).unwrap(), format!("@{hidden}")),
        ] {
            let watchdog = Some(Duration::from_secs(5));
            let mut supervisor =
                Supervisor { socket: Some(connect(&name).unwrap()), watchdog, ..Supervisor::default() };
            let mut buffer = [0; 200];
            let mut heard = || {
                let length = receiver.recv(&mut buffer).unwrap();
                String::from_utf8_lossy(&buffer[..length]).into_owned()
            };
            supervisor.ready();
            assert_eq!(heard(), "READY=1");
            supervisor.status("collecting");
            supervisor.status("collecting");
            supervisor.status("adapting");
            assert_eq!([heard(), heard()], ["STATUS=collecting", "STATUS=adapting"]);
            assert!(supervisor.is_hungry());
            supervisor.feed();
            assert!(heard() == "WATCHDOG=1" && !supervisor.is_hungry());
            supervisor.reloading();
            assert!(heard().starts_with("RELOADING=1\nMONOTONIC_USEC="));
        }
        Supervisor::default().ready();
    }
}
