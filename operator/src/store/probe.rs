//! Can this store hold a backup? Tried out, not assumed.

use std::time::Duration;

use lockkeeper_crds::Tristate;
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use tokio::time::Instant;

use super::{Failure, Store, StoreError, unique};

/// For all of it. A store that takes longer for six requests of a few bytes will not take a snapshot either.
const LIMIT: Duration = Duration::from_secs(15);

/// For taking the probe away again.
const CLEAN_UP: Duration = Duration::from_secs(3);

/// One that stays, in a bucket from which nothing can be taken for good: there every other one would stay too, as a
/// version.
const LASTING: &str = ".lockkeeper-probe";

/// What it holds.
const LASTING_BODY: &[u8] = b"lockkeeper";

impl Store {
    /// Writes a small object under the prefix, reads it back, makes sure that a conditional put on its key is
    /// refused, and deletes it. Answers within 18 s whatever the server does.
    ///
    /// Where a bucket keeps versions, or a lock keeps the probe, one is left for good, and from then on that one is read
    /// and put under a condition, which adds nothing. What is not tried there any more is told by the backup.
    ///
    /// # Errors
    /// With the first of these that fails.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let deadline = Instant::now() + LIMIT;
        let late = |_| self.place.timed_out("write, read and delete a probe", LIMIT);
        let lasting = self.prefix.clone().join(LASTING);
        let asked = tokio::time::timeout_at(deadline, self.has_guarded(&lasting)).await;
        if asked.map_err(late)?? {
            return Ok(());
        }
        let id = unique();
        let location = self.prefix.clone().join(format!("{LASTING}-{id}"));
        let tried = tokio::time::timeout_at(deadline, self.try_out(&location, &id, &lasting)).await;
        let tried = tried.map_err(late).flatten();
        if tried.is_err() {
            // It may lie there; the error in hand says more than one about this could.
            let _ = tokio::time::timeout(CLEAN_UP, self.brisk.delete(&location)).await;
        }
        tried
    }

    /// True when the probe that stays is there and is not overwritten.
    async fn has_guarded(&self, lasting: &Path) -> Result<bool, StoreError> {
        let found = async { self.brisk.get(lasting).await?.bytes().await };
        match found.await {
            Ok(read) if read == LASTING_BODY => self.is_guarded(lasting, LASTING_BODY).await.map(|()| true),
            Ok(_) => Ok(false),
            Err(e) => self.unless_absent("look for a probe", &e).map(|()| false),
        }
    }

    async fn try_out(&self, location: &Path, id: &str, lasting: &Path) -> Result<(), StoreError> {
        let store = &self.brisk;
        let body = PutPayload::from(id.as_bytes().to_vec());
        let put = store.put(location, body).await;
        put.map_err(|e| self.error("write a probe", &e))?;

        let read = async { store.get(location).await?.bytes().await };
        let read = read.await.map_err(|e| self.error("read a probe back", &e))?;
        if read != id.as_bytes() {
            return Err(self.failure(Failure::ReadBack {
                location: self.uri(location),
                detail: format!("{} bytes came back, and they differ", read.len()),
            }));
        }

        self.is_guarded(location, id.as_bytes()).await?;
        let deleted = store.delete(location).await;
        let stays = match deleted.map_err(|e| self.error("delete a probe", &e)) {
            Ok(()) => self.keeps_versions() == Tristate::True,
            Err(e) if matches!(e.failure(), Failure::Locked { .. }) => true,
            Err(e) => return Err(e),
        };
        if stays {
            // Another node may just do the same.
            self.create(lasting, LASTING_BODY, "write a probe").await?;
        }
        Ok(())
    }

    async fn is_guarded(&self, location: &Path, body: &[u8]) -> Result<(), StoreError> {
        let unguarded = |detail: String| {
            self.failure(Failure::ConditionalPut {
                endpoint: self.place.endpoint.clone(),
                detail,
            })
        };
        match self.create(location, body, "put under a condition").await {
            Ok(false) => Ok(()),
            Ok(true) => Err(unguarded(
                "it overwrote an object that was to be created only".to_owned(),
            )),
            Err(error) => Err(match error.failure() {
                Failure::Refused { detail, .. } => unguarded(detail.clone()),
                _ => error,
            }),
        }
    }

    /// False when there is one already: the condition says so, or a lock, under which nobody overwrites anything.
    async fn create(&self, location: &Path, body: &[u8], doing: &'static str) -> Result<bool, StoreError> {
        let (body, create) = (PutPayload::from(body.to_vec()), PutOptions::from(PutMode::Create));
        match self.brisk.put_opts(location, body, create).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(e) => match self.error(doing, &e) {
                error if matches!(error.failure(), Failure::Locked { .. }) => Ok(false),
                error => Err(error),
            },
        }
    }
}
