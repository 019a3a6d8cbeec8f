//! A ticket comes to a node that is proving a backup. The proof's etcd stands still (SIGSTOP), so that the proof is
//! certainly under way, and heeds no word to end: left alone it would be waited for five minutes. It makes way, the
//! upgrade goes on as if there were none, and the proof begins again by itself afterwards. On one node, which proves
//! and is upgraded.
//!
//! Seen failing: with an agent that tells of no ticket (`tell_busy`), "lockkeeper-chore-etcd.yaml lay beside a ticket in
//! {"Applying", "Ready", "Starting"}".

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::FutureExt;
use kube::api::Api;
use lockkeeper_crds::{Proof, Strategy, TicketState};
use rustix::process::Signal;
use serde_json::json;
use tokio::task::JoinHandle;

use super::backup_schedule::stage::Stage;
use super::backup_schedule::{self, MINUTE};
use super::{Scenario, Suite};
use crate::install::NAMESPACE;
use crate::lockkeeper::{Keeper, UPGRADE, Watcher, journal, runs};
use crate::node::Node;
use crate::progress::spoken;
use crate::recipes::TARGET;
use crate::scene::{Look, Scene};

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "proof-yields",
    about: "a ticket comes while a backup is being proven: the proof is gone before anything is changed, and begins again",
    suite: Suite::Chaos,
    minutes: 4,
    lab: backup_schedule::lab,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

const NAME: &str = "proven-meanwhile";
/// The one that a proof boots on what it restored.
const CHORE: &str = "lockkeeper-chore-etcd.yaml";
const EVERY: Duration = Duration::from_millis(50);
/// From a ticket in the journal until its step is ready: half of what the proof would be waited for.
const STEP: Duration = Duration::from_secs(150);
/// An agent looks at its node between the word to make way and the ticket's first line in the journal.
const JUST_BEFORE: Duration = Duration::from_secs(30);

async fn play(scene: &Scene) -> Result<String> {
    let keeper = Keeper::at_start(scene, Strategy::default()).await?;
    let stage = Stage {
        scene,
        schedules: Api::namespaced(keeper.client(), NAMESPACE),
        backups: Api::namespaced(keeper.client(), NAMESPACE),
        pods: Api::namespaced(keeper.client(), NAMESPACE),
    };
    stage.make(NAME, json!({})).await?;
    let node = scene.lab.node("cp1")?;
    let watcher = Watcher::start(scene).await?;
    let beside = Beside::watch(&node);
    stage.ask_for(NAME, Proof::Drilled).await?;
    hold(&node).await?;
    tokio::time::sleep(Duration::from_millis(scene.below(20_000))).await;
    let began = Instant::now();
    keeper.bump(TARGET).await?;
    let ready = makes_way(scene, &beside).await?;
    let left = Instant::now();
    backup_schedule::nothing_left(scene).await?;
    let left = left.elapsed();
    let status = keeper.settles("Completed", UPGRADE).await?;
    let took = began.elapsed();
    scene.say(&status.summary);
    runs(scene, TARGET).await?;
    keeper.idle_at(TARGET).await?;
    beside.check()?;
    watcher.close()?;
    let said = stage.verdict(NAME).await?;
    ensure!(said.starts_with("True/"), "the proof ended otherwise: {said}");
    backup_schedule::nothing_left(scene).await?;
    let refused = other_minor(&stage).await?;
    Ok(format!(
        "upgraded in {}, its step ready after {}, the proof's last process seen {} after that at most; then {said}; a drill: {refused}",
        spoken(took),
        spoken(ready),
        spoken(left)
    ))
}

/// Stops the proof's etcd where it stands.
async fn hold(node: &Node) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < MINUTE * 2 {
        let all = node.processes("etcd")?.into_iter();
        let mut of_proof = all.filter(|p| p.arguments().iter().any(|word| word.contains("lockkeeper-proof")));
        if of_proof
            .next()
            .is_some_and(|process| process.signal(Signal::STOP))
        {
            return Ok(());
        }
        tokio::time::sleep(EVERY).await;
    }
    bail!("no etcd of a proof came up on {}", node.name())
}

/// Waits until the ticket's step is ready, and says how long that took. The proof was there, and went in time.
async fn makes_way(scene: &Scene, beside: &Beside) -> Result<Duration> {
    let live = scene
        .wait_for("a ticket to be taken up", MINUTE * 4, || async {
            Ok(match beside.so_far().live {
                Some(live) => Look::Done(live),
                None => Look::NotYet("none in the journal".into()),
            })
        })
        .await?;
    let ready = scene
        .wait_for("the ticket's step to be ready", STEP, || async {
            beside.check()?;
            Ok(match beside.so_far().ready {
                Some(ready) => Look::Done(ready),
                None => Look::NotYet("not ready".into()),
            })
        })
        .await;
    let book = beside.check()?;
    let last = book
        .chore
        .context("no proof was under way before the ticket came")?;
    let before = live.saturating_duration_since(last);
    ensure!(
        before < JUST_BEFORE,
        "the proof went {} before the ticket came, and not for it",
        spoken(before)
    );
    Ok(ready?.saturating_duration_since(live))
}

/// The API server is of another minor by now: it is said that it drills nothing, and the backup is verified all the same.
async fn other_minor(stage: &Stage<'_>) -> Result<String> {
    let backup = stage
        .scene
        .wait_for("the drill to be refused", MINUTE * 2, || async {
            let backup = stage.backups.get(NAME).await?;
            let said = backup.condition("Drilled").filter(|c| c.status != "Unknown");
            Ok(match said {
                Some(_) => Look::Done(backup),
                None => Look::NotYet("nothing said".into()),
            })
        })
        .await?;
    let said = backup.condition("Drilled").context("no condition Drilled")?;
    ensure!(
        said.status == "False" && said.reason == "OtherMinor",
        "{TARGET} drilled a backup of another minor: {}/{}: {}",
        said.status,
        said.reason,
        said.message
    );
    ensure!(
        backup.proven() == Some(Proof::Verified),
        "what was verified is {:?}",
        backup.proven()
    );
    Ok(said.message.clone())
}

/// What stood beside what on the node's disk.
#[derive(Debug, Clone, Default)]
struct Book {
    /// When the proof's manifest was seen last before any ticket was.
    chore: Option<Instant>,
    /// When a ticket was first seen live.
    live: Option<Instant>,
    /// When its step was first seen ready, or confirmed.
    ready: Option<Instant>,
    /// The states of a live ticket in which the proof's manifest was there.
    broken: BTreeSet<String>,
}

impl Book {
    /// `chore`: whether its manifest was there, looked at after `ticket`.
    fn look(&mut self, at: Instant, ticket: Option<TicketState>, chore: bool) {
        match ticket {
            Some(state) if !state.is_end() => {
                self.live.get_or_insert(at);
                if chore {
                    self.broken.insert(format!("{state:?}"));
                }
            }
            _ if chore && self.live.is_none() => self.chore = Some(at),
            _ => {}
        }
        if matches!(ticket, Some(TicketState::Ready | TicketState::Confirmed)) {
            self.ready.get_or_insert(at);
        }
    }
}

/// Looks at journal and manifests twenty times a second.
struct Beside {
    task: JoinHandle<()>,
    book: Arc<Mutex<Book>>,
}

impl Beside {
    fn watch(node: &Node) -> Self {
        let book = Arc::new(Mutex::new(Book::default()));
        let (shared, node) = (Arc::clone(&book), node.clone());
        let task = tokio::spawn(async move {
            let chore = node.kubernetes_folder().join("manifests").join(CHORE);
            loop {
                // The journal first: a ticket that was live then is so beside what is found after it.
                let ticket = journal::read(&node).ok().flatten().map(|t| t.state);
                let there = chore.exists();
                shared
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .look(Instant::now(), ticket, there);
                tokio::time::sleep(EVERY).await;
            }
        });
        Self { task, book }
    }

    fn so_far(&self) -> Book {
        self.book.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Fails where a proof stood beside a live ticket.
    fn check(&self) -> Result<Book> {
        let book = self.so_far();
        ensure!(
            book.broken.is_empty(),
            "{CHORE} lay beside a ticket in {:?}",
            book.broken
        );
        Ok(book)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_beside_a_live_ticket_is_seen_and_one_before_or_after_is_fine() {
        let mut book = Book::default();
        let at = Instant::now();
        book.look(at, None, true);
        book.look(at, Some(TicketState::Applying), false);
        book.look(at, Some(TicketState::Ready), false);
        book.look(at, Some(TicketState::Confirmed), true);
        assert!(book.broken.is_empty() && book.ready.is_some());
        assert_eq!((book.chore, book.live), (Some(at), Some(at)));
        book.look(at, Some(TicketState::Starting), true);
        assert!(book.broken.contains("Starting"));
    }
}
