//! What must hold before a node is fenced, or its member joins the others anew.

use super::super::etcd::EtcdMember;
use super::super::etcd::members::Listed;
use super::super::host::Host;
use super::book::{Entry, Step};
use super::data;
use super::ground::agreed;
use super::start::{Begin, StartError, blank, refused};
use super::survey::{self, EtcdManifest, Survey};

/// Checks it, and says what is to be done.
pub(super) async fn beginning(
    host: &Host,
    asked: &Begin,
    seen: &Survey,
    manifest: &EtcdManifest,
) -> Result<Entry, StartError> {
    let mut entry = blank(asked, seen, manifest);
    entry.aside = host.on_host(&data::aside_of(&host.reach(&entry.data), &entry.id));
    if asked.until == Step::Fenced {
        return Ok(entry);
    }
    let (via, members) = find_survivor(host, asked, manifest).await?;
    let ids = |all: &[Listed]| all.iter().map(|m| m.id).collect::<Vec<_>>();
    let mine = members.iter().find(|member| member.name == entry.name);
    let own = seen.standing.as_ref().map(|standing| standing.member_id);
    let same = seen.quorum && mine.is_some_and(|mine| Some(mine.id) == own && !mine.learner);
    let mut here = ids(&seen.members);
    let mut there = ids(&members);
    here.sort_unstable();
    there.sort_unstable();
    if same && here == there {
        return refused(format!(
            "{} is a voting member of the cluster at {via} and in sync: there is nothing to rejoin",
            entry.name
        ));
    }
    if let Some(other) = members
        .iter()
        .find(|m| m.learner && m.name != entry.name && !m.peer_urls.contains(&entry.peer_url))
    {
        return refused(format!(
            "{} ({:x}) is a learner still, and members come back one at a time: wait until its `lockkeeper rescue rejoin` has ended, then run this again",
            if other.name.is_empty() {
                "another member"
            } else {
                &other.name
            },
            other.id
        ));
    }
    entry.via = Some(via);
    Ok(entry)
}

/// The survivor that answers, and whom it lists.
pub(super) async fn find_survivor(
    host: &Host,
    asked: &Begin,
    manifest: &EtcdManifest,
) -> Result<(String, Vec<Listed>), StartError> {
    let own = survey::own_peer_url(&manifest.pod);
    let candidates: Vec<String> = match &asked.via {
        Some(via) if via.contains("://") => vec![via.clone()],
        // The port is this node's own unless one is named.
        Some(via) => survey::client_url(&manifest.pod, &format!("https://{via}"))
            .map(|url| {
                if has_port(via) {
                    format!("https://{via}")
                } else {
                    url
                }
            })
            .into_iter()
            .collect(),
        None => survey::initial_cluster(&manifest.pod)
            .into_iter()
            .filter(|(name, url)| name != manifest.pod.name() && *url != own)
            .filter_map(|(_, url)| survey::client_url(&manifest.pod, &url))
            .collect(),
    };
    let mut problems = Vec::new();
    for candidate in &candidates {
        let member = EtcdMember::by_copy(host.root(), &manifest.path, Some(candidate));
        match agreed(&member).await {
            Ok(members)
                if members.iter().any(|m| {
                    m.name == manifest.pod.name() && m.peer_urls.contains(&own) && members.len() == 1
                }) =>
            {
                problems.push(format!("{candidate} is this node itself"));
            }
            Ok(members) => return Ok((candidate.clone(), members)),
            Err(why) => problems.push(format!("{candidate}: {why}")),
        }
    }
    if candidates.is_empty() {
        return refused(
            "etcd.yaml names no other member in --initial-cluster: name the survivor, --via ADDRESS (the node on which `lockkeeper rescue recover-quorum` ran)",
        );
    }
    refused(format!(
        "no member of a cluster with a quorum answers ({}): run `lockkeeper rescue recover-quorum` on the survivor first, or name it by --via ADDRESS",
        problems.join("; ")
    ))
}

fn has_port(address: &str) -> bool {
    match address.rsplit_once(':') {
        Some((host, port)) => port.parse::<u16>().is_ok() && (host.ends_with(']') || !host.contains(':')),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_have_a_port() {
        assert!(has_port("10.0.0.1:2379") && has_port("[fd00::1]:2379"));
        assert!(!has_port("10.0.0.1") && !has_port("fd00::1") && !has_port("[fd00::1]"));
    }
}
