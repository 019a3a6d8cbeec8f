//! Against a real Knot DNS: a primary that takes signed updates, and a secondary.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use lockkeeper_crds::{DnsTraffic, LocalReference, Traffic, Tsig, TsigAlgorithm, Weights};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

use crate::traffic::{Driver, Secrets, TrafficError, built};

const KEY: &[u8] = b"not the key that anybody else has";
const OTHER: &[u8] = b"a key that the server does not know";

/// Knot in the foreground, gone when dropped.
struct Server {
    child: Child,
    _folder: tempfile::TempDir,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn base64(key: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(key)
}

/// Takes a port that is free now; Knot itself cannot be asked which one it got.
async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

fn config(folder: &Path, port: u16, zone: &str) -> String {
    let folder = folder.display();
    format!(
        "server:\n  rundir: {folder}\n  listen: 127.0.0.1@{port}\n  tcp-workers: 1\n  udp-workers: 1\n\
         database:\n  storage: {folder}\n\
         template:\n  - id: default\n    storage: {folder}\n\
         key:\n  - id: lockkeeper\n    algorithm: hmac-sha256\n    secret: {}\n{zone}",
        base64(KEY)
    )
}

impl Server {
    async fn start(port: u16, zone: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("knot.conf");
        std::fs::write(&file, config(folder.path(), port, zone)).unwrap();
        std::fs::write(
            folder.path().join("example.test.zone"),
            "$ORIGIN example.test.\n$TTL 3600\n@ SOA ns hostmaster 1 3600 600 86400 60\n@ NS ns\nns A 127.0.0.1\n\
             shop 600 A 192.0.2.1\nshop 600 A 192.0.2.2\nother A 192.0.2.9\nalias CNAME shop\n",
        )
        .unwrap();
        let child = Command::new("/usr/sbin/knotd")
            .arg("-c")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Knot is there: chaos-tests/setup.sh installs it");
        let mut server = Self {
            child,
            _folder: folder,
            port,
        };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(server.child.try_wait().unwrap().is_none(), "Knot ended");
            assert!(began.elapsed() < Duration::from_secs(10), "Knot does not listen");
            sleep(Duration::from_millis(20)).await;
        }
        server
    }

    /// A primary; `secondary` is told of each change and may have the zone.
    async fn primary(secondary: u16) -> Self {
        let port = free_port().await;
        let zone = format!(
            "remote:\n  - id: second\n    address: 127.0.0.1@{secondary}\n\
             acl:\n  - id: update\n    key: lockkeeper\n    action: update\n    update-owner: name\n    \
             update-owner-match: equal\n    update-owner-name: [shop, alias, missing]\n  \
             - id: transfer\n    address: 127.0.0.1\n    action: transfer\n\
             zone:\n  - domain: example.test\n    file: example.test.zone\n    zonefile-load: difference\n    \
             acl: [update, transfer]\n    notify: second\n"
        );
        let server = Self::start(port, &zone).await;
        let began = Instant::now();
        while published(port).is_empty() {
            assert!(began.elapsed() < Duration::from_secs(10), "Knot has no zone");
            sleep(Duration::from_millis(20)).await;
        }
        server
    }

    async fn secondary(port: u16, primary: u16) -> Self {
        let zone = format!(
            "remote:\n  - id: first\n    address: 127.0.0.1@{primary}\n\
             acl:\n  - id: notify\n    address: 127.0.0.1\n    action: notify\n\
             zone:\n  - domain: example.test\n    master: first\n    acl: notify\n"
        );
        Self::start(port, &zone).await
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn spec(&self) -> DnsTraffic {
        let owned = |texts: [&str; 2]| texts.map(str::to_owned).to_vec();
        DnsTraffic {
            name: "shop.example.test".to_owned(),
            zone: "example.test".to_owned(),
            primary: self.address(),
            servers: vec![self.address()],
            tsig: Tsig {
                name: "lockkeeper".to_owned(),
                algorithm: TsigAlgorithm::HmacSha256,
                secret: LocalReference {
                    name: "tsig".to_owned(),
                },
            },
            blue: owned(["192.0.2.1", "192.0.2.2"]),
            green: owned(["198.51.100.1", "198.51.100.2"]),
            ttl_seconds: 600,
            cutover_ttl_seconds: 5,
        }
    }
}

fn secrets(key: &[u8]) -> Secrets {
    let keys = [("key".to_owned(), base64(key).into_bytes())];
    Secrets([("tsig".to_owned(), keys.into())].into())
}

fn with_key(spec: DnsTraffic, key: &[u8]) -> Result<Driver, TrafficError> {
    let traffic = Traffic {
        dns: Some(spec),
        ..Traffic::default()
    };
    built(&traffic, &secrets(key))
}

fn driver(spec: DnsTraffic) -> Driver {
    with_key(spec, KEY).unwrap()
}

/// What `kdig` says of the name: TTL and address of each record.
fn published(port: u16) -> Vec<String> {
    let said = Command::new("kdig")
        .args([
            "@127.0.0.1",
            "-p",
            &port.to_string(),
            "+noall",
            "+answer",
            "shop.example.test",
            "A",
        ])
        .output()
        .expect("kdig is there: chaos-tests/setup.sh installs it");
    let text = String::from_utf8(said.stdout).unwrap();
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with(';'))
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            format!("{} {}", words[1], words[4])
        })
        .collect();
    lines.sort_unstable();
    lines
}

#[tokio::test]
async fn the_ttl_is_lowered_and_restored_and_the_addresses_change_between() {
    let primary = Server::primary(1).await;
    let driver = driver(primary.spec());
    driver.check().await.unwrap();
    assert_eq!(
        published(primary.port),
        ["600 192.0.2.1", "600 192.0.2.2"],
        "a check changes nothing"
    );
    let error = driver.set(Weights::of_green(50)).await.unwrap_err();
    assert!(error.to_string().contains("TTL of 600 s"), "{error}");
    assert_eq!(driver.prepare().await.unwrap(), Duration::from_secs(600));
    assert_eq!(
        driver.prepare().await.unwrap(),
        Duration::from_secs(600),
        "since when, it cannot know"
    );
    assert_eq!(published(primary.port), ["5 192.0.2.1", "5 192.0.2.2"]);
    for percent in [33, 50, 67, 100, 0, 100] {
        driver.set(Weights::of_green(percent)).await.unwrap();
        assert_eq!(driver.seen().await.unwrap().weights, Weights::of_green(percent));
    }
    assert_eq!(published(primary.port), ["5 198.51.100.1", "5 198.51.100.2"]);
    driver.finish().await.unwrap();
    driver.finish().await.unwrap();
    assert_eq!(published(primary.port), ["600 198.51.100.1", "600 198.51.100.2"]);
    assert_eq!(driver.settles_in(), Duration::from_secs(10));
}

#[tokio::test]
async fn every_server_is_asked_and_one_that_lags_is_told() {
    let second_port = free_port().await;
    let primary = Server::primary(second_port).await;
    let secondary = Server::secondary(second_port, primary.port).await;
    let mut spec = primary.spec();
    spec.servers.push(secondary.address());
    let driver = driver(spec);
    let began = Instant::now();
    while let Err(error) = driver.prepare().await {
        assert!(began.elapsed() < Duration::from_secs(20), "{error}");
        sleep(Duration::from_millis(50)).await;
    }
    driver.set(Weights::GREEN).await.unwrap();
    let mut lagged = None;
    let seen = loop {
        match driver.seen().await {
            Ok(seen) => break seen,
            Err(error) => lagged = Some(error),
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{lagged:?}");
        sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(seen.weights, Weights::GREEN);
    assert_eq!(published(second_port), published(primary.port));
    // Nothing of it was a lucky moment: with the secondary away, nothing is known.
    drop(secondary);
    assert_eq!(driver.seen().await.unwrap_err().reason(), "TrafficUnreachable");
    driver
        .set(Weights::BLUE)
        .await
        .expect("going back needs the primary only");
    if let Some(error) = lagged {
        assert_eq!(error.reason(), "TrafficDiffers");
    }
}

#[tokio::test]
async fn a_key_that_is_not_accepted_is_told_and_shown_nowhere() {
    let primary = Server::primary(1).await;
    let stranger = with_key(primary.spec(), OTHER).unwrap();
    let error = stranger.check().await.unwrap_err();
    assert!(error.to_string().contains("does not accept the key"), "{error}");
    let shown = format!("{stranger:?} {error} {error:?}");
    assert!(
        !shown.contains(&base64(OTHER)) && !shown.contains("does not know"),
        "{shown}"
    );
    let mut spec = primary.spec();
    spec.name = "other.example.test".to_owned();
    spec.blue = vec!["192.0.2.9".to_owned()];
    let error = driver(spec).check().await.unwrap_err();
    assert!(
        error.to_string().contains("its right to update the record"),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_not_ours_is_left_alone_and_named() {
    let primary = Server::primary(1).await;
    let refused = async |change: fn(&mut DnsTraffic)| {
        let mut spec = primary.spec();
        change(&mut spec);
        let driver = driver(spec);
        driver.set(Weights::BLUE).await.unwrap_err();
        driver.check().await.unwrap_err().to_string()
    };
    let error = refused(|spec| spec.blue.truncate(1)).await;
    assert!(
        error.contains("has the address 192.0.2.2, which is neither"),
        "{error}"
    );
    let error = refused(|spec| spec.name = "alias.example.test".to_owned()).await;
    assert!(error.contains("is an alias"), "{error}");
    let error = refused(|spec| spec.name = "missing.example.test".to_owned()).await;
    assert!(error.contains("NXDOMAIN"), "{error}");
    assert_eq!(published(primary.port), ["600 192.0.2.1", "600 192.0.2.2"]);
}

#[tokio::test]
async fn a_spec_that_cannot_be_is_refused() {
    let spec = DnsTraffic {
        name: "shop.example.test".to_owned(),
        zone: "example.test".to_owned(),
        primary: "127.0.0.1:53".to_owned(),
        servers: vec!["127.0.0.1:53".to_owned()],
        tsig: Tsig {
            name: "k".to_owned(),
            algorithm: TsigAlgorithm::HmacSha512,
            secret: LocalReference {
                name: "tsig".to_owned(),
            },
        },
        blue: vec!["192.0.2.1".to_owned()],
        green: vec!["192.0.2.2".to_owned()],
        ttl_seconds: 60,
        cutover_ttl_seconds: 60,
    };
    let driver = driver(spec.clone());
    driver.can(Weights::GREEN).unwrap();
    assert!(driver.can(Weights::of_green(50)).is_ok());
    assert!(
        driver
            .can(Weights::of_green(25))
            .unwrap_err()
            .to_string()
            .contains("[0, 50, 100]")
    );
    assert_eq!(
        driver.targets().into_iter().collect::<Vec<_>>(),
        ["the record shop.example.test. A"]
    );
    let refused = |change: fn(&mut DnsTraffic)| {
        let mut spec = spec.clone();
        change(&mut spec);
        with_key(spec, KEY).unwrap_err().to_string()
    };
    assert!(refused(|spec| spec.zone = "example.org".to_owned()).contains("is not in"));
    assert!(refused(|spec| spec.cutover_ttl_seconds = 61).contains("above"));
    assert!(refused(|spec| spec.servers.clear()).contains("no server"));
    assert!(refused(|spec| spec.tsig.secret.name = "x".to_owned()).contains("Secret x"));
}
