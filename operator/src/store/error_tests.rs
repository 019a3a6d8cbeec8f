use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{Method, StatusCode};

use crate::store::connect::tests::{credentials, spec};
use crate::store::{Access, Secrets, Store};

/// A server that answers every request alike, in S3's words, quoting the credentials as S3 does.
async fn server(status: u16, code: &'static str) -> String {
    telling(status, code, "m").await
}

async fn telling(status: u16, code: &'static str, message: &'static str) -> String {
    let answer = move |_: Method| async move {
        let body = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message>\
             <AWSAccessKeyId>AKIAIDENTIFIER</AWSAccessKeyId><StringToSign>VERYSECRET</StringToSign></Error>"
        );
        (StatusCode::from_u16(status).unwrap(), body)
    };
    serve(Router::new().fallback(answer)).await
}

async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

fn store(endpoint: &str) -> Store {
    Store::from_spec("main", &spec(endpoint), credentials()).unwrap()
}

#[tokio::test]
async fn each_answer_names_the_way_out_and_no_credential() {
    for (status, code, reason, says) in [
        (404, "NoSuchBucket", "NoSuchBucket", "correct spec.s3.bucket"),
        (
            403,
            "SignatureDoesNotMatch",
            "BadCredentials",
            "AWS_SECRET_ACCESS_KEY in Secret s3-key",
        ),
        (403, "InvalidAccessKeyId", "BadCredentials", "AWS_ACCESS_KEY_ID"),
        (401, "Unauthorized", "BadCredentials", "Secret s3-key"),
        (
            403,
            "AccessDenied",
            "Forbidden",
            "may not look for a probe in bucket backups",
        ),
        (403, "RequestTimeTooSkewed", "ClockSkew", "NTP"),
        (301, "PermanentRedirect", "WrongRegion", "correct spec.s3.region"),
        (400, "AuthorizationHeaderMalformed", "WrongRegion", "us-east-1"),
        (507, "XMinioStorageFull", "Full", "make room"),
        (403, "QuotaExceeded", "Full", "quota"),
        (
            500,
            "InternalError",
            "ServerError",
            "see its own log (HTTP 500, InternalError)",
        ),
        (503, "SlowDown", "ServerError", "HTTP 503"),
        (400, "<script>", "Refused", "(HTTP 400)"),
        (404, "Whatever", "Refused", "HTTP 404"),
    ] {
        let error = store(&server(status, code).await).probe().await.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.reason(), reason, "{status} {code}: {text}");
        assert!(text.contains(says), "{status} {code}: {text}");
        assert!(text.starts_with("EtcdBackupStore main: "), "{text}");
        let all = format!("{text} {error:?}");
        assert!(!all.contains("AKIA") && !all.contains("VERYSECRET"), "{all}");
    }
}

/// In the words of Amazon, MinIO, Backblaze and Cloudflare, in this order, and of Google.
#[tokio::test]
async fn what_only_the_text_of_an_answer_says_is_heard() {
    let locked = "Access Denied because object protected by object lock.";
    let worm = "Object is WORM protected and cannot be overwritten";
    let retained = "Object 'b/k' is subject to bucket's retention policy and cannot be deleted, overwritten or archived until 2026-12-01";
    let wants = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters";
    let unsupported = "Unsupported header 'x-amz-checksum-sha256' received for this API call.";
    let unknown = "Header 'x-amz-checksum-algorithm' with value 'SHA256' not implemented";
    for (status, code, message, reason, says) in [
        (403, "AccessDenied", locked, "Locked", "wait until it ends"),
        (400, "InvalidRequest", worm, "Locked", "bucket backups"),
        (403, "AccessDenied", retained, "Locked", "HTTP 403, AccessDenied"),
        (
            400,
            "InvalidRequest",
            wants,
            "Checksum",
            "set spec.s3.checksum to SHA256",
        ),
        (
            400,
            "InvalidArgument",
            unsupported,
            "Checksum",
            "set spec.s3.checksum to None",
        ),
        (
            501,
            "NotImplemented",
            unknown,
            "Checksum",
            "set spec.s3.checksum to None",
        ),
        (
            403,
            "AccessDenied",
            "User: x is not authorized to perform: s3:DeleteObject on resource: arn:aws:s3:::legal-hold",
            "Forbidden",
            "s3:DeleteObject",
        ),
    ] {
        let server = telling(status, code, message).await;
        let store = store(&server);
        let key = store.key("nightly", "0123456789");
        let error = store.remove(&key, "0123456789").await.unwrap_err();
        assert_eq!(error.reason(), reason, "{message}: {error}");
        assert!(error.to_string().contains(says), "{error}");
        let credentials = error.to_string().contains("credentials");
        assert_eq!(credentials, reason == "Forbidden", "{error}");
    }
    // Azure deletes by a batch, whose client has the answer's first line and no more.
    let (place, told) = (
        store("http://x").place,
        "This operation is not permitted as the blob is immutable due to a policy.",
    );
    let e = object_store::Error::Generic {
        store: "MicrosoftAzure",
        source: format!("Bulk delete request failed for key k: {told} (code: 409)").into(),
    };
    let error = place.error("delete the data", &e);
    assert_eq!(error.reason(), "Locked");
    assert!(
        error.to_string().contains("forbids to delete the data"),
        "{error}"
    );
    assert!(error.to_string().contains("HTTP 409"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_away_or_deaf_is_told_apart_within_the_probes_limit() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone_at = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let deaf_at = format!("http://{}", deaf.local_addr().unwrap());
    let nowhere = "http://host.invalid:9000".to_owned();
    for (endpoint, reason, says) in [
        (gone_at, "Unreachable", "Connection refused"),
        (nowhere, "Unreachable", "spec.s3.endpoint"),
        (deaf_at, "TimedOut", "did not answer in time to look for a probe"),
    ] {
        let began = std::time::Instant::now();
        let error = store(&endpoint).probe().await.unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert!(
            began.elapsed().as_secs() < 18,
            "{endpoint}: {:?}",
            began.elapsed()
        );
    }
}

#[tokio::test]
async fn a_server_that_ignores_the_condition_is_found_out() {
    let held = Arc::new(Mutex::new(axum::body::Bytes::new()));
    let careless = move |method: Method, body: axum::body::Bytes| async move {
        let mut held = held.lock().unwrap();
        if method == Method::PUT {
            *held = body;
        }
        (
            [
                ("etag", "\"1\""),
                ("last-modified", "Tue, 01 Jul 2025 00:00:00 GMT"),
            ],
            held.clone(),
        )
    };
    let error = store(&serve(Router::new().fallback(careless)).await)
        .probe()
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "ConditionalPutIgnored", "{error}");
    assert!(error.to_string().contains("If-None-Match"), "{error}");
}

/// The same of the two others, whose words are their own.
#[tokio::test]
async fn the_other_providers_are_spoken_of_by_their_own_fields() {
    let azure = |endpoint: &str| lockkeeper_crds::EtcdBackupStoreSpec {
        azure: Some(lockkeeper_crds::Azure {
            account: "account".to_owned(),
            container: "backups".to_owned(),
            prefix: String::new(),
            endpoint: Some(endpoint.to_owned()),
            credentials_secret: Some(lockkeeper_crds::LocalReference {
                name: "key".to_owned(),
            }),
            ca_bundle: None,
        }),
        ..Default::default()
    };
    let gcs = |endpoint: &str| lockkeeper_crds::EtcdBackupStoreSpec {
        gcs: Some(lockkeeper_crds::Gcs {
            bucket: "backups".to_owned(),
            prefix: String::new(),
            endpoint: Some(endpoint.to_owned()),
            credentials_secret: Some(lockkeeper_crds::LocalReference {
                name: "key".to_owned(),
            }),
            ca_bundle: None,
        }),
        ..Default::default()
    };
    let sas = || Access::Sas("sv=1&sig=VERYSECRET".to_owned());
    let account =
        r#"{"private_key": "VERYSECRET", "private_key_id": "-", "client_email": "-", "disable_oauth": true}"#;
    for (status, code, reason, azures, googles) in [
        (
            404,
            "ContainerNotFound",
            "NoSuchBucket",
            "spec.azure.container",
            "",
        ),
        (404, "NoSuchBucket", "NoSuchBucket", "", "spec.gcs.bucket"),
        (
            403,
            "AuthenticationFailed",
            "BadCredentials",
            "AZURE_STORAGE_SAS_TOKEN in Secret key",
            "",
        ),
        (
            401,
            "AuthenticationRequired",
            "BadCredentials",
            "",
            "GOOGLE_SERVICE_ACCOUNT_KEY in Secret key",
        ),
        (
            403,
            "AuthorizationPermissionMismatch",
            "Forbidden",
            "Storage Blob Data Contributor",
            "Storage Object User",
        ),
    ] {
        let server = server(status, code).await;
        let stores = [
            (azures, Store::from_spec("main", &azure(&server), sas()).unwrap()),
            (
                googles,
                Store::from_spec("main", &gcs(&server), Access::ServiceAccount(account.to_owned())).unwrap(),
            ),
        ];
        for (says, store) in stores.into_iter().filter(|(says, _)| !says.is_empty()) {
            let error = store.probe().await.unwrap_err();
            assert_eq!(error.reason(), reason, "{error}");
            let all = format!("{error} {error:?} {store:?}");
            assert!(all.contains(says), "{all}");
            assert!(!all.contains("VERYSECRET") && !all.contains("spec.s3"), "{all}");
        }
    }
    // Never asked: what it holds is no key.
    let broken = account.replace(", \"disable_oauth\": true", "");
    let error = Store::from_spec("main", &gcs("http://x"), Access::ServiceAccount(broken)).unwrap_err();
    assert_eq!(error.reason(), "SecretInvalid");
    assert!(!format!("{error:?}").contains("VERYSECRET"), "{error:?}");
    // Of two places, and of none.
    let both = lockkeeper_crds::EtcdBackupStoreSpec {
        azure: azure("http://x").azure,
        ..gcs("http://x")
    };
    for spec in [both, Default::default()] {
        let error = Store::from_spec("main", &spec, Secrets::default()).unwrap_err();
        assert!(error.to_string().contains("exactly one place"), "{error}");
    }
}

#[test]
fn a_directory_on_a_full_disk_is_called_full_and_any_other_trouble_is_not() {
    let at = tempfile::tempdir().unwrap();
    let path = at.path().display().to_string();
    let spec = lockkeeper_crds::EtcdBackupStoreSpec {
        directory: Some(lockkeeper_crds::Directory { path: path.clone() }),
        ..Default::default()
    };
    let store = Store::from_spec("nfs", &spec, Secrets::default()).unwrap();
    // ENOSPC, EDQUOT, EROFS.
    for (number, reason, says) in [
        (28, "Full", "make room"),
        (122, "Full", "raise its quota"),
        (30, "DirectoryUnusable", "make it writable"),
    ] {
        let error = object_store::Error::Generic {
            store: "LocalFileSystem",
            source: Box::new(std::io::Error::from_raw_os_error(number)),
        };
        let error = store.error("write a probe", &error);
        assert_eq!(error.reason(), reason, "{error}");
        let told = error.to_string();
        assert!(told.contains(says) && told.contains(&path), "{told}");
    }
}
