//! From a source into the store in one pass: multipart upload, read back, manifest.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt as _, PutMultipartOptions, PutPayload};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{BackupKey, Failure, Manifest, Store, StoreError, UploadError, unique};

/// All parts but the last: S3's least is 5 MiB, and with its most of 10 000 parts this lets 78 GiB through.
pub const PART_SIZE: usize = 8 * 1024 * 1024;

/// Parts on their way while the next one fills. Three parts are all that an upload holds in memory: 24 MiB.
const IN_FLIGHT: usize = 2;

/// One operation with all its retries (`Patience::DATA` ends within 80 s); for a client that breaks its word.
const OPERATION: Duration = Duration::from_secs(100);

/// For taking away what a failed upload left, on a store that may be just as failed.
const CLEAN_UP: Duration = Duration::from_secs(10);

/// Size and hash of all that a source gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// Bytes.
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
    /// Stores what `source` gives as the backup at `key`.
    ///
    /// # Guarantees
    /// * `Ok`: the snapshot was read back with the same size and hash, and its manifest is published.
    /// * `Err`: no manifest was published that this call knows of, and parts and object were deleted as far as
    ///   the store answered; a warning says where it did not. The same when the future is dropped, but in the
    ///   background: an agent that is about to end cancels instead, and waits.
    /// * At most three parts ([`PART_SIZE`]) are in memory.
    ///
    /// # Caveats
    /// An agent that is killed leaves the parts of its unfinished upload in the bucket. Give the bucket a
    /// lifecycle rule for unfinished multipart uploads.
    ///
    /// # Errors
    /// When the store or the source fails, when what is read back differs, or on cancellation.
    pub async fn keep<S: Source>(
        &self,
        key: &BackupKey,
        source: &mut S,
        describe: impl FnOnce(String, &Fingerprint) -> Manifest,
        cancel: &CancellationToken,
    ) -> Result<Manifest, UploadError<S::Error>> {
        if self.manifest(key).await?.is_some() {
            let location = self.uri(&key.manifest);
            return Err(self.failure(Failure::ManifestTaken { location }).into());
        }
        let began = Instant::now();
        let fingerprint = self.upload(&key.snapshot, source, cancel).await?;
        let uploaded = began.elapsed();
        let proven = tokio::select! {
            proven = self.read_back(&key.snapshot, &fingerprint) => proven.map_err(UploadError::Store),
            () = cancel.cancelled() => Err(UploadError::Cancelled),
        };
        if let Err(e) = proven {
            self.discard(&key.snapshot).await;
            return Err(e);
        }
        let manifest = describe(unique(), &fingerprint);
        if let Err(e) = self.publish(key, &manifest).await {
            // A manifest without its snapshot would be worse than a snapshot without its manifest.
            match self.manifest(key).await {
                Ok(None) => self.discard(&key.snapshot).await,
                Ok(Some(_)) => {}
                Err(_) => {
                    tracing::warn!(uri = %self.uri(&key.snapshot), "left in the store: it does not say whether it has a manifest")
                }
            }
            return Err(e.into());
        }
        tracing::info!(
            uri = %self.uri(&key.snapshot),
            bytes = fingerprint.size,
            upload_seconds = uploaded.as_secs_f32(),
            read_back_seconds = (began.elapsed() - uploaded).as_secs_f32(),
            "stored",
        );
        Ok(manifest)
    }

    /// Deletes a snapshot without a manifest. What fails is logged: the caller has a better error already.
    pub async fn discard(&self, snapshot: &Path) {
        let delete = self.within(
            CLEAN_UP,
            "delete a snapshot without a manifest",
            self.objects.delete(snapshot),
        );
        match delete.await {
            Ok(()) => {}
            Err(e) if matches!(e.failure(), Failure::Refused { detail, .. } if detail.starts_with("HTTP 404")) =>
                {}
            Err(e) => {
                tracing::warn!(uri = %self.uri(snapshot), error = %e, "left in the store, without a manifest")
            }
        }
    }

    async fn upload<S: Source>(
        &self,
        location: &Path,
        source: &mut S,
        cancel: &CancellationToken,
    ) -> Result<Fingerprint, UploadError<S::Error>> {
        let mut upload = self.begin(location).await?;
        let sent = tokio::select! {
            sent = self.send(&mut upload, source) => sent,
            () = cancel.cancelled() => Err(UploadError::Cancelled),
        };
        let sent = match sent {
            Ok(fingerprint) => match self.complete(&mut upload).await {
                Ok(()) => {
                    upload.done();
                    return Ok(fingerprint);
                }
                Err(e) => {
                    // The answer may be lost and the object be there; if so, the abort finds nothing.
                    upload.abort().await;
                    self.discard(location).await;
                    return Err(e.into());
                }
            },
            Err(e) => Err(e),
        };
        upload.abort().await;
        sent
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

    async fn send<S: Source>(
        &self,
        upload: &mut Upload,
        source: &mut S,
    ) -> Result<Fingerprint, UploadError<S::Error>> {
        let mut part = Vec::with_capacity(PART_SIZE);
        let fingerprint = loop {
            // A source that always has something ready would never let a deadline or a cancellation in.
            tokio::task::consume_budget().await;
            match source.next().await.map_err(UploadError::Source)? {
                Piece::Data(mut data) => {
                    while !data.is_empty() {
                        // All parts are of the same size: some servers insist.
                        let (now, later) = data.split_at(data.len().min(PART_SIZE - part.len()));
                        part.extend_from_slice(now);
                        data = later;
                        if part.len() == PART_SIZE {
                            // In this order: the next part's memory only after one in flight has gone.
                            self.make_room(upload, IN_FLIGHT - 1).await?;
                            upload.send(std::mem::take(&mut part));
                            part.reserve_exact(PART_SIZE);
                        }
                    }
                }
                Piece::End(fingerprint) => break fingerprint,
            }
        };
        if !part.is_empty() {
            upload.send(part);
        }
        self.make_room(upload, 0).await?;
        Ok(fingerprint)
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

    async fn complete(&self, upload: &mut Upload) -> Result<(), StoreError> {
        let Some(inner) = upload.inner.as_mut() else {
            return Ok(());
        };
        self.within(OPERATION, "complete an upload", inner.complete())
            .await?;
        Ok(())
    }

    /// Reads the whole object and compares.
    async fn read_back(&self, location: &Path, expected: &Fingerprint) -> Result<(), StoreError> {
        let differs = |detail: String| {
            self.failure(Failure::ReadBack {
                location: self.uri(location),
                detail,
            })
        };
        let doing = "read a snapshot back";
        let answer = self.within(OPERATION, doing, self.objects.get(location)).await?;
        let size = answer.meta.size;
        if size != expected.size {
            return Err(differs(format!("{size} bytes instead of {}", expected.size)));
        }
        let mut hash = Sha256::new();
        let mut stream = answer.into_stream();
        loop {
            let next = async { stream.next().await.transpose() };
            let Some(bytes) = self.within(OPERATION, doing, next).await? else {
                break;
            };
            hash.update(&bytes);
            tokio::task::consume_budget().await;
        }
        let found = hex(&hash.finalize());
        if found != expected.sha256 {
            return Err(differs(format!("SHA-256 {found} instead of {}", expected.sha256)));
        }
        Ok(())
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
    fn send(&mut self, part: Vec<u8>) {
        if let Some(inner) = self.inner.as_mut() {
            self.parts
                .spawn(inner.put_part(PutPayload::from(Bytes::from(part))));
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
    // A part that arrives after the abort would stay.
    parts.shutdown().await;
    match tokio::time::timeout(CLEAN_UP, inner.abort()).await {
        // Not found: it was completed, or the server has aborted it by itself.
        Ok(Ok(()) | Err(object_store::Error::NotFound { .. })) => {}
        // Without the error: it may quote the credentials, and why the store failed has been said.
        Ok(Err(_)) | Err(_) => {
            tracing::warn!(%uri, "the parts of an unfinished upload are left in the store")
        }
    }
}

#[cfg(test)]
#[path = "upload_tests.rs"]
mod tests;
