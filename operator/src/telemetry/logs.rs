//! Log lines on standard error.

use tracing_subscriber::EnvFilter;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for machines.
    Json,
}

/// Without `LOCKKEEPER_LOG`: what Lockkeeper does, and what goes wrong below it.
const DEFAULT_FILTER: &str = "warn,lockkeeper=info";

/// Logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter does not parse.
    #[error(
        "LOCKKEEPER_LOG={filter:?} is no filter: {source}; write for example info or lockkeeper=debug,kube=info"
    )]
    Filter {
        /// As written.
        filter: String,
        /// Why not.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Somebody did it before.
    #[error("logs are set up already: {0}")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

/// Sets up logging for the process. `filter` is the value of `LOCKKEEPER_LOG`, if any.
///
/// # Errors
/// When the filter does not parse, or logging was set up before.
pub fn init(format: LogFormat, filter: Option<&str>) -> Result<(), LogError> {
    use tracing_subscriber::util::SubscriberInitExt as _;
    let filter = filter
        .filter(|filter| !filter.is_empty())
        .unwrap_or(DEFAULT_FILTER);
    let parsed = EnvFilter::try_new(filter).map_err(|source| LogError::Filter {
        filter: filter.to_owned(),
        source,
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(false).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    }
    .map_err(LogError::Twice)
}

/// Why the process ends, also when logging could not be set up.
pub fn last_words(error: &str) {
    if tracing::dispatcher::has_been_set() {
        tracing::error!("{error}");
    } else {
        eprintln!("lockkeeper: {error}");
    }
}
