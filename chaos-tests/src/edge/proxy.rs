//! HAProxy at the edge, as a user would run it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Colour;
use super::network::{ADDRESS, BESIDE as BESIDE_PROXY, EDGE, PROXY, application};
use crate::cache::write_whole;
use crate::network;
use crate::process::{ProcessId, start_daemon};
use crate::scene::{Look, Scene};
use crate::state::{Home, Resource};

/// The backend that has both colours' servers.
pub const BACKEND: &str = "shop";
/// Another, beside it: Lockkeeper knows nothing of it, a Job of the scenario's steers it.
pub const BESIDE: &str = "beside";
/// Where its runtime API is reached from both clusters.
pub const RUNTIME_API: (std::net::Ipv4Addr, u16) = (ADDRESS, 9999);

/// Where it tells its counters to a Prometheus.
pub(super) const METRICS: (std::net::Ipv4Addr, u16) = (ADDRESS, 8405);

/// HAProxy at the edge.
#[derive(Debug)]
pub struct Proxy {
    process: ProcessId,
}

impl Proxy {
    pub(super) fn start(home: &Home) -> Result<Self> {
        let config = home.path("edge.cfg");
        write_whole(&config, text().as_bytes())?;
        let program =
            crate::require::find("haproxy").context("haproxy is missing: apt-get install haproxy")?;
        let (program, config) = (program.to_string_lossy(), config.to_string_lossy());
        let enter = network::enter(&home.namespace(EDGE));
        let mut words: Vec<&str> = enter.iter().map(String::as_str).collect();
        words.extend([&*program, "-db", "-f", &*config]);
        let process = start_daemon(&words, &home.log("edge"))?;
        home.record(Resource::Process {
            what: "edge".to_owned(),
            id: process,
        })?;
        Ok(Self { process })
    }

    /// Its process: killed or frozen, it is away.
    #[must_use]
    pub const fn process(&self) -> ProcessId {
        self.process
    }

    /// Says a line to its runtime API, and returns the answer.
    pub async fn say(line: &str) -> Result<String> {
        let exchange = async {
            let mut stream = TcpStream::connect(RUNTIME_API).await?;
            stream.write_all(format!("{line}\n").as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        };
        tokio::time::timeout(Duration::from_secs(5), exchange)
            .await
            .context("the edge's runtime API does not answer")?
    }

    /// What is set now in a backend: blue's weight and green's, asked without Lockkeeper's help, and in one answer.
    pub async fn weights(backend: &str) -> Result<(u64, u64)> {
        let answer = Self::say(&format!("show servers state {backend}")).await?;
        let weight = |colour: Colour| {
            set_weight(&answer, colour).with_context(|| format!("the edge answers {answer:?}"))
        };
        Ok((weight(Colour::Blue)?, weight(Colour::Green)?))
    }

    /// Green's share of what is set, in percent.
    pub async fn green_share() -> Result<u8> {
        Self::green_share_of(BACKEND).await
    }

    /// The same of another backend.
    pub async fn green_share_of(backend: &str) -> Result<u8> {
        let (blue, green) = Self::weights(backend).await?;
        if blue + green == 0 {
            bail!("nobody has a weight at the edge");
        }
        // To the nearest point; what is not nothing is never said to be nothing.
        let share = (green * 100 + (blue + green) / 2) / (blue + green);
        let share = if green > 0 && blue > 0 {
            share.clamp(1, 99)
        } else {
            share
        };
        Ok(u8::try_from(share)?)
    }

    pub(super) async fn wait_until_both_are_up(scene: &Scene) -> Result<()> {
        scene
            .wait_for("both colours at the edge", Duration::from_secs(60), || async {
                let state = Self::say("show servers state").await?;
                // Column 6: 2 is running.
                let up = |line: &&str| line.split(' ').nth(5) == Some("2");
                Ok(match state.lines().filter(up).count() {
                    4 => Look::Done(()),
                    count => Look::NotYet(format!("{count} of 4, in two backends")),
                })
            })
            .await
    }
}

/// Column 4 is the server, column 8 its weight.
fn set_weight(answer: &str, colour: Colour) -> Option<u64> {
    let columns = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut lines = answer.lines().map(columns);
    let line = lines.find(|line| line.get(3).is_some_and(|name| name == colour.name()))?;
    line.get(7)?.parse().ok()
}

fn text() -> String {
    let server = |colour: Colour, weight: u8| {
        format!(
            "  server {} {} weight {weight}\n",
            colour.name(),
            application(colour)
        )
    };
    let backend = |name: &str, bind: SocketAddr| {
        format!(
            "frontend to-{name}\n  bind {bind}\n  default_backend {name}\n\
             backend {name}\n  balance roundrobin\n  option httpchk GET /healthz\n  \
             default-server check inter 1s\n{}{}",
            server(Colour::Blue, 100),
            server(Colour::Green, 0),
        )
    };
    format!(
        "global\n  stats socket ipv4@{}:{} level admin\n\
         defaults\n  mode http\n  timeout connect 2s\n  timeout client 30s\n  timeout server 30s\n\
         frontend metrics\n  bind {}:{}\n  http-request use-service prometheus-exporter\n{}{}",
        RUNTIME_API.0,
        RUNTIME_API.1,
        METRICS.0,
        METRICS.1,
        backend(BACKEND, PROXY),
        backend(BESIDE, BESIDE_PROXY),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn green_begins_without_a_share() {
        assert!(text().contains("server blue 10.81.0.11:30080 weight 100\n"));
        assert!(text().contains("server green 10.82.0.11:30080 weight 0\n"));
        let answer =
            "1\n# be_id ...\n3 shop 1 blue 10.81.0.11 2 0 75 100 3\n3 shop 2 green 10.82.0.11 2 0 25 0 3\n";
        assert_eq!(set_weight(answer, Colour::Blue), Some(75));
        assert_eq!(set_weight(answer, Colour::Green), Some(25));
        assert_eq!(set_weight("Can't find backend.\n", Colour::Green), None);
    }
}
