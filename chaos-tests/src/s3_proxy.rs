//! A TCP proxy in front of the S3 server that can refuse, hang, cut and slow down. What it does stands in a
//! control file that faults write; a connection that is open already changes its ways too.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How the proxy treats connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "mode")]
pub enum Mode {
    /// Everything goes through.
    Pass,
    /// Nothing listens, and open connections end.
    Refuse,
    /// Connections are accepted and nothing moves on them.
    Hang,
    /// A connection ends once this many bytes of it went to the server.
    CutAfter {
        /// How many.
        bytes: u64,
    },
    /// Every request is answered with this status, and the server hears of none.
    Fail {
        /// The HTTP status.
        status: u16,
    },
    /// No connection sends more than this in a second.
    Slow {
        /// How much.
        bytes_per_second: u64,
    },
}

/// How often the control file is read. Short against every timeout of a client.
const LOOK: Duration = Duration::from_millis(50);
const CHUNK: usize = 16 * 1024;

/// Runs until the process ends.
pub async fn serve(listen: SocketAddr, to: SocketAddr, control: PathBuf) -> Result<()> {
    let (send, mut mode) = watch::channel(read(&control).unwrap_or(Mode::Pass));
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Some(now) = read(&control) {
                send.send_if_modified(|mode| std::mem::replace(mode, now) != now);
            }
        }
    });
    let seen = mode.clone();
    loop {
        mode.wait_for(|mode| *mode != Mode::Refuse).await?;
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen}"))?;
        loop {
            tokio::select! {
                refused = mode.wait_for(|mode| *mode == Mode::Refuse) => { refused?; break }
                accepted = listener.accept() => {
                    let (client, _) = accepted?;
                    tokio::spawn(connection(client, to, seen.clone()));
                }
            }
        }
    }
}

fn read(control: &Path) -> Option<Mode> {
    serde_json::from_slice(&std::fs::read(control).ok()?).ok()
}

/// Answers one request and closes; what the client still sends is read, or it would see a reset instead.
async fn refuse(mut client: TcpStream, status: u16) {
    let mut buffer = vec![0; CHUNK];
    if !matches!(client.read(&mut buffer).await, Ok(1..)) {
        return;
    }
    let answer = format!("HTTP/1.1 {status} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    if client.write_all(answer.as_bytes()).await.is_err() || client.shutdown().await.is_err() {
        return;
    }
    let rest = async { while matches!(client.read(&mut buffer).await, Ok(1..)) {} };
    let _ = tokio::time::timeout(Duration::from_secs(5), rest).await;
}

async fn connection(client: TcpStream, to: SocketAddr, mut mode: watch::Receiver<Mode>) {
    let now = *mode.borrow();
    if let Mode::Fail { status } = now {
        return refuse(client, status).await;
    }
    let Ok(server) = TcpStream::connect(to).await else {
        return;
    };
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let up = forward(client_read, server_write, mode.clone(), true);
    let down = forward(server_read, client_write, mode.clone(), false);
    tokio::select! {
        _ = async { tokio::join!(up, down) } => {}
        // Dropping both ends closes them.
        _ = mode.wait_for(|mode| matches!(mode, Mode::Refuse | Mode::Fail { .. })) => {}
    }
}

/// Copies one direction. An error means that the connection is to be closed as a whole.
async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut mode: watch::Receiver<Mode>,
    to_server: bool,
) {
    let mut buffer = vec![0; CHUNK];
    let mut sent = 0_u64;
    loop {
        if mode.wait_for(|mode| *mode != Mode::Hang).await.is_err() {
            return;
        }
        let now = *mode.borrow();
        let limit = match now {
            Mode::Slow { bytes_per_second } => usize::try_from(bytes_per_second / 10)
                .unwrap_or(CHUNK)
                .clamp(1, CHUNK),
            _ => CHUNK,
        };
        let Some(window) = buffer.get_mut(..limit) else {
            return;
        };
        let count = match from.read(window).await {
            Ok(0) | Err(_) => {
                let _ = to.shutdown().await;
                return;
            }
            Ok(count) => count,
        };
        // What was read before the mode changed waits for the mode to change back.
        if mode.wait_for(|mode| *mode != Mode::Hang).await.is_err() {
            return;
        }
        if let (Mode::CutAfter { bytes }, true) = (now, to_server)
            && sent + count as u64 > bytes
        {
            let _ = to.shutdown().await;
            return;
        }
        let Some(bytes) = buffer.get(..count) else { return };
        if to.write_all(bytes).await.is_err() {
            return;
        }
        sent += count as u64;
        if let Mode::Slow { bytes_per_second } = now {
            tokio::time::sleep(Duration::from_secs_f64(
                count as f64 / bytes_per_second.max(1) as f64,
            ))
            .await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.into_split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        address
    }

    /// A free port: bound and let go.
    async fn free() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
    }

    async fn connect(address: SocketAddr) -> TcpStream {
        loop {
            if let Ok(stream) = TcpStream::connect(address).await {
                return stream;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn exchange(stream: &mut TcpStream) -> std::io::Result<[u8; 4]> {
        stream.write_all(b"ping").await?;
        let mut back = [0; 4];
        stream.read_exact(&mut back).await?;
        Ok(back)
    }

    #[tokio::test]
    async fn it_passes_then_hangs_then_refuses_then_cuts() {
        let dir = tempfile::tempdir().unwrap();
        let control = dir.path().join("control");
        let set =
            |mode: Mode| crate::cache::write_whole(&control, &serde_json::to_vec(&mode).unwrap()).unwrap();
        set(Mode::Pass);
        let listen = free().await;
        tokio::spawn(serve(listen, echo().await, control.clone()));
        let mut stream = connect(listen).await;
        assert_eq!(&exchange(&mut stream).await.unwrap(), b"ping");

        set(Mode::Hang);
        tokio::time::sleep(LOOK * 3).await;
        let hung = tokio::time::timeout(Duration::from_millis(200), exchange(&mut stream)).await;
        assert!(hung.is_err(), "it answered");

        set(Mode::Refuse);
        tokio::time::sleep(LOOK * 3).await;
        assert!(TcpStream::connect(listen).await.is_err());

        set(Mode::Fail { status: 503 });
        let mut stream = connect(listen).await;
        stream.write_all(b"PUT / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");

        set(Mode::CutAfter { bytes: 6 });
        tokio::time::sleep(LOOK * 3).await;
        let mut stream = connect(listen).await;
        assert_eq!(&exchange(&mut stream).await.unwrap(), b"ping");
        assert!(exchange(&mut stream).await.is_err(), "8 bytes went through");
    }
}
