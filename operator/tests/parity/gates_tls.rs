//! A Prometheus behind a real HAProxy, as people keep it: TLS by an authority of their own, and a token.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lockkeeper_crds::ClusterCutoverStatus;
use serde_json::{Value, json};

use crate::cluster::Process;
use crate::cutover::{NAMESPACE, operator, until};
use crate::gates::{gate, says, world};
use crate::world::{Pair, Side};

const TOKEN: &str = "opens-the-door";

/// Lets through what bears the token.
async fn front(at: &Path, prometheus: &str) -> (Process, String) {
    let pki = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/etcd_backup/pki");
    let read = |name| std::fs::read_to_string(pki.join(name)).unwrap();
    let both = at.join("both.pem");
    std::fs::write(&both, read("both.crt") + &read("both.key")).unwrap();
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let config = at.join("haproxy.cfg");
    let text = format!(
        "defaults\n mode http\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
         frontend door\n bind {address} ssl crt {}\n\
         http-request deny deny_status 401 unless {{ req.hdr(authorization) -m str \"Bearer {TOKEN}\" }}\n\
         default_backend prometheus\n\
         backend prometheus\n server one {}\n",
        both.display(),
        prometheus.trim_start_matches("http://")
    );
    std::fs::write(&config, text).unwrap();
    let process = Process::start(
        Command::new("haproxy")
            .arg("-db")
            .arg("-f")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    );
    let end = Instant::now() + Duration::from_secs(10);
    while tokio::net::TcpStream::connect(address).await.is_err() {
        assert!(Instant::now() < end, "HAProxy does not listen at {address}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    (process, format!("https://{address}"))
}

async fn token(pair: &Pair, name: &str, token: &str) {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/secrets");
    let secret = json!({"metadata": {"name": name}, "stringData": {"token": token}});
    pair.create(Side::Blue, &path, &secret).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs LOCKKEEPER_TEST_ETCD, LOCKKEEPER_TEST_APISERVER, prometheus and haproxy"]
async fn a_query_needs_the_authority_and_the_token_that_are_named() {
    let world = world().await;
    token(&world.pair, "prometheus", TOKEN).await;
    token(&world.pair, "outdated", "opened-it-once").await;
    let directory = tempfile::tempdir().unwrap();
    let (_front, url) = front(directory.path(), &world.prometheus.url).await;
    let _operator = operator(&world.pair);
    let ca = include_str!("../etcd_backup/pki/ca.crt");
    let asks = |name: &str, more: Value| {
        let mut how = json!({"url": url, "query": "errors_ratio", "max": 0.05});
        how.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        gate(name, "promQL", &how, &json!({"at": ["Before"]}))
    };
    let secret = |name: &str| json!({"name": name});
    let gates = [
        asks(
            "well",
            json!({"caBundle": ca, "tokenSecret": secret("prometheus")}),
        ),
        asks(
            "outdated",
            json!({"caBundle": ca, "tokenSecret": secret("outdated")}),
        ),
        asks("without", json!({"caBundle": ca})),
        asks("stranger", json!({"tokenSecret": secret("prometheus")})),
    ];
    world.make("shop", &gates, &json!({})).await;
    for (name, words) in [
        ("well", "is 0.01, wanted is at most 0.05"),
        ("outdated", "401"),
        ("without", "401"),
        ("stranger", "certificate"),
    ] {
        let passed = |s: &ClusterCutoverStatus| s.gates.iter().any(|g| g.name == name && g.passed);
        let told = |s: &ClusterCutoverStatus| says(s, name, words) && passed(s) == (name == "well");
        let status = until(&world.api, "shop", &format!("told by {name}: {words}"), told).await;
        assert!(!json!(status).to_string().contains(TOKEN), "the token is shown");
    }
}
