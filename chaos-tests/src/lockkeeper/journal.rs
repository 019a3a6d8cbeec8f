//! The agent's journal, read from a node's disk from outside: it tells where a ticket stands also while no API
//! answers and the node is off. Only the few fields that scenarios look at; the format is the agent's own.

use anyhow::{Context, Result};
use lockkeeper_crds::TicketState;
use serde::Deserialize;

use crate::node::Node;

/// A ticket as a node's journal has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Journalled {
    /// Its number.
    pub number: i64,
    /// Where it stands.
    pub state: TicketState,
}

#[derive(Deserialize)]
struct File {
    entry: Option<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    ticket: Number,
    state: TicketState,
}

#[derive(Deserialize)]
struct Number {
    number: i64,
}

/// The last ticket in a node's journal; `None` where there was none yet.
pub fn read(node: &Node) -> Result<Option<Journalled>> {
    let path = node.var_lib("lockkeeper/journal.json");
    match std::fs::read(&path) {
        Ok(bytes) => parse(&bytes).with_context(|| format!("{} cannot be read", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn parse(bytes: &[u8]) -> Result<Option<Journalled>> {
    let file: File = serde_json::from_slice(bytes)?;
    Ok(file.entry.map(|entry| Journalled {
        number: entry.ticket.number,
        state: entry.state,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_tells_number_and_state_and_a_torn_one_is_an_error() {
        let text = br#"{"format":1,"last_number":3,"entry":{"ticket":{"number":3,"x":1},"state":"Undoing"}}"#;
        let read = parse(text).unwrap().unwrap();
        assert_eq!((read.number, read.state), (3, TicketState::Undoing));
        assert_eq!(parse(br#"{"entry":null}"#).unwrap(), None);
        assert!(parse(b"{\"entry\"").is_err());
    }
}
