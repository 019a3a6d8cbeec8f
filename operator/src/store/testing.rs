//! A store that misbehaves, and a source of bytes, for tests.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use lockkeeper_crds::Compression;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, UploadPart,
};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::manifest::Object;
use super::{FORMAT, Fingerprint, Kept, Manifest, PART_SIZE, Piece, Source, Store, UploadError, hex};

/// One way in which a store misbehaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fault {
    #[default]
    None,
    /// Part 2 is refused.
    Part,
    /// Part 2 never ends.
    PartHangs,
    /// Completing fails, and nothing is there.
    Complete,
    /// Completing works, and its answer is lost.
    CompleteAnswer,
    /// What is read back has another byte.
    FlippedByte,
    /// What is read back is shorter.
    Truncated,
    /// The manifest is refused.
    Manifest,
    /// The manifest is written, and the answer is lost.
    ManifestAnswer,
    /// Somebody else writes a manifest first.
    ManifestRace,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) begun: AtomicUsize,
    pub(super) completed: AtomicUsize,
    pub(super) aborted: AtomicUsize,
    pub(super) in_flight: AtomicUsize,
    pub(super) most_in_flight: AtomicUsize,
}

#[derive(Debug)]
struct Faulty {
    inner: Arc<InMemory>,
    fault: Fault,
    counts: Arc<Counts>,
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

fn lost() -> object_store::Error {
    object_store::Error::Generic {
        store: "test",
        source: Box::new(object_store::client::HttpError::new(
            object_store::client::HttpErrorKind::Timeout,
            std::io::Error::from(std::io::ErrorKind::TimedOut),
        )),
    }
}

fn refused() -> object_store::Error {
    object_store::Error::PermissionDenied {
        path: "x".to_owned(),
        source: "no".into(),
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        match self.fault {
            Fault::Manifest => Err(refused()),
            Fault::ManifestAnswer => {
                self.inner.put_opts(location, payload, opts).await?;
                Err(lost())
            }
            Fault::ManifestRace => {
                let theirs = serde_json::to_vec(&manifest(kept("theirs"))).unwrap();
                self.inner.put(location, theirs.into()).await?;
                self.inner.put_opts(location, payload, opts).await
            }
            _ => self.inner.put_opts(location, payload, opts).await,
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.counts.begun.fetch_add(1, SeqCst);
        Ok(Box::new(FaultyUpload {
            inner: self.inner.put_multipart_opts(location, opts).await?,
            fault: self.fault,
            counts: self.counts.clone(),
            parts: 0,
        }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        let answer = self.inner.get_opts(location, options).await?;
        let (mut meta, attributes) = (answer.meta.clone(), answer.attributes.clone());
        let mut bytes = answer.bytes().await?.to_vec();
        match self.fault {
            Fault::FlippedByte if location.filename().is_some_and(data) => bytes[1000] ^= 1,
            Fault::Truncated if location.filename().is_some_and(data) => bytes.truncate(1000),
            _ => {}
        }
        meta.size = bytes.len() as u64;
        let stream = futures::stream::once(async move { Ok(Bytes::from(bytes)) });
        Ok(GetResult {
            payload: object_store::GetResultPayload::Stream(stream.boxed()),
            range: 0..meta.size,
            meta,
            attributes,
            extensions: Default::default(),
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    fault: Fault,
    counts: Arc<Counts>,
    parts: usize,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.parts += 1;
        let (part, fault, counts) = (self.parts, self.fault, self.counts.clone());
        let put = self.inner.put_part(data);
        Box::pin(async move {
            let now = counts.in_flight.fetch_add(1, SeqCst) + 1;
            counts.most_in_flight.fetch_max(now, SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            let done = match (fault, part) {
                (Fault::Part, 2) => Err(lost()),
                (Fault::PartHangs, 2) => std::future::pending().await,
                _ => put.await,
            };
            counts.in_flight.fetch_sub(1, SeqCst);
            done
        })
    }

    async fn complete(&mut self) -> object_store::Result<PutResult> {
        match self.fault {
            Fault::Complete => Err(lost()),
            Fault::CompleteAnswer => {
                self.inner.complete().await?;
                Err(lost())
            }
            _ => {
                self.counts.completed.fetch_add(1, SeqCst);
                self.inner.complete().await
            }
        }
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        self.counts.aborted.fetch_add(1, SeqCst);
        self.inner.abort().await
    }
}

/// Gives `size` bytes in messages of 32 KiB, as etcd does, and fails at `fails_at`.
pub(super) struct Bytewise {
    left: usize,
    fails_at: Option<usize>,
    message: Vec<u8>,
    hash: Sha256,
    given: u64,
}

impl Bytewise {
    pub(super) fn of(size: usize) -> Self {
        Self {
            left: size,
            fails_at: None,
            message: vec![],
            hash: Sha256::new(),
            given: 0,
        }
    }

    /// Breaks when so many bytes were given.
    pub(super) fn failing_at(mut self, bytes: usize) -> Self {
        self.fails_at = Some(bytes);
        self
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the stream broke")]
pub(super) struct Broken;

impl Source for Bytewise {
    type Error = Broken;

    async fn next(&mut self) -> Result<Piece<'_>, Broken> {
        if self.fails_at.is_some_and(|at| self.given >= at as u64) {
            return Err(Broken);
        }
        if self.left == 0 {
            return Ok(Piece::End(Fingerprint {
                size: self.given,
                sha256: hex(&std::mem::take(&mut self.hash).finalize()),
            }));
        }
        let now = self.left.min(32 * 1024);
        self.left -= now;
        self.message = vec![(self.left % 251) as u8; now];
        self.hash.update(&self.message);
        self.given += now as u64;
        Ok(Piece::Data(&self.message))
    }
}

pub(super) fn data(name: &str) -> bool {
    name.starts_with("snapshot.db")
}

pub(super) fn kept(id: &str) -> Kept {
    let file = Fingerprint {
        size: 1,
        sha256: String::new(),
    };
    Kept {
        id: id.to_owned(),
        snapshot: Object {
            name: "snapshot.db".to_owned(),
            stored: file.clone(),
            plain: file,
            compression: Compression::None,
            encrypted: None,
        },
        pki: None,
    }
}

pub(super) fn manifest(kept: Kept) -> Manifest {
    Manifest {
        format: FORMAT,
        id: kept.id,
        name: "nightly".to_owned(),
        uid: "0123456789ab".to_owned(),
        schedule: None,
        node: "cp-1".to_owned(),
        cluster_id: "c".to_owned(),
        member_id: "m".to_owned(),
        etcd_version: "3.6.6".to_owned(),
        storage_version: Some("3.6.0".to_owned()),
        kubernetes_version: None,
        revision: 7,
        keys: Some(3),
        hash_kv: None,
        size_bytes: kept.snapshot.plain.size,
        sha256: kept.snapshot.plain.sha256.clone(),
        snapshot: Some(kept.snapshot),
        pki: kept.pki,
        part_size_bytes: PART_SIZE as u64,
        started_at: Time(Timestamp::UNIX_EPOCH),
        completed_at: Time(Timestamp::UNIX_EPOCH),
    }
}

pub(super) struct World {
    pub(super) store: Store,
    pub(super) inner: Arc<InMemory>,
    pub(super) counts: Arc<Counts>,
}

impl World {
    pub(super) fn with(fault: Fault) -> Self {
        let (inner, counts) = (Arc::new(InMemory::new()), Arc::<Counts>::default());
        let faulty = Faulty {
            inner: inner.clone(),
            fault,
            counts: counts.clone(),
        };
        let mut store = Store::from_objects(Arc::new(faulty), "some/prefix");
        // Compressed, what this source gives would be no part.
        store.packing.compression = Compression::None;
        Self { store, inner, counts }
    }

    pub(super) async fn keep(
        &self,
        mut source: Bytewise,
        cancel: &CancellationToken,
    ) -> Result<Manifest, UploadError<Broken>> {
        let key = self.store.key("nightly", "0123456789ab");
        self.store.keep(&key, &mut source, None, manifest, cancel).await
    }

    pub(super) async fn objects(&self) -> Vec<String> {
        let mut listed: Vec<_> = self
            .inner
            .list(None)
            .map(|o| o.unwrap().location.to_string())
            .collect()
            .await;
        listed.sort();
        listed
    }

    pub(super) fn counted(&self) -> (usize, usize, usize) {
        let Counts {
            begun,
            completed,
            aborted,
            ..
        } = &*self.counts;
        (begun.load(SeqCst), completed.load(SeqCst), aborted.load(SeqCst))
    }
}

pub(super) const SIZE: usize = 3 * PART_SIZE + 12345;
