//! A backup out of the store, into a file: checked on the way, and there only when it is whole.

use std::fs::File;
use std::io::{Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::manifest::Object;
use super::pack::{Unreadable, unpack};
use super::upload::FRAME;
use super::whole::Unlike;
use super::{BackupKey, Failure, Fingerprint, Identities, Manifest, Store, StoreError, hex};

/// Pieces between the network and the disk. They are of what one read of the connection gives: 64 KiB at most.
const BETWEEN: usize = 32;

/// Chunks that the thread that hashes may be behind, each of a frame.
const AHEAD: usize = 2;

impl Store {
    /// Brings the snapshot of the backup at `key` into the file `into`, as `etcdutl snapshot restore` takes it.
    ///
    /// # Guarantees
    /// * `Ok`: what is stored had the size and hash that the manifest says, and so has the file, with mode 0600. It is
    ///   read and removed soon: what a power cut leaves of it is worth nothing, so that it need not be on the disk, which
    ///   etcd may be using.
    /// * `Err`: `into` is as it was before. Beside it there may be `.<name>.part`, if the process was killed.
    /// * Memory is bounded, whatever the size.
    ///
    /// # Errors
    /// When `manifest` is not of the backup at `key`, when none of `keys` opens it, when what is stored is not what
    /// the manifest says, when the store or the disk fails, or on cancellation.
    pub async fn fetch(
        &self,
        manifest: &Manifest,
        key: &BackupKey,
        keys: &Identities,
        into: &Path,
        cancel: &CancellationToken,
    ) -> Result<(), StoreError> {
        self.belongs(manifest, key)?;
        let object = manifest.snapshot();
        let location = key.object(&object.name);
        if let Some(encrypted) = &object.encrypted {
            let fits = keys.fit(encrypted, &self.uri(&location));
            fits.map_err(|f| self.failure(f))?;
        }
        let beside = beside(into);
        let (path, wanted, own) = (beside.clone(), object.clone(), keys.clone());
        let write = move |pieces| write_out(pieces, &path, &wanted, &own);
        let fetched = self.bring(&location, &object, write, cancel).await;
        let placed = match fetched {
            Ok(()) => tokio::fs::rename(&beside, into).await.map_err(|e| {
                self.failure(Failure::File {
                    path: into.display().to_string(),
                    doing: "put into its place",
                    detail: e.to_string(),
                })
            }),
            Err(error) => Err(error),
        };
        if placed.is_err() {
            // The error in hand says more than one about this could.
            let _ = tokio::fs::remove_file(&beside).await;
        }
        placed
    }

    /// Gives the bytes of an object to `open`, on a thread that may block.
    pub(super) async fn bring<T: Send + 'static>(
        &self,
        location: &object_store::path::Path,
        object: &Object,
        open: impl FnOnce(Pieces) -> Result<T, Unwritten> + Send + 'static,
        cancel: &CancellationToken,
    ) -> Result<T, StoreError> {
        let (pieces, taken) = mpsc::channel(BETWEEN);
        let opening = tokio::task::spawn_blocking(move || open(Pieces::new(taken)));
        let damaged = |detail| {
            self.failure(Failure::Damaged {
                location: self.uri(location),
                detail,
            })
        };
        let read = tokio::select! {
            read = self.whole(location, &object.stored, "read a backup", Some(pieces)) => {
                read.map_err(|unlike| match unlike {
                    Unlike::Store(error) => error,
                    Unlike::Differs(detail) => damaged(detail),
                })
            }
            () = cancel.cancelled() => Err(self.failure(Failure::Cancelled)),
        };
        // What it reads from has ended with the download, whichever way.
        let opened = opening
            .await
            .unwrap_or_else(|e| Err(Unreadable::Content(e.to_string()).into()));
        match (read, opened) {
            (Ok(()), Ok(opened)) => Ok(opened),
            // Whatever the content lacks, the disk is the reason that the download was cut short.
            (_, Err(Unwritten::Here(failure))) => Err(self.failure(failure)),
            (Err(error), _) => Err(error),
            (Ok(()), Err(Unwritten::Content(Unreadable::Content(detail)))) => Err(damaged(detail)),
            // It is what was stored, to the byte: so it is the key.
            (Ok(()), Err(Unwritten::Content(Unreadable::WrongKey))) => Err(self.failure(Failure::WrongKey {
                location: self.uri(location),
                wanted: object
                    .encrypted
                    .as_ref()
                    .map(super::keys::wanted)
                    .unwrap_or_default(),
            })),
        }
    }
}

/// Why what came is not there.
pub(super) enum Unwritten {
    /// Because of this machine: nothing more need be read.
    Here(Failure),
    /// Because of what came. It was read to its end, so that the download's own verdict is there too.
    Content(Unreadable),
}

impl From<Unreadable> for Unwritten {
    fn from(content: Unreadable) -> Self {
        Self::Content(content)
    }
}

fn unwritten(path: &Path, e: &dyn std::error::Error) -> Failure {
    Failure::File {
        path: path.display().to_string(),
        doing: "written",
        detail: e.to_string(),
    }
}

/// What came from the network, as a reader for a thread that may block.
pub(super) struct Pieces {
    from: mpsc::Receiver<Bytes>,
    now: Bytes,
}

impl Pieces {
    fn new(from: mpsc::Receiver<Bytes>) -> Self {
        Self {
            from,
            now: Bytes::new(),
        }
    }

    fn drain(&mut self) {
        while self.from.blocking_recv().is_some() {}
    }
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.now.is_empty() {
            match self.from.blocking_recv() {
                Some(piece) => self.now = piece,
                None => return Ok(0),
            }
        }
        let piece = self.now.split_to(into.len().min(self.now.len()));
        if let Some(into) = into.get_mut(..piece.len()) {
            into.copy_from_slice(&piece);
        }
        Ok(piece.len())
    }
}

fn write_out(from: Pieces, path: &Path, object: &Object, keys: &Identities) -> Result<(), Unwritten> {
    let here = |e: std::io::Error| Unwritten::Here(unwritten(path, &e));
    let mut file = create(path).map_err(here)?;
    plain(from, object, keys, |data| file.write_all(data).map_err(here))
}

/// Unpacks what comes, gives it to `into`, and compares it with what was packed. All that comes is taken, so that the
/// download says too what it is. A thread of its own hashes: that takes as long as the rest.
pub(super) fn plain(
    mut from: Pieces,
    object: &Object,
    keys: &Identities,
    into: impl FnMut(&[u8]) -> Result<(), Unwritten>,
) -> Result<(), Unwritten> {
    let (give, taken) = sync_channel(AHEAD);
    let (back, used) = channel();
    let (unpacked, found) = std::thread::scope(|scope| {
        let hashing = scope.spawn(move || hash(taken, &back));
        let encrypted = object.encrypted.as_ref().map(|e| (e, keys));
        let chunks = Chunks { give, used };
        let unpacked = unpack(&mut from, object.compression, encrypted)
            .map_err(Unwritten::from)
            // One byte more than there should be is enough to know. Whether it is called or not, the chunks go with it, and
            // the thread that waits for them ends.
            .and_then(move |plain| pour(plain.take(object.plain.size + 1), into, &chunks));
        (unpacked, hashing.join())
    });
    if !matches!(unpacked, Err(Unwritten::Here(_))) {
        from.drain();
    }
    unpacked?;
    let content = |detail| Unwritten::Content(Unreadable::Content(detail));
    let found = found.map_err(|_| content("it could not be hashed".to_owned()))?;
    if found != object.plain {
        return Err(content(format!(
            "unpacked, it has {} bytes with SHA-256 {} instead of {} bytes with {}",
            found.size, found.sha256, object.plain.size, object.plain.sha256
        )));
    }
    Ok(())
}

/// To the thread that hashes, and back to be used again.
struct Chunks {
    give: SyncSender<Chunk>,
    used: Receiver<Chunk>,
}

/// Room for a frame, and how much of it is filled.
struct Chunk {
    room: Vec<u8>,
    filled: usize,
}

impl Chunk {
    fn new() -> Self {
        Self {
            room: vec![0; FRAME],
            filled: 0,
        }
    }

    fn data(&self) -> &[u8] {
        self.room.get(..self.filled).unwrap_or_default()
    }
}

fn pour(
    mut from: impl Read,
    mut into: impl FnMut(&[u8]) -> Result<(), Unwritten>,
    hashing: &Chunks,
) -> Result<(), Unwritten> {
    loop {
        let mut chunk = hashing.used.try_recv().unwrap_or_else(|_| Chunk::new());
        let read = from.read(&mut chunk.room);
        chunk.filled = read.map_err(|e| Unreadable::Content(e.to_string()))?;
        if chunk.filled == 0 {
            return Ok(());
        }
        into(chunk.data())?;
        if hashing.give.send(chunk).is_err() {
            // It ends before this one only by a panic, which is seen when it is joined.
            return Ok(());
        }
    }
}

fn hash(chunks: Receiver<Chunk>, back: &Sender<Chunk>) -> Fingerprint {
    let (mut hash, mut size) = (Sha256::new(), 0);
    for chunk in chunks {
        hash.update(chunk.data());
        size += chunk.filled as u64;
        // The last ones are not wanted any more.
        let _ = back.send(chunk);
    }
    Fingerprint {
        size,
        sha256: hex(&hash.finalize()),
    }
}

fn create(path: &Path) -> std::io::Result<File> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

fn beside(into: &Path) -> PathBuf {
    let name = into.file_name().unwrap_or_default().to_string_lossy();
    into.with_file_name(format!(".{name}.part"))
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
