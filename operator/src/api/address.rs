//! Where an API server listens.

use std::fmt;
use std::str::FromStr;

/// `host:port` of one API server. The host is an IPv4 address, a name, or an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(String);

/// A text that is no `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no address of an API server: {why}; write host:port, e.g. 10.0.0.1:6443 or [fd00::1]:6443"
)]
pub struct AddressError {
    text: String,
    why: &'static str,
}

impl Address {
    /// From a host without brackets and a port.
    ///
    /// # Errors
    /// When the host is empty or holds what no host may.
    pub fn new(host: &str, port: u16) -> Result<Self, AddressError> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.contains(':') {
            format!("[{host}]:{port}").parse()
        } else {
            format!("{host}:{port}").parse()
        }
    }

    /// The text that [`tokio::net::lookup_host`] takes.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why| AddressError {
            text: text.to_owned(),
            why,
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(|| refuse("it has no port"))?;
        match port.parse::<u16>() {
            Ok(1..) => {}
            _ => return Err(refuse("its port is no number from 1 to 65535")),
        }
        let bare = match host.strip_prefix('[') {
            Some(rest) => rest
                .strip_suffix(']')
                .ok_or_else(|| refuse("a bracket is not closed"))?,
            None if host.contains(':') => return Err(refuse("an IPv6 address needs brackets")),
            None => host,
        };
        if bare.is_empty() || bare.contains(|c: char| !(c.is_ascii_alphanumeric() || "-._:%".contains(c))) {
            return Err(refuse("its host is empty or holds what no host may"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for good in ["10.0.0.1:6443", "[fd00::1]:6443", "api.example.org:443", "n-1:1"] {
            assert_eq!(good.parse::<Address>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "10.0.0.1",
            "10.0.0.1:0",
            "10.0.0.1:66000",
            ":6443",
            "fd00::1:6443",
            "[::1:6443",
            "a b:1",
            "https://a:1",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        assert_eq!(Address::new("fd00::1", 6443).unwrap().as_str(), "[fd00::1]:6443");
        assert_eq!(Address::new("10.96.0.1", 443).unwrap().as_str(), "10.96.0.1:443");
    }
}
