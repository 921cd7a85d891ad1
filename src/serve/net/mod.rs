//! Connections: accepted, bounded in number, time and memory, served, drained.

mod connections;
mod listener;
mod patient;
mod tls;

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tower_service::Service;

use connections::{Connections, Place};
use listener::Stream;
pub use listener::{Listener, bind};
use patient::Patient;
pub use tls::Tls;

use super::http::App;

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A process on this device, through the Unix socket.
    Socket,
    /// An address.
    Tcp(SocketAddr),
}

impl Peer {
    /// Whether it is on this device.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Socket => true,
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket => f.write_str("socket"),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// How long to wait when the system gives no connection, for want of file descriptors mostly.
const BREATH: Duration = Duration::from_millis(50);

/// Accepts and serves until `stop` says so; then what is in progress has `drain` to end.
pub async fn serve(listeners: Vec<Listener>, app: Arc<App>, router: Router, mut stop: watch::Receiver<bool>) {
    // Every connection holds a sender: when all are dropped, all connections are closed.
    let (open, mut closed) = mpsc::channel::<Infallible>(1);
    let connections = Arc::new(Connections::new(app.metrics.clone()));
    let accepting: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            let shared = Shared {
                app: app.clone(),
                router: router.clone(),
                connections: connections.clone(),
                stop: stop.clone(),
                open: open.clone(),
            };
            tokio::spawn(accept(listener, shared))
        })
        .collect();
    drop(open);
    // The sender lives as long as the server; if it is gone, so is the server.
    let _ = stop.wait_for(|stop| *stop).await;
    app.stop();
    accepting.iter().for_each(tokio::task::JoinHandle::abort);
    let drain = Duration::from_millis(app.live().config.drain_ms);
    if tokio::time::timeout(drain, closed.recv()).await.is_err() {
        log::warn!("connections cut off open={} after_ms={}", app.metrics.connections.get(), drain.as_millis());
    }
}

/// What every connection needs.
#[derive(Clone)]
struct Shared {
    app: Arc<App>,
    router: Router,
    connections: Arc<Connections>,
    stop: watch::Receiver<bool>,
    /// Only held: see [`serve`].
    #[expect(dead_code, reason = "its drop is the message")]
    open: mpsc::Sender<Infallible>,
}

async fn accept(listener: Listener, shared: Shared) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                log::warn!("connection cannot be accepted: {error}");
                shared.connections.evict_one();
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        let config = &shared.app.live().config;
        let Some(place) = shared.connections.admit(config.max_connections) else {
            log::debug!("connection refused, all {} are busy peer={peer}", config.max_connections);
            continue;
        };
        let stalled = Duration::from_millis(config.write_timeout_ms);
        let shared = shared.clone();
        tokio::spawn(async move {
            match stream {
                Stream::Tcp(stream) => tcp(Patient::new(stream, stalled), peer, place, shared).await,
                Stream::Unix(stream) => connection(Patient::new(stream, stalled), peer, place, shared).await,
            }
        });
    }
}

/// Serves a TCP connection, inside TLS where a certificate is configured.
async fn tcp(io: Patient<TcpStream>, peer: Peer, place: Place, shared: Shared) {
    let live = shared.app.live();
    let Some(tls) = &live.tls else { return connection(io, peer, place, shared).await };
    let limit = Duration::from_millis(live.config.header_timeout_ms);
    let secured = tokio::select! {
        () = place.evicted() => return,
        secured = tokio::time::timeout(limit, tls.accept(io)) => secured,
    };
    match secured {
        Ok(Ok(io)) => connection(io, peer, place, shared).await,
        Ok(Err(error)) => log::debug!("no TLS peer={peer}: {error}"),
        Err(_) => log::debug!("no TLS peer={peer}: nothing came for {} ms", limit.as_millis()),
    }
}

/// Serves one connection to its end.
async fn connection(io: impl AsyncRead + AsyncWrite + Unpin, peer: Peer, place: Place, shared: Shared) {
    let config = &shared.app.live().config;
    let (place, router, mut stop) = (Arc::new(place), shared.router.clone(), shared.stop.clone());
    let service = service_fn(|mut request: Request<Incoming>| {
        let busy = place.busy();
        request.extensions_mut().insert(peer);
        let answer = router.clone().call(request.map(Body::new));
        async move {
            let _busy = busy;
            answer.await
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(config.header_timeout_ms))
        .max_buf_size(config.max_header_bytes);
    let mut connection = pin!(http.serve_connection(TokioIo::new(io), service));
    let mut stopping = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                // A client that goes away or does not speak HTTP is no event.
                if let Err(error) = ended {
                    log::debug!("connection ended peer={peer}: {error}");
                }
                return;
            }
            () = place.evicted() => return,
            _ = stop.wait_for(|stop| *stop), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
