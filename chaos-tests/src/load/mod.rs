//! Clients that ask all the time and count what they saw: what an upgrade costs is told here.
//!
//! Three streams, each at a steady rate whether or not the last answer has come: reads on a fresh connection,
//! reads on a kept one, writes on a kept one. Counted twice: raw, and after the retries that client-go makes by
//! itself. Every acknowledged write is looked up at the end.

mod connection;
mod report;
mod run;
mod writes;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::address;
use crate::lab::Lab;
use crate::network::{self, FABRIC};
use crate::process::{ProcessId, last_lines, start_daemon};
use crate::state::Resource;

pub use report::{Report, StreamReport};
pub use run::run;

/// Requests a second of each stream.
pub const RATE: u32 = 20;

/// How the clients are to ask.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Which API server, or the load balancer.
    pub server: SocketAddr,
    /// Whose certificates.
    pub kubeconfig: PathBuf,
    /// Requests a second of each stream.
    pub rate: u32,
    /// Where the report goes.
    pub out: PathBuf,
}

/// Clients at work in the nodes' network.
#[derive(Debug)]
pub struct Load {
    process: ProcessId,
    out: PathBuf,
    log: PathBuf,
    stopped: bool,
}

impl Lab {
    /// The load balancer.
    #[must_use]
    pub fn load_balancer(&self) -> SocketAddr {
        SocketAddr::from((address::LOAD_BALANCER, address::API_PORT))
    }

    /// Starts clients through the load balancer, or straight at the API server of one node.
    pub fn load_start(&self, straight_at: Option<&str>) -> Result<Load> {
        let server = match straight_at {
            None => self.load_balancer(),
            Some(node) => SocketAddr::from((self.node(node)?.address(), address::API_PORT)),
        };
        let run = crate::cache::hex(&rand::random::<[u8; 4]>());
        let out = self.home().path(&format!("load/{run}.json"));
        let log = self.home().log(&format!("load-{run}"));
        std::fs::create_dir_all(self.home().path("load"))?;
        let (server, rate) = (server.to_string(), RATE.to_string());
        let (program, kubeconfig) = (self.program(), self.kubeconfig(None));
        let mut argv = network::enter(&self.home().namespace(FABRIC));
        argv.extend(
            [
                &program.to_string_lossy(),
                "client",
                "--server",
                &server,
                "--rate",
                &rate,
                "--kubeconfig",
                &kubeconfig.to_string_lossy(),
                "--out",
                &out.to_string_lossy(),
            ]
            .map(|word: &str| word.to_owned()),
        );
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        let process = start_daemon(&words, &log)?;
        self.home().record(Resource::Process {
            what: "load".into(),
            id: process,
        })?;
        let load = Load {
            process,
            out,
            log,
            stopped: false,
        };
        load.wait_for_first_report()?;
        Ok(load)
    }
}

impl Load {
    /// What was counted so far.
    pub fn report(&self) -> Result<Report> {
        read(&self.out)
    }

    /// Stops the clients, looks every acknowledged write up, and returns what was counted.
    pub fn stop(mut self) -> Result<Report> {
        self.stopped = true;
        self.process.signal(Signal::TERM);
        if !self.process.gone_within(Duration::from_secs(120)) {
            self.process.signal(Signal::KILL);
            bail!(
                "the clients did not end within 120 s: {}",
                last_lines(&self.log, 5)
            );
        }
        let report = read(&self.out)?;
        if !report.complete {
            bail!("the clients ended early: {}", last_lines(&self.log, 5));
        }
        Ok(report)
    }

    fn wait_for_first_report(&self) -> Result<()> {
        let began = Instant::now();
        while !self.out.exists() {
            crate::interrupt::check()?;
            if !self.process.alive() || began.elapsed() > Duration::from_secs(20) {
                bail!("the clients did not start: {}", last_lines(&self.log, 5));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if !self.stopped {
            self.process.signal(Signal::KILL);
        }
    }
}

fn read(path: &Path) -> Result<Report> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))
}
