//! Against a real HTTP server on loopback.

use super::http::Http;
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

async fn ask(spec: &crds::CutoverGate) -> (u32, String) {
    let answer = Http::new(spec.http.as_ref().unwrap()).round().await;
    (answer.failed_requests, answer.message)
}

/// Nothing that a gate of requests needs.
fn reach() -> Reach {
    let nobody = kube::Config::new("https://127.0.0.1:1".parse().unwrap());
    Reach {
        blue: Err("no blue".to_owned()),
        green: Err("no green".to_owned()),
        own: crate::api::ApiServers::from_config(nobody, None).unwrap(),
        secrets: Arc::default(),
    }
}

#[tokio::test]
async fn a_round_counts_what_failed_and_says_with_what() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = server(10).await;
    let (failed, message) = ask(&gate(&url, "")).await;
    assert_eq!((failed, message.contains("2 of 20")), (2, true), "{message}");
    assert!(message.contains("status 500"), "{message}");

    let mut spec = gate(&server(0).await, "");
    spec.http.as_mut().unwrap().contains = Some("blue".to_owned());
    let (failed, message) = ask(&spec).await;
    assert_eq!(failed, 20);
    assert!(message.contains("does not hold \"blue\""), "{message}");
    spec.http.as_mut().unwrap().contains = Some("green".to_owned());
    assert_eq!(ask(&spec).await.0, 0);
    spec.http.as_mut().unwrap().statuses = vec![204];
    assert_eq!(ask(&spec).await.0, 20);
}

#[tokio::test]
async fn nobody_there_is_a_failure_and_not_nothing() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", gone.local_addr().unwrap());
    drop(gone);
    let (failed, message) = ask(&gate(&url, "")).await;
    assert_eq!(failed, 20);
    assert!(message.to_lowercase().contains("refused"), "{message}");

    // One that takes connections and says nothing.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut spec = gate(&format!("http://{}/", mute.local_addr().unwrap()), "");
    spec.http.as_mut().unwrap().timeout_seconds = 1;
    let (failed, message) = ask(&spec).await;
    assert_eq!(failed, 20);
    assert!(message.contains("no answer within 1 s"), "{message}");
}

#[tokio::test]
async fn rounds_are_counted_from_the_stage_on_and_spent_once() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let bell = Arc::new(Notify::new());
    let spec = gate(&server(4).await, ", failures: 2, passes: 2, at: [Steps]");
    let mut gates = Gates::new(&[spec], "u-1", reach(), Arc::clone(&bell));
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

fn standing(gates: &Gates, outcomes: &[Outcome]) -> Gate {
    let began = Utc::now() + TimeDelta::seconds(5);
    let rounds = outcomes.iter().map(|outcome| Round {
        began,
        outcome: *outcome,
        message: String::new(),
    });
    gates
        .log
        .lock()
        .unwrap()
        .rounds
        .insert("g".to_owned(), rounds.collect());
    gates.standing(Utc::now(), None).remove(0)
}

#[tokio::test]
async fn what_is_not_known_is_no_pass_and_a_failure_only_where_it_is_told_so() {
    use Outcome::{Failed, Passed, Unknown};
    let gates = |more: &str| {
        let mut gates = Gates::new(&[gate("http://x.example/", more)], "u-1", reach(), Arc::default());
        gates.moment = Some(crds::GateMoment::Steps);
        gates
    };
    let holding = gates("");
    for (outcomes, passes, failures) in [
        (&[Passed, Passed][..], 2, 0),
        (&[Passed, Unknown, Passed], 1, 0),
        (&[Passed, Passed, Unknown], 0, 0),
        (&[Failed, Unknown, Failed], 0, 2),
        (&[Failed, Unknown], 0, 1),
        (&[Failed, Passed, Failed], 0, 1),
        (&[Unknown, Unknown, Unknown], 0, 0),
    ] {
        let found = standing(&holding, outcomes);
        assert_eq!((found.passes, found.failures), (passes, failures), "{outcomes:?}");
    }
    assert!(holding.are_unknown(), "the token may have been replaced");
    let going_back = gates(", whenUnknown: GoBack");
    assert_eq!(standing(&going_back, &[Failed, Unknown]).failures, 2);
}
