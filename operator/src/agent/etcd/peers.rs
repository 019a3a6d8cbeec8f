//! Whom a member lists, asked at its peer port: the one door that is open without a quorum since the member's start.
//!
//! A member serves no client before it has published itself, which takes a quorum (`ReadyNotify` in etcd's
//! `server/embed/etcd.go`); so after a reboot of the last one left, its client port takes connections and answers
//! nothing. Its peers may ask `/members` all the time (`server/etcdserver/api/etcdhttp/peer.go`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::members::Listed;
use crate::trust;

/// On the same machine.
const ANSWER: Duration = Duration::from_secs(3);

/// What the peer port asks for.
#[derive(Clone, Debug)]
pub(crate) struct PeerFiles {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

#[derive(Deserialize)]
struct Told {
    id: u64,
    #[serde(default)]
    name: String,
    #[serde(rename = "peerURLs", default)]
    peer_urls: Vec<String>,
    #[serde(rename = "clientURLs", default)]
    client_urls: Vec<String>,
    #[serde(rename = "isLearner", default)]
    learner: bool,
}

/// Asks a member at its peer URL.
///
/// # Errors
/// A sentence.
pub(crate) async fn members(url: &str, files: Option<&PeerFiles>) -> Result<Vec<Listed>, String> {
    let mut authorities = None;
    let mut client = reqwest::Client::builder().no_proxy().timeout(ANSWER);
    if let Some(files) = files {
        let said = |e: reqwest::Error| e.to_string();
        let ca = reqwest::Certificate::from_pem(&read(&files.ca)?).map_err(said)?;
        let mut pair = read(&files.certificate)?;
        pair.extend(read(&files.key)?);
        let own = reqwest::Identity::from_pem(&pair).map_err(said)?;
        authorities = Some(vec![ca]);
        client = client.identity(own);
    }
    let client = trust::only(authorities, url, client)
        .build()
        .map_err(|e| e.to_string())?;
    let asked = format!("{}/members", url.trim_end_matches('/'));
    let answer = client
        .get(&asked)
        .send()
        .await
        .map_err(|e| crate::api::chain(&e))?;
    if !answer.status().is_success() {
        return Err(format!("{asked} answers {}", answer.status()));
    }
    parse(&answer.bytes().await.map_err(|e| e.to_string())?)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("{} cannot be read: {e}", path.display()))
}

fn parse(bytes: &[u8]) -> Result<Vec<Listed>, String> {
    let told: Vec<Told> = serde_json::from_slice(bytes)
        .map_err(|e| format!("the list of members cannot be understood: {e}"))?;
    Ok(told
        .into_iter()
        .map(|member| Listed {
            id: member.id,
            name: member.name,
            peer_urls: member.peer_urls,
            client_urls: member.client_urls,
            learner: member.learner,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_as_etcd_writes_them() {
        let body = br#"[{"id":2677674080080550774,"peerURLs":["https://10.77.0.11:2380"],"name":"cp1","clientURLs":["https://10.77.0.11:2379"]},{"id":7,"peerURLs":["https://10.77.0.13:2380"],"isLearner":true}]"#;
        let members = parse(body).unwrap();
        assert_eq!((members[0].name.as_str(), members[0].learner), ("cp1", false));
        assert!(members[1].learner && members[1].name.is_empty());
        assert!(parse(b"404 page").is_err());
    }
}
