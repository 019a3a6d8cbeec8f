//! Prometheus at the edge, as a user would run it: it scrapes the edge's HAProxy.

use std::time::Duration;

use anyhow::{Context, Result};

use super::network::{ADDRESS, EDGE};
use super::proxy::{BACKEND, METRICS};
use super::{Colour, Pair};
use crate::cache::write_whole;
use crate::network;
use crate::process::start_daemon;
use crate::scene::Look;
use crate::state::Resource;

const PORT: u16 = 9090;

impl Pair<'_> {
    /// Starts it, and waits until it has counted at both colours. What it is asked is its URL.
    pub async fn prometheus(&self) -> Result<String> {
        let home = self.scene.lab.home();
        let config = home.path("prometheus.yml");
        let (address, port) = METRICS;
        let text = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\n\
             scrape_configs: [{{job_name: edge, static_configs: [{{targets: ['{address}:{port}']}}]}}]\n"
        );
        write_whole(&config, text.as_bytes())?;
        let program = crate::require::find("prometheus")
            .context("prometheus is missing: apt-get install prometheus")?;
        let options = [
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", home.path("prometheus").display()),
            format!("--web.listen-address={ADDRESS}:{PORT}"),
        ];
        let enter = network::enter(&home.namespace(EDGE));
        let program = program.to_string_lossy();
        let mut words: Vec<&str> = enter.iter().map(String::as_str).collect();
        words.push(&program);
        words.extend(options.iter().map(String::as_str));
        let id = start_daemon(&words, &home.log("prometheus"))?;
        home.record(Resource::Process {
            what: "prometheus".to_owned(),
            id,
        })?;
        let url = format!("http://{ADDRESS}:{PORT}");
        self.scene
            .wait_for("Prometheus at the edge", Duration::from_secs(60), || async {
                let mut asked = reqwest::Url::parse(&format!("{url}/api/v1/query"))?;
                let query =
                    format!("haproxy_server_http_responses_total{{proxy=\"{BACKEND}\",code=\"5xx\"}}");
                asked.query_pairs_mut().append_pair("query", &query);
                let text = reqwest::get(asked).await?.text().await?;
                let both = [Colour::Blue, Colour::Green];
                Ok(
                    match both.iter().all(|c| text.contains(&format!("\"{}\"", c.name()))) {
                        true => Look::Done(()),
                        false => Look::NotYet(text),
                    },
                )
            })
            .await?;
        Ok(url)
    }
}

/// What part of a colour's answers were errors, over the last seconds.
#[must_use]
pub fn errors_of(colour: Colour) -> String {
    let of = |more: &str| {
        let name = colour.name();
        format!(
            "sum(rate(haproxy_server_http_responses_total{{proxy=\"{BACKEND}\",server=\"{name}\"{more}}}[5s]))"
        )
    };
    format!("{} / {}", of(",code=\"5xx\""), of(""))
}
