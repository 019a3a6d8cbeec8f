//! Against a small server that keeps the contract, and ones that do not.

use std::process::Command;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use lockkeeper_crds::{HookTraffic, LocalReference, Traffic, Weights};
use tokio::net::TcpListener;

use crate::traffic::{Driver, Hook, Part, Secrets, TrafficError, built};

/// What the server has, and what it was asked.
#[derive(Default)]
struct Balancer {
    body: String,
    asked: Vec<String>,
    refuses: bool,
}

type Shared = Arc<Mutex<Balancer>>;

async fn read(State(balancer): State<Shared>, headers: HeaderMap) -> String {
    let mut balancer = balancer.lock().unwrap();
    let token = headers.get("authorization").map(|value| value.to_str().unwrap());
    balancer.asked.push(format!("GET {}", token.unwrap_or_default()));
    balancer.body.clone()
}

async fn write(
    State(balancer): State<Shared>,
    RawQuery(query): RawQuery,
    body: String,
) -> (StatusCode, String) {
    let mut balancer = balancer.lock().unwrap();
    balancer
        .asked
        .push(format!("PUT {}", query.as_deref().unwrap_or_default()));
    if balancer.refuses {
        return (StatusCode::FORBIDDEN, "your token is hunter2".to_owned());
    }
    if query.is_none() {
        balancer.body = body;
    }
    (StatusCode::NO_CONTENT, String::new())
}

fn router(balancer: &Shared) -> Router {
    Router::new()
        .route("/shop", get(read).put(write))
        .with_state(balancer.clone())
}

async fn start() -> (Shared, String) {
    let balancer = Shared::default();
    balancer.lock().unwrap().body = r#"{"blue": 100, "green": 0}"#.to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/shop", listener.local_addr().unwrap());
    let router = router(&balancer);
    tokio::spawn(async move { axum::serve(listener, router).await });
    (balancer, url)
}

fn spec(url: &str) -> HookTraffic {
    HookTraffic {
        url: url.to_owned(),
        token_secret: None,
        ca_bundle: None,
        settles_in_seconds: 0,
    }
}

fn driver(hook: HookTraffic, secrets: &Secrets) -> Result<Driver, TrafficError> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let traffic = Traffic {
        hook: Some(hook),
        ..Traffic::default()
    };
    built(&traffic, secrets)
}

fn secrets(name: &str, token: &str) -> Secrets {
    let keys = [("token".to_owned(), token.as_bytes().to_vec())];
    Secrets([(name.to_owned(), keys.into())].into())
}

#[tokio::test]
async fn the_contract_is_kept_from_this_side() {
    let (balancer, url) = start().await;
    let driver = driver(spec(&url), &Secrets::default()).unwrap();
    driver.check().await.unwrap();
    assert_eq!(balancer.lock().unwrap().asked, ["GET ", "PUT dryRun=true"]);
    driver.set(Weights::of_green(25)).await.unwrap();
    let seen = driver.seen().await.unwrap();
    assert_eq!(seen.weights, Weights::of_green(25));
    assert_eq!(seen.from, format!("the hook {url}"));
    assert_eq!(driver.targets().into_iter().collect::<Vec<_>>(), [seen.from]);
    assert_eq!(balancer.lock().unwrap().body, r#"{"blue":75,"green":25}"#);
}

#[tokio::test]
async fn several_parts_are_set_together_and_believed_when_all_say_the_same() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ((one, its_url), (two, other_url)) = (start().await, start().await);
    let part = |url: &str| Hook::from_spec(&spec(url), &Secrets::default()).map(Part::Hook);
    let driver = Driver(vec![part(&its_url).unwrap(), part(&other_url).unwrap()]);
    driver.check().await.unwrap();
    driver.set(Weights::of_green(25)).await.unwrap();
    let seen = driver.seen().await.unwrap();
    assert_eq!(seen.weights, Weights::of_green(25));
    assert!(seen.from.contains(&its_url) && seen.from.contains(&other_url));
    assert_eq!(driver.targets().len(), 2);

    two.lock().unwrap().refuses = true;
    driver.set(Weights::BLUE).await.unwrap_err();
    assert_eq!(
        one.lock().unwrap().body,
        r#"{"blue":100,"green":0}"#,
        "the other one is set all the same"
    );
    match driver.seen().await.unwrap_err() {
        TrafficError::Differ { greens, detail } => {
            assert_eq!(greens, [0, 25]);
            assert!(
                detail.contains(&its_url) && detail.contains(&other_url),
                "{detail}"
            );
        }
        other => panic!("{other}"),
    }
    two.lock().unwrap().body = String::new();
    let unread = driver.seen().await.unwrap_err();
    assert!(!matches!(unread, TrafficError::Differ { .. }), "{unread}");
}

#[tokio::test]
async fn what_is_not_understood_is_unknown() {
    let (balancer, url) = start().await;
    let driver = driver(spec(&url), &Secrets::default()).unwrap();
    let long = " ".repeat(5000);
    for answer in [
        "",
        "[]",
        "{\"blue\": 100}",
        "{\"blue\": 70, \"green\": 20}",
        "{\"blue\": -1, \"green\": 101}",
        &long,
    ] {
        balancer.lock().unwrap().body = answer.to_owned();
        assert_eq!(
            driver.seen().await.unwrap_err().reason(),
            "TrafficGarbled",
            "{answer}"
        );
    }
}

#[tokio::test]
async fn one_that_refuses_is_told_by_its_status_alone() {
    let (balancer, url) = start().await;
    let hook = driver(spec(&url), &Secrets::default()).unwrap();
    balancer.lock().unwrap().refuses = true;
    let error = hook.check().await.unwrap_err().to_string();
    assert!(
        error.ends_with("does not obey: it answered 403 Forbidden"),
        "{error}"
    );
    let gone = driver(spec("http://127.0.0.1:1/x"), &Secrets::default()).unwrap();
    assert_eq!(gone.seen().await.unwrap_err().reason(), "TrafficUnreachable");
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let (_, url) = start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let from = format!("http://{}/", listener.local_addr().unwrap());
    let away = axum::response::Redirect::temporary(&url);
    let router = Router::new().fallback(move || std::future::ready(away.clone()));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let error = driver(spec(&from), &Secrets::default())
        .unwrap()
        .seen()
        .await
        .unwrap_err();
    assert!(error.to_string().contains("307"), "{error}");
}

/// The example in Python, gone when dropped.
struct Example(std::process::Child);

impl Drop for Example {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::test]
async fn the_example_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shares.conf");
    std::fs::write(&file, "").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let child = Command::new("python3")
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../examples/traffic-hook.py"
        ))
        .arg(port.to_string())
        .arg(&file)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut example = Example(child);
    let hook = driver(spec(&format!("http://127.0.0.1:{port}/")), &Secrets::default()).unwrap();
    let began = std::time::Instant::now();
    while let Err(error) = hook.check().await {
        assert!(example.0.try_wait().unwrap().is_none(), "it ended");
        assert!(began.elapsed().as_secs() < 10, "{error}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        "",
        "a check changes nothing"
    );
    for percent in [25, 100, 0] {
        hook.set(Weights::of_green(percent)).await.unwrap();
        assert_eq!(hook.seen().await.unwrap().weights, Weights::of_green(percent));
    }
    hook.set(Weights::of_green(5)).await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "5% green;\n");
}

/// A listener that speaks TLS with a certificate of its own CA.
struct Tls(TcpListener, tokio_rustls::TlsAcceptor);

impl axum::serve::Listener for Tls {
    type Io = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.0.accept().await.unwrap();
            if let Ok(stream) = self.1.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

/// A certificate for 127.0.0.1, signed by itself, and its key.
fn certificate() -> (Vec<u8>, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=hook", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args([
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-keyout",
            "key.pem",
            "-out",
            "cert.pem",
        ])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    (read("cert.pem"), read("key.pem"))
}

#[tokio::test]
async fn the_token_goes_to_the_right_server_only_and_is_never_shown() {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (certificate, key) = certificate();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(&certificate).unwrap()],
            PrivateKeyDer::from_pem_slice(&key).unwrap(),
        )
        .unwrap();
    let (balancer, _) = start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/shop", listener.local_addr().unwrap());
    let (tls, router) = (Tls(listener, Arc::new(config).into()), router(&balancer));
    tokio::spawn(async move { axum::serve(tls, router).await });
    let mut hook = HookTraffic {
        token_secret: Some(LocalReference {
            name: "hook".to_owned(),
        }),
        ca_bundle: Some(String::from_utf8(certificate).unwrap()),
        ..spec(&url)
    };
    let trusting = driver(hook.clone(), &secrets("hook", "hunter2\n")).unwrap();
    trusting.seen().await.unwrap();
    assert_eq!(balancer.lock().unwrap().asked, ["GET Bearer hunter2"]);
    balancer.lock().unwrap().refuses = true;
    let error = trusting.set(Weights::BLUE).await.unwrap_err();
    assert!(!format!("{trusting:?} {error} {error:?}").contains("hunter2"));
    hook.ca_bundle = None;
    let error = driver(hook, &secrets("hook", "hunter2"))
        .unwrap()
        .seen()
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "TrafficUnreachable", "{error}");
    assert_eq!(
        balancer.lock().unwrap().asked.len(),
        2,
        "no token for one that nobody vouches for"
    );
}

#[tokio::test]
async fn a_spec_that_cannot_be_is_refused() {
    let refused = |change: fn(&mut HookTraffic), secrets: &Secrets| {
        let mut hook = spec("https://lb.example/shop");
        change(&mut hook);
        driver(hook, secrets).unwrap_err().to_string()
    };
    let none = Secrets::default();
    let named = |hook: &mut HookTraffic| {
        hook.token_secret = Some(LocalReference {
            name: "hook".to_owned(),
        })
    };
    assert!(refused(|hook| hook.url = "lb".to_owned(), &none).contains("is no URL"));
    assert!(refused(|hook| hook.url = "https://a:b@lb/".to_owned(), &none).contains("neither a user"));
    assert!(refused(|hook| hook.ca_bundle = Some("x".to_owned()), &none).contains("no certificate"));
    assert!(refused(named, &none).contains("Secret hook, which is not there"));
    assert!(refused(named, &secrets("hook", "\n")).contains("holds no text"));
    let other = Secrets([("hook".to_owned(), Default::default())].into());
    assert!(refused(named, &other).contains("has no key `token`"));
    let clear = |hook: &mut HookTraffic| {
        hook.url = "http://lb.example/shop".to_owned();
        hook.token_secret = Some(LocalReference {
            name: "hook".to_owned(),
        });
    };
    assert!(refused(clear, &secrets("hook", "x")).contains("in the clear"));
}
