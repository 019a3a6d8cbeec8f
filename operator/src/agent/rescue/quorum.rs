//! What must hold before the last member is made a cluster of its own: that it is the last, and that its data are the newest.

use semver::Version;

use super::super::host::Host;
use super::book::Entry;
use super::data;
use super::start::{Begin, StartError, blank, refused};
use super::survey::{self, EtcdManifest, Survey};

/// The flag by which etcd forgets all other members.
pub(super) const FORCE: &str = "force-new-cluster";

/// The copies of the data that other nodes have, as a person has looked: nobody else can, where no member answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Copies {
    /// Nothing was said of them.
    Unsaid,
    /// There are none.
    Absent,
    /// Where their logs end.
    Known(Vec<CopyEnd>),
}

/// Where another copy's log ends; the greater one is the newer copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CopyEnd {
    term: u64,
    index: u64,
}

impl std::fmt::Display for CopyEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.term, self.index)
    }
}

impl std::str::FromStr for CopyEnd {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once('/')
            .and_then(|(term, index)| Some((term.parse().ok()?, index.parse().ok()?)));
        let (term, index) = parsed
            .ok_or("write TERM/INDEX, as `lockkeeper rescue journal` shows them on that node: 7/123456")?;
        Ok(Self { term, index })
    }
}

/// What must hold before the one survivor becomes a cluster of its own.
pub(super) fn beginning(
    host: &Host,
    asked: &Begin,
    seen: &Survey,
    manifest: &EtcdManifest,
) -> Result<Entry, StartError> {
    if seen.quorum {
        return refused(format!(
            "etcd on this node has its quorum ({} members): there is nothing to recover. A single lost member comes back by `lockkeeper rescue rejoin` on its own node",
            seen.members.len()
        ));
    }
    if let Some(other) = seen.peers.iter().find(|peer| peer.quorum) {
        return refused(format!(
            "{} ({}) has a quorum without this node: bring this node back instead, `lockkeeper rescue rejoin --confirm {} --via {}`",
            other.name,
            other.peer_url,
            seen.cluster,
            super::host_of(&other.peer_url)
        ));
    }
    version_is_safe(seen.version.as_deref())?;
    alone(seen, manifest)?;
    let mut entry = blank(asked, seen, manifest);
    let data = host.reach(&entry.data);
    let Some(log) = seen.log.filter(|_| data::is_there(&data)) else {
        return refused(format!(
            "there are no data of a member in {}: run this on a node that has some. {}",
            data.display(),
            survey::CHOICE
        ));
    };
    let own = CopyEnd {
        term: log.term,
        index: log.index,
    };
    let others: Vec<&str> = seen.peers.iter().map(|peer| peer.name.as_str()).collect();
    newest(own, &asked.copies, &others)?;
    let state = host.state().join("rescue").join(&entry.id).join("etcd");
    entry.aside = match &asked.copy_to {
        Some(place) => place.join(format!("etcd-{}", entry.id)),
        None => host.on_host(&state),
    };
    data::room(&data, &host.reach(&entry.aside))?;
    Ok(entry)
}

/// This node's copy is not older than any other. `others`: the members that may have one.
fn newest(own: CopyEnd, copies: &Copies, others: &[&str]) -> Result<(), StartError> {
    match copies {
        Copies::Unsaid if !others.is_empty() => refused(format!(
            "whether another node has newer data is not seen from here, and what only they have would be lost: run `lockkeeper rescue journal` on {} and give the end of each log that is there, --beside TERM/INDEX; where none of them has data left, --only-copy",
            others.join(" and ")
        )),
        Copies::Unsaid | Copies::Absent => Ok(()),
        Copies::Known(ends) => match ends.iter().max().filter(|end| **end > own) {
            Some(newer) => refused(format!(
                "the log that ends with {newer} is newer than this node's, which ends with {own}: run this on the node that has it"
            )),
            None => Ok(()),
        },
    }
}

/// No other member takes connections, and nothing is forced already.
pub(super) fn alone(seen: &Survey, manifest: &EtcdManifest) -> Result<(), StartError> {
    if let Some(alive) = seen.peers.iter().find(|peer| peer.alive) {
        return refused(format!(
            "{} ({}) answers. A member that lives on breaks the recovered one: run `lockkeeper rescue fence` on its node first (or switch that node off)",
            if alive.name.is_empty() {
                "another member"
            } else {
                &alive.name
            },
            alive.peer_url
        ));
    }
    if manifest.pod.flag(FORCE).is_some() {
        return refused(format!(
            "{} has the flag --{FORCE}: take it out; `lockkeeper rescue recover-quorum` puts it in for as long as it is needed",
            manifest.path.display()
        ));
    }
    Ok(())
}

/// `--force-new-cluster` leaves other members in place before 3.5.22, and learners before 3.5.25 and 3.6.6
/// (facts.md 3.7).
fn version_is_safe(version: Option<&str>) -> Result<(), StartError> {
    let parsed = version.and_then(|v| Version::parse(v).ok());
    let Some(version) = parsed else {
        return refused(
            "the version of etcd is not known: it does not answer, and its image's tag in etcd.yaml tells none. Name the image as repository:VERSION",
        );
    };
    let floor = match (version.major, version.minor) {
        (3, 5) => Version::new(3, 5, 25),
        (3, 6) => Version::new(3, 6, 6),
        (3, minor) if minor > 6 => return Ok(()),
        _ => Version::new(3, 5, 25),
    };
    if version >= floor {
        return Ok(());
    }
    refused(format!(
        "etcd {version} leaves dead members in a cluster that is forced anew: put image {floor} or newer of the same minor into etcd.yaml first (it starts without a quorum too), then run this again"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_leave_dead_members_behind_are_refused_with_the_first_good_one() {
        for (version, good) in [
            ("3.5.24", None),
            ("3.5.25", Some(())),
            ("3.6.5", None),
            ("3.6.6", Some(())),
            ("3.7.0", Some(())),
            ("3.4.30", None),
        ] {
            let said = version_is_safe(Some(version));
            assert_eq!(said.is_ok(), good.is_some(), "{version}");
        }
        let error = version_is_safe(Some("3.6.5")).unwrap_err().to_string();
        assert!(error.contains("3.6.6"), "{error}");
        assert!(
            version_is_safe(None)
                .unwrap_err()
                .to_string()
                .contains("etcd.yaml")
        );
    }

    #[test]
    fn an_older_copy_or_one_that_was_compared_with_none_is_not_recovered_from() {
        let end = |text: &str| text.parse::<CopyEnd>().unwrap();
        let known = |ends: &[&str]| Copies::Known(ends.iter().map(|e| end(e)).collect());
        let (own, others) = (end("7/100"), ["cp1", "cp3"]);
        for copies in [known(&["7/100"]), known(&["6/900", "7/99"]), Copies::Absent] {
            newest(own, &copies, &others).unwrap();
        }
        newest(own, &Copies::Unsaid, &[]).unwrap();
        for newer in ["7/101", "8/1"] {
            let told = newest(own, &known(&["1/1", newer]), &others)
                .unwrap_err()
                .to_string();
            assert!(told.contains(newer) && told.contains("7/100"), "{told}");
        }
        let told = newest(own, &Copies::Unsaid, &others).unwrap_err().to_string();
        for says in ["cp1 and cp3", "--beside", "--only-copy"] {
            assert!(told.contains(says), "{says}: {told}");
        }
        assert!("7".parse::<CopyEnd>().unwrap_err().contains("TERM/INDEX"));
    }
}
