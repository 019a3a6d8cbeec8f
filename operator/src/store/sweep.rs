//! Uploads that were begun and never ended, because the agent that made them was killed: their parts cost room, and
//! nothing lists them.
//!
//! S3 and Google list them, and Google does so in S3's format. Azure does not, and drops them itself after a week.
//!
//! Only under our own prefix, only of names that we give, and only what is dead: of a backup that has ended, or older
//! than any backup may take.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::Method;
use http_body_util::BodyExt as _;
use lockkeeper_crds::{Gcs, S3};
use object_store::aws::AmazonS3;
use object_store::client::{HttpClient, HttpConnector as _, HttpRequestBody, ReqwestConnector};
use object_store::gcp::GoogleCloudStorage;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer as _};
use serde::Deserialize;

use super::clouds::GOOGLE;
use super::connect::{Patience, Server};
use super::manifest::names;
use super::{BackupKey, Failure, Store, StoreError};

/// No backup takes longer than a day (`spec.deadlineSeconds` allows no more); an hour more, since the clock that
/// dates an upload is the server's.
pub(super) const DEAD_AFTER: Duration = Duration::from_secs(25 * 3600);

/// For one page of the list, or one abort.
const REQUEST: Duration = Duration::from_secs(30);

/// Of a thousand uploads each: what is more waits for the next sweep.
const PAGES: usize = 20;

/// An answer that is longer is not the list of a thousand uploads.
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// Where unfinished uploads are found.
#[derive(Clone)]
pub(super) enum Uploads {
    /// In a bucket.
    Listed(Bucket),
    /// Nowhere: the provider drops them in its own time.
    Expiring,
    /// Beside what they would have become, as `name#number`.
    Directory(PathBuf),
    /// Of a test.
    #[cfg(test)]
    Unknown,
}

/// A bucket whose client cannot list them: the list is asked for with its signature, by a client of our own.
#[derive(Clone)]
pub(super) struct Bucket {
    lister: Lister,
    client: HttpClient,
}

#[derive(Clone)]
enum Lister {
    S3(Arc<AmazonS3>),
    /// With the bucket's address.
    Google(Arc<GoogleCloudStorage>, String),
}

impl Uploads {
    pub(super) fn of_s3(bucket: Arc<AmazonS3>, s3: &S3) -> Result<Self, Failure> {
        Self::listed(Lister::S3(bucket), Server::from(s3))
    }

    pub(super) fn of_gcs(bucket: Arc<GoogleCloudStorage>, gcs: &Gcs) -> Result<Self, Failure> {
        let server = Server::from(gcs);
        let url = server.endpoint()?.map_or(GOOGLE.to_owned(), |e| e.url(None));
        Self::listed(Lister::Google(bucket, format!("{url}/{}", gcs.bucket)), server)
    }

    fn listed(lister: Lister, server: Server<'_>) -> Result<Self, Failure> {
        let client = ReqwestConnector::default().connect(&server.options(Patience::PROBE)?);
        let client = client.map_err(|e| Failure::Spec {
            field: server.kind.words().section,
            problem: super::error::chain(&e),
        })?;
        Ok(Self::Listed(Bucket { lister, client }))
    }

    pub(super) fn of_directory(path: &str) -> Self {
        Self::Directory(path.into())
    }
}

impl Bucket {
    fn multipart(&self) -> &dyn MultipartStore {
        match &self.lister {
            Lister::S3(bucket) => bucket.as_ref(),
            Lister::Google(bucket, _) => bucket.as_ref(),
        }
    }

    /// What to ask, and what to show.
    async fn request(&self, query: &[(&str, &str)]) -> object_store::Result<(String, Option<String>)> {
        match &self.lister {
            Lister::S3(bucket) => {
                let options = SignedUrlOptions::new().with_query(query.to_vec());
                let root = Path::default();
                let url = bucket
                    .signed_url_opts(Method::GET, &root, REQUEST, &options)
                    .await?;
                Ok((url.into(), None))
            }
            Lister::Google(bucket, url) => {
                let url = reqwest::Url::parse_with_params(url, query);
                let url = url.map_err(|e| object_store::Error::Generic {
                    store: "GCS",
                    source: e.into(),
                })?;
                let credential = bucket.credentials().get_credential().await?;
                Ok((url.into(), Some(format!("Bearer {}", credential.bearer))))
            }
        }
    }
}

/// An upload that was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Begun {
    location: Path,
    id: String,
    /// None: the server does not say.
    age: Option<Duration>,
}

impl Store {
    /// Aborts every unfinished upload of the backup at `key`. Only for one that nobody takes any more.
    ///
    /// # Errors
    /// When the store fails. What was aborted until then is gone.
    pub async fn sweep_of(&self, key: &BackupKey) -> Result<usize, StoreError> {
        let of_it: Vec<Path> = key.objects().collect();
        self.abort_all(|begun| of_it.contains(&begun.location), key.name())
            .await
    }

    /// Aborts every unfinished upload under the prefix of a backup that has `ended`, by the names of their
    /// directories ([`BackupKey::name`]), or older than 25 hours: no backup may take longer than a day.
    ///
    /// # Errors
    /// When the store fails. What was aborted until then is gone.
    pub async fn sweep(&self, ended: &BTreeSet<String>) -> Result<usize, StoreError> {
        let prefix = self.prefix.clone();
        let dead = move |begun: &Begun| {
            let backup = begun.location.as_ref().rsplit('/').nth(1).unwrap_or_default();
            let old = begun.age.is_some_and(|age| age > DEAD_AFTER);
            ours(&prefix, &begun.location) && (old || ended.contains(backup))
        };
        self.abort_all(dead, "").await
    }

    async fn abort_all(&self, dead: impl Fn(&Begun) -> bool, below: &str) -> Result<usize, StoreError> {
        match &self.uploads {
            #[cfg(test)]
            Uploads::Unknown => Ok(0),
            Uploads::Expiring => Ok(0),
            Uploads::Listed(bucket) => {
                let mut aborted = 0;
                for begun in self.begun(bucket, below).await? {
                    if !dead(&begun) {
                        continue;
                    }
                    let abort = bucket.multipart().abort_multipart(&begun.location, &begun.id);
                    match self.within(REQUEST, "abort a dead upload", abort).await {
                        Ok(()) => aborted += 1,
                        // Somebody else was quicker.
                        Err(e) if e.reason() == "Refused" && e.to_string().contains("404") => {}
                        Err(e) => return Err(e),
                    }
                    tracing::info!(uri = %self.uri(&begun.location), age = ?begun.age, "took the parts of a dead upload out of the store");
                }
                Ok(aborted)
            }
            Uploads::Directory(root) => {
                let (root, store) = (root.clone(), self.clone());
                let begun = tokio::task::spawn_blocking(move || staged(&root, SystemTime::now())).await;
                let failed = |detail: String| {
                    store.failure(Failure::Directory {
                        path: store.place.endpoint.clone(),
                        doing: "look for dead uploads",
                        detail,
                    })
                };
                let begun = begun
                    .map_err(|e| failed(e.to_string()))?
                    .map_err(|e| failed(e.to_string()))?;
                let mut aborted = 0;
                for begun in begun.into_iter().filter(|begun| dead(begun)) {
                    tokio::fs::remove_file(&begun.id)
                        .await
                        .map_err(|e| failed(e.to_string()))?;
                    aborted += 1;
                }
                Ok(aborted)
            }
        }
    }

    /// Unfinished uploads in `below`, a directory under the prefix, or in all of it.
    async fn begun(&self, bucket: &Bucket, below: &str) -> Result<Vec<Begun>, StoreError> {
        let prefix = match (self.prefix.as_ref(), below) {
            ("", "") => String::new(),
            ("", below) => format!("{below}/"),
            (prefix, "") => format!("{prefix}/"),
            (prefix, below) => format!("{prefix}/{below}/"),
        };
        let mut found = vec![];
        let mut marker: Option<(String, String)> = None;
        for _ in 0..PAGES {
            let page = self.page(bucket, &prefix, marker.as_ref()).await?;
            found.extend(page.uploads.into_iter().filter_map(Listed::begun));
            marker = match (page.truncated, page.next_key, page.next_id) {
                (true, Some(key), id) => Some((key, id.unwrap_or_default())),
                _ => return Ok(found),
            };
        }
        Ok(found)
    }

    async fn page(
        &self,
        bucket: &Bucket,
        prefix: &str,
        marker: Option<&(String, String)>,
    ) -> Result<Page, StoreError> {
        let doing = "list unfinished uploads";
        let mut query = vec![("uploads", ""), ("prefix", prefix)];
        if let Some((key, id)) = marker {
            query.push(("key-marker", key));
            query.push(("upload-id-marker", id));
        }
        let (url, shown) = self.within(REQUEST, doing, bucket.request(&query)).await?;
        let asked = async {
            let mut request = http::Request::get(url.as_str());
            if let Some(shown) = shown {
                request = request.header(http::header::AUTHORIZATION, shown);
            }
            let request = request.body(HttpRequestBody::empty());
            let request = request.map_err(|_| "the request could not be made".to_owned())?;
            let answer = bucket.client.execute(request).await;
            // Without the error's own text: it holds the signed address.
            let answer = answer.map_err(|e| format!("{:?}", e.kind()))?;
            let status = answer.status();
            let body = answer.into_body().collect().await;
            let body = body.map_err(|e| format!("{:?}", e.kind()))?.to_bytes();
            if !status.is_success() {
                return Err(format!("HTTP {}", status.as_u16()));
            }
            if body.len() > MOST_BYTES {
                return Err("the answer is too long".to_owned());
            }
            parse(&body)
        };
        match tokio::time::timeout(REQUEST, asked).await {
            Ok(Ok(page)) => Ok(page),
            Ok(Err(detail)) => Err(self.failure(Failure::Refused {
                endpoint: self.place.endpoint.clone(),
                doing,
                detail,
            })),
            Err(_) => Err(self.place.timed_out(doing, REQUEST)),
        }
    }
}

/// Exactly `<prefix>/<backup>/<a name that we give>`: what lies deeper is of another cluster's prefix, and what has
/// another name of another program.
fn ours(prefix: &Path, location: &Path) -> bool {
    let Some(rest) = location.prefix_match(prefix) else {
        return false;
    };
    let parts: Vec<String> = rest.map(|part| part.as_ref().to_owned()).collect();
    matches!(parts.as_slice(), [_, file] if names().any(|name| name == *file))
}

/// `ListMultipartUploadsResult`.
#[derive(Debug, Deserialize)]
struct Page {
    #[serde(rename = "IsTruncated", default)]
    truncated: bool,
    #[serde(rename = "NextKeyMarker", default)]
    next_key: Option<String>,
    #[serde(rename = "NextUploadIdMarker", default)]
    next_id: Option<String>,
    #[serde(rename = "Upload", default)]
    uploads: Vec<Listed>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    #[serde(rename = "Key")]
    key: String,
    #[serde(rename = "UploadId")]
    id: String,
    #[serde(rename = "Initiated", default)]
    initiated: Option<String>,
}

impl Listed {
    fn begun(self) -> Option<Begun> {
        let initiated = self.initiated.as_deref();
        let since = initiated.and_then(|text| text.parse::<k8s_openapi::jiff::Timestamp>().ok());
        let age = since.map(|since| {
            let now = k8s_openapi::jiff::Timestamp::now().as_second();
            Duration::from_secs(u64::try_from(now - since.as_second()).unwrap_or_default())
        });
        Some(Begun {
            location: Path::parse(&self.key).ok()?,
            id: self.id,
            age,
        })
    }
}

fn parse(body: &[u8]) -> Result<Page, String> {
    quick_xml::de::from_reader(body).map_err(|_| "the answer is no list of uploads".to_owned())
}

/// Files of unfinished uploads in a directory store; the id is the file.
fn staged(root: &std::path::Path, now: SystemTime) -> std::io::Result<Vec<Begun>> {
    let mut found = vec![];
    for directory in std::fs::read_dir(root)? {
        let directory = directory?;
        if !directory.file_type()?.is_dir() {
            continue;
        }
        let backup = directory.file_name();
        for file in std::fs::read_dir(directory.path())? {
            let file = file?;
            let name = file.file_name();
            let (Some(backup), Some((name, number))) =
                (backup.to_str(), name.to_str().and_then(|n| n.rsplit_once('#')))
            else {
                continue;
            };
            if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
                continue;
            }
            let modified = file.metadata()?.modified()?;
            found.push(Begun {
                location: Path::from(format!("{backup}/{name}")),
                id: file.path().display().to_string(),
                age: Some(now.duration_since(modified).unwrap_or_default()),
            });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_directly_under_our_own_prefix_are_ours() {
        for (prefix, location, is_ours) in [
            ("one", "one/nightly-01234567/snapshot.db.zst", true),
            ("one", "one/nightly-01234567/pki.tar.zst.age", true),
            ("", "nightly-01234567/snapshot.db", true),
            ("", "one/nightly-01234567/snapshot.db", false),
            ("one", "ones/nightly-01234567/snapshot.db", false),
            ("one", "one/nightly-01234567/video.mp4", false),
            ("one", "one/snapshot.db", false),
        ] {
            let found = ours(&Path::from(prefix), &Path::from(location));
            assert_eq!(found, is_ours, "{prefix} {location}");
        }
    }

    #[test]
    fn a_servers_list_is_understood() {
        let page = parse(
            br#"<?xml version="1.0" encoding="UTF-8"?>
            <ListMultipartUploadsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Bucket>b</Bucket>
            <KeyMarker/><UploadIdMarker/><NextKeyMarker>k</NextKeyMarker><NextUploadIdMarker>i</NextUploadIdMarker>
            <MaxUploads>2</MaxUploads><IsTruncated>true</IsTruncated>
            <Upload><Key>one/a-01234567/snapshot.db</Key><UploadId>u1</UploadId><Initiator><ID>x</ID></Initiator>
            <StorageClass>STANDARD</StorageClass><Initiated>2020-01-01T00:00:00.000Z</Initiated></Upload>
            <Upload><Key>one/b-01234567/snapshot.db</Key><UploadId>u2</UploadId></Upload>
            </ListMultipartUploadsResult>"#,
        )
        .unwrap();
        assert_eq!((page.truncated, page.next_key.as_deref()), (true, Some("k")));
        let begun: Vec<Begun> = page.uploads.into_iter().filter_map(Listed::begun).collect();
        assert!(begun[0].age.unwrap() > DEAD_AFTER);
        assert_eq!((begun[1].id.as_str(), begun[1].age), ("u2", None));
        assert!(
            parse(b"<html>hello</html>").is_err() || parse(b"<html>hello</html>").unwrap().uploads.is_empty()
        );
        assert!(parse(b"nonsense").is_err());
    }

    #[test]
    fn files_of_unfinished_uploads_are_found() {
        let root = tempfile::tempdir().unwrap();
        let backup = root.path().join("nightly-01234567");
        std::fs::create_dir(&backup).unwrap();
        for name in ["snapshot.db.zst", "snapshot.db.zst#1", "snapshot.db.zst#x"] {
            std::fs::write(backup.join(name), "x").unwrap();
        }
        let later = SystemTime::now() + DEAD_AFTER + Duration::from_secs(60);
        let found = staged(root.path(), later).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].location.as_ref(), "nightly-01234567/snapshot.db.zst");
        assert!(found[0].age.unwrap() > DEAD_AFTER);
    }
}
