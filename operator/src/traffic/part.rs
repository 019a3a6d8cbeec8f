//! One thing that moves traffic, of whatever kind.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Dns, ExternalDns, GatewayApi, Haproxy, Hook, Job, Seen, TrafficError, Weights};

/// One thing that moves traffic. What its methods promise stands at those of [`Driver`](super::Driver).
#[derive(Clone, Debug)]
pub(super) enum Part {
    /// HAProxy's runtime API.
    Haproxy(Haproxy),
    /// Signed updates of a name's addresses.
    Dns(Dns),
    /// An HTTP endpoint of the user's.
    Hook(Hook),
    /// Routes of the Gateway API.
    GatewayApi(GatewayApi),
    /// Weighted records of external-dns.
    ExternalDns(ExternalDns),
    /// Jobs of the user's.
    Job(Job),
}

impl Part {
    pub(super) fn targets(&self) -> BTreeSet<String> {
        match self {
            Self::Haproxy(driver) => driver.targets(),
            Self::Dns(driver) => driver.targets(),
            Self::Hook(driver) => driver.targets(),
            Self::GatewayApi(driver) => driver.targets(),
            Self::ExternalDns(driver) => driver.targets(),
            Self::Job(driver) => driver.targets(),
        }
    }

    pub(super) async fn check(&self) -> Result<(), TrafficError> {
        match self {
            Self::Haproxy(driver) => driver.check().await,
            Self::Dns(driver) => driver.check().await,
            Self::Hook(driver) => driver.check().await,
            Self::GatewayApi(driver) => driver.check().await,
            Self::ExternalDns(driver) => driver.check().await,
            Self::Job(driver) => driver.check().await,
        }
    }

    pub(super) fn can(&self, weights: Weights) -> Result<(), TrafficError> {
        match self {
            Self::Dns(driver) => driver.can(weights),
            _ => Ok(()),
        }
    }

    pub(super) async fn prepare(&self) -> Result<Duration, TrafficError> {
        match self {
            Self::Dns(driver) => driver.prepare().await,
            _ => Ok(Duration::ZERO),
        }
    }

    pub(super) async fn finish(&self) -> Result<(), TrafficError> {
        match self {
            Self::Dns(driver) => driver.finish().await,
            _ => Ok(()),
        }
    }

    pub(super) async fn seen(&self) -> Result<Seen, TrafficError> {
        match self {
            Self::Haproxy(driver) => driver.seen().await,
            Self::Dns(driver) => driver.seen().await,
            Self::Hook(driver) => driver.seen().await,
            Self::GatewayApi(driver) => driver.seen().await,
            Self::ExternalDns(driver) => driver.seen().await,
            Self::Job(driver) => driver.seen().await,
        }
    }

    pub(super) async fn set(&self, weights: Weights) -> Result<(), TrafficError> {
        match self {
            Self::Haproxy(driver) => driver.set(weights).await,
            Self::Dns(driver) => driver.set(weights).await,
            Self::Hook(driver) => driver.set(weights).await,
            Self::GatewayApi(driver) => driver.set(weights).await,
            Self::ExternalDns(driver) => driver.set(weights).await,
            Self::Job(driver) => driver.set(weights).await,
        }
    }

    pub(super) fn settles_in(&self) -> Duration {
        match self {
            Self::Haproxy(_) => Duration::ZERO,
            Self::GatewayApi(driver) => driver.settles_in(),
            Self::ExternalDns(driver) => driver.settles_in(),
            Self::Job(driver) => driver.settles_in(),
            Self::Dns(driver) => driver.settles_in(),
            Self::Hook(driver) => driver.settles_in(),
        }
    }

    pub(super) const fn takes(&self) -> Duration {
        match self {
            Self::Job(driver) => driver.takes(),
            _ => Duration::ZERO,
        }
    }
}
