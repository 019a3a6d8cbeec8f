//! Whether a bucket keeps what is deleted from it, as an older version.
//!
//! S3 and Azure say so with every answer about one object. Azure does not say whether it keeps what is deleted in another
//! way, and Google says nothing: it gives every object a generation, kept or not.

use std::sync::{Arc, Mutex, PoisonError};

use http::header::ETAG;
use http::{HeaderMap, StatusCode};
use lockkeeper_crds::Tristate;

use super::{Kind, Store};

/// Of S3 and of Azure.
const VERSION: [&str; 2] = ["x-amz-version-id", "x-ms-version-id"];

/// Of what S3 stores where versions were kept once and are not any more: the next object of that name replaces it.
const REPLACEABLE: &str = "null";

/// What the answers have said so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Versions(Arc<Mutex<Option<bool>>>);

impl Versions {
    pub(super) fn note(&self, status: StatusCode, headers: &HeaderMap) {
        let said = said(status, headers);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A version that was seen stays, whatever is said of other objects.
        if *kept != Some(true) && said.is_some() {
            *kept = said;
        }
    }

    fn kept(&self) -> Option<bool> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn said(status: StatusCode, headers: &HeaderMap) -> Option<bool> {
    if !status.is_success() {
        return None;
    }
    match VERSION.iter().find_map(|name| headers.get(*name)) {
        Some(version) => Some(version != REPLACEABLE),
        // About an object: one that was read or written, or one that S3 has deleted.
        None if headers.contains_key(ETAG) || status == StatusCode::NO_CONTENT => Some(false),
        None => None,
    }
}

impl Store {
    /// Whether what is deleted stays in the bucket as an older version, as far as its answers have told.
    #[must_use]
    pub fn keeps_versions(&self) -> Tristate {
        told(self.place.kind, self.place.heard.versions.kept())
    }
}

fn told(kind: Kind, kept: Option<bool>) -> Tristate {
    match (kind, kept) {
        (Kind::S3 | Kind::Azure, Some(true)) => Tristate::True,
        (Kind::S3, Some(false)) | (Kind::Directory, _) => Tristate::False,
        (Kind::Azure | Kind::Gcs, _) | (Kind::S3, None) => Tristate::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_tells_by_its_answers_about_objects_alone_whether_it_keeps_them() {
        let (ok, no_content) = (StatusCode::OK, StatusCode::NO_CONTENT);
        for (status, headers, kept) in [
            (ok, vec![("x-amz-version-id", "3sL4kqtJlcpXroDTDmJ")], Some(true)),
            (
                no_content,
                vec![("x-amz-version-id", "a-delete-marker's")],
                Some(true),
            ),
            (
                ok,
                vec![("x-ms-version-id", "2026-11-21T18:00:00.0000000Z")],
                Some(true),
            ),
            (
                ok,
                vec![("x-amz-version-id", "null"), ("etag", "\"1\"")],
                Some(false),
            ),
            (ok, vec![("etag", "\"1\"")], Some(false)),
            (no_content, vec![], Some(false)),
            // A list.
            (ok, vec![("content-type", "application/xml")], None),
            (
                StatusCode::NOT_FOUND,
                vec![("x-amz-version-id", "a-delete-marker's")],
                None,
            ),
            (StatusCode::PRECONDITION_FAILED, vec![("etag", "\"1\"")], None),
        ] {
            let headers: HeaderMap = headers
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect();
            assert_eq!(said(status, &headers), kept, "{status} {headers:?}");
        }
    }

    #[test]
    fn what_a_provider_does_not_tell_is_unknown() {
        use Tristate::{False, True, Unknown};
        for (kind, told_of) in [
            (Kind::S3, [Unknown, False, True]),
            (Kind::Azure, [Unknown, Unknown, True]),
            (Kind::Gcs, [Unknown; 3]),
            (Kind::Directory, [False; 3]),
        ] {
            let kept = [None, Some(false), Some(true)];
            assert_eq!(kept.map(|kept| told(kind, kept)), told_of, "{kind:?}");
        }
    }

    #[test]
    fn one_version_that_was_seen_is_enough() {
        let versions = Versions::default();
        assert_eq!(versions.kept(), None);
        for (version, kept) in [("null", false), ("1", true), ("null", true)] {
            let headers = [("x-amz-version-id".parse().unwrap(), version.parse().unwrap())];
            versions.note(StatusCode::OK, &headers.into_iter().collect());
            assert_eq!(versions.kept(), Some(kept), "{version}");
        }
    }
}
