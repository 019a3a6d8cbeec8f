//! Ctrl-C and SIGTERM, as one flag that every wait of the lab looks at.
//!
//! Nothing is torn down from the signal itself: the work in hand returns an error, and the one place that
//! began it takes it down. So there is one way out, whether a step failed or a person lost patience.

use std::sync::atomic::{AtomicBool, Ordering};

static RAISED: AtomicBool = AtomicBool::new(false);

/// The work was stopped by a signal.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Asks everything that runs to end.
pub fn raise() {
    RAISED.store(true, Ordering::SeqCst);
}

/// Whether a signal has come.
#[must_use]
pub fn raised() -> bool {
    RAISED.load(Ordering::SeqCst)
}

/// Fails once a signal has come.
pub fn check() -> Result<(), Interrupted> {
    if raised() { Err(Interrupted) } else { Ok(()) }
}

/// Listens for SIGINT, SIGTERM and SIGHUP on a thread of its own, for the life of the process.
pub fn listen() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                let kinds = [
                    SignalKind::interrupt(),
                    SignalKind::terminate(),
                    SignalKind::hangup(),
                ];
                let waits = kinds
                    .into_iter()
                    .filter_map(|kind| signal(kind).ok())
                    .map(|mut heard| {
                        tokio::spawn(async move {
                            while heard.recv().await.is_some() {
                                if raised() {
                                    eprintln!("already stopping; a moment");
                                }
                                raise();
                            }
                        })
                    });
                futures::future::join_all(waits.collect::<Vec<_>>()).await;
            });
        })?;
    Ok(())
}
