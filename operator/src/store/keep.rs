//! A backup into the store: its data, read back, and then its manifest.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::path::Path;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::manifest::{Object, PKI, SNAPSHOT};
use super::whole::Unlike;
use super::{
    BackupKey, Failure, Fingerprint, Manifest, Piece, Source, Store, StoreError, UploadError, hex, unique,
};

/// For taking away what a failed attempt left, on a store that may be just as failed.
const CLEAN_UP: Duration = Duration::from_secs(10);

/// What was stored, for the manifest.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Of this one attempt.
    pub id: String,
    /// The snapshot.
    pub snapshot: Object,
    /// The node's PKI, when it was given.
    pub pki: Option<Object>,
}

impl Store {
    /// Stores what `source` gives as the backup at `key`, and with it `pki`, a tar, if there is one.
    ///
    /// # Guarantees
    /// * `Ok`: all of it was read back with the same size and hash, and its manifest is published.
    /// * `Err`: no manifest was published that this call knows of, and parts and objects were deleted as far as
    ///   the store answered; a warning says where it did not. The same when the future is dropped, but in the
    ///   background: an agent that is about to end cancels instead, and waits.
    /// * Memory is bounded: 40 MiB above what is there at rest.
    ///
    /// # Caveats
    /// An agent that is killed leaves the parts of its unfinished upload in the bucket, until [`Store::sweep`].
    ///
    /// # Errors
    /// When the store or the source fails, when what is read back differs, when `pki` is given to a store that does
    /// not encrypt, or on cancellation.
    pub async fn keep<S: Source>(
        &self,
        key: &BackupKey,
        source: &mut S,
        pki: Option<Vec<u8>>,
        describe: impl FnOnce(Kept) -> Manifest,
        cancel: &CancellationToken,
    ) -> Result<Manifest, UploadError<S::Error>> {
        if pki.is_some() && self.packing.lock.is_none() {
            return Err(self.failure(Failure::EncryptionWanted).into());
        }
        if self.manifest(key).await?.is_some() {
            let location = self.uri(&key.manifest);
            return Err(self.failure(Failure::ManifestTaken { location }).into());
        }
        let kept = match self.data(key, source, pki, cancel).await {
            Ok(kept) => kept,
            Err(e) => {
                self.discard(key).await;
                return Err(e);
            }
        };
        let manifest = describe(kept);
        if let Err(e) = self.publish(key, &manifest).await {
            // A manifest without its data would be worse than data without its manifest.
            match self.manifest(key).await {
                Ok(None) => self.discard(key).await,
                Ok(Some(_)) => {}
                Err(_) => {
                    tracing::warn!(uri = %self.uri(&key.manifest), "its data is left in the store: it does not say whether it has a manifest")
                }
            }
            return Err(e.into());
        }
        Ok(manifest)
    }

    async fn data<S: Source>(
        &self,
        key: &BackupKey,
        source: &mut S,
        pki: Option<Vec<u8>>,
        cancel: &CancellationToken,
    ) -> Result<Kept, UploadError<S::Error>> {
        let began = Instant::now();
        let place = |name: &str| key.object(name);
        let snapshot = self.upload(place, SNAPSHOT, source, cancel).await?;
        let uploaded = began.elapsed();
        self.proven(key, &snapshot, cancel).await?;
        tracing::info!(
            uri = %self.uri(&key.object(&snapshot.name)),
            bytes = snapshot.plain.size,
            stored_bytes = snapshot.stored.size,
            upload_seconds = uploaded.as_secs_f32(),
            read_back_seconds = (began.elapsed() - uploaded).as_secs_f32(),
            "stored",
        );
        let pki = match pki {
            None => None,
            Some(tar) => {
                let mut tar = Held::new(tar);
                let uploaded = self.upload(place, PKI, &mut tar, cancel).await;
                let object = uploaded.map_err(|e| match e {
                    UploadError::Store(e) => UploadError::Store(e),
                    UploadError::Cancelled => UploadError::Cancelled,
                    UploadError::Source(never) => match never {},
                })?;
                self.proven(key, &object, cancel).await?;
                Some(object)
            }
        };
        Ok(Kept {
            id: unique(),
            snapshot,
            pki,
        })
    }

    async fn proven<E: std::error::Error + 'static>(
        &self,
        key: &BackupKey,
        object: &Object,
        cancel: &CancellationToken,
    ) -> Result<(), UploadError<E>> {
        let location = key.object(&object.name);
        tokio::select! {
            proven = self.read_back(&location, &object.stored) => proven.map_err(UploadError::Store),
            () = cancel.cancelled() => Err(UploadError::Cancelled),
        }
    }

    async fn read_back(&self, location: &Path, expected: &Fingerprint) -> Result<(), StoreError> {
        let read = self.whole(location, expected, "read a backup back", None).await;
        read.map_err(|unlike| match unlike {
            Unlike::Store(error) => error,
            Unlike::Differs(detail) => self.failure(Failure::ReadBack {
                location: self.uri(location),
                detail,
            }),
        })
    }

    /// Deletes the data of a backup without a manifest. What fails is logged: the caller has a better error already.
    pub async fn discard(&self, key: &BackupKey) {
        let all = async {
            for object in key.objects() {
                self.delete(&object, "delete data without a manifest").await?;
            }
            Ok::<_, StoreError>(())
        };
        let told = match tokio::time::timeout(CLEAN_UP, all).await {
            Ok(Ok(())) => return,
            Ok(Err(e)) => e.to_string(),
            Err(_) => format!("no answer within {} s", CLEAN_UP.as_secs()),
        };
        tracing::warn!(uri = %self.uri(&key.manifest), error = told, "data is left in the store, without a manifest");
    }
}

/// A small source that is in memory.
struct Held {
    data: Option<Bytes>,
    all: Fingerprint,
}

impl Held {
    fn new(data: Vec<u8>) -> Self {
        let all = Fingerprint {
            size: data.len() as u64,
            sha256: hex(&Sha256::digest(&data)),
        };
        Self {
            data: Some(data.into()),
            all,
        }
    }
}

impl Source for Held {
    type Error = Infallible;

    async fn next(&mut self) -> Result<Piece, Infallible> {
        Ok(match self.data.take() {
            Some(data) => Piece::Data(data),
            None => Piece::End(self.all.clone()),
        })
    }
}

#[cfg(test)]
#[path = "keep_tests.rs"]
mod tests;
