//! A real Prometheus, and what it scrapes.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;

use crate::cluster::Process;

/// A server that scrapes every second.
pub(crate) struct Prometheus {
    pub(crate) process: Process,
    pub(crate) url: String,
    /// What is scraped, in Prometheus' own format.
    pub(crate) metrics: Arc<Mutex<String>>,
    _directory: tempfile::TempDir,
}

fn program() -> PathBuf {
    let named = std::env::var_os("LOCKKEEPER_TEST_PROMETHEUS");
    named.map_or_else(|| "prometheus".into(), PathBuf::from)
}

impl Prometheus {
    pub(crate) async fn start(metrics: &str) -> Self {
        let metrics = Arc::new(Mutex::new(metrics.to_owned()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let told = Arc::clone(&metrics);
        let router = Router::new().route("/metrics", get(|| async move { told.lock().unwrap().clone() }));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let address = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\n\
             scrape_configs: [{{job_name: shop, static_configs: [{{targets: ['{target}']}}]}}]\n"
        );
        std::fs::write(&config, text).unwrap();
        let process = Process::start(
            Command::new(program())
                .arg(format!("--config.file={}", config.display()))
                .arg(format!(
                    "--storage.tsdb.path={}",
                    directory.path().join("data").display()
                ))
                .arg(format!("--web.listen-address={address}"))
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        );
        let started = Self {
            process,
            url: format!("http://{address}"),
            metrics,
            _directory: directory,
        };
        started.until_it_has("up == 1").await;
        started
    }

    /// Waits until a query gives something.
    pub(crate) async fn until_it_has(&self, query: &str) {
        let end = Instant::now() + Duration::from_secs(30);
        let mut url = reqwest::Url::parse(&format!("{}/api/v1/query", self.url)).unwrap();
        url.query_pairs_mut().append_pair("query", query);
        loop {
            let answer = async { reqwest::get(url.clone()).await?.text().await };
            let answer = answer.await;
            if answer.as_ref().is_ok_and(|text| text.contains("\"value\"")) {
                return;
            }
            assert!(Instant::now() < end, "{query}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// From the next scrape on.
    pub(crate) fn say(&self, metrics: &str) {
        metrics.clone_into(&mut self.metrics.lock().unwrap());
    }
}
