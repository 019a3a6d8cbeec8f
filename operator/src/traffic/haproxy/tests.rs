//! Against a real HAProxy on sockets of its own: weights, reloads, strangers.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lockkeeper_crds::{HaproxyTraffic, KeptConnections, Weights};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::{Instant, sleep};

use super::Haproxy;
use crate::traffic::TrafficError;

/// HAProxy in the foreground, gone when dropped.
struct Edge {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
    mode: &'static str,
}

/// Takes a port that is free now; HAProxy itself cannot be asked which one it got.
async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

impl Edge {
    async fn start(backends: &str) -> Self {
        Self::start_in("http", backends).await
    }

    async fn start_in(mode: &'static str, backends: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port().await;
        let mut edge = Self {
            child: Self::run(folder.path(), port, mode, backends),
            folder,
            port,
            mode,
        };
        edge.wait().await;
        edge
    }

    fn run(folder: &Path, port: u16, mode: &str, backends: &str) -> Child {
        let config = format!(
            "global\n  stats socket {0}/admin.sock level admin mode 600\n  \
             stats socket {0}/user.sock level user mode 600\n\
             defaults\n  mode {mode}\n  timeout connect 1s\n  timeout client 30s\n  timeout server 30s\n\
             frontend f\n  bind 127.0.0.1:{port}\n  default_backend app\n{backends}\n",
            folder.display()
        );
        let file = folder.join("haproxy.cfg");
        std::fs::write(&file, config).unwrap();
        Command::new("/usr/sbin/haproxy")
            .args(["-db", "-f"])
            .arg(file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("HAProxy is there: chaos-tests/setup.sh installs it")
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn wait(&mut self) {
        let began = Instant::now();
        while UnixStream::connect(self.socket("admin.sock")).await.is_err() {
            assert!(self.child.try_wait().unwrap().is_none(), "HAProxy ended");
            assert!(
                began.elapsed() < Duration::from_secs(10),
                "HAProxy does not listen"
            );
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// What a reload comes to: a new process that has read the configuration only.
    async fn reload(&mut self, backends: &str) {
        self.end();
        std::fs::remove_file(self.socket("admin.sock")).unwrap();
        self.child = Self::run(self.folder.path(), self.port, self.mode, backends);
        self.wait().await;
    }

    fn end(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    async fn say(&self, line: &str) -> String {
        let socket = self.socket("admin.sock").display().to_string();
        super::cli::Endpoint::parse(&socket)
            .unwrap()
            .ask(line)
            .await
            .unwrap()
    }

    fn spec(&self) -> HaproxyTraffic {
        HaproxyTraffic {
            endpoints: vec![self.socket("admin.sock").display().to_string()],
            backend: "app".to_owned(),
            blue: vec!["blue1".to_owned(), "blue2".to_owned()],
            green: vec!["green1".to_owned()],
            kept_connections: KeptConnections::Leave,
        }
    }

    fn driver(&self) -> Haproxy {
        Haproxy::from_spec(&self.spec()).unwrap()
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.end();
    }
}

/// Answers each connection with its word, again and again.
async fn server(word: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0_u8; 4096];
                while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{word}", word.len());
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    port
}

async fn app(options: &str) -> String {
    let (blue, green) = (server("blue ").await, server("green").await);
    format!(
        "backend app\n  {options}\n  server blue1 127.0.0.1:{blue} weight 100\n  \
         server blue2 127.0.0.1:{blue} weight 50\n  server green1 127.0.0.1:{green} weight 0\n"
    )
}

/// Asks once on a kept connection; an error where it is closed.
async fn answered_green(stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: app\r\n\r\n").await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"blue ") && !answer.ends_with(b"green") {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(answer.ends_with(b"green"))
}

/// Asks `count` times on one kept connection; how often green answered.
async fn ask(port: u16, count: usize) -> usize {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut green = 0;
    for _ in 0..count {
        green += usize::from(answered_green(&mut stream).await.unwrap());
    }
    green
}

#[tokio::test]
async fn each_step_is_what_the_clients_get_and_what_is_read() {
    let edge = Edge::start(&app("balance roundrobin").await).await;
    let driver = edge.driver();
    driver.check().await.unwrap();
    assert_eq!(
        driver.seen().await.unwrap().weights,
        Weights::BLUE,
        "as configured"
    );
    for percent in [1, 5, 25, 50, 100, 25, 0] {
        let wanted = Weights::of_green(percent);
        driver.set(wanted).await.unwrap();
        let seen = driver.seen().await.unwrap();
        assert_eq!(seen.weights, wanted);
        assert!(seen.from.contains("admin.sock"), "{}", seen.from);
        let green = ask(edge.port, 200).await;
        let off = green.abs_diff(2 * usize::from(percent));
        assert!(off <= 4, "{green} of 200 at {percent} %");
    }
    // Blue's two servers keep the ratio of the configuration.
    let state = edge.say("show servers state app").await;
    assert!(state.contains("blue1 127.0.0.1 2 0 133 100"), "{state}");
    assert!(state.contains("blue2 127.0.0.1 2 0 67 50"), "{state}");
}

/// The commands one by one, as HAProxy obeys them.
#[tokio::test]
async fn on_the_way_green_has_never_more_than_before_or_after_and_somebody_always_has_some() {
    let edge = Edge::start(&app("balance roundrobin").await).await;
    let driver = edge.driver();
    let mut before = 0;
    for after in [1, 5, 25, 100, 0, 50, 0, 100, 99, 1, 0] {
        let look = async || driver.look(&driver.endpoints[0]).await.unwrap();
        let wanted = Weights::of_green(after);
        for command in look().await.commands(wanted, KeptConnections::Leave).unwrap() {
            edge.say(&command).await;
            let now = look().await.shares().expect("somebody has a weight").green;
            assert!(
                now <= before.max(after),
                "{now} % between {before} and {after}: {command}"
            );
        }
        assert_eq!(driver.seen().await.unwrap().weights, wanted);
        before = after;
    }
}

#[tokio::test]
async fn a_reload_loses_what_was_set_and_that_is_seen() {
    let backends = app("balance roundrobin").await;
    let mut edge = Edge::start(&backends).await;
    let driver = edge.driver();
    driver.set(Weights::of_green(25)).await.unwrap();
    edge.reload(&backends).await;
    assert_eq!(driver.seen().await.unwrap().weights, Weights::BLUE);
    driver.set(Weights::of_green(25)).await.unwrap();
    assert_eq!(driver.seen().await.unwrap().weights, Weights::of_green(25));
}

#[tokio::test]
async fn two_edges_that_differ_are_unknown_and_one_that_is_away_does_not_hold_the_other_up() {
    let (mut one, two) = (
        Edge::start(&app("balance roundrobin").await).await,
        Edge::start(&app("balance roundrobin").await).await,
    );
    let mut spec = one.spec();
    spec.endpoints.extend(two.spec().endpoints);
    let driver = Haproxy::from_spec(&spec).unwrap();
    assert_eq!(driver.targets().len(), 2);
    driver.set(Weights::of_green(50)).await.unwrap();
    assert_eq!(driver.seen().await.unwrap().weights, Weights::of_green(50));
    two.driver().set(Weights::of_green(60)).await.unwrap();
    let error = driver.seen().await.unwrap_err();
    assert_eq!(error.reason(), "TrafficDiffers");
    assert!(error.to_string().contains("60 % green at"), "{error}");
    assert!(matches!(error, TrafficError::Differ { greens, .. } if greens == [50, 60]));
    one.end();
    let error = driver.set(Weights::BLUE).await.unwrap_err();
    assert_eq!(error.reason(), "TrafficUnreachable");
    assert_eq!(two.driver().seen().await.unwrap().weights, Weights::BLUE);
    assert_eq!(driver.seen().await.unwrap_err().reason(), "TrafficUnreachable");
}

#[tokio::test]
async fn what_is_set_already_is_not_set_again() {
    let edge = Edge::start(&app("balance roundrobin").await).await;
    let driver = edge.driver();
    for wanted in [Weights::BLUE, Weights::of_green(25)] {
        driver.set(wanted).await.unwrap();
        let backend = driver.look(&driver.endpoints[0]).await.unwrap();
        let again = backend.commands(wanted, KeptConnections::Leave).unwrap();
        assert_eq!(again, Vec::<String>::new());
    }
}

#[tokio::test]
async fn who_is_taken_out_stays_out_and_brings_nothing_back() {
    let edge = Edge::start(&app("balance roundrobin").await).await;
    let driver = edge.driver();
    edge.say("set server app/blue2 state maint").await;
    driver.set(Weights::of_green(20)).await.unwrap();
    assert_eq!(driver.seen().await.unwrap().weights, Weights::of_green(20));
    edge.say("set server app/green1 state drain").await;
    assert_eq!(
        driver.seen().await.unwrap().weights,
        Weights::BLUE,
        "drained by a person"
    );
    let error = driver.set(Weights::of_green(20)).await.unwrap_err();
    assert_eq!(error.reason(), "TrafficNoneUp");
    assert!(error.to_string().contains("green1 is drained"), "{error}");
    driver.set(Weights::BLUE).await.unwrap();
    edge.say("set server app/green1 state ready").await;
    assert_eq!(driver.seen().await.unwrap().weights, Weights::BLUE);
}

#[tokio::test]
async fn a_share_for_servers_that_are_down_is_refused() {
    let dead = free_port().await;
    let mut backends = app("balance roundrobin").await;
    backends = backends.replace(
        "server green1",
        &format!("#\n  server green1 127.0.0.1:{dead} check inter 50ms\n  #"),
    );
    let edge = Edge::start(&backends).await;
    let began = Instant::now();
    while !edge
        .say("show servers state app")
        .await
        .contains("green1 127.0.0.1 0")
    {
        assert!(began.elapsed() < Duration::from_secs(10), "never seen down");
        sleep(Duration::from_millis(20)).await;
    }
    let error = edge.driver().set(Weights::of_green(1)).await.unwrap_err();
    assert!(error.to_string().contains("green1 is down"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_steered_is_named() {
    let app = app("balance roundrobin").await;
    let cases = [
        (
            app.replace("roundrobin", "source"),
            "`balance source` does not keep to weights",
        ),
        (app.replace("roundrobin", "leastconn"), "`balance leastconn`"),
        (
            format!("{app}  server other 127.0.0.1:9\n"),
            "has server other, which is neither",
        ),
        (
            app.replace("balance", "cookie c insert\n  balance")
                .replace("weight 50", "weight 50 cookie x"),
            "has a `cookie`",
        ),
        (app.replace("weight 0", "backup"), "is a `backup`"),
        (
            app.replace("server green1", "server green2"),
            "names green1, and backend app of HAProxy at",
        ),
        (
            app.replace(
                "backend app",
                "backend app2\nbackend app\n  balance roundrobin\nbackend app3",
            ),
            "names blue1",
        ),
    ];
    for (backends, sentence) in cases {
        let edge = Edge::start(&backends).await;
        let error = edge.driver().check().await.unwrap_err();
        assert!(error.to_string().contains(sentence), "{error}");
        edge.driver().set(Weights::BLUE).await.unwrap_err();
    }
    let edge = Edge::start(&format!("{app}  server sorry 127.0.0.1:9 backup\n")).await;
    edge.driver().check().await.unwrap();
    let mut spec = edge.spec();
    spec.backend = "nope".to_owned();
    let error = Haproxy::from_spec(&spec).unwrap().check().await.unwrap_err();
    assert!(error.to_string().contains("no such backend"), "{error}");
    spec = edge.spec();
    spec.endpoints = vec![edge.socket("user.sock").display().to_string()];
    let error = Haproxy::from_spec(&spec).unwrap().check().await.unwrap_err();
    assert!(error.to_string().contains("level admin"), "{error}");
}

#[tokio::test]
async fn kept_tcp_connections_are_closed_where_asked() {
    let edge = Edge::start_in("tcp", &app("balance roundrobin").await).await;
    let mut kept = TcpStream::connect(("127.0.0.1", edge.port)).await.unwrap();
    assert!(!answered_green(&mut kept).await.unwrap());
    edge.driver().set(Weights::GREEN).await.unwrap();
    assert!(!answered_green(&mut kept).await.unwrap(), "left alone");
    let mut spec = edge.spec();
    spec.kept_connections = KeptConnections::Close;
    Haproxy::from_spec(&spec)
        .unwrap()
        .set(Weights::GREEN)
        .await
        .unwrap();
    answered_green(&mut kept).await.expect_err("closed");
    assert_eq!(ask(edge.port, 10).await, 10);
}

#[test]
fn no_name_can_hold_a_command() {
    let spec = HaproxyTraffic {
        endpoints: vec!["127.0.0.1:9999".to_owned()],
        backend: "app;shutdown frontend f".to_owned(),
        blue: vec!["b".to_owned()],
        green: vec!["g".to_owned()],
        kept_connections: KeptConnections::Leave,
    };
    let wrong = |change: fn(&mut HaproxyTraffic)| {
        let mut spec = spec.clone();
        spec.backend = "app".to_owned();
        change(&mut spec);
        Haproxy::from_spec(&spec).unwrap_err()
    };
    assert!(matches!(
        Haproxy::from_spec(&spec),
        Err(TrafficError::Spec { .. })
    ));
    assert_eq!(
        wrong(|spec| spec.blue = vec!["b\n".to_owned()]).reason(),
        "SpecInvalid"
    );
    assert_eq!(
        wrong(|spec| spec.green = vec!["b".to_owned()]).reason(),
        "SpecInvalid"
    );
    assert_eq!(wrong(|spec| spec.green = vec![]).reason(), "SpecInvalid");
    assert_eq!(
        wrong(|spec| spec.endpoints = vec!["host".to_owned()]).reason(),
        "SpecInvalid"
    );
    assert_eq!(wrong(|spec| spec.endpoints = vec![]).reason(), "SpecInvalid");
}
