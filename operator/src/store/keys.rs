//! What closes a backup, and what opens one: recipients, passphrases, identities, by age.
//!
//! Nothing here prints a secret: not its error, not its `Debug`.

use std::str::FromStr as _;
use std::sync::Arc;

use age::secrecy::{ExposeSecret as _, SecretString};
use age::{scrypt, x25519};
use lockkeeper_crds::{Encrypted, EncryptionKind};

use super::Failure;

/// A passphrase is guessed offline by whoever has the object, at the cost of [`WORK`] a guess.
const SHORTEST_PASSPHRASE: usize = 20;

/// scrypt's log2(N). age itself aims at a second, which takes 256 MiB here; this takes 32 MiB, within the agent's
/// budget, and the passphrase must be long.
const WORK: u8 = 15;

/// Of what others made with `age --passphrase`: 18, which takes 256 MiB, and no more.
const MOST_WORK: u8 = 18;

/// What a backup is closed with.
#[derive(Clone)]
pub(super) enum Lock {
    /// Each of their secret keys opens it.
    Recipients(Vec<x25519::Recipient>),
    /// The same one opens it.
    Passphrase(SecretString),
    /// A passphrase of the Secret of this name, which was not read: nothing can be closed.
    Missing(String),
}

impl std::fmt::Debug for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Recipients(_) => "Lock::Recipients(…)",
            Self::Passphrase(_) | Self::Missing(_) => "Lock::Passphrase(…)",
        })
    }
}

impl Lock {
    /// Of public keys `age1…`.
    pub(super) fn recipients(keys: &[String]) -> Result<Self, Failure> {
        let parse = |key: &String| {
            x25519::Recipient::from_str(key.trim()).map_err(|problem| Failure::Spec {
                field: "spec.encryption.recipients",
                problem: format!("holds {key}, which is no public key of age: {problem}"),
            })
        };
        Ok(Self::Recipients(
            keys.iter().map(parse).collect::<Result<_, _>>()?,
        ))
    }

    /// Of a passphrase, from the Secret of this name.
    pub(super) fn passphrase(text: &str, secret: &str) -> Result<Self, Failure> {
        let text = text.trim();
        if text.chars().count() < SHORTEST_PASSPHRASE {
            return Err(Failure::Key {
                secret: secret.to_owned(),
                problem: format!(
                    "holds a passphrase of fewer than {SHORTEST_PASSPHRASE} characters: whoever has a backup can guess it; make a longer one"
                ),
            });
        }
        Ok(Self::Passphrase(SecretString::from(text)))
    }

    /// What the manifest and the status say of it.
    #[must_use]
    pub(super) fn described(&self) -> Encrypted {
        match self {
            Self::Recipients(all) => Encrypted {
                kind: EncryptionKind::AgeRecipients,
                recipients: all.iter().map(ToString::to_string).collect(),
            },
            Self::Passphrase(_) | Self::Missing(_) => Encrypted {
                kind: EncryptionKind::AgePassphrase,
                recipients: vec![],
            },
        }
    }

    /// Takes a moment with a passphrase: not for an async thread.
    pub(super) fn encryptor(&self) -> std::io::Result<age::Encryptor> {
        let made = match self {
            Self::Recipients(all) => {
                age::Encryptor::with_recipients(all.iter().map(|r| r as &dyn age::Recipient))
            }
            Self::Passphrase(passphrase) => {
                let mut recipient = scrypt::Recipient::new(passphrase.clone());
                recipient.set_work_factor(WORK);
                age::Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient))
            }
            Self::Missing(secret) => {
                return Err(std::io::Error::other(format!(
                    "the passphrase of Secret {secret} is not given"
                )));
            }
        };
        made.map_err(std::io::Error::other)
    }
}

/// What opens it, in words.
pub(super) fn wanted(encrypted: &Encrypted) -> String {
    match encrypted.kind {
        EncryptionKind::AgeRecipients => {
            format!("the secret key of {}", encrypted.recipients.join(" or of "))
        }
        EncryptionKind::AgePassphrase => "its passphrase".to_owned(),
    }
}

/// Secret keys and passphrases that may open a backup. Those of plain backups need none.
///
/// Cheap to clone. Prints nothing of what it holds.
#[derive(Clone, Default)]
pub struct Identities {
    keys: Arc<Vec<x25519::Identity>>,
    passphrases: Arc<Vec<SecretString>>,
}

impl Identities {
    /// None: opens what is not encrypted.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// From text as `age-keygen` writes it: secret keys `AGE-SECRET-KEY-1…`, one a line, and lines with `#`.
    /// `from` names it in the error.
    ///
    /// # Errors
    /// When a line is no secret key, or there is none; nothing of the text is in the error.
    pub fn parse(text: &str, from: &str) -> Result<Self, Failure> {
        let fail = |problem: String| Failure::Key {
            secret: from.to_owned(),
            problem,
        };
        let mut keys = vec![];
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            keys.push(x25519::Identity::from_str(line).map_err(|_| {
                fail(format!(
                    "holds no secret key of age in line {}: write AGE-SECRET-KEY-1…, as age-keygen prints it",
                    number + 1
                ))
            })?);
        }
        if keys.is_empty() {
            return Err(fail(
                "holds no secret key of age: write AGE-SECRET-KEY-1…, as age-keygen prints it".to_owned(),
            ));
        }
        Ok(Self {
            keys: Arc::new(keys),
            ..Self::default()
        })
    }

    /// A new secret key: what opens, its public key, and its text as [`Identities::parse`] takes it.
    #[must_use]
    pub fn generate() -> (Self, String, String) {
        let key = x25519::Identity::generate();
        let (public, text) = (
            key.to_public().to_string(),
            key.to_string().expose_secret().to_owned(),
        );
        let keys = Arc::new(vec![key]);
        let identities = Self {
            keys,
            ..Self::default()
        };
        (identities, public, text)
    }

    /// With one more passphrase.
    #[must_use]
    pub fn with_passphrase(mut self, passphrase: &str) -> Self {
        Arc::make_mut(&mut self.passphrases).push(SecretString::from(passphrase.trim()));
        self
    }

    /// With all that another one has.
    #[must_use]
    pub fn and(mut self, more: &Self) -> Self {
        Arc::make_mut(&mut self.keys).extend(more.keys.iter().cloned());
        Arc::make_mut(&mut self.passphrases).extend(more.passphrases.iter().cloned());
        self
    }

    /// Says beforehand that none of these opens it, where the manifest tells.
    pub(super) fn fit(&self, encrypted: &Encrypted, location: &str) -> Result<(), Failure> {
        let (none, fits) = match encrypted.kind {
            EncryptionKind::AgeRecipients => {
                let own = self.keys.iter().map(|key| key.to_public().to_string());
                let fits = own
                    .into_iter()
                    .any(|public| encrypted.recipients.contains(&public));
                (self.keys.is_empty(), fits)
            }
            EncryptionKind::AgePassphrase => (self.passphrases.is_empty(), true),
        };
        match (none, fits) {
            (true, _) => Err(Failure::NoKey {
                location: location.to_owned(),
                wanted: wanted(encrypted),
            }),
            (false, false) => Err(Failure::WrongKey {
                location: location.to_owned(),
                wanted: wanted(encrypted),
            }),
            (false, true) => Ok(()),
        }
    }

    /// Those of this kind.
    pub(super) fn of_kind(&self, kind: EncryptionKind) -> Vec<Box<dyn age::Identity>> {
        match kind {
            EncryptionKind::AgeRecipients => self
                .keys
                .iter()
                .map(|key| Box::new(key.clone()) as Box<dyn age::Identity>)
                .collect(),
            EncryptionKind::AgePassphrase => self
                .passphrases
                .iter()
                .map(|passphrase| {
                    let mut identity = scrypt::Identity::new(passphrase.clone());
                    identity.set_max_work_factor(MOST_WORK);
                    Box::new(identity) as Box<dyn age::Identity>
                })
                .collect(),
        }
    }
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identities(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_key_is_named_by_its_line_and_not_quoted() {
        let (_, _, text) = Identities::generate();
        let good = format!("# created: today\n{text}\n\n");
        Identities::parse(&good, "Secret keys").unwrap();
        for (text, says) in [
            (format!("{good}VERYSECRET"), "in line 4"),
            (String::new(), "holds no secret key"),
            // No digit of a key.
            (text.replacen("KEY-1", "KEY-1B", 1), "in line 1"),
        ] {
            let failure = Identities::parse(&text, "Secret keys").unwrap_err().to_string();
            assert!(
                failure.contains(says) && failure.contains("Secret keys"),
                "{failure}"
            );
            assert!(!failure.contains("VERYSECRET"), "{failure}");
        }
    }

    #[test]
    fn a_lock_says_whose_key_opens_it_and_keeps_its_own() {
        let (_, public, _) = Identities::generate();
        let lock = Lock::recipients(std::slice::from_ref(&public)).unwrap();
        assert_eq!(lock.described().recipients, [public]);
        let error = Lock::recipients(&["age1nonsense".to_owned()])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("spec.encryption.recipients") && error.contains("age1nonsense"),
            "{error}"
        );
        let error = Lock::passphrase("VERYSECRET", "keys").unwrap_err().to_string();
        assert!(
            error.contains("Secret keys") && !error.contains("VERYSECRET"),
            "{error}"
        );
        let lock = Lock::passphrase("VERYSECRET VERYSECRET", "keys").unwrap();
        let printed = format!("{lock:?} {:?}", Identities::none().with_passphrase("VERYSECRET"));
        assert!(!printed.contains("VERYSECRET"), "{printed}");
    }
}
