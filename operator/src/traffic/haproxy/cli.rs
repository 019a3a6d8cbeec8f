//! One line asked of HAProxy's runtime API. It answers and closes.

use std::fmt;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::traffic::{ANSWER_LIMIT, TrafficError};

/// The longest answer that is read: 1000 servers fill less.
const LONGEST: u64 = 1 << 20;

/// Where a runtime API listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `host:port`.
    Tcp(String),
    /// A socket's path.
    Socket(String),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(text) | Self::Socket(text) => f.write_str(text),
        }
    }
}

impl Endpoint {
    pub(super) fn parse(text: &str) -> Result<Self, TrafficError> {
        if text.starts_with('/') {
            return Ok(Self::Socket(text.to_owned()));
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => {
                Ok(Self::Tcp(text.to_owned()))
            }
            _ => Err(TrafficError::Spec {
                field: "spec.traffic.haproxy.endpoints",
                problem: format!("has {text:?}, which is neither `host:port` nor the path of a socket"),
            }),
        }
    }

    /// Sends one line and reads to the end of the answer.
    pub(super) async fn ask(&self, line: &str) -> io::Result<String> {
        let exchange = async {
            match self {
                Self::Tcp(address) => talk(TcpStream::connect(address).await?, line).await,
                Self::Socket(path) => talk(UnixStream::connect(path).await?, line).await,
            }
        };
        match timeout(ANSWER_LIMIT, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no whole answer within {} s", ANSWER_LIMIT.as_secs()),
            )),
        }
    }
}

async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin, line: &str) -> io::Result<String> {
    stream.write_all(format!("{line}\n").as_bytes()).await?;
    let mut answer = String::new();
    let read = stream.take(LONGEST).read_to_string(&mut answer).await?;
    if u64::try_from(read).is_ok_and(|read| read == LONGEST) {
        return Err(io::Error::other("the answer is longer than 1 MiB"));
    }
    Ok(answer)
}
