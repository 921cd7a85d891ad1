//! Where connections come from: a TCP address and a Unix socket.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::Peer;
use crate::serve::config::ServeConfig;
use crate::{Error, Result};

/// Something that accepts connections.
#[derive(Debug)]
pub enum Listener {
    /// On an address.
    Tcp(TcpListener),
    /// On a path.
    Unix(UnixSocket),
}

/// A Unix socket; its file is removed in the end.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
}

/// An accepted connection.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // What cannot be removed now is replaced at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

/// Listens where `config` says. Must run inside the runtime.
///
/// # Errors
/// [`Error::Config`] naming the address, or [`Error::Io`] the path, that cannot be listened on.
pub fn bind(config: &ServeConfig) -> Result<(Vec<Listener>, Option<SocketAddr>)> {
    let mut listeners = Vec::new();
    let mut bound = None;
    if let Some(address) = config.listen {
        let fail = |e: io::Error| Error::Config(format!("serve.listen: cannot listen on {address}: {e}"));
        let listener = std::net::TcpListener::bind(address).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        bound = Some(listener.local_addr().map_err(fail)?);
        listeners.push(Listener::Tcp(TcpListener::from_std(listener).map_err(fail)?));
    }
    if let Some(path) = &config.socket {
        let path: &Path = path.as_ref();
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(|e| Error::io("listen on", path, e))?;
        listeners.push(Listener::Unix(UnixSocket { listener, path: path.to_path_buf() }));
    }
    Ok((listeners, bound))
}

/// Removes the socket of a server that was killed; one that answers is in use, and no other file is touched.
fn remove_stale(path: &Path) -> Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    let refuse = |what: &str| Err(Error::Config(format!("serve.socket: {}: {what}", path.display())));
    if !metadata.file_type().is_socket() {
        return refuse("a file is in the way, expected a socket or nothing");
    }
    if StdUnixStream::connect(path).is_ok() {
        return refuse("another server listens there");
    }
    fs::remove_file(path).map_err(|e| Error::io("remove", path, e))
}

impl Listener {
    /// The next connection.
    pub(super) async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Answers are small and shall leave at once.
                stream.set_nodelay(true)?;
                Ok((Stream::Tcp(stream), Peer::Tcp(address)))
            }
            Self::Unix(socket) => Ok((Stream::Unix(socket.listener.accept().await?.0), Peer::Socket)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::config::PathText;

    #[test]
    fn a_dead_servers_socket_is_replaced_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let config = ServeConfig { listen: None, socket: Some(PathText(path.clone())), ..ServeConfig::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let _in = runtime.enter();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (alive, _) = bind(&config).unwrap();
        assert!(bind(&config).unwrap_err().to_string().contains("another server"));
        drop(alive);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(bind(&config).unwrap_err().to_string().contains("a file is in the way"));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
