//! HMAC-SHA-256 of a value's canonical form: members in order of their names, every length written out.

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use sha2::Sha256;

/// Of a key: a block of SHA-256, which HMAC takes as it is.
pub const KEY_LENGTH: usize = 64;

/// Half of the MAC. Two values that differ have the same one by chance once in 2^128, and nobody who does not know the
/// key can look for such a pair, or try out what a Secret holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest([u8; 16]);

/// Hashes with one key. The key is random, made for one comparison and forgotten with it: digests of two comparisons
/// have nothing to do with each other.
#[derive(Clone)]
pub struct Keyed {
    mac: Hmac<Sha256>,
    canonical: Vec<u8>,
}

impl Keyed {
    /// With a random key.
    #[must_use]
    pub fn new(key: &[u8; KEY_LENGTH]) -> Self {
        Self {
            mac: Hmac::new(key.into()),
            canonical: Vec::new(),
        }
    }

    /// Of a value. The order of an object's members does not count; that of a list does.
    #[must_use]
    pub fn digest(&mut self, value: &Value) -> Digest {
        self.canonical.clear();
        write(value, &mut self.canonical);
        let mac = self.mac.clone().chain_update(&self.canonical).finalize();
        let mut half = [0; 16];
        for (to, from) in half.iter_mut().zip(mac.into_bytes()) {
            *to = from;
        }
        Digest(half)
    }
}

fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.push(b'n'),
        Value::Bool(false) => out.push(b'f'),
        Value::Bool(true) => out.push(b't'),
        Value::Number(number) => {
            out.push(b'd');
            text(&number.to_string(), out);
        }
        Value::String(string) => {
            out.push(b's');
            text(string, out);
        }
        Value::Array(items) => {
            out.push(b'[');
            length(items.len(), out);
            for item in items {
                write(item, out);
            }
        }
        Value::Object(members) => {
            out.push(b'{');
            length(members.len(), out);
            // Sorted already, unless some crate in the build asks serde_json to keep the order of the text.
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            for (name, member) in members {
                text(name, out);
                write(member, out);
            }
        }
    }
}

fn text(text: &str, out: &mut Vec<u8>) {
    length(text.len(), out);
    out.extend_from_slice(text.as_bytes());
}

fn length(length: usize, out: &mut Vec<u8>) {
    // Nothing that an API server serves is larger than 2^64.
    out.extend_from_slice(&u64::try_from(length).unwrap_or(u64::MAX).to_le_bytes());
}
