//! What is common to the subcommands: progress on standard error, the result on standard output.

use std::io::Write as _;

use chrono::Utc;
use serde::Serialize;

use super::{NodeArgs, Output, RescueError};
use crate::agent::rescue::{Entry, Step};
use crate::agent::{Cri, Host};

/// This node as the flags say it is.
pub(super) fn host(args: &NodeArgs) -> Host {
    Host::new(
        std::path::Path::new("/"),
        &args.manifest_directory,
        &args.state_directory,
    )
}

/// A client of its container runtime.
pub(super) fn cri(args: &NodeArgs) -> Result<Cri, RescueError> {
    Cri::new(&args.cri_socket).map_err(|error| RescueError::Refused(error.to_string()))
}

/// Who may read the manifests and keys and write the data may go on.
pub(super) fn as_root() -> Result<(), RescueError> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(RescueError::Refused(
        "this needs root on a control-plane node: run it with sudo".to_owned(),
    ))
}

/// Says what happens now.
pub(super) fn tell(what: &str) {
    let now = Utc::now().format("%H:%M:%S");
    // A screen that is gone does not stop a rescue.
    let _ = writeln!(std::io::stderr(), "{now} {what}");
}

/// The end of a rescue, as a machine reads it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Ended<'a> {
    command: &'a str,
    id: &'a str,
    step: Step,
    member: &'a str,
    aside: &'a std::path::Path,
    message: &'a str,
}

/// Tells the end: in `text` for a person.
pub(super) fn end(entry: &Entry, output: Output, text: &str) -> Result<(), RescueError> {
    let mut out = std::io::stdout();
    match output {
        Output::Text => writeln!(out, "{text}")?,
        Output::Json => {
            let ended = Ended {
                command: entry.kind.command(),
                id: &entry.id,
                step: entry.step,
                member: &entry.name,
                aside: &entry.aside,
                message: &entry.message,
            };
            let json = serde_json::to_string_pretty(&ended).map_err(std::io::Error::from)?;
            writeln!(out, "{json}")?;
        }
    }
    Ok(())
}
