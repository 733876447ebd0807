//! Socket wrapper that replaces the HTTP library's replies to malformed requests by error objects, and drops peers that never read.
//!
//! The library answers a head that it cannot parse before any of our code has seen it, with a status and no body. That reply is the first
//! and only content of its write, so it is recognized by the missing id and body.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::error::ApiError;

/// Timeout of a peer that takes nothing of an answer. Chosen: twice what a head or a body may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Socket with a pending replacement of the library's last reply.
pub(crate) struct Replies<S> {
    socket: S,
    own: Vec<u8>,
    write_timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncWrite + Unpin> Replies<S> {
    pub(crate) fn new(socket: S) -> Self {
        Self::with_timeout(socket, WRITE_TIMEOUT)
    }

    fn with_timeout(socket: S, write_timeout: Duration) -> Self {
        Self { socket, own: Vec::new(), write_timeout, stalled: None }
    }

    /// Writes the replacement of the library's reply.
    fn poll_own(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.own.is_empty() {
            let written = Pin::new(&mut self.socket).poll_write(cx, &self.own);
            let num_written = ready!(self.within_time(cx, written))?;
            self.own.drain(..num_written);
        }
        Poll::Ready(Ok(()))
    }

    /// Returns `written`, or an error if the peer has taken nothing for too long.
    fn within_time(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(self.write_timeout)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replies<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replies<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_own(cx))?;
        if let Some(own) = error_object_for(bytes) {
            self.own = own;
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.within_time(cx, written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.poll_own(cx))?;
        if let [head] = parts
            && let Some(own) = error_object_for(head)
        {
            self.own = own;
            return Poll::Ready(Ok(head.len()));
        }
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, parts);
        self.within_time(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_own(cx))?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_own(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// Returns the replacement for `bytes` if they are the library's own reply to a request that it could not parse.
fn error_object_for(bytes: &[u8]) -> Option<Vec<u8>> {
    let is_error = bytes.starts_with(b"HTTP/1.1 4") || bytes.starts_with(b"HTTP/1.0 4");
    let head = is_error.then(|| std::str::from_utf8(bytes).ok()).flatten()?;
    let is_whole = head.find("\r\n\r\n") == Some(head.len() - 4);
    let lower = head.to_ascii_lowercase();
    if !is_whole || !lower.contains("\r\ncontent-length: 0\r\n") || lower.contains("\r\nx-request-id:") {
        return None;
    }
    let (status_line, _) = head.split_once("\r\n")?;
    let status = status_line.split(' ').nth(1)?.parse().ok()?;
    let object = serde_json::to_string(&ApiError::BadHead { status }.body()).expect("errors have string keys only");
    let length = object.len();
    let fields = format!("content-type: application/json\r\ncontent-length: {length}\r\nconnection: close");
    Some(format!("{status_line}\r\n{fields}\r\n\r\n{object}").into_bytes())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Checks that `sent` on the socket arrives as `expected`.
    async fn check(sent: &str, expected: &str) {
        let (ours, mut theirs) = duplex(64);
        let mut ours = Replies::new(ours);
        let sent = sent.to_owned();
        let writing = tokio::spawn(async move {
            ours.write_all(sent.as_bytes()).await.unwrap();
            ours.shutdown().await.unwrap();
        });
        let mut arrived = String::new();
        theirs.read_to_string(&mut arrived).await.unwrap();
        writing.await.unwrap();
        assert_eq!(arrived, expected);
    }

    #[tokio::test]
    async fn a_reply_without_a_body_becomes_an_error_object() {
        let object = serde_json::to_string(&ApiError::BadHead { status: 431 }.body()).unwrap();
        let expected = format!(
            "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{object}",
            object.len()
        );
        check(
            "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n",
            &expected,
        )
        .await;
    }

    #[tokio::test]
    async fn everything_else_is_written_as_it_is() {
        let others = [
            "HTTP/1.1 400 Bad Request\r\nx-request-id: 7\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "data: HTTP/1.1 400\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 4",
        ];
        for other in others {
            check(other, other).await;
        }
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_left() {
        let (ours, _theirs) = duplex(8);
        let error = Replies::with_timeout(ours, Duration::from_millis(20)).write_all(&[0; 100]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
