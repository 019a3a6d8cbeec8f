use std::sync::atomic::Ordering::SeqCst;

use object_store::ObjectStoreExt as _;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::store::hex;
use crate::store::testing::{Broken, Bytewise, Fault, SIZE, World, manifest};

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
    let source = Bytewise::of(SIZE).failing_at(PART_SIZE + 1);
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
        async fn next(&mut self) -> Result<Piece, Broken> {
            Ok(Piece::Data(Bytes::from_static(b"x")))
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
