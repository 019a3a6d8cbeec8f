//! A backup out of the store, into a file: checked on the way, and there only when it is whole.

use std::fs::File;
use std::io::{Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::manifest::Object;
use super::pack::{Unreadable, unpack};
use super::whole::Unlike;
use super::{BackupKey, Failure, Fingerprint, Identities, Manifest, Store, StoreError, hex};
use crate::aside::aside;

/// Pieces between the network and the disk. They are of what one read of the connection gives: 64 KiB at most.
const BETWEEN: usize = 32;

/// What is unpacked at once on the way to the file. From 128 KiB on memory would be fetched from the kernel each time.
const CHUNK: usize = 96 * 1024;
/// How many of them the threads that hash and write may be behind.
const AHEAD: usize = 16;

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
        let opening = aside("unpack", move || open(Pieces::new(taken)));
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
        let opened = opening.await.unwrap_or_else(|_| Err(broke().into()));
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
/// download says too what it is. One thread unpacks and one hashes, while this one writes.
pub(super) fn plain(
    from: Pieces,
    object: &Object,
    keys: &Identities,
    into: impl FnMut(&[u8]) -> Result<(), Unwritten>,
) -> Result<(), Unwritten> {
    let (written, unpacked, hashed) = std::thread::scope(|scope| {
        let ((to_hash, hashed), (to_write, written)) = (sync_channel(AHEAD), sync_channel(AHEAD));
        let unpacking = scope.spawn(move || unpack_all(from, object, keys, &[to_hash, to_write]));
        let hashing = scope.spawn(move || fingerprint(hashed));
        // Ends with the last chunk; what is not taken ends the others.
        let written = write_all(written, into);
        (written, unpacking.join(), hashing.join())
    });
    written?;
    unpacked.unwrap_or_else(|_| Err(broke()))?;
    let found = hashed.map_err(|_| broke())?;
    if found != object.plain {
        return Err(Unwritten::Content(Unreadable::Content(format!(
            "unpacked, it has {} bytes with SHA-256 {} instead of {} bytes with {}",
            found.size, found.sha256, object.plain.size, object.plain.sha256
        ))));
    }
    Ok(())
}

fn broke() -> Unreadable {
    Unreadable::Content("it could not be unpacked".to_owned())
}

fn write_all(
    chunks: Receiver<Bytes>,
    mut into: impl FnMut(&[u8]) -> Result<(), Unwritten>,
) -> Result<(), Unwritten> {
    chunks.into_iter().try_for_each(|chunk| into(&chunk))
}

fn fingerprint(chunks: Receiver<Bytes>) -> Fingerprint {
    let (mut hash, mut size) = (Sha256::new(), 0);
    for chunk in chunks {
        hash.update(&chunk);
        size += chunk.len() as u64;
    }
    Fingerprint {
        size,
        sha256: hex(&hash.finalize()),
    }
}

fn unpack_all(
    mut from: Pieces,
    object: &Object,
    keys: &Identities,
    to: &[SyncSender<Bytes>],
) -> Result<(), Unreadable> {
    let encrypted = object.encrypted.as_ref().map(|e| (e, keys));
    let unpacked = match unpack(&mut from, object.compression, encrypted) {
        // One byte more than there should be is enough to know.
        Ok(plain) => copy(plain.take(object.plain.size + 1), to),
        Err(unreadable) => Err(unreadable),
    };
    if !matches!(unpacked, Ok(Copied::Unwanted)) {
        from.drain();
    }
    unpacked.map(drop)
}

/// How a copy ended.
enum Copied {
    Whole,
    /// Whoever takes it takes no more.
    Unwanted,
}

fn copy(mut from: impl Read, to: &[SyncSender<Bytes>]) -> Result<Copied, Unreadable> {
    loop {
        let mut chunk = vec![0; CHUNK];
        match from.read(&mut chunk) {
            Ok(0) => return Ok(Copied::Whole),
            Ok(read) => chunk.truncate(read),
            Err(e) => return Err(Unreadable::Content(e.to_string())),
        }
        let chunk = Bytes::from(chunk);
        if to.iter().any(|to| to.send(chunk.clone()).is_err()) {
            return Ok(Copied::Unwanted);
        }
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
