//! Just enough of HTTP/1.1 to know where an answer ends: a load generator must cost less than what it loads.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

const LARGEST_HEAD: usize = 64 * 1024;
const LARGEST_BODY: usize = 128 * 1024 * 1024;

/// An answer's status, and whether the connection serves another request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) keep_alive: bool,
    /// It says when to try again.
    pub(crate) retry_after: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Head {
    status: u16,
    length: Option<usize>,
    chunked: bool,
    close: bool,
    retry_after: bool,
}

/// Reads one answer to its end. `buffer` may hold bytes left from before, and keeps its room for the next.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> io::Result<Response> {
    buffer.clear();
    let head_end = loop {
        if let Some(at) = find(buffer, b"\r\n\r\n") {
            break at + 4;
        }
        if buffer.len() > LARGEST_HEAD {
            return Err(invalid("a head without an end"));
        }
        fill(stream, buffer).await?;
    };
    let head = parse_head(&buffer[..head_end])?;
    let mut body_read = buffer.len() - head_end;
    if head.chunked {
        while !ends_with_last_chunk(&buffer[head_end..]) {
            fill(stream, buffer).await?;
        }
    } else if let Some(length) = head.length {
        if length > LARGEST_BODY {
            return Err(invalid("a body beyond every limit"));
        }
        // The body is counted, not kept: each read overwrites the last.
        while body_read < length {
            buffer.clear();
            body_read += fill(stream, buffer).await?;
        }
    } else if !matches!(head.status, 204 | 304) {
        // A body that ends with its connection, as those of CGI do.
        while body_read <= LARGEST_BODY {
            buffer.clear();
            buffer.reserve(16 * 1024);
            match stream.read_buf(buffer).await? {
                0 => {
                    return Ok(Response { status: head.status, keep_alive: false, retry_after: head.retry_after });
                }
                read => body_read += read,
            }
        }
        return Err(invalid("a body beyond every limit"));
    }
    Ok(Response { status: head.status, keep_alive: !head.close, retry_after: head.retry_after })
}

async fn fill(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> io::Result<usize> {
    buffer.reserve(16 * 1024);
    match stream.read_buf(buffer).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        read => Ok(read),
    }
}

fn parse_head(head: &[u8]) -> io::Result<Head> {
    let text = std::str::from_utf8(head).map_err(|_| invalid("a head that is not text"))?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let mut parsed = Head { status: status.ok_or_else(|| invalid("no status line"))?, ..Head::default() };
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            parsed.length = value.parse().ok();
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            parsed.chunked = value.eq_ignore_ascii_case("chunked");
        } else if name.eq_ignore_ascii_case("connection") {
            parsed.close = value.eq_ignore_ascii_case("close");
        } else if name.eq_ignore_ascii_case("retry-after") {
            parsed.retry_after = true;
        }
    }
    Ok(parsed)
}

/// One answer at a time is on the wire, so that the last chunk is also the last of what was read.
fn ends_with_last_chunk(body: &[u8]) -> bool {
    body == b"0\r\n\r\n" || body.ends_with(b"\r\n0\r\n\r\n")
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::{Response, read};

    async fn read_all(mut bytes: &[u8]) -> std::io::Result<Response> {
        read(&mut bytes, &mut Vec::new()).await
    }

    #[tokio::test]
    async fn a_body_by_length() {
        let answer = read_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc").await.expect("an answer");
        assert_eq!(answer, Response { status: 200, keep_alive: true, retry_after: false });
    }

    #[tokio::test]
    async fn no_body_and_a_connection_that_ends() {
        let answer =
            read_all(b"HTTP/1.1 503 Busy\r\nconnection: close\r\nRetry-After: 1\r\n\r\n").await.expect("an answer");
        assert_eq!(answer, Response { status: 503, keep_alive: false, retry_after: true });
    }

    #[tokio::test]
    async fn a_body_that_ends_with_its_connection() {
        let answer = read_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nabc").await.expect("an answer");
        assert_eq!(answer, Response { status: 200, keep_alive: false, retry_after: false });
        let answer = read_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("an answer");
        assert_eq!(answer, Response { status: 204, keep_alive: true, retry_after: false });
    }

    #[tokio::test]
    async fn a_body_in_chunks() {
        let bytes = b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        assert_eq!(read_all(bytes).await.expect("an answer").status, 202);
    }

    #[tokio::test]
    async fn an_answer_cut_short_is_an_error() {
        assert!(read_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").await.is_err());
        assert!(read_all(b"SSH-2.0-OpenSSH\r\n\r\n").await.is_err());
    }
}
