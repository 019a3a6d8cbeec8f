//! Stands between a client and the real S3 server: hears what is asked for, and moves the clock of the answers.

use std::sync::{Arc, Mutex};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// Relays one port, in the clear.
pub(crate) struct Relay {
    pub(crate) endpoint: String,
    heard: Arc<Mutex<String>>,
    answered: Arc<Mutex<String>>,
}

impl Relay {
    /// To the server on this port; its answers' `Date`s are moved by `ahead`.
    pub(crate) async fn start(server: u16, ahead: TimeDelta) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let heard = Arc::new(Mutex::new(String::new()));
        let answered = Arc::new(Mutex::new(String::new()));
        let (hears, notes) = (heard.clone(), answered.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (hears, notes) = (hears.clone(), notes.clone());
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else {
                        return;
                    };
                    let ((from, back), (answers, to)) = (client.into_split(), server.into_split());
                    let asked = |bytes: &mut [u8]| {
                        hears.lock().unwrap().push_str(&String::from_utf8_lossy(bytes));
                    };
                    let told = |bytes: &mut [u8]| {
                        move_date(bytes, ahead);
                        notes.lock().unwrap().push_str(&String::from_utf8_lossy(bytes));
                    };
                    tokio::join!(copy(from, to, asked), copy(answers, back, told));
                });
            }
        });
        Self {
            endpoint,
            heard,
            answered,
        }
    }

    /// The lines of what was sent that begin so, in lower case.
    pub(crate) fn heard(&self, begin: &str) -> Vec<String> {
        lines(&self.heard, begin)
    }

    /// The same of what came back.
    pub(crate) fn answered(&self, begin: &str) -> Vec<String> {
        lines(&self.answered, begin)
    }
}

fn lines(text: &Mutex<String>, begin: &str) -> Vec<String> {
    let text = text.lock().unwrap();
    let lines = text.lines().map(str::to_ascii_lowercase);
    lines.filter(|line| line.starts_with(begin)).collect()
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut seen: impl FnMut(&mut [u8])) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        seen(&mut buffer[..count]);
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// The heads of these small answers come in one piece.
fn move_date(bytes: &mut [u8], ahead: TimeDelta) {
    let name = b"\r\nDate: ";
    let Some(at) = bytes.windows(name.len()).position(|w| w == name) else {
        return;
    };
    let date = &mut bytes[at + name.len()..][..29];
    let text = std::str::from_utf8(date).unwrap();
    let moved = DateTime::parse_from_rfc2822(text).unwrap().with_timezone(&Utc) + ahead;
    date.copy_from_slice(moved.format("%a, %d %b %Y %H:%M:%S GMT").to_string().as_bytes());
}
