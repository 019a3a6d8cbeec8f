//! A snapshot as etcd streams it, checked on the way.
//!
//! `Maintenance.Snapshot` sends the database in messages of 32 KiB and, last, the SHA-256 of all of it; the
//! file that `etcdutl snapshot restore` takes is both together, and its size leaves 32 when divided by 512
//! (facts.md section 3.1). So a stream that was cut, or changed on the way, is known for what it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use etcd_client::SnapshotStreaming;
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};

use super::EtcdError;
use crate::aside::aside;
use crate::store::{Fingerprint, KeyHash, Piece, Source, hex};

/// Longest silence between two messages. etcd reads them from memory-mapped pages: seconds on a bad disk.
const SILENCE: Duration = Duration::from_secs(20);

/// What is given on at once: three of etcd's messages. Whoever keeps a pace has etcd rest after each; while etcd streams at
/// full speed, it looks seldom for other requests. From 128 KiB on memory would be fetched from the kernel each time.
const PIECE: usize = 96 * 1024;

const TRAILER: usize = 32;

/// bbolt's smallest unit of a file.
const SECTOR: u64 = 512;

/// Which member a snapshot is of, and how new it is at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Of a linearizable read through this member just before: what is streamed is at least this new.
    pub revision: i64,
    /// Hexadecimal.
    pub cluster_id: String,
    /// Hexadecimal.
    pub member_id: String,
    /// The server's version.
    pub etcd_version: String,
    /// Of the data; etcd says it from 3.6 on.
    pub storage_version: Option<String>,
    /// Keys at that revision; none when the member did not count them in time.
    pub keys: Option<i64>,
    /// The member's own hash of its keys at that revision; none when its database is large ([`super::HASHED`]).
    pub hash_kv: Option<KeyHash>,
}

/// A snapshot on its way.
///
/// It is read by a thread of its own, whose runtime has no other: the connection and whoever reads it take turns there
/// without waking one another on another processor for each 16 KiB. Dropped, it ends the thread.
#[derive(Debug)]
pub struct Snapshot {
    origin: Origin,
    pieces: mpsc::Receiver<Result<Piece, EtcdError>>,
    streamed: Arc<AtomicU64>,
}

impl Snapshot {
    /// Runs `begin`, which connects and asks for the stream, on that thread.
    pub(super) async fn begin<B>(begin: impl FnOnce() -> B + Send + 'static) -> Result<Self, EtcdError>
    where
        B: Future<Output = Result<(Origin, SnapshotStreaming), EtcdError>>,
    {
        let (told, origin) = oneshot::channel();
        // One that is taken, and one that is there when it comes for the next.
        let (give, pieces) = mpsc::channel(1);
        let streamed = Arc::<AtomicU64>::default();
        let counter = streamed.clone();
        // Nothing to wait for: its end is that of `pieces`.
        drop(aside("snapshot", move || {
            let unwanted = give.clone();
            let read = async move {
                let (origin, stream) = match begin().await {
                    Ok(begun) => begun,
                    Err(e) => return drop(told.send(Err(e))),
                };
                if told.send(Ok(origin)).is_ok()
                    && let Err(e) = read(stream, &give, &counter).await
                {
                    // Nobody reads on: then nobody wants to know.
                    let _ = give.send(Err(e)).await;
                }
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            if let Ok(runtime) = runtime {
                runtime.block_on(async {
                    tokio::select! {
                        () = read => {}
                        () = unwanted.closed() => {}
                    }
                });
            }
        }));
        let origin = origin.await.map_err(|_| EtcdError::broken("it broke here"))??;
        Ok(Self {
            origin,
            pieces,
            streamed,
        })
    }

    /// Which member it is of.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Counts the bytes that came; may be read while it streams.
    #[must_use]
    pub fn streamed(&self) -> Arc<AtomicU64> {
        self.streamed.clone()
    }
}

impl Source for Snapshot {
    type Error = EtcdError;

    async fn next(&mut self) -> Result<Piece, EtcdError> {
        let next = self.pieces.recv().await;
        next.unwrap_or_else(|| Err(EtcdError::broken("it broke here")))
    }
}

/// Gives all that comes, checked, and the end of it.
async fn read(
    mut stream: SnapshotStreaming,
    give: &mpsc::Sender<Result<Piece, EtcdError>>,
    streamed: &AtomicU64,
) -> Result<(), EtcdError> {
    let doing = "stream a snapshot";
    let (mut check, mut remaining) = (TrailerCheck::default(), 0);
    let new = || BytesMut::with_capacity(PIECE);
    let mut piece = new();
    loop {
        let message = match tokio::time::timeout(SILENCE, stream.message()).await {
            Ok(message) => message.map_err(|e| EtcdError::asked(doing, &e))?,
            Err(_) => {
                return Err(EtcdError::TimedOut {
                    doing,
                    limit: SILENCE,
                });
            }
        };
        if let Some(message) = &message {
            remaining = message.remaining_bytes();
            check.push(message.blob());
            streamed.store(check.size, Ordering::Relaxed);
            piece.extend_from_slice(message.blob());
        }
        if piece.len() >= PIECE || (message.is_none() && !piece.is_empty()) {
            let full = std::mem::replace(&mut piece, new()).freeze();
            if give.send(Ok(Piece::Data(full))).await.is_err() {
                return Ok(());
            }
        }
        if message.is_none() {
            if remaining > 0 {
                return Err(SnapshotError::Short { remaining }.into());
            }
            let end = Piece::End(check.finish()?);
            // As above.
            let _ = give.send(Ok(end)).await;
            return Ok(());
        }
    }
}

/// Why what was streamed is no snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The stream ended before its end.
    #[error("etcd ended the stream {remaining} bytes too early")]
    Short {
        /// As the server counted.
        remaining: u64,
    },
    /// A database has whole sectors, and a trailer follows.
    #[error("{size} bytes came, which is not a database and a trailer of 32 bytes")]
    Size {
        /// All of it.
        size: u64,
    },
    /// Damaged on the way, or not a snapshot.
    #[error("the SHA-256 of what came is {found}, and etcd's trailer says {trailer}")]
    Trailer {
        /// Hexadecimal.
        found: String,
        /// Hexadecimal.
        trailer: String,
    },
}

/// Compares the last 32 bytes of a stream with the SHA-256 of all before them, and hashes the whole.
#[derive(Clone, Debug, Default)]
pub struct TrailerCheck {
    hash: Sha256,
    /// The last bytes so far, at most 32, not yet in `hash`: they may be the trailer.
    held: Vec<u8>,
    size: u64,
}

impl TrailerCheck {
    /// The next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        if let Some((before, last)) = bytes.split_last_chunk::<TRAILER>() {
            self.hash.update(&self.held);
            self.hash.update(before);
            self.held.clear();
            self.held.extend_from_slice(last);
        } else {
            self.held.extend_from_slice(bytes);
            let surplus = self.held.len().saturating_sub(TRAILER);
            let (before, _) = self.held.split_at(surplus);
            self.hash.update(before);
            self.held.drain(..surplus);
        }
    }

    /// All has come.
    ///
    /// # Errors
    /// When it is not a database with its trailer.
    pub fn finish(mut self) -> Result<Fingerprint, SnapshotError> {
        let Self { size, .. } = self;
        if size % SECTOR != TRAILER as u64 || size < SECTOR {
            return Err(SnapshotError::Size { size });
        }
        let found = self.hash.clone().finalize();
        if found.as_slice() != self.held {
            return Err(SnapshotError::Trailer {
                found: hex(&found),
                trailer: hex(&self.held),
            });
        }
        self.hash.update(&self.held);
        Ok(Fingerprint {
            size,
            sha256: hex(&self.hash.finalize()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn snapshot(sectors: usize, seed: u8) -> Vec<u8> {
        let mut file: Vec<u8> = (0..sectors * 512).map(|i| (i % 251) as u8 ^ seed).collect();
        let trailer = Sha256::digest(&file);
        file.extend_from_slice(&trailer);
        file
    }

    fn check(file: &[u8], cuts: &[usize]) -> Result<Fingerprint, SnapshotError> {
        let mut check = TrailerCheck::default();
        let mut rest = file;
        for cut in cuts {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            check.push(now);
            rest = later;
        }
        check.push(rest);
        check.finish()
    }

    proptest! {
        #[test]
        fn a_whole_snapshot_passes_however_it_is_cut(
            sectors in 1_usize..20, seed: u8, cuts in prop::collection::vec(0_usize..1500, 0..30)
        ) {
            let file = snapshot(sectors, seed);
            let fingerprint = check(&file, &cuts).unwrap();
            prop_assert_eq!(fingerprint.size, file.len() as u64);
            prop_assert_eq!(fingerprint.sha256, hex(&Sha256::digest(&file)));
        }

        #[test]
        fn a_flipped_bit_anywhere_is_seen(
            sectors in 1_usize..20, at: prop::sample::Index, bit in 0_u8..8, cuts in prop::collection::vec(0_usize..1500, 0..9)
        ) {
            let mut file = snapshot(sectors, 0);
            let at = at.index(file.len());
            file[at] ^= 1 << bit;
            let is_mismatch = matches!(check(&file, &cuts), Err(SnapshotError::Trailer { .. }));
            prop_assert!(is_mismatch);
        }

        #[test]
        fn a_truncated_one_is_seen(sectors in 1_usize..20, at: prop::sample::Index) {
            let file = snapshot(sectors, 0);
            prop_assert!(check(&file[..at.index(file.len())], &[]).is_err());
        }
    }

    #[test]
    fn a_stream_without_a_trailer_is_seen() {
        let file = snapshot(4, 0);
        assert_eq!(check(&file[..2048], &[]), Err(SnapshotError::Size { size: 2048 }));
        assert_eq!(check(&[], &[]), Err(SnapshotError::Size { size: 0 }));
        let trailer_of_nothing = Sha256::digest(b"");
        assert_eq!(
            check(&trailer_of_nothing, &[]),
            Err(SnapshotError::Size { size: 32 })
        );
    }
}
