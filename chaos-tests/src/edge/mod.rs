//! Two clusters and the edge in front of both.
//!
//! In: a [`Scene`], whose lab becomes blue's; Lockkeeper lives there, where things are known to work. Out: green's lab,
//! an HAProxy that reaches the application of both, and clients that ask it. May touch: the networks of the two labs,
//! and namespace `shop` of their clusters.
//!
//! | file | what |
//! | --- | --- |
//! | `network` | the edge's namespace, its cables to both clusters, and each cluster's addresses as others see them |
//! | `app` | what answers with its colour, as a program and as objects |
//! | `proxy` | HAProxy with both colours' servers |
//! | `dns` | a name's two authoritative servers, where a scenario wants them |
//! | `prometheus` | who counts what HAProxy answers, where a scenario wants it |
//! | `course` | a ClusterCutover, and the weights that the edge really has |
//! | `gateway` | Contour and Envoy, with routes of the Gateway API in one of the clusters, where a scenario wants them |
//! | `ledger` | what runs in one cluster only, and where it writes who it is |
//! | `steer` | a Job that steers a backend of the edge's which Lockkeeper does not know |
//! | `account` | credentials with few rights |
//! | `certificate` | with which the application answers TLS by itself |
//! | `clients` | who asks all the time, and what they were answered |

mod account;
pub mod app;
mod certificate;
mod clients;
mod course;
pub mod dns;
pub mod gateway;
pub mod ledger;
mod network;
mod prometheus;
mod proxy;
pub mod steer;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache::write_whole;
use crate::lab::{Lab, Tie};
use crate::remains;
use crate::scene::Scene;
use crate::state::Options;

use certificate::Certificate;
use clients::Target;
pub use clients::{Clients, Count};
pub use course::{Cutover, FAILURES, Plan, Steers, Watch};
pub use dns::Dns;
pub use gateway::{Gateway, Kind};
pub use network::{EDGE, PROXY};
pub use prometheus::errors_of;
pub use proxy::{BACKEND, BESIDE, Proxy, RUNTIME_API};

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Colour {
    /// What runs today.
    Blue,
    /// What shall run tomorrow.
    Green,
}

impl Colour {
    /// Its name, in objects and answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blue => "blue",
            Self::Green => "green",
        }
    }

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Blue => Self::Green,
            Self::Green => Self::Blue,
        }
    }
}

/// Blue, green and the edge.
#[derive(Debug)]
pub struct Pair<'a> {
    /// Where the scenario plays: blue is its lab.
    pub scene: &'a Scene,
    /// Green's lab.
    pub green: Lab,
    /// HAProxy at the edge.
    pub proxy: Proxy,
    certificate: Certificate,
}

impl<'a> Pair<'a> {
    /// Brings green and the edge up, with the application in both clusters, plays, and takes them down again.
    ///
    /// # Errors
    /// What was in the way of bringing them up, or of the play; green's logs were collected then.
    pub async fn play(
        scene: &'a Scene,
        play: impl for<'p> AsyncFnOnce(&'p Pair<'a>) -> Result<String>,
    ) -> Result<String> {
        let green = in_the_machines_network(|| green(scene, Tie::ToThisProcess))?;
        let result = Self::with(scene, green.clone(), play).await;
        if result.is_err() {
            let _ = remains::collect(&green, "green");
        }
        in_the_machines_network(|| green.down())?;
        result
    }

    /// The same, and everything stays up: `lab down` of the scene's lab takes green down too.
    ///
    /// # Errors
    /// As for [`Pair::play`].
    pub async fn stay(
        scene: &'a Scene,
        play: impl for<'p> AsyncFnOnce(&'p Pair<'a>) -> Result<String>,
    ) -> Result<String> {
        let green = in_the_machines_network(|| green(scene, Tie::None))?;
        Self::with(scene, green, play).await
    }

    async fn with(
        scene: &'a Scene,
        green: Lab,
        play: impl for<'p> AsyncFnOnce(&'p Pair<'a>) -> Result<String>,
    ) -> Result<String> {
        let pair = Self::join(scene, green)?;
        pair.deploy().await?;
        play(&pair).await
    }

    fn join(scene: &'a Scene, green: Lab) -> Result<Self> {
        network::create(scene.lab.home(), green.home())?;
        let proxy = Proxy::start(scene.lab.home())?;
        let certificate = Certificate::make(&scene.lab.home().path(""))?;
        Ok(Self {
            scene,
            green,
            proxy,
            certificate,
        })
    }

    /// The lab of a colour.
    #[must_use]
    pub fn lab(&self, colour: Colour) -> &Lab {
        match colour {
            Colour::Blue => &self.scene.lab,
            Colour::Green => &self.green,
        }
    }

    /// A kubeconfig for a colour's cluster that works from anywhere else, as its admin.
    pub fn kubeconfig(&self, colour: Colour) -> Result<String> {
        let text = std::fs::read_to_string(self.lab(colour).kubeconfig(None))?;
        let mut parsed: serde_yaml::Value = serde_yaml::from_str(&text)?;
        let cluster = parsed
            .get_mut("clusters")
            .and_then(|list| list.get_mut(0)?.get_mut("cluster"))
            .context("the kubeconfig has no clusters[0].cluster")?;
        let server = format!("https://{}", network::api_server(colour));
        for (key, value) in [
            ("server", server.as_str()),
            ("tls-server-name", "kubernetes.default.svc"),
        ] {
            if let Some(fields) = cluster.as_mapping_mut() {
                fields.insert(key.into(), value.into());
            }
        }
        Ok(serde_yaml::to_string(&parsed)?)
    }

    /// A client of a colour's cluster.
    pub async fn client(&self, colour: Colour) -> Result<kube::Client> {
        // Nobody goes out to come back: the scenario's own network is blue's.
        if colour == Colour::Blue {
            return self.scene.client().await;
        }
        let path = self.scene.file(&format!("{}.conf", colour.name()));
        write_whole(&path, self.kubeconfig(colour)?.as_bytes())?;
        crate::scene::client(&path).await
    }

    async fn deploy(&self) -> Result<()> {
        for colour in [Colour::Blue, Colour::Green] {
            app::deploy(self, colour).await?;
        }
        Proxy::wait_until_both_are_up(self.scene).await
    }

    /// Clients at work at the edge.
    pub fn clients(&self) -> Result<Clients> {
        self.clients_of(Target::Address(PROXY))
    }

    /// Clients at work at the backend that a Job steers.
    pub fn clients_beside(&self) -> Result<Clients> {
        self.clients_of(Target::Address(network::BESIDE))
    }

    /// Clients at work at the edge's Gateway, at what a kind of routes leads on.
    pub fn clients_of_the_gateway(&self, kind: Kind) -> Result<Clients> {
        let there = kind.listener();
        self.clients_of(match kind {
            Kind::Http => Target::Address(there),
            Kind::Grpc => Target::Calls(there),
            Kind::Tls => Target::Tls(there, self.certificate.clone()),
            Kind::Tcp => Target::Connections(there),
        })
    }

    /// Clients at work that look the shop's name up, and ask the application without the edge's HAProxy.
    pub fn clients_by_name(&self) -> Result<Clients> {
        self.clients_of(Target::Name)
    }

    fn clients_of(&self, target: Target) -> Result<Clients> {
        Clients::start(&self.scene.lab.home().namespace(EDGE), target)
    }
}

/// The name of the lab that is green where this one is blue.
#[must_use]
pub fn green_of(blue: &str) -> String {
    format!("{blue}-green")
}

fn green(scene: &Scene, tie: Tie) -> Result<Lab> {
    scene.say("green: a cluster of its own");
    let options = Options {
        name: green_of(scene.lab.home().name()),
        ..scene.lab.options().clone()
    };
    Lab::up(options, tie, false, &scene.progress)
}

/// The scenario's own thread is in the network of its lab's nodes, and what it starts would be too.
fn in_the_machines_network<T: Send>(deed: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            crate::network::move_thread_out()?;
            deed()
        });
        thread.join().unwrap_or_else(|_| bail!("the thread panicked"))
    })
}

/// Where a colour's application answers without the edge, to anybody outside of its own cluster.
#[must_use]
pub fn application(colour: Colour) -> std::net::SocketAddr {
    network::application(colour)
}

/// The longest that a pod may take to be there.
const POD: Duration = Duration::from_secs(120);

/// The archive of this program's image, made at the first call.
fn image(lab: &Lab) -> Result<PathBuf> {
    let tar = lab.home().path("images/lab.tar");
    crate::images::program(&tar, app::IMAGE, "lab", &lab.program())?;
    Ok(tar)
}
