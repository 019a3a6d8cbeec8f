//! Against a real HTTP server on loopback.

use super::*;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;

/// A server of which every `nth` answer is a 500; its address.
async fn server(nth: u32) -> String {
    let count = Arc::new(AtomicU32::new(0));
    let answer = move || {
        let now = count.fetch_add(1, Ordering::Relaxed) + 1;
        let bad = nth > 0 && now.is_multiple_of(nth);
        async move {
            if bad {
                (StatusCode::INTERNAL_SERVER_ERROR, "green is unwell")
            } else {
                (StatusCode::OK, "green")
            }
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/", get(answer))).await });
    url
}

fn gate(url: &str, more: &str) -> crds::CutoverGate {
    let text = format!("{{name: g, http: {{url: \"{url}\", requests: 20}}, intervalSeconds: 1{more}}}");
    serde_yaml::from_str(&text).unwrap()
}

#[tokio::test]
async fn a_round_counts_what_failed_and_says_with_what() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = server(10).await;
    let (failed, message) = Asker::new(&gate(&url, "")).round().await;
    assert_eq!((failed, message.contains("2 of 20")), (2, true), "{message}");
    assert!(message.contains("status 500"), "{message}");

    let mut spec = gate(&server(0).await, "");
    spec.http.contains = Some("blue".to_owned());
    let (failed, message) = Asker::new(&spec).round().await;
    assert_eq!(failed, 20);
    assert!(message.contains("does not hold \"blue\""), "{message}");
    spec.http.contains = Some("green".to_owned());
    assert_eq!(Asker::new(&spec).round().await.0, 0);
    spec.http.statuses = vec![204];
    assert_eq!(Asker::new(&spec).round().await.0, 20);
}

#[tokio::test]
async fn nobody_there_is_a_failure_and_not_nothing() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", gone.local_addr().unwrap());
    drop(gone);
    let (failed, message) = Asker::new(&gate(&url, "")).round().await;
    assert_eq!(failed, 20);
    assert!(message.to_lowercase().contains("refused"), "{message}");

    // One that takes connections and says nothing.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut spec = gate(&format!("http://{}/", mute.local_addr().unwrap()), "");
    spec.http.timeout_seconds = 1;
    let (failed, message) = Asker::new(&spec).round().await;
    assert_eq!(failed, 20);
    assert!(message.contains("no answer within 1 s"), "{message}");
}

#[tokio::test]
async fn rounds_are_counted_from_the_stage_on_and_spent_once() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let bell = Arc::new(Notify::new());
    let spec = gate(&server(4).await, ", failures: 2, passes: 2, at: [Steps]");
    let mut gates = Gates::new(&[spec], Arc::clone(&bell));
    let start = Utc::now();
    gates.ask(Some(crds::GateMoment::Before));
    assert!(gates.standing(start, None).is_empty(), "it counts in steps only");
    gates.ask(Some(crds::GateMoment::Steps));
    while gates.standing(start, None)[0].failures < 2 {
        bell.notified().await;
    }
    assert_eq!(
        gates.standing(Utc::now(), None)[0].failures,
        0,
        "of an earlier stage"
    );
    let spent = gates.unsaved();
    assert!(
        spent.failed_requests >= 10 && spent.failing_seconds >= 2,
        "{spent:?}"
    );
    gates.saved(spent);
    gates.ask(None);
    assert_eq!(gates.unsaved().failed_requests, 0);
}
