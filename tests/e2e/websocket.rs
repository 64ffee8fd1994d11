//! A WebSocket client of the least kind, on a raw socket, so that a test sees every byte that comes.

use anyhow::{Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// An open WebSocket.
pub(crate) struct WebSocket<S = TcpStream> {
    stream: S,
}

/// What a plain socket got back for a request, head first.
pub(crate) async fn raw(port: u16, request: &str) -> Result<(TcpStream, String)> {
    raw_over(TcpStream::connect(("127.0.0.1", port)).await?, request).await
}

async fn raw_over<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, request: &str) -> Result<(S, String)> {
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await?;
        head.push(byte);
        ensure!(head.len() < 16 * 1024, "an endless head");
    }
    Ok((stream, String::from_utf8(head)?))
}

/// The request that opens one.
pub(crate) fn opening(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

impl WebSocket {
    /// Opens one.
    pub(crate) async fn open(port: u16, path: &str) -> Result<Self> {
        Self::over(TcpStream::connect(("127.0.0.1", port)).await?, path).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// Opens one on this connection, and checks the answer as a browser would.
    pub(crate) async fn over(stream: S, path: &str) -> Result<Self> {
        let (stream, head) = raw_over(stream, &opening(path)).await?;
        let lower = head.to_ascii_lowercase();
        ensure!(head.starts_with("HTTP/1.1 101 "), "{head}");
        ensure!(lower.contains("upgrade: websocket\r\n") && lower.contains("connection: upgrade\r\n"), "{head}");
        // RFC 6455, section 1.3, has this pair.
        ensure!(lower.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{head}");
        ensure!(lower.contains("x-request-id: ") && !lower.contains("dartcloud-"), "{head}");
        Ok(Self { stream })
    }

    /// Sends a text of up to 125 bytes, masked as clients must.
    pub(crate) async fn send(&mut self, text: &str) -> Result<()> {
        ensure!(text.len() < 126, "too long for this client");
        let mask = [1, 2, 3, 4];
        let mut frame = vec![0x81, 0x80 | text.len() as u8];
        frame.extend(mask);
        frame.extend(text.bytes().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
        Ok(self.stream.write_all(&frame).await?)
    }

    /// The next text.
    pub(crate) async fn receive(&mut self) -> Result<String> {
        let (kind, length) = (self.stream.read_u8().await?, self.stream.read_u8().await?);
        ensure!(kind == 0x81 && length < 126, "a frame of kind {kind:#x} and length {length}");
        let mut text = vec![0; length.into()];
        self.stream.read_exact(&mut text).await?;
        Ok(String::from_utf8(text)?)
    }

    /// Reads until the other side is gone.
    pub(crate) async fn closed(mut self) -> Result<()> {
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _ = self.stream.read_to_end(&mut rest).await;
        Ok(())
    }
}
