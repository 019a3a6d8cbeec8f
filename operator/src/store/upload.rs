//! From a source into the store in one pass: packed on a thread of its own, sent in parts.
//!
//! ```text
//! source -> batches -> [compress, encrypt, hash] -> parts -> server
//!     async, 1 MiB          a blocking thread         async, 8 MiB, two at a time
//! ```
//!
//! Every arrow is a bounded channel: the slowest of them sets the pace, and memory does not grow with the size.

use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt as _, PutMultipartOptions, PutPayload};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::manifest::Object;
use super::pack::pack;
use super::{Failure, Store, StoreError, UploadError};

/// All parts but the last: S3's least is 5 MiB, and with its most of 10 000 parts this lets 78 GiB through.
pub const PART_SIZE: usize = 8 * 1024 * 1024;

/// Parts on their way. With the one that fills and the one that waits to be sent, four are all that an upload holds
/// in memory: 32 MiB.
const IN_FLIGHT: usize = 2;

/// What is given to the packing thread at once, and becomes one zstd frame: large enough that a frame of its own costs
/// no size.
const BATCH: usize = 1024 * 1024;

/// Of etcd's stream.
const MESSAGE: usize = 32 * 1024;

/// The most that one of our zstd frames holds: a batch, and the message that made it full.
pub(super) const FRAME: usize = BATCH + MESSAGE;

/// What a pace that was kept too slowly may catch up: timers count in milliseconds.
const CATCH_UP: Duration = Duration::from_millis(4);

/// Batches that wait for the packing thread: 2 MiB.
const BATCHES: usize = 2;

/// One operation with all its retries (`Patience::DATA` ends within 80 s); for a client that breaks its word.
const OPERATION: Duration = Duration::from_secs(100);

/// After an abort, for parts that were on their way: what lay in buffers between us and the server has come by then.
/// S3 asks for it in so many words: an abort may have to be given several times (`AbortMultipartUpload`).
const ABORT_AGAIN: [Duration; 3] = [
    Duration::from_secs(10),
    Duration::from_secs(20),
    Duration::from_secs(120),
];

/// For taking away what a failed upload left, on a store that may be just as failed.
const CLEAN_UP: Duration = Duration::from_secs(10);

/// Size and hash of a file or an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fingerprint {
    /// Bytes.
    #[serde(rename = "sizeBytes")]
    pub size: u64,
    /// SHA-256, lower-case hexadecimal.
    pub sha256: String,
}

/// What a source gives.
#[derive(Debug)]
pub enum Piece<'a> {
    /// The next bytes; any number.
    Data(&'a [u8]),
    /// There is no more, and what was given is whole: the source vouches for it.
    End(Fingerprint),
}

/// Bytes to be stored.
///
/// # Guarantees
/// [`Piece::End`] comes only if all that was given has been verified; otherwise an error does.
pub trait Source: Send {
    /// Why it cannot be read.
    type Error: std::error::Error + Send + 'static;

    /// The next piece.
    fn next(&mut self) -> impl Future<Output = Result<Piece<'_>, Self::Error>> + Send;
}

impl Store {
    /// Uploads what `source` gives, packed as the store packs, beside `manifest` under the packed form of `name`.
    ///
    /// When it fails, or its future is dropped, the upload is aborted.
    pub(super) async fn upload<S: Source>(
        &self,
        place: impl Fn(&str) -> Path,
        name: &str,
        source: &mut S,
        cancel: &CancellationToken,
    ) -> Result<Object, UploadError<S::Error>> {
        let name = self.packing.name(name);
        let location = place(&name);
        let mut upload = self.begin(&location).await?;
        let sent = tokio::select! {
            sent = self.stream(&mut upload, source) => sent,
            () = cancel.cancelled() => Err(UploadError::Cancelled),
        };
        let (plain, stored) = match sent {
            Ok(sent) => sent,
            Err(e) => {
                upload.abort().await;
                return Err(e);
            }
        };
        if let Err(e) = self.complete(&mut upload).await {
            // Its answer may be lost: of a server that restarted meanwhile, to which the upload is unknown now. Then
            // the object is there, and the reading back says whether it is the one.
            if !self.is_there(&location, stored.size).await {
                upload.abort().await;
                return Err(e.into());
            }
        }
        upload.done();
        Ok(Object {
            name,
            stored,
            plain,
            compression: self.packing.compression,
            encrypted: self.packing.lock.as_ref().map(super::keys::Lock::described),
        })
    }

    async fn begin(&self, location: &Path) -> Result<Upload, StoreError> {
        let objects = self.objects.clone();
        let place = location.clone();
        let uri = self.uri(location);
        // In a task: dropping this future midway would lose the upload's id, and with it the means to abort
        // it. The task goes on, and what it makes aborts itself when nobody takes it.
        let begun = tokio::spawn(async move {
            let inner = objects
                .put_multipart_opts(&place, PutMultipartOptions::default())
                .await?;
            Ok::<_, object_store::Error>(Upload {
                inner: Some(inner),
                parts: JoinSet::new(),
                uri,
            })
        });
        let begun = async {
            begun.await.map_err(|e| object_store::Error::Generic {
                store: "upload",
                source: e.into(),
            })?
        };
        self.within(OPERATION, "begin an upload", begun).await
    }

    /// What came, and what was sent.
    async fn stream<S: Source>(
        &self,
        upload: &mut Upload,
        source: &mut S,
    ) -> Result<(Fingerprint, Fingerprint), UploadError<S::Error>> {
        let (give, batches) = mpsc::channel(BATCHES);
        let (back, spare) = mpsc::unbounded_channel();
        let (send, parts) = mpsc::channel(1);
        let packing = self.packing.clone();
        let packing = tokio::task::spawn_blocking(move || pack(batches, back, send, &packing));
        let pace = Pace::of(self.limit);
        // Whichever of the two fails drops the other, and with their channels ends the thread.
        let (plain, ()) = tokio::try_join!(feed(source, give, spare, pace), async {
            self.send(upload, parts).await.map_err(UploadError::Store)
        })?;
        let problem = |detail: String| {
            UploadError::Store(self.failure(Failure::Spec {
                field: "spec.encryption or spec.compression",
                problem: format!("cannot be followed: {detail}"),
            }))
        };
        match (packing.await, plain) {
            (Ok(Ok(stored)), Some(plain)) => Ok((plain, stored)),
            (Ok(Ok(_)), None) => Err(problem("it ended too early".to_owned())),
            (Ok(Err(e)), _) => Err(problem(e.to_string())),
            (Err(e), _) => Err(problem(e.to_string())),
        }
    }

    async fn send(&self, upload: &mut Upload, mut parts: mpsc::Receiver<Bytes>) -> Result<(), StoreError> {
        loop {
            // In this order: the next part's memory only after one in flight has gone.
            self.make_room(upload, IN_FLIGHT - 1).await?;
            match parts.recv().await {
                Some(part) => upload.send(part),
                None => break,
            }
        }
        self.make_room(upload, 0).await
    }

    /// Waits until no more than `left` parts are on their way.
    async fn make_room(&self, upload: &mut Upload, left: usize) -> Result<(), StoreError> {
        while upload.parts.len() > left {
            let part = async {
                match upload.parts.join_next().await {
                    None => Ok(()),
                    Some(Ok(sent)) => sent,
                    Some(Err(e)) => Err(object_store::Error::Generic {
                        store: "upload",
                        source: e.into(),
                    }),
                }
            };
            self.within(OPERATION, "upload a part", part).await?;
        }
        Ok(())
    }

    async fn is_there(&self, location: &Path, size: u64) -> bool {
        let found = tokio::time::timeout(CLEAN_UP, self.objects.head(location)).await;
        matches!(found, Ok(Ok(meta)) if meta.size == size)
    }

    async fn complete(&self, upload: &mut Upload) -> Result<(), StoreError> {
        let Some(inner) = upload.inner.as_mut() else {
            return Ok(());
        };
        self.within(OPERATION, "complete an upload", inner.complete())
            .await?;
        Ok(())
    }
}

/// Gives what comes to the packing thread, until it proves itself. None when that thread has ended, which says why
/// itself.
async fn feed<S: Source>(
    source: &mut S,
    give: mpsc::Sender<Vec<u8>>,
    mut spare: mpsc::UnboundedReceiver<Vec<u8>>,
    mut pace: Pace,
) -> Result<Option<Fingerprint>, UploadError<S::Error>> {
    // It is full when a message has filled it, and must not move for that.
    let new = || Vec::with_capacity(FRAME);
    let mut batch = new();
    loop {
        // A source that always has something ready would never let a deadline or a cancellation in.
        tokio::task::consume_budget().await;
        let end = match source.next().await.map_err(UploadError::Source)? {
            Piece::Data(data) => {
                pace.keep(data.len()).await;
                batch.extend_from_slice(data);
                None
            }
            Piece::End(fingerprint) => Some(fingerprint),
        };
        if batch.len() >= BATCH || (end.is_some() && !batch.is_empty()) {
            let empty = spare.try_recv().unwrap_or_else(|_| new());
            let full = std::mem::replace(&mut batch, empty);
            if give.send(full).await.is_err() {
                return Ok(None);
            }
        }
        if end.is_some() {
            return Ok(end);
        }
    }
}

/// So many bytes a second and no more: what a pause left over is not made up for by a burst, but for [`CATCH_UP`].
struct Pace {
    limit: Option<f64>,
    due: Instant,
}

impl Pace {
    fn of(bytes_per_second: Option<u64>) -> Self {
        Self {
            limit: bytes_per_second.map(|limit| limit.max(1) as f64),
            due: Instant::now(),
        }
    }

    async fn keep(&mut self, bytes: usize) {
        let Some(limit) = self.limit else { return };
        let now = Instant::now();
        if self.due > now {
            tokio::time::sleep(self.due - now).await;
        }
        let earliest = now.checked_sub(CATCH_UP).unwrap_or(now);
        self.due = self.due.max(earliest) + Duration::from_secs_f64(bytes as f64 / limit);
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// A multipart upload that aborts itself unless it is [`Upload::done`].
struct Upload {
    inner: Option<Box<dyn MultipartUpload>>,
    parts: JoinSet<object_store::Result<()>>,
    uri: String,
}

impl Upload {
    fn send(&mut self, part: Bytes) {
        if let Some(inner) = self.inner.as_mut() {
            self.parts.spawn(inner.put_part(PutPayload::from(part)));
        }
    }

    fn done(mut self) {
        self.inner = None;
    }

    async fn abort(mut self) {
        if let Some(inner) = self.inner.take() {
            abort(inner, std::mem::take(&mut self.parts), &self.uri).await;
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else {
            return;
        };
        let (parts, uri) = (std::mem::take(&mut self.parts), std::mem::take(&mut self.uri));
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(async move { abort(inner, parts, &uri).await });
            }
            Err(_) => tracing::warn!(%uri, "the parts of an unfinished upload are left in the store"),
        }
    }
}

async fn abort(mut inner: Box<dyn MultipartUpload>, mut parts: JoinSet<object_store::Result<()>>, uri: &str) {
    let cut_short = !parts.is_empty();
    parts.shutdown().await;
    match tokio::time::timeout(CLEAN_UP, inner.abort()).await {
        // Not found: it was completed, or the server has aborted it by itself.
        Ok(Ok(()) | Err(object_store::Error::NotFound { .. })) => {}
        // Without the error: it may quote the credentials, and why the store failed has been said.
        Ok(Err(_)) | Err(_) => {
            tracing::warn!(%uri, "the parts of an unfinished upload are left in the store")
        }
    }
    // A part of which the server has all bytes may be stored after the abort, and would stay.
    if cut_short {
        tokio::spawn(async move {
            for pause in ABORT_AGAIN {
                tokio::time::sleep(pause).await;
                // Mostly there is nothing any more; what fails has been said.
                let _ = tokio::time::timeout(CLEAN_UP, inner.abort()).await;
            }
        });
    }
}

#[cfg(test)]
#[path = "upload_tests.rs"]
mod tests;
