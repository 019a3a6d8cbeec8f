//! The upgrade that demo and benchmark make: from where to where, on how many nodes, with which binary.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::install::beside;
use crate::recipes::{START, TARGET};
use crate::state::Options;

/// An upgrade, as the command line gives it.
#[derive(Debug, Args)]
pub struct Course {
    /// The version that the cluster begins with.
    #[arg(long, default_value = START)]
    pub from: String,
    /// The version that it goes to.
    #[arg(long, default_value = TARGET)]
    pub to: String,
    /// How many control-plane nodes.
    #[arg(long, default_value_t = 3)]
    pub nodes: u8,
    /// Our binary; `lockkeeper` beside this program without it.
    #[arg(long, value_name = "BINARY")]
    pub image_from: Option<PathBuf>,
}

impl Course {
    /// The lab that it is made in.
    #[must_use]
    pub fn options(&self, name: &str) -> Options {
        Options {
            name: name.to_owned(),
            nodes: self.nodes,
            kubernetes: self.from.clone(),
            also: vec![self.to.clone()],
            ..Options::default()
        }
    }

    /// Our binary.
    pub fn binary(&self) -> Result<PathBuf> {
        self.image_from
            .clone()
            .or_else(beside)
            .context("no `lockkeeper` lies beside this program: `make build`, or give --image-from BINARY")
    }
}
