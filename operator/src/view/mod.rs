//! `lockkeeper status`: an upgrade on the screen.
//!
//! What comes in: a `ClusterVersion` and the `ControlPlaneNode`s. What goes out: text. May touch: the API,
//! reading only; nothing but our own objects is read, so `lockkeeper-view` is right enough.

mod render;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use kube::Api;
use lockkeeper_crds::{ClusterVersion, State};
use tokio_util::sync::CancellationToken;

use crate::api::{ApiServers, SetupError};

/// Shows where an upgrade stands.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes of --watch: 0 completed, 2 rolled back, failed or blocked, 3 waits for a person, 4 time-out.

Examples:
  lockkeeper status                       once
  lockkeeper status --watch               until the upgrade has ended, well or not
  lockkeeper status --watch --timeout 3600"
)]
pub struct StatusArgs {
    /// Follow it until it has settled.
    #[arg(long, short)]
    watch: bool,
    /// With --watch: give up after this many seconds.
    #[arg(long, default_value_t = 4 * 3600)]
    timeout: u64,
    /// The kubeconfig; the pod's service account where none is given.
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// No usable credentials.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// There is none.
    #[error("there is no ClusterVersion named 'cluster': apply one (see the README) and look again")]
    Absent,
    /// The API does not answer.
    #[error(transparent)]
    Api(#[from] crate::api::ApiError),
    /// The screen.
    #[error("cannot write to the screen: {0}")]
    Screen(#[from] std::io::Error),
}

/// How often the object is read with `--watch`: the operator's own rhythm.
const EVERY: Duration = Duration::from_secs(1);

/// Shows it, and returns the exit code.
///
/// # Errors
/// When there is nothing to show. With `--watch` an API that is away is waited for, since that is just
/// when one looks.
pub async fn run(args: StatusArgs, shutdown: CancellationToken) -> Result<u8, ViewError> {
    let api = ApiServers::connect(args.kubeconfig.as_deref(), None).await?;
    let versions: Api<ClusterVersion> = Api::all(api.client());
    let read = || api.within("read ClusterVersion cluster", versions.get_opt("cluster"));
    let mut screen = Screen::new();
    if !args.watch {
        let object = read().await?.ok_or(ViewError::Absent)?;
        screen.show(&render::page(&object))?;
        return Ok(0);
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(args.timeout);
    let mut page = String::new();
    loop {
        match read().await {
            Ok(Some(object)) => {
                let end = settled(&object);
                // In a log every change of one line is enough, and the whole page at the end.
                let whole = screen.terminal || end.is_some();
                page = render::page(&object);
                screen.show(&if whole {
                    page.clone()
                } else {
                    render::line(&object)
                })?;
                if let Some(code) = end {
                    return Ok(code);
                }
            }
            Ok(None) => return Err(ViewError::Absent),
            Err(error) if screen.terminal => {
                screen.show(&format!("{page}\n(no answer just now: {error})\n"))?;
            }
            // The error itself changes from second to second; that there is none is news once.
            Err(_) => screen.show("no API server answers just now")?,
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(130),
            () = tokio::time::sleep_until(deadline) => return Ok(4),
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// The exit code once this generation has settled.
fn settled(object: &ClusterVersion) -> Option<u8> {
    let status = object.status.as_ref()?;
    let settled = status.conditions.iter().find(|c| c.type_ == "Settled")?;
    if settled.status != "True" || settled.observed_generation != object.metadata.generation {
        return None;
    }
    Some(match status.state {
        State::Idle => 0,
        State::RolledBack | State::Failed | State::Blocked => 2,
        _ => 3,
    })
}

/// Redraws in place on a terminal; elsewhere prints a page only when it differs from the one before.
struct Screen {
    terminal: bool,
    last: String,
}

impl Screen {
    fn new() -> Self {
        Self {
            terminal: std::io::stdout().is_terminal(),
            last: String::new(),
        }
    }

    fn show(&mut self, page: &str) -> std::io::Result<()> {
        if page == self.last {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        if self.terminal {
            // Home, the page with each line cleared to its end, then everything below.
            let page = page.replace('\n', "\x1b[K\n");
            write!(out, "\x1b[H{page}\x1b[J")?;
        } else {
            writeln!(out, "{page}")?;
        }
        page.clone_into(&mut self.last);
        out.flush()
    }
}
