//! Rounds against servers that hang, that are gone, and (on demand) real ones.

use super::*;
use crate::api::testing::{Manner, TlsServer, api_servers};

fn server(node: &str, address: &Address) -> Server {
    Server {
        node: node.to_owned(),
        address: address.clone(),
        expected_version: Some("v1.36.3".to_owned()),
    }
}

#[tokio::test]
async fn a_round_ends_in_time_and_has_every_result_whatever_the_servers_do() {
    let hanging = TlsServer::start("hangs", Manner::Hangs).await;
    let gone = TlsServer::start("gone", Manner::Answers).await;
    let gone_address = gone.address.clone();
    gone.kill().await;
    let probe = GateProbe::new(api_servers(&hanging.address), "ns");
    probe.want_ready_nodes(Some(3));
    let start = std::time::Instant::now();
    let round = probe
        .round(&[server("n1", &hanging.address), server("n2", &gone_address)])
        .await;
    assert!(
        start.elapsed() < Duration::from_millis(3300),
        "{:?}",
        start.elapsed()
    );
    assert!(!round.any_ready);
    assert_eq!(round.outcome(), Outcome::Fail);
    // Four gates a server, and three of the cluster.
    assert_eq!(round.results.len(), 4 * 2 + 3, "{:#?}", round.results);
    assert!(round.results.iter().all(|result| result.outcome != Outcome::Pass));
    assert!(round.longest_outage >= Duration::from_secs(1));
    assert!(
        round.problems()[0].to_string().contains("does not answer"),
        "{}",
        round.problems()[0]
    );
}

#[tokio::test]
async fn a_round_over_no_servers_does_not_pass() {
    let nobody = TlsServer::start("x", Manner::Answers).await;
    let probe = GateProbe::new(api_servers(&nobody.address), "ns");
    let round = probe.round(&[]).await;
    assert!(!round.any_ready);
    assert_eq!(round.outcome(), Outcome::Unknown);
}

#[tokio::test]
async fn another_version_fails_the_gate_and_names_both() {
    let old = TlsServer::start("v1.35.4", Manner::Answers).await;
    let probe = GateProbe::new(api_servers(&old.address), "ns");
    let round = probe.round(&[server("n1", &old.address)]).await;
    assert!(round.any_ready);
    let version = round
        .results
        .iter()
        .find(|result| result.gate == Gate::Version)
        .unwrap();
    assert_eq!(version.outcome, Outcome::Fail);
    assert_eq!(version.to_string(), "Version of n1: it runs v1.35.4, not v1.36.3");
}
