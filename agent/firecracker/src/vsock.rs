//! The host's side of a guest's vsock: a Unix socket, on which `CONNECT <port>` leads to a port in the guest.

use std::{io, path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::Instant,
};

/// `OK ` and a port number.
const ANSWER_BYTES: usize = 32;
/// Of one try: what was asked before the guest had its device may never be answered.
const TRY: Duration = Duration::from_secs(1);
/// Between two tries: a guest that boots does not listen yet, and Firecracker then closes the connection.
const PAUSE: Duration = Duration::from_millis(2);

/// Why there is no connection to a guest.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    #[error("nothing listened at port {port} of the guest within {within:?}")]
    Silent {
        port: u32,
        within: Duration,
        #[source]
        last: io::Error,
    },
    #[error("the answer to `CONNECT {port}` was `{said}`")]
    Nonsense { port: u32, said: String },
}

impl VsockError {
    /// A guest started anew may answer.
    pub const fn is_retryable(&self) -> bool {
        true
    }
}

/// Connects to `port` in the guest whose socket this is, trying until it listens.
///
/// # Errors
/// It did not within the time, or the socket is not Firecracker's.
pub async fn connect(socket: &Path, port: u32, within: Duration) -> Result<UnixStream, VsockError> {
    let deadline = Instant::now() + within;
    loop {
        let last = match tokio::time::timeout_at(deadline.min(Instant::now() + TRY), try_connect(socket, port)).await {
            Err(_) => io::ErrorKind::TimedOut.into(),
            Ok(Ok(Ok(stream))) => return Ok(stream),
            Ok(Ok(Err(said))) => return Err(VsockError::Nonsense { port, said }),
            Ok(Err(error)) => error,
        };
        if Instant::now() + PAUSE >= deadline {
            return Err(VsockError::Silent { port, within, last });
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The inner error is what was said in the place of `OK`.
async fn try_connect(socket: &Path, port: u32) -> io::Result<Result<UnixStream, String>> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    // Byte by byte: what follows the line is the guest's, and not to be read here.
    let mut line = Vec::with_capacity(ANSWER_BYTES);
    loop {
        let byte = stream.read_u8().await?;
        if byte == b'\n' {
            break;
        }
        line.push(byte);
        if line.len() >= ANSWER_BYTES {
            break;
        }
    }
    let said = String::from_utf8_lossy(&line);
    let accepted = said.strip_prefix("OK ").is_some_and(|port| port.parse::<u32>().is_ok());
    Ok(if accepted { Ok(stream) } else { Err(said.into_owned()) })
}
