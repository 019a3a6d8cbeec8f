//! Reads an object to its end and compares it with what it should be: the one place where that is done.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::{Failure, Fingerprint, Store, StoreError, hex};

/// For the head of the answer, and between two pieces of it; the client's own retries are within.
const PIECE: Duration = Duration::from_secs(100);

/// Why an object is not what it should be.
pub(super) enum Unlike {
    /// That is not known: the store failed.
    Store(StoreError),
    /// It is not there, or another one.
    Differs(String),
}

impl Store {
    /// Compares size and SHA-256. What comes is given to `to` on the way; when nobody takes it any more, this ends
    /// early and well, since whoever took it knows better.
    pub(super) async fn whole(
        &self,
        location: &Path,
        expected: &Fingerprint,
        doing: &'static str,
        to: Option<mpsc::Sender<Bytes>>,
    ) -> Result<(), Unlike> {
        let answer = match tokio::time::timeout(PIECE, self.objects.get(location)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => {
                self.unless_absent(doing, &e).map_err(Unlike::Store)?;
                return Err(Unlike::Differs("it is not there".to_owned()));
            }
            Err(_) => return Err(Unlike::Store(self.place.timed_out(doing, PIECE))),
        };
        let size = answer.meta.size;
        if size != expected.size {
            return Err(Unlike::Differs(format!(
                "{size} bytes instead of {}",
                expected.size
            )));
        }
        let mut hash = Sha256::new();
        let mut stream = answer.into_stream();
        loop {
            let next = async { stream.next().await.transpose() };
            let Some(bytes) = self.within(PIECE, doing, next).await.map_err(Unlike::Store)? else {
                break;
            };
            hash.update(&bytes);
            match &to {
                Some(to) if to.send(bytes).await.is_err() => return Ok(()),
                _ => tokio::task::consume_budget().await,
            }
        }
        let found = hex(&hash.finalize());
        if found != expected.sha256 {
            return Err(Unlike::Differs(format!(
                "SHA-256 {found} instead of {}",
                expected.sha256
            )));
        }
        Ok(())
    }

    /// What an error means, unless it is that an object is not there, in a bucket that is.
    pub(super) fn unless_absent(
        &self,
        doing: &'static str,
        e: &object_store::Error,
    ) -> Result<(), StoreError> {
        let error = self.error(doing, e);
        let absent = matches!(e, object_store::Error::NotFound { .. })
            && !matches!(error.failure(), Failure::NoSuchBucket { .. });
        if absent { Ok(()) } else { Err(error) }
    }
}
