//! Stores by flags, and backups by whatever a person types.

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    backup: BackupArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    keys: KeyArgs,
}

fn line(words: &str) -> Result<Line, clap::Error> {
    Line::try_parse_from(std::iter::once("x").chain(words.split_whitespace()))
}

fn told(words: &str) -> String {
    line(words).unwrap().store.open().unwrap_err().to_string()
}

#[test]
fn a_bucket_is_named_by_flags_alone() {
    let home = tempfile::tempdir().unwrap();
    let keys = home.path().join("s3.env");
    std::fs::write(&keys, "AWS_ACCESS_KEY_ID=id\nAWS_SECRET_ACCESS_KEY=key\n").unwrap();
    let words = format!(
        "nightly --bucket backups --prefix /one/ --endpoint http://127.0.0.1:1 --region here --path-style --credentials {}",
        keys.display()
    );
    let store = line(&words).unwrap().store.open().unwrap();
    let manifest = store.key("nightly", "0123456789").manifest;
    assert_eq!(
        store.uri(&manifest),
        "s3://backups/one/nightly-01234567/manifest.json"
    );
}

#[test]
fn what_is_wrong_is_said_in_the_words_of_the_flags() {
    let home = tempfile::tempdir().unwrap();
    let at = &home.path().display().to_string();
    assert!(told("x").contains("--bucket NAME"), "{}", told("x"));
    let nowhere = told(&format!("x --directory {at}/nowhere"));
    assert!(nowhere.contains("--directory"), "{nowhere}");
    let endpoint = told("x --bucket backups --endpoint s3.example.org");
    assert!(
        endpoint.contains("--endpoint")
            && !endpoint.contains("spec.")
            && !endpoint.contains("EtcdBackupStore"),
        "{endpoint}"
    );
    let ca = told(&format!("x --bucket backups --ca-file {at}/ca"));
    assert!(ca.contains("--ca-file"), "{ca}");
    let credentials = told(&format!("x --bucket backups --credentials {at}/nowhere"));
    assert!(credentials.starts_with("--credentials:"), "{credentials}");
    for (words, flag) in [
        ("x --endpoint https://a", "--bucket"),
        ("x --bucket a --directory /b", "--directory"),
        ("x --store a --bucket b", "--store"),
    ] {
        let error = line(words).unwrap_err().to_string();
        assert!(error.contains(flag), "{words}: {error}");
    }
    std::fs::write(home.path().join("key"), "nothing").unwrap();
    let keys = line(&format!("x --identity {at}/key")).unwrap().keys;
    let error = keys.identities().unwrap_err().to_string();
    assert!(
        error.contains("--identity") && !error.contains("nothing"),
        "{error}"
    );
}

#[tokio::test]
async fn a_backup_is_asked_for_by_name_or_key_and_what_is_not_there_is_said() {
    let home = tempfile::tempdir().unwrap();
    let manifest = |name: &str, uid: &str| {
        let at = home.path().join(format!("{name}-{}", &uid[..8]));
        std::fs::create_dir_all(&at).unwrap();
        let manifest = json!({
            "format": 1, "id": "a", "name": name, "uid": uid, "node": "cp1", "clusterId": "c", "memberId": "m",
            "etcdVersion": "3.6.0", "revision": 5, "sizeBytes": 4, "sha256": "plain", "partSizeBytes": 8388608,
            "startedAt": "2026-11-01T03:00:00Z", "completedAt": "2026-11-01T03:00:05Z",
        });
        std::fs::write(at.join("manifest.json"), manifest.to_string()).unwrap();
    };
    manifest("nightly", "0123456789");
    manifest("twice", "0123456789");
    manifest("twice", "1123456789");
    let at = &home.path().display().to_string();
    let choose = |wanted: String| async move {
        let line = line(&format!("{wanted} --directory {at}")).unwrap();
        line.backup.choose(&line.store, &line.keys).await
    };
    for wanted in [
        "nightly".to_owned(),
        "nightly-01234567".to_owned(),
        "nightly-01234567/manifest.json".to_owned(),
        format!("file://{at}/nightly-01234567/snapshot.db"),
    ] {
        let chosen = choose(wanted.clone()).await.unwrap();
        assert_eq!(chosen.key.name(), "nightly-01234567", "{wanted}");
    }
    for (wanted, says) in [
        ("twice", "twice-01234567 or twice-11234567"),
        ("never", "rescue list"),
        ("never/manifest.json", "does not exist"),
        ("s3://bucket/nightly-01234567/", "not in this store"),
    ] {
        let told = choose(wanted.to_owned()).await.unwrap_err().to_string();
        assert!(told.contains(says), "{wanted}: {told}");
    }
}
