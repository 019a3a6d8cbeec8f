//! Which addresses make which share; pure.

use std::net::IpAddr;

use crate::traffic::{TrafficError, Weights, nearest};

/// The addresses of both colours, of one family.
#[derive(Clone, Debug)]
pub(super) struct Addresses {
    blue: Vec<IpAddr>,
    green: Vec<IpAddr>,
}

const BLUE: &str = "spec.traffic.dns.blue";
const GREEN: &str = "spec.traffic.dns.green";

impl Addresses {
    pub(super) fn new(blue: &[String], green: &[String]) -> Result<Self, TrafficError> {
        let all = Self {
            blue: parse(BLUE, blue)?,
            green: parse(GREEN, green)?,
        };
        let wrong = |problem: String| TrafficError::Spec {
            field: GREEN,
            problem,
        };
        if let Some(both) = all.green.iter().find(|address| all.blue.contains(address)) {
            return Err(wrong(format!("names {both}, which is blue's too")));
        }
        let v6 = all.v6();
        if all
            .blue
            .iter()
            .chain(&all.green)
            .any(|address| address.is_ipv6() != v6)
        {
            return Err(wrong(
                "and blue mix IPv4 and IPv6: one record holds one of them".to_owned(),
            ));
        }
        Ok(all)
    }

    /// Whether it is about AAAA records.
    pub(super) fn v6(&self) -> bool {
        self.blue.first().is_some_and(IpAddr::is_ipv6)
    }

    /// The share that published addresses give; a stranger among them, if there is one.
    pub(super) fn share(&self, published: &[IpAddr]) -> Result<Option<Weights>, IpAddr> {
        let (mut blue, mut green) = (0, 0);
        for address in published {
            if self.blue.contains(address) {
                blue += 1;
            } else if self.green.contains(address) {
                green += 1;
            } else {
                return Err(*address);
            }
        }
        Ok(nearest(blue, green))
    }

    /// The addresses that give a share, as many as can be.
    pub(super) fn of(&self, wanted: Weights) -> Result<Vec<IpAddr>, TrafficError> {
        let best = self
            .choices()
            .filter(|(_, _, weights)| *weights == wanted)
            .max_by_key(|(blue, green, _)| blue + green);
        let Some((blue, green, _)) = best else {
            let mut possible: Vec<u8> = self.choices().map(|(_, _, weights)| weights.green).collect();
            possible.sort_unstable();
            possible.dedup();
            return Err(TrafficError::Spec {
                field: "spec.steps",
                problem: format!(
                    "has {} % for green, which {} and {} addresses cannot make: it may have {possible:?}",
                    wanted.green,
                    self.blue.len(),
                    self.green.len()
                ),
            });
        };
        Ok(self
            .blue
            .iter()
            .take(blue)
            .chain(self.green.iter().take(green))
            .copied()
            .collect())
    }

    fn choices(&self) -> impl Iterator<Item = (usize, usize, Weights)> {
        let most = self.green.len();
        (0..=self.blue.len()).flat_map(move |blue| {
            (0..=most).filter_map(move |green| {
                let weights = nearest(u64::try_from(blue).ok()?, u64::try_from(green).ok()?)?;
                Some((blue, green, weights))
            })
        })
    }
}

fn parse(field: &'static str, texts: &[String]) -> Result<Vec<IpAddr>, TrafficError> {
    let wrong = |problem: String| TrafficError::Spec { field, problem };
    if texts.is_empty() {
        return Err(wrong("names no address".to_owned()));
    }
    let parse = |text: &String| {
        text.parse()
            .map_err(|_| wrong(format!("has {text:?}, which is no address")))
    };
    let mut addresses: Vec<IpAddr> = texts.iter().map(parse).collect::<Result<_, _>>()?;
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(blue: &[&str], green: &[&str]) -> Result<Addresses, TrafficError> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Addresses::new(&owned(blue), &owned(green))
    }

    #[test]
    fn shares_are_made_of_whole_addresses() {
        let two = addresses(&["192.0.2.1", "192.0.2.2"], &["198.51.100.1", "198.51.100.2"]).unwrap();
        for green in [0, 33, 50, 67, 100] {
            let published = two.of(Weights::of_green(green)).unwrap();
            assert_eq!(two.share(&published), Ok(Some(Weights::of_green(green))));
        }
        assert_eq!(
            two.of(Weights::of_green(50)).unwrap().len(),
            4,
            "as many as can be"
        );
        let error = two.of(Weights::of_green(25)).unwrap_err().to_string();
        assert!(error.contains("it may have [0, 33, 50, 67, 100]"), "{error}");
    }

    #[test]
    fn strangers_are_named_and_nothing_is_no_share() {
        let one = addresses(&["2001:db8::1"], &["2001:db8::2"]).unwrap();
        assert!(one.v6());
        let stranger: IpAddr = "2001:db8::3".parse().unwrap();
        assert_eq!(one.share(&[stranger]), Err(stranger));
        assert_eq!(one.share(&[]), Ok(None));
    }

    #[test]
    fn what_cannot_be_one_record_is_refused() {
        for (blue, green) in [
            (&["192.0.2.1"][..], &["192.0.2.1"][..]),
            (&["192.0.2.1"], &["2001:db8::2"]),
            (&["192.0.2.1"], &[]),
            (&["localhost"], &["192.0.2.1"]),
        ] {
            assert_eq!(addresses(blue, green).unwrap_err().reason(), "SpecInvalid");
        }
    }
}
