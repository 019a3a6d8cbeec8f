//! A backup out of the store, into a file: checked on the way, and there only when it is whole.

use std::fs::File;
use std::io::{Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use object_store::ObjectStoreExt as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{BackupKey, Failure, Fingerprint, Identities, Manifest, Store, StoreError, hex};

/// For the head of the answer, and between two pieces of it; the client's own retries are within.
const PIECE: Duration = Duration::from_secs(100);

/// Pieces between the network and the disk. They are of what one read of the connection gives: 64 KiB at most.
const BETWEEN: usize = 32;

/// What is read at once on the way to the file.
const CHUNK: usize = 128 * 1024;

impl Store {
    /// Brings the snapshot of the backup at `key` into the file `into`, as `etcdutl snapshot restore` takes it.
    ///
    /// # Guarantees
    /// * `Ok`: what is stored had the size and hash that the manifest says, and so has the file; it is on the disk,
    ///   with mode 0600.
    /// * `Err`: `into` is as it was before. Beside it there may be `.<name>.part`, if the process was killed.
    /// * Memory is bounded, whatever the size.
    ///
    /// # Errors
    /// When `manifest` is not of the backup at `key`, when what is stored is not what it says, when the store or
    /// the disk fails, or on cancellation.
    pub async fn fetch(
        &self,
        manifest: &Manifest,
        key: &BackupKey,
        keys: &Identities,
        into: &Path,
        cancel: &CancellationToken,
    ) -> Result<(), StoreError> {
        // Format 1 knows no encryption.
        let _ = keys;
        self.belongs(manifest, key)?;
        let stored = Fingerprint {
            size: manifest.size_bytes,
            sha256: manifest.sha256.clone(),
        };
        let beside = beside(into);
        let fetched = self.bring(&key.snapshot, &stored, &beside, cancel).await;
        let placed = match fetched {
            Ok(()) => place(&beside, into).await.map_err(|f| self.failure(f)),
            Err(error) => Err(error),
        };
        if placed.is_err() {
            // The error in hand says more than one about this could.
            let _ = tokio::fs::remove_file(&beside).await;
        }
        placed
    }

    async fn bring(
        &self,
        location: &object_store::path::Path,
        stored: &Fingerprint,
        beside: &Path,
        cancel: &CancellationToken,
    ) -> Result<(), StoreError> {
        let (pieces, taken) = mpsc::channel(BETWEEN);
        let (path, plain) = (beside.to_owned(), stored.clone());
        let writing = tokio::task::spawn_blocking(move || write_out(Pieces::new(taken), &path, &plain));
        let downloaded = tokio::select! {
            downloaded = self.download(location, stored, pieces) => downloaded,
            () = cancel.cancelled() => Err(self.failure(Failure::Cancelled)),
        };
        // What it reads from has ended with the download, whichever way.
        let written = writing.await.unwrap_or_else(|e| {
            Err(Unwritten::Here(Failure::File {
                path: beside.display().to_string(),
                doing: "written",
                detail: e.to_string(),
            }))
        });
        match (downloaded, written) {
            (Ok(_), Ok(())) => Ok(()),
            // Whatever the content lacks, the disk is the reason that the download was cut short.
            (_, Err(Unwritten::Here(failure))) => Err(self.failure(failure)),
            (Err(error), _) => Err(error),
            (Ok(_), Err(Unwritten::Content(detail))) => Err(self.failure(Failure::Damaged {
                location: self.uri(location),
                detail,
            })),
        }
    }

    /// Sends the object's bytes on and compares it with what it should be. Ends early when nobody takes them.
    async fn download(
        &self,
        location: &object_store::path::Path,
        stored: &Fingerprint,
        pieces: mpsc::Sender<Bytes>,
    ) -> Result<(), StoreError> {
        let damaged = |detail: String| {
            self.failure(Failure::Damaged {
                location: self.uri(location),
                detail,
            })
        };
        let doing = "read a backup";
        let answer = match tokio::time::timeout(PIECE, self.objects.get(location)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => {
                let error = self.error(doing, &e);
                let absent = matches!(e, object_store::Error::NotFound { .. })
                    && !matches!(error.failure(), Failure::NoSuchBucket { .. });
                return Err(if absent {
                    damaged("it is not there".to_owned())
                } else {
                    error
                });
            }
            Err(_) => return Err(self.place.timed_out(doing, PIECE)),
        };
        if answer.meta.size != stored.size {
            return Err(damaged(format!(
                "{} bytes instead of {}",
                answer.meta.size, stored.size
            )));
        }
        let mut hash = Sha256::new();
        let mut stream = answer.into_stream();
        loop {
            let next = async { stream.next().await.transpose() };
            let Some(bytes) = self.within(PIECE, doing, next).await? else {
                break;
            };
            hash.update(&bytes);
            if pieces.send(bytes).await.is_err() {
                return Ok(());
            }
        }
        let found = hex(&hash.finalize());
        if found != stored.sha256 {
            return Err(damaged(format!("SHA-256 {found} instead of {}", stored.sha256)));
        }
        Ok(())
    }
}

/// Why the file is not there.
enum Unwritten {
    /// Because of this machine: nothing more need be read.
    Here(Failure),
    /// Because of what came. It was read to its end, so that the download's own verdict is there too.
    Content(String),
}

/// What came from the network, as a reader for a thread that may block.
struct Pieces {
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

fn write_out(mut from: Pieces, path: &Path, plain: &Fingerprint) -> Result<(), Unwritten> {
    let here = |e: std::io::Error| {
        Unwritten::Here(Failure::File {
            path: path.display().to_string(),
            doing: "written",
            detail: e.to_string(),
        })
    };
    let mut file = create(path).map_err(here)?;
    let mut hash = Sha256::new();
    let (mut chunk, mut size) = (vec![0; CHUNK], 0);
    loop {
        let read = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) => {
                from.drain();
                return Err(Unwritten::Content(e.to_string()));
            }
        };
        let data = chunk.get(..read).unwrap_or_default();
        size += read as u64;
        hash.update(data);
        file.write_all(data).map_err(here)?;
    }
    let sha256 = hex(&hash.finalize());
    if size != plain.size || sha256 != plain.sha256 {
        return Err(Unwritten::Content(format!(
            "unpacked, it has {size} bytes with SHA-256 {sha256} instead of {} bytes with {}",
            plain.size, plain.sha256
        )));
    }
    file.sync_all().map_err(here)
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

/// Renames, durably.
async fn place(beside: &Path, into: &Path) -> Result<(), Failure> {
    let (from, to) = (beside.to_owned(), into.to_owned());
    let renamed = tokio::task::spawn_blocking(move || {
        std::fs::rename(&from, &to)?;
        match to.parent().filter(|p| !p.as_os_str().is_empty()) {
            Some(directory) => File::open(directory)?.sync_all(),
            None => File::open(".")?.sync_all(),
        }
    });
    let renamed = renamed.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
    renamed.map_err(|e| Failure::File {
        path: into.display().to_string(),
        doing: "put into its place",
        detail: e.to_string(),
    })
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
