//! `lockkeeper operator`, `lockkeeper agent`, `lockkeeper rescue`, `lockkeeper status`,
//! `lockkeeper parity`, `lockkeeper version`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::Parser as _;
use lockkeeper::cli::Cli;
use lockkeeper::{shutdown, telemetry};

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            telemetry::logs::last_words(&lockkeeper::api::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<u8> {
    let cli = Cli::parse();
    telemetry::logs::init(cli.log_format, std::env::var("LOCKKEEPER_LOG").ok().as_deref())?;
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow!("another TLS provider than ring is installed; this binary was built wrongly"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(async { cli.run(shutdown::on_signal()?).await });
    // What still runs in the background has had its chance.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}
