//! Versions that cannot be malformed.

use std::{fmt, str::FromStr};

/// A Kubernetes release, `vX.Y.Z`, without a pre-release or build part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KubernetesVersion {
    /// `Y` of `v1.Y.Z`. (The major is 1 for ever, or this project has other worries.)
    pub minor: u32,
    /// `Z` of `v1.Y.Z`.
    pub patch: u32,
}

/// Why a text is no version.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no Kubernetes release: write it as v1.MINOR.PATCH, for example v1.36.3")]
pub struct NotAVersion(String);

impl FromStr for KubernetesVersion {
    type Err = NotAVersion;

    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        let bad = || NotAVersion(text.to_owned());
        let parsed = semver::Version::parse(text.strip_prefix('v').unwrap_or(text)).map_err(|_| bad())?;
        if parsed.major != 1 || !parsed.pre.is_empty() {
            return Err(bad());
        }
        Ok(Self {
            minor: u32::try_from(parsed.minor).map_err(|_| bad())?,
            patch: u32::try_from(parsed.patch).map_err(|_| bad())?,
        })
    }
}

impl fmt::Display for KubernetesVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v1.{}.{}", self.minor, self.patch)
    }
}

/// An etcd release, `X.Y.Z`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EtcdVersion(semver::Version);

impl FromStr for EtcdVersion {
    type Err = semver::Error;

    fn from_str(text: &str) -> Result<Self, semver::Error> {
        semver::Version::parse(text.strip_prefix('v').unwrap_or(text)).map(Self)
    }
}

impl fmt::Display for EtcdVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_release_is_refused_with_the_way_out() {
        for bad in [
            "",
            "v1",
            "v1.36",
            "1.36.x",
            "v2.0.0",
            "v1.36.0-rc.1",
            "latest",
            "v1.99999999999.0",
        ] {
            let error = bad.parse::<KubernetesVersion>().unwrap_err().to_string();
            assert!(error.contains("v1.MINOR.PATCH"), "{bad}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_version_survives_being_written_and_read(minor in 0u32..100, patch in 0u32..1000) {
            let version = KubernetesVersion { minor, patch };
            prop_assert_eq!(version.to_string().parse::<KubernetesVersion>().unwrap(), version);
        }

        #[test]
        fn order_is_by_number_not_by_text(a in (0u32..50, 0u32..50), b in (0u32..50, 0u32..50)) {
            let v = |(minor, patch)| KubernetesVersion { minor, patch };
            prop_assert_eq!(v(a).cmp(&v(b)), a.cmp(&b));
        }
    }
}
