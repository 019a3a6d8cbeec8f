//! From what an etcd on the restored data says to a verdict. Pure.

use lockkeeper_crds::Findings;

use super::ProofError;
use crate::store::{KeyHash, Manifest};

/// What was read of the etcd that was booted on a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Read {
    /// The revision that it opened with.
    pub(super) revision: i64,
    /// All keys.
    pub(super) keys: i64,
    /// Keys below the API server's prefix.
    pub(super) objects: i64,
    /// That prefix.
    pub(super) prefix: String,
    /// As `NOSPACE on <member>`.
    pub(super) alarms: Vec<String>,
    /// The server's version.
    pub(super) version: String,
    /// All keys at the manifest's revision.
    pub(super) keys_then: Option<i64>,
    /// Their hash at the revision of the manifest's.
    pub(super) hash_then: Option<KeyHash>,
}

/// What is found of a backup that can be restored, and a sentence that says so.
pub(super) fn verified(manifest: &Manifest, read: &Read) -> Result<(Findings, String), ProofError> {
    if let Some(alarm) = read.alarms.iter().find(|a| a.starts_with("CORRUPT")) {
        return Err(ProofError::Corrupt { alarm: alarm.clone() });
    }
    // The manifest's is that of a read just before the stream began: what was streamed is at least this new.
    if read.revision < manifest.revision {
        return Err(ProofError::Mismatch {
            what: "revisions",
            told: format!("at least {}", manifest.revision),
            found: read.revision.to_string(),
        });
    }
    let compared = as_told(manifest, read)?;
    if read.objects == 0 {
        return Err(ProofError::Empty {
            prefix: read.prefix.clone(),
        });
    }
    let mut kinds: Vec<String> = read
        .alarms
        .iter()
        .map(|alarm| alarm.split(' ').next().unwrap_or_default().to_owned())
        .collect();
    kinds.sort();
    kinds.dedup();
    let alarms = if kinds.is_empty() {
        "no alarm".to_owned()
    } else {
        format!(
            "the alarm {}, which whoever restores it has too and has to disarm",
            kinds.join(" and ")
        )
    };
    let sentence = format!(
        "restored and booted with etcd {}: {} keys at revision {}{compared}, {alarms}",
        read.version, read.keys, read.revision
    );
    let findings = Findings {
        keys: read.keys,
        revision: read.revision,
        alarms: kinds,
        secrets: None,
    };
    Ok((findings, sentence))
}

/// Compares what the member said of its keys when the backup was taken. Hashes say something only of equal revisions
/// and equal compact revisions (facts.md 3.8).
fn as_told(manifest: &Manifest, read: &Read) -> Result<&'static str, ProofError> {
    if let (Some(told), Some(found)) = (manifest.keys, read.keys_then)
        && told != found
    {
        return Err(ProofError::Mismatch {
            what: "keys",
            told: told.to_string(),
            found: found.to_string(),
        });
    }
    match (manifest.hash_kv, read.hash_then) {
        (Some(told), Some(found))
            if (told.revision, told.compact_revision) == (found.revision, found.compact_revision) =>
        {
            if told.hash == found.hash {
                return Ok(" with the hash that the member had");
            }
            Err(ProofError::Mismatch {
                what: "as the hash of its keys",
                told: format!("{:08x}", told.hash),
                found: format!("{:08x}", found.hash),
            })
        }
        _ => Ok(""),
    }
}

/// What is found of the Secrets in it.
pub(super) fn drilled(
    image: &str,
    findings: Findings,
    keys: i64,
    listed: i64,
) -> Result<(Findings, String), ProofError> {
    if keys != listed {
        return Err(ProofError::SecretsDiffer { keys, listed });
    }
    let sentence = format!("{image} became ready on it, and all {listed} Secrets were read through it");
    let findings = Findings {
        secrets: Some(listed),
        ..findings
    };
    Ok((findings, sentence))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(revision: i64) -> Manifest {
        serde_json::from_value(serde_json::json!({
            "format": 1, "id": "i", "name": "nightly", "uid": "u", "node": "cp1", "clusterId": "c",
            "memberId": "m", "etcdVersion": "3.6.6", "kubernetesVersion": "v1.35.4", "revision": revision,
            "sizeBytes": 4096, "sha256": "s", "partSizeBytes": 1,
            "startedAt": "2026-11-21T15:00:00Z", "completedAt": "2026-11-21T15:00:01Z",
        }))
        .unwrap()
    }

    fn read() -> Read {
        Read {
            revision: 385,
            keys: 297,
            objects: 296,
            prefix: "/registry/".to_owned(),
            alarms: vec![],
            version: "3.6.6".to_owned(),
            keys_then: Some(290),
            hash_then: None,
        }
    }

    #[test]
    fn keys_and_their_hash_are_those_that_the_member_had_where_they_can_be_compared() {
        let hash = |hash, compact_revision| {
            Some(KeyHash {
                hash,
                revision: 380,
                compact_revision,
            })
        };
        let told = Manifest {
            keys: Some(290),
            hash_kv: hash(7, 100),
            ..manifest(380)
        };
        let with = |hash_then| Read { hash_then, ..read() };
        let (_, sentence) = verified(&told, &with(hash(7, 100))).unwrap();
        assert!(sentence.contains("with the hash"), "{sentence}");
        let (_, sentence) = verified(&told, &with(hash(8, 200))).unwrap();
        assert!(!sentence.contains("hash"), "{sentence}");
        let error = verified(&told, &with(hash(8, 100))).unwrap_err();
        assert_eq!((error.reason(), error.is_verdict()), ("Mismatch", true));
        let fewer = Read {
            keys_then: Some(289),
            ..read()
        };
        assert_eq!(verified(&told, &fewer).unwrap_err().reason(), "Mismatch");
    }

    #[test]
    fn what_is_found_is_told() {
        let (findings, sentence) = verified(&manifest(380), &read()).unwrap();
        assert_eq!(
            sentence,
            "restored and booted with etcd 3.6.6: 297 keys at revision 385, no alarm"
        );
        let (findings, sentence) = drilled("kube-apiserver:v1.35.4", findings, 3, 3).unwrap();
        assert_eq!(
            (findings.keys, findings.revision, findings.secrets),
            (297, 385, Some(3))
        );
        assert!(sentence.contains("all 3 Secrets"), "{sentence}");
    }

    #[test]
    fn an_older_or_an_empty_one_is_not_what_the_manifest_says() {
        let error = verified(&manifest(386), &read()).unwrap_err();
        assert_eq!((error.reason(), error.is_verdict()), ("Mismatch", true));
        let empty = Read { objects: 0, ..read() };
        let error = verified(&manifest(1), &empty).unwrap_err();
        assert_eq!((error.reason(), error.is_verdict()), ("Empty", true));
        let error = drilled("i", Findings::default(), 3, 2).unwrap_err();
        assert_eq!((error.reason(), error.is_verdict()), ("SecretsDiffer", false));
    }

    #[test]
    fn a_full_etcd_is_worth_a_word_and_a_corrupt_one_is_none_at_all() {
        let full = Read {
            alarms: vec!["NOSPACE on 1".to_owned(), "NOSPACE on 2".to_owned()],
            ..read()
        };
        let (findings, sentence) = verified(&manifest(1), &full).unwrap();
        assert_eq!(findings.alarms, ["NOSPACE"]);
        assert!(sentence.contains("has to disarm"), "{sentence}");
        let corrupt = Read {
            alarms: vec!["CORRUPT on 1".to_owned()],
            ..read()
        };
        let error = verified(&manifest(1), &corrupt).unwrap_err();
        assert_eq!(error.reason(), "CorruptAlarm");
    }
}
