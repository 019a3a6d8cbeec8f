//! Whether this process lives: its loops tick.
//!
//! What comes in: beats. What goes out: the answer of `/healthz` and `/readyz`. May touch: nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const TICK: Duration = Duration::from_secs(5);
const TICK_LIMIT: Duration = Duration::from_secs(60);

/// Shared by the loops and the HTTP server. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    loops: BTreeMap<&'static str, Beat>,
    ready: bool,
}

#[derive(Debug)]
struct Beat {
    last: Instant,
    limit: Duration,
}

/// One loop's sign of life; when it is dropped, the loop has ended and is not missed.
#[derive(Debug)]
pub struct Pulse {
    name: &'static str,
    health: Health,
}

impl Health {
    /// A loop that ticks at least every `limit`, or the process counts as dead. Choose it generously: the
    /// kubelet's remedy is to kill the process.
    #[must_use]
    pub fn pulse(&self, name: &'static str, limit: Duration) -> Pulse {
        let beat = Beat {
            last: Instant::now(),
            limit,
        };
        self.lock().loops.insert(name, beat);
        Pulse {
            name,
            health: self.clone(),
        }
    }

    /// From now on `/readyz` says yes.
    pub fn set_ready(&self) {
        self.lock().ready = true;
    }

    /// For `/readyz`.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.lock().ready
    }

    /// For `/healthz`: the loops that do not tick, with how long they have been silent.
    #[must_use]
    pub fn silent(&self, now: Instant) -> Vec<(&'static str, Duration)> {
        self.lock()
            .loops
            .iter()
            .map(|(name, beat)| (*name, now.saturating_duration_since(beat.last), beat.limit))
            .filter(|(_, silent, limit)| silent > limit)
            .map(|(name, silent, _)| (name, silent))
            .collect()
    }

    /// The runtime's own sign of life, for ever: nothing that blocks a worker may do so for long.
    pub async fn watch_runtime(self) {
        let pulse = self.pulse("runtime", TICK_LIMIT);
        loop {
            pulse.beat();
            tokio::time::sleep(TICK).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pulse {
    /// The loop ticked.
    pub fn beat(&self) {
        if let Some(beat) = self.health.lock().loops.get_mut(self.name) {
            beat.last = Instant::now();
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.health.lock().loops.remove(self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_does_not_tick_is_named_and_one_that_ended_is_not_missed() {
        let health = Health::default();
        let slow = health.pulse("slow", Duration::from_secs(10));
        let quick = health.pulse("quick", Duration::from_secs(10));
        tokio::time::advance(Duration::from_secs(8)).await;
        quick.beat();
        tokio::time::advance(Duration::from_secs(8)).await;
        assert_eq!(health.silent(Instant::now()), [("slow", Duration::from_secs(16))]);
        slow.beat();
        assert_eq!(health.silent(Instant::now()), []);
        drop(quick);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(health.silent(Instant::now()), [("slow", Duration::from_secs(60))]);
    }
}
