use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{Method, StatusCode};

use crate::store::Store;
use crate::store::connect::tests::{credentials, spec};

/// A server that answers every request alike, in S3's words, quoting the credentials as S3 does.
async fn server(status: u16, code: &'static str) -> String {
    let answer = move |_: Method| async move {
        let body = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>m</Message>\
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
            "may not write a probe in bucket backups",
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
        (deaf_at, "TimedOut", "did not answer in time to write a probe"),
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
