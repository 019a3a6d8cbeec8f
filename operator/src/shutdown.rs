//! SIGTERM and SIGINT.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Of a process that a second signal ended (128 + SIGINT).
const EXIT_IMPATIENT: i32 = 130;

/// A token that the first SIGTERM or SIGINT cancels. The second ends the process.
///
/// # Errors
/// When the signals cannot be caught.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let shutdown = token.clone();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        for first in [true, false] {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if first {
                tracing::info!("{name}: finishing; once more to end at once");
                shutdown.cancel();
            }
        }
        std::process::exit(EXIT_IMPATIENT);
    });
    Ok(token)
}
