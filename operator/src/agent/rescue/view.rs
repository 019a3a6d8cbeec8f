//! What is in hand on this node and what comes next, for a person. Changes nothing.

use lockkeeper_crds::Component;
use serde::{Serialize, Serializer};

use super::super::directory;
use super::super::guard::Guard;
use super::super::host::Host;
use super::super::journal::{JournalState, JournalStore};
use super::super::restore::{self, JournalStore as RestoreJournal};
use super::super::ticket::{Action, NodeSeen, decide};
use super::book::{Book, Entry, Kind, Part, Step, in_hand};
use super::sentence;
use super::survey::{self, Survey};

/// A manifest file.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ManifestView {
    pub(crate) file: String,
    /// `present`, or what is wrong.
    pub(crate) state: String,
}

/// Everything that `rescue journal` shows.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct View {
    pub(crate) manifests: Vec<ManifestView>,
    pub(crate) problems: Vec<String>,
    /// The agent's ticket: in hand, or the last one.
    pub(crate) ticket: String,
    pub(crate) guard: String,
    /// The `EtcdRestore`: in hand, or the last one.
    pub(crate) restore: String,
    pub(crate) rescue: String,
    /// Where copies of a rescue lie.
    pub(crate) copies: Vec<String>,
    #[serde(serialize_with = "either")]
    pub(crate) etcd: Result<Survey, String>,
    /// What to do.
    pub(crate) next: String,
}

fn either<S: Serializer>(etcd: &Result<Survey, String>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Problem<'a> {
        problem: &'a str,
    }
    match etcd {
        Ok(survey) => survey.serialize(serializer),
        Err(problem) => Problem { problem }.serialize(serializer),
    }
}

/// Looks.
pub(crate) async fn of(host: &Host) -> View {
    let scan = directory::scan(host);
    let mut manifests: Vec<ManifestView> = Component::ALL
        .into_iter()
        .map(|component| host.manifest(component))
        .chain([Part::Etcd.path(host)])
        .map(|path| ManifestView {
            state: match std::fs::metadata(&path) {
                Ok(_) => "present".to_owned(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => "absent".to_owned(),
                Err(error) => error.to_string(),
            },
            file: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        })
        .collect();
    manifests.sort_by(|a, b| a.file.cmp(&b.file));
    let book = Book::new(host.clone());
    let entry = book.load();
    let etcd = survey::survey(host).await;
    let (rescue, copies) = match &entry {
        Ok(Some(entry)) => (in_words(entry), copies(host, &book, entry)),
        Ok(None) if in_hand(host).is_some() => (
            "one was about to begin and has promised nothing: run it again".to_owned(),
            Vec::new(),
        ),
        Ok(None) => ("none on this node yet".to_owned(), Vec::new()),
        Err(error) => (error.to_string(), Vec::new()),
    };
    let restores = RestoreJournal::new(host.clone()).load();
    let next = match restores.as_ref().ok().and_then(|journal| journal.live()) {
        Some(restore) if restore.stage.is_touching() => format!(
            "wait: the EtcdRestore {} goes on or back by itself, by {} at the latest",
            restore.order.name,
            restore.deadline.format("%F %T UTC")
        ),
        _ => next(entry.as_ref().ok().and_then(Option::as_ref), &etcd),
    };
    let tickets = JournalStore::new(host.clone()).load();
    View {
        manifests,
        problems: scan.problems.into_iter().map(|p| p.sentence).collect(),
        ticket: ticket(&tickets),
        guard: guard(host, &tickets),
        restore: restore(&restores),
        rescue,
        copies,
        etcd,
        next,
    }
}

fn in_words(entry: &Entry) -> String {
    let state = if entry.is_live() { "in hand" } else { "ended" };
    let message = if entry.message.is_empty() {
        String::new()
    } else {
        format!(" ({})", entry.message)
    };
    format!(
        "{} {}, {state}: {}{message}, since {}",
        entry.kind.command(),
        entry.id,
        sentence(entry.step),
        entry.since.format("%F %T UTC")
    )
}

fn copies(host: &Host, book: &Book, entry: &Entry) -> Vec<String> {
    let mut all = vec![format!("manifests: {}", book.copies(&entry.id).display())];
    let aside = host.reach(&entry.aside);
    if aside.join("member").is_dir() {
        all.push(format!("data: {}", aside.display()));
    }
    all
}

fn restore(journal: &Result<restore::Journal, String>) -> String {
    let entry = match journal {
        Err(why) => return why.clone(),
        Ok(journal) => journal.entry.as_ref(),
    };
    let Some(entry) = entry else {
        return "none on this node yet".to_owned();
    };
    let deadline = if entry.is_live() {
        format!(", until {}", entry.deadline.format("%F %T UTC"))
    } else {
        String::new()
    };
    let message = if entry.message.is_empty() {
        String::new()
    } else {
        format!(": {}", entry.message)
    };
    format!(
        "{} ({}): {:?} since {}{deadline}{message}",
        entry.order.name,
        entry.order.key,
        entry.stage,
        entry.since.format("%F %T UTC")
    )
}

fn ticket(journal: &JournalState) -> String {
    match journal {
        JournalState::Broken(why) => why.clone(),
        JournalState::Known(journal) => match &journal.entry {
            None => "none on this node yet".to_owned(),
            Some(entry) => {
                let changes: Vec<String> = entry
                    .ticket
                    .changes
                    .iter()
                    .map(|change| format!("{} to {}", change.component, change.version))
                    .collect();
                let deadline = entry
                    .deadline()
                    .map(|at| format!(", acts by itself at {}", at.format("%F %T UTC")))
                    .unwrap_or_default();
                format!(
                    "{} ({}): {:?}{deadline}. {}",
                    entry.ticket.number,
                    changes.join(", "),
                    entry.state,
                    entry.message
                )
            }
        },
    }
}

/// What the guard would do at its next look; it has no eyes here but the files.
fn guard(host: &Host, journal: &JournalState) -> String {
    let on = if Guard::new(host.clone(), None).is_on() {
        "its manifest is on"
    } else {
        "its manifest is off"
    };
    if in_hand(host).is_some() {
        return format!("{on}; it keeps still while a rescue is in hand");
    }
    let seen = NodeSeen {
        alone: true,
        ..NodeSeen::default()
    };
    let act = match decide(journal, None, &seen, chrono::Utc::now()) {
        Action::BeginUndo(why) => format!("it would go back: {why}"),
        _ if journal.live().is_some() => "it goes on with the ticket in hand as the node shows it".to_owned(),
        _ => "it has nothing to do".to_owned(),
    };
    format!("{on}; {act}")
}

/// The one thing that a person does next.
fn next(entry: Option<&Entry>, etcd: &Result<Survey, String>) -> String {
    if let Some(entry) = entry.filter(|entry| entry.is_live()) {
        return match (entry.kind, entry.step) {
            (Kind::Rejoin, Step::Fenced) => {
                "when the survivor has its quorum: lockkeeper rescue rejoin --via SURVIVOR".to_owned()
            }
            (kind, _) => format!(
                "lockkeeper rescue {0}, to go on; lockkeeper rescue {0} --put-back, to take it back",
                kind.command()
            ),
        };
    }
    let Ok(etcd) = etcd else {
        return "this is no node with an etcd member that can be understood".to_owned();
    };
    if etcd.quorum {
        return "nothing: etcd has its quorum".to_owned();
    }
    if let Some(survivor) = etcd.peers.iter().find(|peer| peer.quorum) {
        return format!(
            "{} has a quorum without this node: lockkeeper rescue rejoin --confirm {} --via {}",
            survivor.name,
            etcd.cluster,
            super::host_of(&survivor.peer_url)
        );
    }
    let alive: Vec<&str> = etcd
        .peers
        .iter()
        .filter(|p| p.alive)
        .map(|p| p.name.as_str())
        .collect();
    if etcd.log.is_none() {
        return format!(
            "no data are left here: lockkeeper rescue fence --confirm {0}, and when the survivor has its quorum lockkeeper rescue rejoin --confirm {0}; where no node has any: lockkeeper rescue restore BACKUP --confirm {0} on one of them",
            etcd.cluster
        );
    }
    if alive.is_empty() {
        format!(
            "if this is the member to survive: lockkeeper rescue recover-quorum --confirm {}, with --beside TERM/INDEX of each other node that has a log, or --only-copy",
            etcd.cluster
        )
    } else {
        format!(
            "if this is the member to survive: first lockkeeper rescue fence on {}, then here lockkeeper rescue recover-quorum --confirm {}, with --beside TERM/INDEX of each other node that has a log, or --only-copy",
            alive.join(" and "),
            etcd.cluster
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_restores_journal_is_shown_and_one_that_goes_on_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let at = std::path::Path::new;
        let host = Host::new(root.path(), at("/manifests"), at("/state"));
        assert_eq!(of(&host).await.restore, "none on this node yet");
        let store = RestoreJournal::new(host.clone());
        let mut entry = restore::testing::entry("cp1", 3);
        entry.stage = lockkeeper_policies::restore::Stage::Going;
        store.save(&store.load().unwrap().with(entry)).unwrap();
        let view = of(&host).await;
        assert!(
            view.restore.contains("back (a-12345678): Going"),
            "{}",
            view.restore
        );
        assert!(
            view.next.starts_with("wait: the EtcdRestore back"),
            "{}",
            view.next
        );
        std::fs::write(store.path(), "{").unwrap();
        assert!(of(&host).await.restore.contains("restore.json"));
    }
}
