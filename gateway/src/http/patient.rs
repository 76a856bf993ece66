//! A socket that is patient, but not for ever: a peer that stops reading its response for
//! [`HTTP_WRITE_STALL`](flux_protocol::limits::HTTP_WRITE_STALL) loses its connection. hyper bounds how long a head
//! may take to come in; nothing there bounds how long a response may take to go out. And a head that took too long hyper
//! ends without a word, one that it cannot take with a status alone: [`Wire`] has the words.

use std::{
    future::Future as _,
    io::{Error, ErrorKind, IoSlice, Result},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};

use super::refused;

/// What is known of a connection beside hyper, and what is to be said when it ends.
#[derive(Debug, Default)]
pub(super) struct Wire {
    /// Bytes came, and nothing was written since: a head that has begun.
    asked: AtomicBool,
    http2: AtomicBool,
    last_words: OnceLock<Bytes>,
}

impl Wire {
    /// Whether a caller of HTTP/1.1 is in the middle of a head.
    pub(super) fn is_in_a_head(&self) -> bool {
        self.asked.load(Ordering::Relaxed) && !self.http2.load(Ordering::Relaxed)
    }

    /// Said when the connection is dropped, which is the first time that it is ours again.
    pub(super) fn say_at_the_end(&self, words: Bytes) {
        let _ = self.last_words.set(words);
    }

    fn read(&self, bytes: &[u8]) {
        if !bytes.is_empty() && !self.asked.swap(true, Ordering::Relaxed) && bytes.starts_with(b"PRI ") {
            self.http2.store(true, Ordering::Relaxed);
        }
    }
}

/// What is written in the place of something that hyper says.
struct Instead {
    words: Bytes,
    of_bytes: usize,
}

/// The status with which hyper refuses a head by itself. All that the routes answer has a request id.
fn refused_by_hyper(head: &[u8]) -> Option<u16> {
    const LINE: &[u8] = b"HTTP/1.1 ";
    const LARGEST: usize = 256;
    let status = head.strip_prefix(LINE)?.get(..3)?;
    let is_ours = || head.windows(REQUEST_ID.len()).any(|window| window.eq_ignore_ascii_case(REQUEST_ID));
    if status.first() != Some(&b'4') || head.len() > LARGEST || !head.ends_with(b"\r\n\r\n") || is_ours() {
        return None;
    }
    std::str::from_utf8(status).ok()?.parse().ok()
}

const REQUEST_ID: &[u8] = b"x-request-id";

pub(super) struct Patient<S: LastWords> {
    inner: S,
    wire: Arc<Wire>,
    patience: Duration,
    instead: Option<Instead>,
    /// Runs while a write waits for the peer. Made only then: most connections never wait.
    stalled: Option<Pin<Box<Sleep>>>,
}

/// A stream to which something may be written without waiting.
pub(super) trait LastWords {
    /// As much of it as goes out at once; nobody hears of an error.
    fn say(&self, words: &[u8]);
}

impl LastWords for TcpStream {
    fn say(&self, words: &[u8]) {
        let _ = self.try_write(words);
    }
}

impl<S: LastWords> Drop for Patient<S> {
    fn drop(&mut self) {
        if let Some(words) = self.wire.last_words.get() {
            self.inner.say(words);
        }
    }
}

impl<S: LastWords> Patient<S> {
    pub(super) fn new(inner: S, wire: Arc<Wire>, patience: Duration) -> Self {
        Self { inner, wire, patience, instead: None, stalled: None }
    }

    fn judge<T>(&mut self, cx: &mut Context<'_>, progress: Poll<Result<T>>) -> Poll<Result<T>> {
        if progress.is_ready() {
            self.stalled = None;
            return progress;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        metrics::counter!("flux_http_stalled_connections_total").increment(1);
        Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "the peer stopped reading its response")))
    }
}

impl<S: AsyncRead + LastWords + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let before = buf.filled().len();
        let progress = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.wire.read(buf.filled().get(before..).unwrap_or_default());
        progress
    }
}

impl<S: AsyncWrite + LastWords + Unpin> Patient<S> {
    /// Says more than hyper's bare status, where `said` is one. `None`: it is not.
    fn say_more(&mut self, cx: &mut Context<'_>, said: &[u8]) -> Option<Poll<Result<usize>>> {
        if self.instead.is_none() {
            // The rest of a body that went out in part may look the same.
            if !self.wire.asked.load(Ordering::Relaxed) {
                return None;
            }
            let words = refused_by_hyper(said).and_then(refused::of_a_head)?;
            self.instead = Some(Instead { words, of_bytes: said.len() });
        }
        let instead = self.instead.as_mut()?;
        while !instead.words.is_empty() {
            match Pin::new(&mut self.inner).poll_write(cx, &instead.words) {
                Poll::Ready(Ok(0)) => return Some(Poll::Ready(Err(ErrorKind::WriteZero.into()))),
                Poll::Ready(Ok(written)) => drop(instead.words.split_to(written)),
                Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(error))),
                Poll::Pending => return Some(Poll::Pending),
            }
        }
        self.instead.take().map(|instead| Poll::Ready(Ok(instead.of_bytes)))
    }
}

impl<S: AsyncWrite + LastWords + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        if let Some(progress) = self.say_more(cx, buf) {
            return self.judge(cx, progress);
        }
        let progress = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.wire.asked.store(false, Ordering::Relaxed);
        self.judge(cx, progress)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        if let [only] = bufs
            && let Some(progress) = self.say_more(cx, only)
        {
            return self.judge(cx, progress);
        }
        let progress = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.wire.asked.store(false, Ordering::Relaxed);
        self.judge(cx, progress)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let progress = Pin::new(&mut self.inner).poll_flush(cx);
        self.judge(cx, progress)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    impl LastWords for tokio::io::DuplexStream {
        fn say(&self, _: &[u8]) {}
    }

    #[test]
    fn what_hyper_says_by_itself_is_known() {
        let said: &[(&str, Option<u16>)] = &[
            (
                "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
                Some(431),
            ),
            ("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", Some(400)),
            ("HTTP/1.1 404 Not Found\r\nx-request-id: a\r\ncontent-length: 0\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", None),
            ("HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno", None),
            ("the middle of a body", None),
        ];
        for (bytes, status) in said {
            assert_eq!(refused_by_hyper(bytes.as_bytes()), *status, "{bytes}");
        }
    }

    #[tokio::test]
    async fn only_what_answers_a_head_is_said_in_other_words() {
        use tokio::io::AsyncReadExt as _;
        const BARE: &[u8] = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\n\r\n";
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let mut patient = Patient::new(ours, Arc::default(), Duration::from_secs(60));
        let mut heard = vec![0; 4096];
        patient.write_all(BARE).await.expect("the rest of a body");
        let length = theirs.read(&mut heard).await.expect("read");
        assert_eq!(&heard[..length], BARE);
        theirs.write_all(b"GET / HTTP/1.1\r\n").await.expect("a head begins");
        patient.read_exact(&mut [0; 16]).await.expect("read");
        patient.write_all(BARE).await.expect("refused");
        let length = theirs.read(&mut heard).await.expect("read");
        assert!(
            heard[..length].windows(14).any(|window| window == b"head_too_large"),
            "{}",
            heard[..length].escape_ascii()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_stops_reading_is_given_up_on() {
        let (ours, _theirs) = tokio::io::duplex(16);
        let mut patient = Patient::new(ours, Arc::default(), Duration::from_secs(60));
        let error = patient.write_all(&[0; 64]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_peer_is_waited_for() {
        use tokio::io::AsyncReadExt as _;
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut patient = Patient::new(ours, Arc::default(), Duration::from_secs(60));
        let write = async { patient.write_all(&[0; 64]).await };
        let read = async {
            let mut all = [0; 64];
            for piece in all.chunks_mut(16) {
                tokio::time::sleep(Duration::from_secs(50)).await;
                theirs.read_exact(piece).await.expect("read");
            }
        };
        tokio::join!(write, read).0.expect("slow is not stuck");
    }
}
