//! What a store stands on: one place of four kinds.

use std::sync::Arc;

use lockkeeper_crds::{Azure, Directory, EtcdBackupStoreSpec, Gcs, LocalReference, S3};
use object_store::ObjectStore;
use object_store::path::Path;

use super::clouds::{azure, gcs, s3};
use super::connect::{Patience, directory};
use super::error::Place;
use super::hear::Heard;
use super::sweep::Uploads;
use super::{Access, Failure, Kind};

/// The place that a spec names.
#[derive(Clone, Copy)]
pub(super) enum At<'a> {
    S3(&'a S3),
    Gcs(&'a Gcs),
    Azure(&'a Azure),
    Directory(&'a Directory),
}

impl<'a> At<'a> {
    pub(super) fn of(spec: &'a EtcdBackupStoreSpec) -> Result<Self, Failure> {
        let named = [
            spec.s3.as_ref().map(At::S3),
            spec.gcs.as_ref().map(At::Gcs),
            spec.azure.as_ref().map(At::Azure),
            spec.directory.as_ref().map(At::Directory),
        ];
        let mut named = named.into_iter().flatten();
        match (named.next(), named.next()) {
            (Some(at), None) => Ok(at),
            _ => Err(Failure::Spec {
                field: "spec",
                problem: "must name exactly one place: spec.s3, spec.gcs, spec.azure or spec.directory"
                    .to_owned(),
            }),
        }
    }

    pub(super) fn kind(self) -> Kind {
        match self {
            Self::S3(_) => Kind::S3,
            Self::Gcs(_) => Kind::Gcs,
            Self::Azure(_) => Kind::Azure,
            Self::Directory(_) => Kind::Directory,
        }
    }

    pub(super) fn credentials_secret(self) -> Option<&'a LocalReference> {
        match self {
            Self::S3(s3) => s3.credentials_secret.as_ref(),
            Self::Gcs(gcs) => gcs.credentials_secret.as_ref(),
            Self::Azure(azure) => azure.credentials_secret.as_ref(),
            Self::Directory(_) => None,
        }
    }

    fn prefix(self) -> Result<Path, Failure> {
        let text = match self {
            Self::S3(s3) => &s3.prefix,
            Self::Gcs(gcs) => &gcs.prefix,
            Self::Azure(azure) => &azure.prefix,
            Self::Directory(_) => "",
        };
        Path::parse(text).map_err(|e| Failure::Spec {
            field: self.kind().words().prefix,
            problem: e.to_string(),
        })
    }

    fn place(self, store: &str) -> Place {
        let secret = self.credentials_secret().map_or_else(
            || format!("(none: {} names none)", self.kind().words().secret),
            |secret| secret.name.clone(),
        );
        let (root, bucket, endpoint) = match self {
            Self::S3(s3) => (
                format!("s3://{}/", s3.bucket),
                &s3.bucket,
                s3.endpoint
                    .clone()
                    .unwrap_or_else(|| format!("Amazon S3 in {}", s3.region)),
            ),
            Self::Gcs(gcs) => (
                format!("gs://{}/", gcs.bucket),
                &gcs.bucket,
                gcs.endpoint
                    .clone()
                    .unwrap_or_else(|| "Google Cloud Storage".to_owned()),
            ),
            Self::Azure(azure) => (
                format!("az://{}/", azure.container),
                &azure.container,
                azure
                    .endpoint
                    .clone()
                    .unwrap_or_else(|| format!("https://{}.blob.core.windows.net", azure.account)),
            ),
            Self::Directory(at) => (
                format!("file://{}/", at.path.trim_end_matches('/')),
                &at.path,
                at.path.clone(),
            ),
        };
        Place {
            kind: self.kind(),
            store: store.to_owned(),
            root,
            bucket: bucket.clone(),
            endpoint,
            region: match self {
                Self::S3(s3) => s3.region.clone(),
                _ => String::new(),
            },
            secret,
            heard: Heard::default(),
        }
    }
}

/// What a store stands on.
pub(super) struct Ground {
    pub(super) place: Place,
    pub(super) prefix: Path,
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) brisk: Arc<dyn ObjectStore>,
    pub(super) uploads: Uploads,
}

impl Ground {
    pub(super) fn of(
        store: &str,
        spec: &EtcdBackupStoreSpec,
        access: Option<&Access>,
    ) -> Result<Self, Failure> {
        let at = At::of(spec)?;
        let (place, prefix) = (at.place(store), at.prefix()?);
        let (heard, data, probe) = (&place.heard, Patience::DATA, Patience::PROBE);
        let (objects, brisk, uploads): (Arc<dyn ObjectStore>, Arc<dyn ObjectStore>, _) = match at {
            At::S3(spec) => {
                let bucket = Arc::new(s3(spec, access, data, heard)?);
                let uploads = Uploads::of_s3(bucket.clone(), spec)?;
                (bucket, Arc::new(s3(spec, access, probe, heard)?), uploads)
            }
            At::Gcs(spec) => {
                let bucket = Arc::new(gcs(spec, access, data, heard)?);
                let uploads = Uploads::of_gcs(bucket.clone(), spec)?;
                (bucket, Arc::new(gcs(spec, access, probe, heard)?), uploads)
            }
            At::Azure(spec) => (
                Arc::new(azure(spec, access, data, heard)?),
                Arc::new(azure(spec, access, probe, heard)?),
                Uploads::Expiring,
            ),
            At::Directory(at) => {
                let files = Arc::new(directory(&at.path)?);
                (files.clone(), files, Uploads::of_directory(&at.path))
            }
        };
        Ok(Self {
            place,
            prefix,
            objects,
            brisk,
            uploads,
        })
    }
}
