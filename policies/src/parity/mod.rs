//! Whether green has what blue has.
//!
//! What comes in: objects of either cluster, one after the other, as their API servers serve them. What goes out: a
//! [`Report`]: missing in green, different, not ready, counted by kind with a bounded sample. May touch: nothing; the
//! key of the hashes comes in as a value.
//!
//! | file | what |
//! | --- | --- |
//! | `scope` | which objects are compared at all |
//! | `normal` | what of an object is meant, and not made by its cluster |
//! | `ready` | whether it does what it is there for |
//! | `digest` | a keyed hash of what is meant |
//! | `compare` | two inventories of one kind, side by side |
//! | `images` | what running pods' images are, whatever their tags say |
//! | `fields` | which fields differ, never what stands in them |
//!
//! An object becomes a [`Record`] of a hundred bytes as soon as it is read, so that memory grows with the number of
//! objects and not with their size, and no content of a Secret outlives the page that it came in.

mod compare;
mod digest;
mod fields;
mod images;
mod normal;
mod ready;
mod scope;
#[cfg(test)]
mod tests;

pub use compare::{
    Acceptance, Finding, KindReport, Listed, Outcome, Report, SAMPLE, Side, compare, one_line,
};
pub use digest::{Digest, KEY_LENGTH, Keyed};
pub use fields::fields;
pub use images::{Images, compare_images};
pub use normal::{Normal, Unreadable, normalise};
pub use scope::{KindAsked, Scope};

use serde_json::Value;

/// A kind, whatever its version.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    /// Its group; empty for the core's.
    pub group: String,
    /// As in an object's `kind`.
    pub kind: String,
}

impl Kind {
    /// A kind of a group; the core's is empty.
    #[must_use]
    pub fn new(group: &str, kind: &str) -> Self {
        Self {
            group: group.to_owned(),
            kind: kind.to_owned(),
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.kind)?;
        if self.group.is_empty() {
            return Ok(());
        }
        write!(f, ".{}", self.group)
    }
}

/// What is kept of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Empty for what lies in no namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// Of what is meant.
    pub digest: Digest,
    /// Why it does not do what it is there for.
    pub not_ready: Option<Box<str>>,
}

/// Makes records of objects.
#[derive(Clone)]
pub struct Recorder<'a> {
    /// Of which kind they are.
    pub kind: &'a Kind,
    /// Which of them are compared.
    pub scope: &'a Scope,
    /// Hashes them.
    pub keyed: Keyed,
    /// Of pods: what their images are, also of those that are not compared themselves.
    pub images: Images,
}

impl Recorder<'_> {
    /// What is kept of an object; none when it is not compared.
    ///
    /// # Errors
    /// When it is no object.
    pub fn record(&mut self, object: Value) -> Result<Option<Record>, Unreadable> {
        self.note_images(&object);
        let Some(normal) = normalise(self.kind, object)? else {
            return Ok(None);
        };
        if !self.scope.holds(self.kind, &normal.namespace, &normal.name) {
            return Ok(None);
        }
        Ok(Some(Record {
            digest: self.keyed.digest(&normal.value),
            namespace: normal.namespace.into(),
            name: normal.name.into(),
            not_ready: normal.not_ready.map(Into::into),
        }))
    }

    fn note_images(&mut self, object: &Value) {
        if !self.kind.group.is_empty() || self.kind.kind != "Pod" {
            return;
        }
        let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str);
        let namespace = namespace.unwrap_or_default();
        if self.scope.holds(self.kind, namespace, "") {
            self.images.note(namespace, object);
        }
    }
}
