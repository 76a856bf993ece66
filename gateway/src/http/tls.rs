//! HTTPS by the gateway itself. The certificate's files are looked at every few seconds: one that was renewed is in use from
//! the next connection on; one that cannot be used is said in the log, and the one before stays.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use flux_runtime::Shutdown;
use parking_lot::RwLock;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    },
    server::TlsStream,
};

use super::patient::LastWords;

const LOOKED_AT_EVERY: Duration = Duration::from_secs(5);

/// A certificate and its key cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`gateway.tls`: {problem}")]
pub struct TlsError {
    problem: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl TlsError {
    pub(super) fn no_identities() -> Self {
        let problem =
            "`auto` is a certificate of Flux's own CA, and with `disable_mtls` there is none: name `cert` and `key`";
        Self { problem: problem.to_owned(), source: None }
    }

    fn new(problem: String, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { problem, source: Some(source.into()) }
    }
}

/// What connections are answered with.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    current: Arc<Current>,
    cert: PathBuf,
    key: PathBuf,
}

#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read()))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tls({})", self.cert.display())
    }
}

impl Tls {
    /// # Errors
    /// A file cannot be read, is no PEM, or the two do not belong together.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let current = Arc::new(Current(RwLock::new(Arc::new(read(cert, key)?))));
        let resolver: Arc<dyn ResolvesServerCert> = current.clone();
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::new("no protocol can be spoken".to_owned(), error))?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { acceptor: Arc::new(config).into(), current, cert: cert.to_owned(), key: key.to_owned() })
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<Stream> {
        Ok(Stream::Tls(Box::new(self.acceptor.accept(stream).await?)))
    }

    /// Takes what the files hold now. Whether it is another certificate than before.
    fn renew(&self) -> Result<bool, TlsError> {
        let read = read(&self.cert, &self.key)?;
        if read.cert == self.current.0.read().cert {
            return Ok(false);
        }
        *self.current.0.write() = Arc::new(read);
        Ok(true)
    }

    /// Until shutdown.
    pub(super) async fn follow(self, shutdown: Arc<Shutdown>) {
        let mut seen = (stamp(&self.cert), stamp(&self.key));
        while tokio::time::timeout(LOOKED_AT_EVERY, shutdown.draining()).await.is_err() {
            let now = (stamp(&self.cert), stamp(&self.key));
            if now == seen {
                continue;
            }
            match self.renew() {
                Ok(true) => tracing::info!(cert = %self.cert.display(), "a renewed certificate is in use"),
                Ok(false) => {}
                // Perhaps one of the two files is not written yet: it is looked at again.
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "the renewed certificate cannot be used; the one before stays");
                }
            }
            seen = now;
        }
    }
}

/// What changes when a file is replaced or written.
fn stamp(path: &Path) -> Option<(u64, i64, i64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
}

fn read(cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let unreadable = |what: &str, path: &Path| format!("the {what} {} cannot be read as PEM", path.display());
    if cert.as_os_str().is_empty() || key.as_os_str().is_empty() {
        return Err(TlsError { problem: "both `cert` and `key` must name a file".to_owned(), source: None });
    }
    let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| TlsError::new(unreadable("certificate", cert), error.to_string()))?;
    if chain.is_empty() {
        return Err(TlsError { problem: format!("{} has no certificate", cert.display()), source: None });
    }
    let private = PrivateKeyDer::from_pem_file(key);
    let private = private.map_err(|error| TlsError::new(unreadable("key", key), error.to_string()))?;
    // Checks that the key is the certificate's.
    CertifiedKey::from_der(chain, private, &aws_lc_rs::default_provider()).map_err(|error| {
        TlsError::new(format!("{} and {} are no pair that can be used", cert.display(), key.display()), error)
    })
}

/// A connection, encrypted or not.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl LastWords for Stream {
    fn say(&self, words: &[u8]) {
        // What is encrypted cannot be said in one go.
        if let Self::Plain(stream) = self {
            stream.say(words);
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
