//! Looks at every node twice a second while a scenario plays: its journal and manifests on disk, its API server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::task::JoinHandle;

use super::book::{Book, Sight};
use super::journal;
use crate::images::CONTROL_PLANE;
use crate::node::Node;
use crate::scene::Scene;

const EVERY: Duration = Duration::from_millis(500);
/// An API server on the same machine answers in a few milliseconds.
const PATIENCE: Duration = Duration::from_millis(900);

/// A look twice a second, until it is closed.
#[derive(Debug)]
pub struct Watcher {
    task: JoinHandle<()>,
    book: Arc<Mutex<Book>>,
}

impl Watcher {
    /// Begins to look.
    pub async fn start(scene: &Scene) -> Result<Self> {
        let mut watched = Vec::new();
        for node in scene.lab.nodes() {
            let client = scene.client_at(node.name()).await?;
            watched.push((node, client));
        }
        let book = Arc::new(Mutex::new(Book::default()));
        let shared = Arc::clone(&book);
        let began = Instant::now();
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(EVERY);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let looks = watched.iter().map(|(node, client)| async move {
                    let ready = is_ready(client).await;
                    (node.name().to_owned(), ready)
                });
                let ready: BTreeMap<String, bool> =
                    futures::future::join_all(looks).await.into_iter().collect();
                // Disks are read after the answers and all in one go: what is compared is of one moment.
                let seen = watched
                    .iter()
                    .map(|(node, _)| (node.name().to_owned(), sight(node, &ready)))
                    .collect();
                shared
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .look(began.elapsed(), &seen);
            }
        });
        Ok(Self { task, book })
    }

    /// What was seen so far.
    #[must_use]
    pub fn so_far(&self) -> Book {
        self.book.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it. Fails where a promise was broken.
    pub fn close(self) -> Result<Book> {
        self.task.abort();
        self.check()?;
        let book = self.so_far();
        ensure!(
            book.looks > 3,
            "the watcher looked only {} times: it proves nothing",
            book.looks
        );
        Ok(book)
    }

    /// Fails where a promise was broken by now.
    pub fn check(&self) -> Result<()> {
        let broken = self.so_far().broken;
        ensure!(broken.is_empty(), "{}", broken.join("; "));
        Ok(())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn is_ready(client: &kube::Client) -> bool {
    let Ok(request) = http::Request::get("/readyz").body(Vec::new()) else {
        return false;
    };
    matches!(
        tokio::time::timeout(PATIENCE, client.request_text(request)).await,
        Ok(Ok(answer)) if answer == "ok"
    )
}

fn sight(node: &Node, ready: &BTreeMap<String, bool>) -> Sight {
    let manifests = node.kubernetes_folder().join("manifests");
    Sight {
        ticket: journal::read(node).ok().flatten(),
        ready: ready.get(node.name()).copied().unwrap_or(false),
        missing: CONTROL_PLANE
            .iter()
            .map(|component| format!("{component}.yaml"))
            .filter(|file| !manifests.join(file).is_file())
            .collect(),
    }
}
