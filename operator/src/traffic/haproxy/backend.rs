//! A backend as HAProxy describes it, whether it can be steered, and the commands that steer it.

use lockkeeper_crds::{KeptConnections, Weights};

use super::table::{Row, rows};
use super::{name, shares};
use crate::traffic::{TrafficError, nearest};

/// Which servers are whose.
#[derive(Clone, Debug)]
pub(super) struct Colours {
    blue: Vec<String>,
    green: Vec<String>,
}

impl Colours {
    pub(super) fn new(blue: &[String], green: &[String]) -> Result<Self, TrafficError> {
        for (field, servers) in [
            ("spec.traffic.haproxy.blue", blue),
            ("spec.traffic.haproxy.green", green),
        ] {
            if servers.is_empty() {
                return Err(TrafficError::Spec {
                    field,
                    problem: "names no server".to_owned(),
                });
            }
            servers.iter().try_for_each(|server| name(field, server))?;
        }
        match blue.iter().find(|server| green.contains(server)) {
            Some(both) => Err(TrafficError::Spec {
                field: "spec.traffic.haproxy.green",
                problem: format!("names {both}, which is blue's too"),
            }),
            None => Ok(Self {
                blue: blue.to_vec(),
                green: green.to_vec(),
            }),
        }
    }
}

/// One server of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Server {
    name: String,
    /// What is set now.
    weight: u64,
    /// What the configuration says.
    initial: u64,
    /// Neither drained nor in maintenance.
    taking: bool,
    /// Its check, if it has one, passes.
    up: bool,
}

/// A backend that can be steered.
#[derive(Clone, Debug)]
pub(super) struct Backend {
    target: String,
    backend: String,
    tcp: bool,
    blue: Vec<Server>,
    green: Vec<Server>,
}

impl Backend {
    /// Reads the answer to `show stat` and `show servers state`.
    pub(super) fn read(answer: &str, target: String, colours: &Colours) -> Result<Self, TrafficError> {
        let (Some(stat), Some(state)) = (rows(answer, "pxname", ','), rows(answer, "be_id", ' ')) else {
            return Err(not_shown(answer, target));
        };
        let garbled = |what: &str| TrafficError::Garbled {
            target: target.clone(),
            detail: what.to_owned(),
        };
        let whole = stat
            .iter()
            .find(|row| field(row, "svname") == "BACKEND")
            .ok_or_else(|| garbled("there is no line for the backend itself"))?;
        may_be_weighted(field(whole, "algo"), &target)?;
        let mut all = Vec::new();
        for row in stat.iter().filter(|row| field(row, "svname") != "BACKEND") {
            let name = field(row, "svname");
            if field(row, "bck") == "1" && !colours.blue.iter().chain(&colours.green).any(|ours| ours == name)
            {
                // A backup server takes traffic only when nobody else can.
                continue;
            }
            steerable(row, &target)?;
            let state = state
                .iter()
                .find(|state| field(state, "srv_name") == name)
                .ok_or_else(|| garbled(&format!("there is no state of server {name}")))?;
            all.push(server(name, state).ok_or_else(|| garbled(&format!("the state of server {name}")))?);
        }
        let blue = take(&mut all, &colours.blue, "spec.traffic.haproxy.blue", &target)?;
        let green = take(&mut all, &colours.green, "spec.traffic.haproxy.green", &target)?;
        // A stranger that takes nothing harms nothing; it is looked for again before every change.
        if let Some(stranger) = all.iter().find(|server| server.taking && server.weight > 0) {
            return Err(TrafficError::Stranger {
                target,
                what: format!("server {}", stranger.name),
            });
        }
        Ok(Self {
            backend: field(whole, "pxname").to_owned(),
            tcp: field(whole, "mode") == "tcp",
            target,
            blue,
            green,
        })
    }

    /// The shares that are set.
    pub(super) fn shares(&self) -> Result<Weights, TrafficError> {
        let sum = |servers: &[Server]| -> u64 {
            servers
                .iter()
                .filter(|server| server.taking)
                .map(|server| server.weight)
                .sum()
        };
        nearest(sum(&self.blue), sum(&self.green)).ok_or_else(|| TrafficError::Unfit {
            target: self.target.clone(),
            problem: "no server of blue or green has a weight: nobody takes traffic".to_owned(),
        })
    }

    /// What must be said to get from what is set to these shares; empty if nothing.
    pub(super) fn commands(
        &self,
        wanted: Weights,
        kept: KeptConnections,
    ) -> Result<Vec<String>, TrafficError> {
        let blue = self.steered("blue", &self.blue, wanted.blue)?;
        let green = self.steered("green", &self.green, wanted.green)?;
        let initial = |servers: &[&Server]| -> Vec<u64> { servers.iter().map(|s| s.initial).collect() };
        let (new_blue, new_green) = shares::spread(wanted, &initial(&blue), &initial(&green));
        let sum = |servers: &[&Server]| -> u64 { servers.iter().map(|server| server.weight).sum() };
        let (is_blue, is_green) = (sum(&blue), sum(&green));
        let exact =
            is_blue + is_green > 0 && is_blue * u64::from(wanted.green) == is_green * u64::from(wanted.blue);
        let mut changes: Vec<(u8, &Server, u64)> = Vec::new();
        if !exact {
            // One command after the other: at no moment is there nobody, nor has green more than before or after.
            let blues = blue.into_iter().zip(new_blue);
            changes.extend(blues.map(|(s, w)| (if w > s.weight { 0 } else { 3 }, s, w)));
            let greens = green.into_iter().zip(new_green);
            changes.extend(greens.map(|(s, w)| (if w < s.weight { 1 } else { 2 }, s, w)));
        }
        changes.sort_by_key(|(turn, _, _)| *turn);
        let mut commands: Vec<String> = changes
            .iter()
            .filter(|(_, server, weight)| *weight != server.weight)
            .map(|(_, server, weight)| format!("set weight {}/{} {weight}", self.backend, server.name))
            .collect();
        if kept == KeptConnections::Close && self.tcp {
            let without = [(wanted.blue, &self.blue), (wanted.green, &self.green)];
            commands.extend(
                without
                    .into_iter()
                    .filter(|(share, _)| *share == 0)
                    .flat_map(|(_, servers)| servers)
                    .map(|server| format!("shutdown sessions server {}/{}", self.backend, server.name)),
            );
        }
        Ok(commands)
    }

    /// The servers of a colour whose weights make its share: those that take traffic, of which one must be up; all
    /// of them where the share is nothing, so that one that is taken back brings no traffic with it.
    fn steered<'a>(
        &self,
        colour: &'static str,
        servers: &'a [Server],
        share: u8,
    ) -> Result<Vec<&'a Server>, TrafficError> {
        if share == 0 {
            return Ok(servers.iter().collect());
        }
        let taking: Vec<&Server> = servers.iter().filter(|server| server.taking).collect();
        if taking.iter().any(|server| server.up) {
            return Ok(taking);
        }
        let states: Vec<String> = servers
            .iter()
            .map(|server| {
                let state = if server.taking {
                    "down"
                } else {
                    "drained or in maintenance"
                };
                format!("{} is {state}", server.name)
            })
            .collect();
        Err(TrafficError::NoneUp {
            target: self.target.clone(),
            colour,
            problem: states.join(", "),
        })
    }
}

fn field<'a>(row: &Row<'a>, name: &str) -> &'a str {
    row.get(name).copied().unwrap_or_default()
}

fn not_shown(answer: &str, target: String) -> TrafficError {
    let said = answer.lines().map(str::trim).find(|line| !line.is_empty());
    match said {
        Some("No such proxy." | "Can't find backend.") => TrafficError::Unfit {
            target,
            problem: "there is no such backend: correct spec.traffic.haproxy.backend".to_owned(),
        },
        said => TrafficError::Refused {
            target,
            detail: said.unwrap_or("it answers nothing").to_owned(),
        },
    }
}

/// HAProxy tells the algorithm to operators and above only. Some it calls `unknown`: `random` is one, which with its
/// two draws does not keep to weights either.
fn may_be_weighted(algorithm: &str, target: &str) -> Result<(), TrafficError> {
    let problem = match algorithm {
        "roundrobin" => return Ok(()),
        "" => "its algorithm is not shown: give its `stats socket` `level admin`".to_owned(),
        other => format!("`balance {other}` does not keep to weights exactly: use `balance roundrobin`"),
    };
    Err(TrafficError::Unfit {
        target: target.to_owned(),
        problem,
    })
}

/// Whether nothing but the weight decides what a server gets.
fn steerable(stat: &Row<'_>, target: &str) -> Result<(), TrafficError> {
    let name = field(stat, "svname");
    let problem = if !field(stat, "cookie").is_empty() {
        format!(
            "server {name} has a `cookie`: clients that hold it come back whatever its weight; take it out"
        )
    } else if !field(stat, "agent_status").is_empty() {
        format!("server {name} has an `agent-check`, which sets its weight too: take it out")
    } else if field(stat, "bck") == "1" {
        format!("server {name} is a `backup`, which has no share: take that word out")
    } else {
        return Ok(());
    };
    Err(TrafficError::Unfit {
        target: target.to_owned(),
        problem,
    })
}

fn server(name: &str, state: &Row<'_>) -> Option<Server> {
    let number = |column: &str| field(state, column).parse::<u64>().ok();
    Some(Server {
        name: name.to_owned(),
        weight: number("srv_uweight")?,
        initial: number("srv_iweight")?,
        // Any bit: maintenance or drain, by a person, by a tracked server or for a name that does not resolve.
        taking: number("srv_admin_state")? == 0,
        // 0: stopped.
        up: number("srv_op_state")? != 0,
    })
}

fn take(
    all: &mut Vec<Server>,
    wanted: &[String],
    field: &'static str,
    target: &str,
) -> Result<Vec<Server>, TrafficError> {
    wanted
        .iter()
        .map(|name| {
            let at = all.iter().position(|server| server.name == *name);
            at.map(|at| all.swap_remove(at))
                .ok_or_else(|| TrafficError::Spec {
                    field,
                    problem: format!("names {name}, and {target} has no such server"),
                })
        })
        .collect()
}
