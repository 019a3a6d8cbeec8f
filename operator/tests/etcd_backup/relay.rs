//! Stands between a client and the real S3 server: hears what is asked for, moves the clock of the answers, and
//! translates the two things in which Google's dialect of the protocol differs: who one is, and conditions.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::world::{BUCKET, ObjectServer};

const MINUTE: Duration = Duration::from_secs(60);

/// Relays one port, in the clear.
pub(crate) struct Relay {
    pub(crate) endpoint: String,
    heard: Arc<Mutex<String>>,
    answered: Arc<Mutex<String>>,
}

impl Relay {
    /// To the server on this port; its answers' `Date`s are moved by `ahead`.
    pub(crate) async fn start(server: u16, ahead: TimeDelta) -> Self {
        Self::start_with(server, ahead, None).await
    }

    /// For a client of Google's: its requests are signed as S3's are, and its condition becomes S3's.
    pub(crate) async fn for_google(server: &ObjectServer) -> Self {
        let signer = Arc::new(server.raw());
        Self::start_with(server.port, TimeDelta::zero(), Some(signer)).await
    }

    async fn start_with(server: u16, ahead: TimeDelta, google: Option<Arc<AmazonS3>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let heard = Arc::new(Mutex::new(String::new()));
        let answered = Arc::new(Mutex::new(String::new()));
        let (hears, notes) = (heard.clone(), answered.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (hears, notes, google) = (hears.clone(), notes.clone(), google.clone());
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else {
                        return;
                    };
                    let ((from, back), (answers, to)) = (client.into_split(), server.into_split());
                    let up = Pass::Up(hears, google);
                    tokio::join!(copy(from, to, up), copy(answers, back, Pass::Down(notes, ahead)));
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

/// What becomes of the bytes on their way.
enum Pass {
    /// To the server.
    Up(Arc<Mutex<String>>, Option<Arc<AmazonS3>>),
    /// Back.
    Down(Arc<Mutex<String>>, TimeDelta),
}

impl Pass {
    async fn on(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        match self {
            Self::Up(heard, google) => {
                heard.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes));
                match google {
                    Some(signer) => from_google(bytes, signer).await,
                    None => bytes,
                }
            }
            Self::Down(answered, ahead) => {
                move_date(&mut bytes, *ahead);
                answered
                    .lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&bytes));
                bytes
            }
        }
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, pass: Pass) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let bytes = pass.on(buffer[..count].to_vec()).await;
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// The head of a request, if one begins here: they come in one piece.
async fn from_google(bytes: Vec<u8>, signer: &AmazonS3) -> Vec<u8> {
    let begins = ["GET /", "HEAD /", "PUT /", "POST /", "DELETE /"];
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n");
    let Some(end) = end.filter(|_| begins.iter().any(|b| bytes.starts_with(b.as_bytes()))) else {
        return bytes;
    };
    let (head, rest) = bytes.split_at(end);
    let mut lines = std::str::from_utf8(head).unwrap().split("\r\n");
    let mut first = lines.next().unwrap().split(' ');
    let (method, target) = (first.next().unwrap(), first.next().unwrap());
    let asked = reqwest::Url::parse(&format!("http://google{target}")).unwrap();
    let object = asked.path().trim_start_matches(&format!("/{BUCKET}"));
    let query: Vec<(String, String)> = asked.query_pairs().into_owned().collect();
    let options = SignedUrlOptions::new().with_query(query);
    let (method, object) = (method.parse().unwrap(), Path::from_url_path(object).unwrap());
    let signed = signer.signed_url_opts(http::Method::clone(&method), &object, MINUTE, &options);
    let signed = signed.await.unwrap();
    let target = format!("{}?{}", signed.path(), signed.query().unwrap());
    let host = format!("host: 127.0.0.1:{}", signed.port().unwrap());
    let lines = lines.filter(|line| !line.starts_with("authorization:"));
    let lines = lines.map(|line| match line {
        "x-goog-if-generation-match: 0" => "if-none-match: *",
        line if line.starts_with("host:") => &host,
        line => line,
    });
    let lines: Vec<&str> = lines.collect();
    let head = format!("{method} {target} HTTP/1.1\r\n{}", lines.join("\r\n"));
    [head.as_bytes(), rest].concat()
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
