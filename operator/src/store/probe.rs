//! Can this store hold a backup? Tried out, not assumed.

use std::time::Duration;

use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutMode, PutOptions, PutPayload};

use super::{Failure, Store, StoreError, unique};

/// For all of it. A store that takes longer for five requests of a few bytes will not take a snapshot either.
const LIMIT: Duration = Duration::from_secs(15);

/// For taking the probe away again.
const CLEAN_UP: Duration = Duration::from_secs(3);

impl Store {
    /// Writes a small object under the prefix, reads it back, makes sure that a conditional put on its key is
    /// refused, and deletes it. Answers within 18 s whatever the server does.
    ///
    /// # Errors
    /// With the first of these that fails.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let id = unique();
        let location = self.prefix.clone().join(format!(".lockkeeper-probe-{id}"));
        let tried = match tokio::time::timeout(LIMIT, self.try_out(&location, &id)).await {
            Ok(tried) => tried,
            Err(_) => Err(self.place.timed_out("write, read and delete a probe", LIMIT)),
        };
        if tried.is_err() {
            // It may lie there; the error in hand says more than one about this could.
            let _ = tokio::time::timeout(CLEAN_UP, self.brisk.delete(&location)).await;
        }
        tried
    }

    async fn try_out(&self, location: &Path, id: &str) -> Result<(), StoreError> {
        let store = &self.brisk;
        let body = PutPayload::from(id.as_bytes().to_vec());
        let put = store.put(location, body.clone()).await;
        put.map_err(|e| self.error("write a probe", &e))?;

        let read = async { store.get(location).await?.bytes().await };
        let read = read.await.map_err(|e| self.error("read a probe back", &e))?;
        if read != id.as_bytes() {
            return Err(self.failure(Failure::ReadBack {
                location: self.uri(location),
                detail: format!("{} bytes came back, and they differ", read.len()),
            }));
        }

        let again = store
            .put_opts(location, body, PutOptions::from(PutMode::Create))
            .await;
        match again {
            Err(object_store::Error::AlreadyExists { .. }) => {}
            Ok(_) => {
                return Err(self.failure(Failure::ConditionalPut {
                    endpoint: self.place.endpoint.clone(),
                    detail: "it overwrote an object that was to be created only".to_owned(),
                }));
            }
            Err(e) => {
                let error = self.error("put under a condition", &e);
                return Err(match error.failure() {
                    Failure::Refused { endpoint, detail, .. } => self.failure(Failure::ConditionalPut {
                        endpoint: endpoint.clone(),
                        detail: detail.clone(),
                    }),
                    _ => error,
                });
            }
        }

        let deleted = store.delete(location).await;
        deleted.map_err(|e| self.error("delete a probe", &e))
    }
}
