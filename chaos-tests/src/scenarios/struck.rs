//! Strikes where a ticket stands in a node's journal: what `agent-killed` and `power-cut` have in common.
//!
//! The journal is read from the node's disk a thousand times a second, so that the short states are met too. What
//! counts as hit is the state that the journal holds *after* the blow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lockkeeper_crds::{State, Strategy, TicketState};

use crate::lab::Lab;
use crate::lockkeeper::journal::{self, Journalled};
use crate::lockkeeper::{
    BAD_TARGET, Keeper, UPGRADE, Watcher, as_before, impatient, import_bad_target, manifests, runs, spec,
};
use crate::node::Node;
use crate::process::ProcessId;
use crate::progress::{Progress, spoken};
use crate::recipes::{START, TARGET};
use crate::scene::Scene;
use rustix::process::Signal;

/// What is done to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blow {
    /// SIGKILL of its agent. The kubelet starts it again.
    KillAgent,
    /// Power cut, and back after a while.
    CutPower,
}

const DARK: Duration = Duration::from_secs(5);
/// The kubelet starts what ends again after 10, 20, 40 s; a node boots in under a minute.
const LIMIT: Duration = UPGRADE.saturating_mul(2);

/// How often each state was hit, by the journal after the blow.
type Hits = BTreeMap<String, u32>;

pub(super) async fn play(scene: &Scene, blow: Blow) -> Result<String> {
    let keeper = Keeper::at_start(scene, impatient()).await?;
    import_bad_target(scene)?;
    let began = Instant::now();
    let back = way_back(scene, &keeper, blow).await?;
    let up = way_up(scene, &keeper, blow).await?;
    Ok(format!(
        "{} in all; up: {up}; back: {back}",
        spoken(began.elapsed())
    ))
}

/// A target that fails. Whatever is struck, the old version is there at the end.
async fn way_back(scene: &Scene, keeper: &Keeper<'_>, blow: Blow) -> Result<String> {
    let before = manifests(&scene.lab)?;
    let watcher = Watcher::start(scene).await?;
    let striker = Striker::start(scene, blow, &[TicketState::Undoing], 1);
    keeper.bump(BAD_TARGET).await?;
    let ended = keeper.settles("RolledBack", LIMIT).await;
    let hits = striker.stop()?;
    ended?;
    runs(scene, START).await?;
    as_before(&scene.lab, &before)?;
    watcher.close()?;
    ensure!(
        hits.contains_key("Undoing"),
        "nothing was struck while undoing: {hits:?}"
    );
    scene.wait_until_whole(UPGRADE).await?;
    keeper.back_to_start().await?;
    Ok(format!("rolled back, struck in {hits:?}"))
}

/// A good target. A blow may cost the step its deadline: then all is as before, which is an end too.
async fn way_up(scene: &Scene, keeper: &Keeper<'_>, blow: Blow) -> Result<String> {
    keeper.apply(&spec(START, Strategy::default())).await?;
    keeper.idle_at(START).await?;
    let before = manifests(&scene.lab)?;
    let watcher = Watcher::start(scene).await?;
    let states = [TicketState::Applying, TicketState::Starting, TicketState::Ready];
    let striker = Striker::start(scene, blow, &states, 1);
    keeper.bump(TARGET).await?;
    let ended = keeper.settled(LIMIT).await;
    let hits = striker.stop()?;
    let (reason, status) = ended?;
    let end = match status.state {
        State::Idle => {
            runs(scene, TARGET).await?;
            "upgraded"
        }
        State::RolledBack => {
            runs(scene, START).await?;
            as_before(&scene.lab, &before)?;
            "rolled back"
        }
        _ => anyhow::bail!("it settled as {reason}: {}", status.summary),
    };
    watcher.close()?;
    for state in states {
        ensure!(
            hits.contains_key(&format!("{state:?}")),
            "nothing was struck in {state:?}: {hits:?}"
        );
    }
    Ok(format!("{end}, struck in {hits:?}"))
}

/// Watches the journals and strikes, on a thread of its own.
struct Striker {
    thread: std::thread::JoinHandle<Result<Hits>>,
    stop: Arc<AtomicBool>,
}

impl Striker {
    /// Strikes each of these states until it was hit so many times.
    fn start(scene: &Scene, blow: Blow, states: &[TicketState], times: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, states) = (Arc::clone(&stop), states.to_vec());
        let (lab, progress) = (scene.lab.clone(), scene.progress);
        let thread = std::thread::spawn(move || strike_all(&lab, blow, &states, times, &flag, progress));
        Self { thread, stop }
    }

    fn stop(self) -> Result<Hits> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread
            .join()
            .unwrap_or_else(|_| anyhow::bail!("the striker panicked"))
    }
}

/// A node under the eye of the striker.
struct Target {
    node: Node,
    last: Option<Journalled>,
    /// Whom to kill, looked up beforehand: the short states leave no time for it.
    victims: Vec<ProcessId>,
}

fn strike_all(
    lab: &Lab,
    blow: Blow,
    states: &[TicketState],
    times: u32,
    stop: &AtomicBool,
    progress: Progress,
) -> Result<Hits> {
    let mut hits = Hits::new();
    let mut targets = Vec::new();
    for node in lab.nodes() {
        // What was there before is not struck.
        let last = journal::read(&node)?;
        targets.push(Target {
            node,
            last,
            victims: Vec::new(),
        });
    }
    while !stop.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(1));
        for target in &mut targets {
            target.look_up_victims(blow)?;
            // A read from outside in the very moment of a rename may fail; the next one does not.
            let Ok(now) = journal::read(&target.node) else {
                continue;
            };
            if std::mem::replace(&mut target.last, now) == now {
                continue;
            }
            let Some(ticket) = now.filter(|ticket| states.contains(&ticket.state)) else {
                continue;
            };
            if hits
                .get(&format!("{:?}", ticket.state))
                .is_some_and(|count| *count >= times)
            {
                continue;
            }
            if !target.strike(blow)? {
                continue;
            }
            target.last = journal::read(&target.node)?;
            if let Some(after) = target.last {
                let (name, state) = (target.node.name(), format!("{:?}", after.state));
                progress.say(format_args!(
                    "  {blow:?} on {name}: ticket {} was {state}",
                    after.number
                ));
                *hits.entry(state).or_default() += 1;
            }
            if blow == Blow::CutPower {
                std::thread::sleep(DARK);
                lab.power_on(target.node.name())?;
            }
        }
    }
    Ok(hits)
}

impl Target {
    fn look_up_victims(&mut self, blow: Blow) -> Result<()> {
        if self.victims.iter().any(|victim| victim.alive()) {
            return Ok(());
        }
        self.victims = match blow {
            Blow::KillAgent => self.node.processes("agent")?,
            Blow::CutPower => self.node.init().into_iter().collect(),
        };
        Ok(())
    }

    /// Says whether there was something to strike: an agent that was just killed is not back yet.
    fn strike(&self, blow: Blow) -> Result<bool> {
        let alive = self.victims.iter().copied().find(|victim| victim.alive());
        match (blow, alive) {
            (_, None) => Ok(false),
            (Blow::KillAgent, Some(agent)) => Ok(agent.signal(Signal::KILL)),
            (Blow::CutPower, Some(init)) => self.node.cut(init).map(|()| true),
        }
    }
}
