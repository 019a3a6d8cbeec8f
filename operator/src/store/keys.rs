//! What opens an encrypted backup.

/// Secret keys that may open a backup. Those of plain backups need none.
///
/// Prints nothing of them.
#[derive(Clone, Default)]
pub struct Identities {}

impl Identities {
    /// None: opens what is not encrypted.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identities(…)")
    }
}
