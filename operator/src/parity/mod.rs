//! Whether one cluster has what another has: both are read at the same time, and compared by `policies::parity`.
//!
//! What comes in: clients of the two clusters, and what is to be equal. What goes out: a
//! [`Report`](lockkeeper_policies::parity::Report), on the screen as a table. May touch: both APIs, reading only.
//!
//! | file | what |
//! | --- | --- |
//! | `discover` | which kinds a cluster serves |
//! | `inventory` | one kind of one cluster, in pages, as records |
//! | `split` | a page cut into its objects while it arrives; pure |
//! | `closer` | which fields of an object differ |
//! | `command` | `lockkeeper parity` |
//! | `table` | a report as text; pure |

mod closer;
mod command;
mod discover;
mod inventory;
mod split;
mod table;
#[cfg(test)]
mod testing;

pub use command::{ParityArgs, run};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::Client;
use lockkeeper_policies::parity::{
    Acceptance, Images, KEY_LENGTH, Keyed, Kind, KindReport, Listed, Outcome, Report, Scope, Side, compare,
    compare_images,
};
use rand::RngCore as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use discover::{Kinds, Served, discover};
use inventory::Order;

/// Kinds of one cluster that are read at the same time. Two keep an API server's encoder and our parser busy; more
/// would only take its turns from other clients.
const AT_ONCE: usize = 2;
/// Objects that are read once more, to say in what they differ.
const LOOKED_AT: usize = 50;

/// What is to be equal.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Which objects.
    pub scope: Scope,
    /// Only what bears these labels, as kubectl's `--selector` takes it.
    pub selector: Option<String>,
    /// Differences that are fine.
    pub accepted: Vec<Acceptance>,
}

/// Compares two clusters.
///
/// # Guarantees
/// * Nothing is written, and no content of an object is kept: a hash with a key that is made here and forgotten.
/// * What cannot be listed is unknown in the report, never empty.
/// * Memory grows with the number of objects, a hundred bytes or so each, and not with their size.
///
/// # Caveats
/// The clusters go on while they are read: what is written meanwhile may be seen in one alone. The differences that are
/// named were still there when they were read once more.
pub async fn look(blue: &Client, green: &Client, wanted: &Wanted) -> Report {
    let (in_blue, in_green) = tokio::join!(discover(blue), discover(green));
    let (in_blue, in_green) = match (in_blue, in_green) {
        (Ok(in_blue), Ok(in_green)) => (in_blue, in_green),
        (in_blue, in_green) => {
            let why = |side: Side, kinds: Result<Kinds, String>| Some(format!("{side}: {}", kinds.err()?));
            let unknown = [why(Side::Blue, in_blue), why(Side::Green, in_green)];
            return Report::new(Vec::new(), unknown.into_iter().flatten().collect(), &[]);
        }
    };
    let (orders, mut reports) = orders(&in_blue, &in_green, wanted);
    let unknown = not_told(&in_blue, &in_green, &wanted.scope);
    let mut compared = read(blue, green, &orders, wanted).await;
    look_closer(blue, green, &orders, &mut compared).await;
    reports.extend(compared);
    Report::new(reports, unknown, &wanted.accepted)
}

/// One kind as each of the clusters serves it.
struct Pair {
    blue: Option<Order>,
    green: Option<Order>,
}

impl Pair {
    fn any(&self) -> Option<&Order> {
        self.blue.as_ref().or(self.green.as_ref())
    }
}

/// What is to be read; and the kinds of which it is known now that nothing can be said.
fn orders(blue: &Kinds, green: &Kinds, wanted: &Wanted) -> (Vec<Pair>, Vec<KindReport>) {
    let (mut pairs, mut reports) = (Vec::new(), Vec::new());
    let kinds: BTreeSet<&Kind> = blue.served.keys().chain(green.served.keys()).collect();
    for kind in kinds {
        let (in_blue, in_green) = (versions(blue, kind), versions(green, kind));
        let plural = |all: &[Served]| all.first().map(|s| s.plural.clone());
        let Some(plural) = plural(in_blue).or_else(|| plural(in_green)) else {
            continue;
        };
        if !wanted.scope.compares(kind, &plural) {
            continue;
        }
        let order = |served: &Served| Order {
            kind: kind.clone(),
            served: served.clone(),
            scope: wanted.scope.clone(),
            selector: wanted.selector.clone(),
        };
        // The same version of both, or the same object would look different.
        let common = in_blue
            .iter()
            .find_map(|b| Some((b, in_green.iter().find(|g| g.version == b.version)?)));
        match (common, in_blue, in_green) {
            (Some((b, g)), ..) => pairs.push(Pair {
                blue: Some(order(b)),
                green: Some(order(g)),
            }),
            (None, blue, []) => pairs.push(Pair {
                blue: blue.first().map(order),
                green: None,
            }),
            (None, [], green) => pairs.push(Pair {
                blue: None,
                green: green.first().map(order),
            }),
            (None, blue, green) => {
                let names = |all: &[Served]| {
                    all.iter()
                        .map(|s| s.version.clone())
                        .collect::<Vec<_>>()
                        .join(", ")
                };
                reports.push(KindReport {
                    kind: kind.clone(),
                    unknown: Some(format!(
                        "blue serves {}, green {}: no version in common",
                        names(blue),
                        names(green)
                    )),
                    ..KindReport::default()
                });
            }
        }
    }
    (pairs, reports)
}

fn versions<'a>(kinds: &'a Kinds, kind: &Kind) -> &'a [Served] {
    kinds.served.get(kind).map(Vec::as_slice).unwrap_or_default()
}

/// What was asked for and is served by nobody, and API groups that do not say what they serve.
fn not_told(blue: &Kinds, green: &Kinds, scope: &Scope) -> Vec<String> {
    let served = |asked: &lockkeeper_policies::parity::KindAsked| {
        [blue, green].iter().any(|kinds| {
            kinds
                .served
                .iter()
                .any(|(kind, all)| all.iter().any(|s| asked.means(kind, &s.plural)))
        })
    };
    let mut unknown: Vec<_> = scope
        .kinds
        .iter()
        .filter(|asked| !served(asked))
        .map(|asked| {
            format!(
                "neither cluster serves a kind {:?}: see kubectl api-resources",
                asked.0
            )
        })
        .collect();
    for (side, kinds) in [(Side::Blue, blue), (Side::Green, green)] {
        let silent = kinds.silent.iter().filter(|(group, _)| scope.concerns(group));
        unknown.extend(silent.map(|(group, version)| {
            format!("{side}: the API {group}/{version} does not answer: see kubectl get apiservices")
        }));
    }
    unknown
}

/// Reads all of it and compares kind by kind, as soon as both have been read.
async fn read(blue: &Client, green: &Client, pairs: &[Pair], wanted: &Wanted) -> Vec<KindReport> {
    let mut key = [0; KEY_LENGTH];
    rand::rng().fill_bytes(&mut key);
    let keyed = Keyed::new(&key);
    let mut tasks = JoinSet::new();
    for (client, of) in [(blue, Side::Blue), (green, Side::Green)] {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        for (at, pair) in pairs.iter().enumerate() {
            let order = match of {
                Side::Blue => &pair.blue,
                Side::Green => &pair.green,
            };
            let (client, order, keyed, turns) =
                (client.clone(), order.clone(), keyed.clone(), Arc::clone(&turns));
            tasks.spawn(async move {
                let Some(order) = order else {
                    return (at, of, (Listed::Absent, Images::default()));
                };
                // Never closed.
                let _turn = turns.acquire_owned().await;
                let taken = match inventory::take(&client, &order, keyed).await {
                    Ok((records, images)) => (Listed::Known(records), images),
                    Err(why) => (Listed::Unknown(why), Images::default()),
                };
                (at, of, taken)
            });
        }
    }
    let mut waiting: BTreeMap<usize, (Listed, Images)> = BTreeMap::new();
    let mut reports = Vec::new();
    while let Some(done) = tasks.join_next().await {
        // A task that panicked leaves its kind out of `reports`: see below.
        let Ok((at, of, taken)) = done else { continue };
        let Some(other) = waiting.remove(&at) else {
            waiting.insert(at, taken);
            continue;
        };
        let ((blue, in_blue), (green, in_green)) = match of {
            Side::Blue => (taken, other),
            Side::Green => (other, taken),
        };
        reports.extend(compare_images(&in_blue, &in_green, &wanted.accepted));
        let Some(order) = pairs.get(at).and_then(Pair::any) else {
            continue;
        };
        reports.push(compare(
            &order.kind,
            &order.served.plural,
            blue,
            green,
            &wanted.accepted,
        ));
    }
    for order in pairs.iter().filter_map(Pair::any) {
        if !reports.iter().any(|r| r.kind == order.kind) {
            reports.push(KindReport {
                kind: order.kind.clone(),
                unknown: Some("reading it came to an end before its time".to_owned()),
                ..KindReport::default()
            });
        }
    }
    reports
}

async fn look_closer(blue: &Client, green: &Client, pairs: &[Pair], reports: &mut [KindReport]) {
    let mut left = LOOKED_AT;
    for report in reports {
        let Some(order) = pairs
            .iter()
            .filter_map(|p| p.blue.as_ref())
            .find(|o| o.kind == report.kind)
        else {
            continue;
        };
        let different: Vec<_> = report
            .findings
            .iter()
            .filter(|f| f.outcome == Outcome::Different)
            .take(left)
            .map(|f| (f.namespace.clone(), f.name.clone()))
            .collect();
        left -= different.len();
        for (namespace, name) in different {
            if let Some(fields) = closer::look(blue, green, order, &namespace, &name).await {
                report.explain(&namespace, &name, fields);
            }
        }
    }
}

#[cfg(test)]
mod tests;
