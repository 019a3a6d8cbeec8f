use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use lockkeeper_crds::Compression;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutOptions,
    PutResult, UploadPart,
};
use sha2::{Digest as _, Sha256};

use super::*;
use crate::store::{FORMAT, Kept, Manifest, hex};

/// One way in which a store misbehaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store) enum Fault {
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
struct Counts {
    begun: AtomicUsize,
    completed: AtomicUsize,
    aborted: AtomicUsize,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
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
pub(in crate::store) struct Bytewise {
    left: usize,
    fails_at: Option<usize>,
    message: Vec<u8>,
    hash: Sha256,
    given: u64,
}

impl Bytewise {
    pub(in crate::store) fn of(size: usize) -> Self {
        Self {
            left: size,
            fails_at: None,
            message: vec![],
            hash: Sha256::new(),
            given: 0,
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the stream broke")]
pub(in crate::store) struct Broken;

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

fn data(name: &str) -> bool {
    name.starts_with("snapshot.db")
}

fn kept(id: &str) -> Kept {
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

pub(in crate::store) fn manifest(kept: Kept) -> Manifest {
    Manifest {
        format: FORMAT,
        id: kept.id,
        name: "nightly".to_owned(),
        uid: "0123456789ab".to_owned(),
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

pub(in crate::store) struct World {
    pub(in crate::store) store: Store,
    pub(in crate::store) inner: Arc<InMemory>,
    counts: Arc<Counts>,
}

impl World {
    pub(in crate::store) fn with(fault: Fault) -> Self {
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

    pub(in crate::store) async fn keep(
        &self,
        mut source: Bytewise,
        cancel: &CancellationToken,
    ) -> Result<Manifest, UploadError<Broken>> {
        let key = self.store.key("nightly", "0123456789ab");
        self.store.keep(&key, &mut source, None, manifest, cancel).await
    }

    pub(in crate::store) async fn objects(&self) -> Vec<String> {
        let mut listed: Vec<_> = self
            .inner
            .list(None)
            .map(|o| o.unwrap().location.to_string())
            .collect()
            .await;
        listed.sort();
        listed
    }

    fn counted(&self) -> (usize, usize, usize) {
        let Counts {
            begun,
            completed,
            aborted,
            ..
        } = &*self.counts;
        (begun.load(SeqCst), completed.load(SeqCst), aborted.load(SeqCst))
    }
}

pub(in crate::store) const SIZE: usize = 3 * PART_SIZE + 12345;

#[tokio::test]
async fn a_backup_is_its_snapshot_and_its_manifest() {
    let world = World::with(Fault::None);
    let written = world
        .keep(Bytewise::of(SIZE), &CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(
        world.objects().await,
        [
            "some/prefix/nightly-01234567/manifest.json",
            "some/prefix/nightly-01234567/snapshot.db"
        ]
    );
    let key = world.store.key("nightly", "0123456789ab");
    assert_eq!(world.store.manifest(&key).await.unwrap(), Some(written.clone()));
    assert_eq!(written.size_bytes, SIZE as u64);
    let stored = world
        .inner
        .get(&key.object("snapshot.db"))
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap();
    assert_eq!(hex(&Sha256::digest(&stored)), written.sha256);
    assert_eq!(world.counted(), (1, 1, 0));
    assert_eq!(
        world.counts.most_in_flight.load(SeqCst),
        IN_FLIGHT,
        "memory is bounded"
    );
    // A second one over it is refused before a byte is sent.
    let again = world
        .keep(Bytewise::of(SIZE), &CancellationToken::new())
        .await
        .unwrap_err();
    assert!(again.to_string().contains("nothing was overwritten"), "{again}");
    assert_eq!(world.counted(), (1, 1, 0));
}

#[tokio::test]
async fn whatever_fails_nothing_is_left() {
    for (fault, says, aborted) in [
        (Fault::Part, "did not answer in time to upload a part", 1),
        (Fault::Complete, "did not answer in time to complete an upload", 1),
        (Fault::FlippedByte, "is not what was written: SHA-256", 0),
        (
            Fault::Truncated,
            "is not what was written: 1000 bytes instead of",
            0,
        ),
        (Fault::Manifest, "may not write the manifest", 0),
    ] {
        let world = World::with(fault);
        let error = world
            .keep(Bytewise::of(SIZE), &CancellationToken::new())
            .await
            .unwrap_err();
        assert!(error.to_string().contains(says), "{fault:?}: {error}");
        assert_eq!(world.objects().await, [""; 0], "{fault:?}");
        assert_eq!(world.counted().2, aborted, "{fault:?}");
    }
}

#[tokio::test]
async fn a_source_that_breaks_aborts_the_upload() {
    let world = World::with(Fault::None);
    let source = Bytewise {
        fails_at: Some(PART_SIZE + 1),
        ..Bytewise::of(SIZE)
    };
    let error = world.keep(source, &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, UploadError::Source(Broken)), "{error}");
    assert_eq!(world.objects().await, [""; 0]);
    assert_eq!(world.counted(), (1, 0, 1));
}

#[tokio::test]
async fn an_upload_whose_last_answer_was_lost_is_read_back_all_the_same() {
    let world = World::with(Fault::CompleteAnswer);
    world
        .keep(Bytewise::of(SIZE), &CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(world.objects().await.len(), 2);
}

#[tokio::test]
async fn cancelling_aborts_and_so_does_dropping() {
    let world = World::with(Fault::PartHangs);
    let cancel = CancellationToken::new();
    let later = cancel.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        later.cancel();
    });
    let error = world.keep(Bytewise::of(SIZE), &cancel).await.unwrap_err();
    assert!(matches!(error, UploadError::Cancelled), "{error}");
    assert_eq!(world.counted(), (1, 0, 1));
    assert_eq!(world.objects().await, [""; 0]);

    let never = CancellationToken::new();
    let dropped = world.keep(Bytewise::of(SIZE), &never);
    assert!(
        tokio::time::timeout(Duration::from_millis(200), dropped)
            .await
            .is_err()
    );
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.counted(), (2, 0, 2));
}

#[tokio::test]
async fn a_source_that_is_always_ready_can_still_be_cancelled() {
    struct Endless;
    impl Source for Endless {
        type Error = Broken;
        async fn next(&mut self) -> Result<Piece<'_>, Broken> {
            Ok(Piece::Data(b"x"))
        }
    }
    let world = World::with(Fault::None);
    let key = world.store.key("nightly", "0123456789ab");
    let cancel = CancellationToken::new();
    let mut source = Endless;
    let keeping = world.store.keep(&key, &mut source, None, manifest, &cancel);
    let cancelling = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        cancel.cancel();
    };
    let (kept, ()) = tokio::join!(keeping, cancelling);
    assert!(matches!(kept, Err(UploadError::Cancelled)), "{kept:?}");
    assert_eq!(world.counted(), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_limited_pace_is_kept() {
    let began = tokio::time::Instant::now();
    let mut pace = Pace::of(Some(1000));
    for _ in 0..10 {
        pace.keep(500).await;
    }
    // The first piece is free: it is there already.
    assert_eq!(began.elapsed().as_millis() / 100, 45);
    let began = tokio::time::Instant::now();
    Pace::of(None).keep(1 << 40).await;
    assert_eq!(began.elapsed().as_millis(), 0);
}
