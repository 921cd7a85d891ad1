//! TLS, where the program is built with it.

use std::path::Path;

use crate::{Error, Result};

#[cfg(feature = "tls")]
pub use with::Tls;
#[cfg(not(feature = "tls"))]
pub use without::Tls;

impl Tls {
    /// Reads the certificate chain and its key, PEM files.
    ///
    /// # Errors
    /// [`Error::Config`] naming the file that is not what it should be, or saying that this build has no TLS.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self> {
        Self::from_files(certificate, key).map_err(|(path, what)| Error::Config(format!("{}: {what}", path.display())))
    }
}

#[cfg(feature = "tls")]
mod with {
    use std::fmt;
    use std::io;
    use std::path::Path;
    use std::sync::Arc;

    use tokio::io::{AsyncRead, AsyncWrite};
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::server::TlsStream;

    /// A certificate and its key, ready to accept connections: TLS 1.2 and 1.3.
    pub struct Tls(TlsAcceptor);

    impl fmt::Debug for Tls {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Tls")
        }
    }

    impl Tls {
        pub(super) fn from_files<'a>(certificate: &'a Path, key: &'a Path) -> Result<Self, (&'a Path, String)> {
            let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let chain = chain.map_err(|e| (certificate, format!("expected certificates as PEM: {e}")))?;
            if chain.is_empty() {
                return Err((certificate, "expected certificates as PEM, got none".to_string()));
            }
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| (key, format!("expected a key as PEM: {e}")))?;
            let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret));
            let mut config =
                config.map_err(|e| (certificate, format!("cannot be used with {}: {e}", key.display())))?;
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Ok(Self(TlsAcceptor::from(Arc::new(config))))
        }

        /// The connection inside `io`.
        pub async fn accept<T: AsyncRead + AsyncWrite + Unpin>(&self, io: T) -> io::Result<TlsStream<T>> {
            self.0.accept(io).await
        }
    }
}

#[cfg(not(feature = "tls"))]
mod without {
    use std::io;
    use std::path::Path;

    /// There is none of it.
    #[derive(Debug)]
    pub enum Tls {}

    impl Tls {
        pub(super) fn from_files<'a>(certificate: &'a Path, _: &'a Path) -> Result<Self, (&'a Path, String)> {
            Err((certificate, "this build has no TLS; build with --features tls".to_string()))
        }

        pub async fn accept<T>(&self, _: T) -> io::Result<T> {
            match *self {}
        }
    }
}
