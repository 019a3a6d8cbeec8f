//! A real etcd and a real S3 server, on loopback, gone when dropped.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{Client, Txn, TxnOp};
use futures::StreamExt as _;
use http::Method;
use k8s_openapi::ByteString;
use lockkeeper::agent::etcd::EtcdMember;
use lockkeeper::store::{Credentials, Store};
use lockkeeper_crds::{EtcdBackupStoreSpec, LocalReference, S3};
use object_store::path::Path as ObjectPath;
use object_store::signer::{SignedUrlOptions, Signer as _};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub(crate) const BUCKET: &str = "backups";
pub(crate) const SECRET_NAME: &str = "s3-key";

/// The directory that holds `etcd`, `etcdutl` and `versitygw`; none, and the reason printed, if nobody named it.
pub(crate) fn binaries() -> Option<PathBuf> {
    let Some(directory) = std::env::var_os("LOCKKEEPER_TEST_BIN") else {
        eprintln!("skipped: LOCKKEEPER_TEST_BIN names no directory that holds etcd, etcdutl and versitygw");
        return None;
    };
    let directory = PathBuf::from(directory);
    for name in ["etcd", "etcdutl", "versitygw"] {
        assert!(
            directory.join(name).is_file(),
            "{} holds no {name}",
            directory.display()
        );
    }
    Some(directory)
}

/// A process that is killed when dropped.
pub(crate) struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that nobody else takes: not another test, since each is given once, and not an outgoing connection, since
/// those begin at 32768. A port of the kernel's own choice is free only until somebody connects to somewhere, and a
/// server that was stopped for a while may find it taken.
pub(crate) fn free_port() -> u16 {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let begin = u16::try_from(std::process::id() % 100).unwrap() * 100;
    loop {
        let port = 15_000 + (begin + GIVEN.fetch_add(1, Ordering::Relaxed)) % 15_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub(crate) async fn listening(port: u16) {
    let began = Instant::now();
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "nothing listens on port {port}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A member, and a host's root with its manifest.
pub(crate) struct Etcd {
    pub(crate) process: Process,
    pub(crate) endpoint: String,
    pub(crate) root: TempDir,
    /// Where it says in the clear how it fares.
    health: u16,
    /// Removed when dropped.
    _data: TempDir,
}

impl Etcd {
    pub(crate) async fn start(bin: &Path) -> Self {
        Self::start_with(bin, "http", &[]).await
    }

    pub(crate) async fn start_with(bin: &Path, scheme: &str, more: &[String]) -> Self {
        Self::start_on(bin, tempfile::tempdir().unwrap(), scheme, more).await
    }

    /// On a data directory that is there already, or is empty.
    pub(crate) async fn start_on(bin: &Path, data: TempDir, scheme: &str, more: &[String]) -> Self {
        let (client, peer, health) = (free_port(), free_port(), free_port());
        let endpoint = format!("{scheme}://127.0.0.1:{client}");
        let peer = format!("http://127.0.0.1:{peer}");
        let process = Process::start(
            Command::new(bin.join("etcd"))
                .arg("--data-dir")
                .arg(data.path())
                .args(["--name", "one", "--initial-cluster", &format!("one={peer}")])
                .args([
                    "--listen-client-urls",
                    &endpoint,
                    "--advertise-client-urls",
                    &endpoint,
                ])
                .args([
                    "--listen-peer-urls",
                    &peer,
                    "--initial-advertise-peer-urls",
                    &peer,
                ])
                .args(["--listen-metrics-urls", &format!("http://127.0.0.1:{health}")])
                // The bench fills a gigabyte.
                .args(["--quota-backend-bytes", "8589934592", "--log-level", "error"])
                .args(more),
        );
        listening(client).await;
        let root = tempfile::tempdir().unwrap();
        let mut flags = vec![format!("--listen-client-urls={endpoint}")];
        if scheme == "https" {
            flags.push("--cert-file=/etc/kubernetes/pki/etcd/server.crt".to_owned());
            flags.push("--trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt".to_owned());
        }
        write_manifest(root.path(), &flags);
        let etcd = Self {
            process,
            endpoint,
            root,
            health,
            _data: data,
        };
        etcd.healthy().await;
        etcd
    }

    /// Waits until it has a leader and answers: it listens long before, and what is asked meanwhile waits in line. An
    /// alarm is no matter of that.
    pub(crate) async fn healthy(&self) {
        let began = Instant::now();
        loop {
            let answer = async {
                let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.health))
                    .await
                    .ok()?;
                let mut text = String::new();
                let request = b"GET /health?exclude=NOSPACE&exclude=CORRUPT HTTP/1.0\r\n\r\n";
                stream.write_all(request).await.ok()?;
                stream.read_to_string(&mut text).await.ok()?;
                Some(text)
            };
            let answer = tokio::time::timeout(Duration::from_secs(5), answer).await;
            if matches!(answer, Ok(Some(text)) if text.contains("\"health\":\"true\"")) {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "etcd is not well");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) fn member(&self) -> Arc<EtcdMember> {
        Arc::new(EtcdMember::from_host(self.root.path(), None))
    }

    /// `keys` keys of `size` bytes that do not compress.
    pub(crate) async fn fill(&self, keys: usize, size: usize) {
        let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
        let value = move || -> Vec<u8> {
            (0..size.div_ceil(8))
                .flat_map(|_| {
                    noise ^= noise << 13;
                    noise ^= noise >> 7;
                    noise ^= noise << 17;
                    noise.to_le_bytes()
                })
                .collect()
        };
        self.write(keys, size, value).await;
    }

    /// `keys` keys of about `size` bytes each, which compress as Kubernetes' objects do: the same field names over
    /// and over, and names, hashes and times of their own.
    pub(crate) async fn fill_like_kubernetes(&self, keys: usize, size: usize) {
        let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
        let value = move || -> Vec<u8> {
            let mut text = String::with_capacity(size + 200);
            while text.len() < size {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                text.push_str(&format!(
                    "{{\"type\":\"Ready\",\"status\":\"True\",\"lastTransitionTime\":\"2026-11-{:02}T{:02}:{:02}:{:02}Z\",\"uid\":\"{noise:016x}\",\"image\":\"registry.k8s.io/pause@sha256:{:016x}\",\"volumeMounts\":[{{\"name\":\"kube-api-access-{:05x}\",\"mountPath\":\"/var/run/secrets/kubernetes.io/serviceaccount\"}}]}},",
                    noise % 28 + 1, noise % 24, noise % 60, noise % 59, noise.rotate_left(17), noise % 0xf_ffff
                ));
            }
            text.into_bytes()
        };
        self.write(keys, size, value).await;
    }

    /// Writes as many single objects as push all that it was filled with out of etcd's own log in memory: 10,000 until it
    /// cuts that, and 5,000 that it keeps. Filled with large transactions, it would hold a gigabyte there, and collect
    /// garbage far less often than any etcd in use.
    pub(crate) async fn age(&self, size: usize) {
        let client = Client::connect([&self.endpoint], None).await.unwrap();
        let write = |n: u32| {
            let mut client = client.kv_client();
            async move {
                let key = format!("/aged/{}", n % 64);
                client.put(key, vec![7_u8; size], None).await.unwrap();
            }
        };
        futures::stream::iter((0..16_000).map(write))
            .buffer_unordered(64)
            .collect::<()>()
            .await;
    }

    async fn write(&self, keys: usize, size: usize, mut value: impl FnMut() -> Vec<u8>) {
        let mut client = Client::connect([&self.endpoint], None).await.unwrap();
        let per_call = (1_000_000 / size).clamp(1, 100);
        let mut key = 0;
        while key < keys {
            let last = (key + per_call).min(keys);
            let puts: Vec<_> = (key..last)
                .map(|k| TxnOp::put(format!("/registry/{k:08}"), value(), None))
                .collect();
            client.txn(Txn::new().and_then(puts)).await.unwrap();
            key = last;
        }
    }
}

pub(crate) fn write_manifest(root: &Path, flags: &[String]) {
    let manifests = root.join("etc/kubernetes/manifests");
    std::fs::create_dir_all(&manifests).unwrap();
    let flags: String = flags.iter().map(|flag| format!("    - {flag}\n")).collect();
    let pod = format!("spec:\n  containers:\n  - name: etcd\n    command:\n    - etcd\n{flags}");
    std::fs::write(manifests.join("etcd.yaml"), pod).unwrap();
}

/// An S3 server with one bucket, whose objects are files.
pub(crate) struct ObjectServer {
    pub(crate) process: Option<Process>,
    pub(crate) root: TempDir,
    bin: PathBuf,
    pub(crate) port: u16,
    /// Its certificate and key, where it speaks TLS.
    tls: Option<[PathBuf; 2]>,
    /// Where older versions lie, where it keeps them.
    versions: Option<TempDir>,
}

impl ObjectServer {
    pub(crate) async fn start(bin: &Path) -> Self {
        Self::start_with(bin, tempfile::tempdir().unwrap(), None).await
    }

    /// Nobody may take anything out of its bucket for a day. `versions`: it keeps them, as every real S3 does that has
    /// locks.
    pub(crate) async fn start_locked(bin: &Path, versions: bool) -> Self {
        let mut server = Self {
            process: None,
            root: tempfile::tempdir().unwrap(),
            bin: bin.to_owned(),
            port: free_port(),
            tls: None,
            versions: versions.then(|| tempfile::tempdir().unwrap()),
        };
        server.up().await;
        let lock = [("x-amz-bucket-object-lock-enabled", "true")];
        let made = server.ask(Method::PUT, "", &[], &lock, "").await;
        assert_eq!(made.0, 200, "{made:?}");
        let rule = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>\
                    <Mode>GOVERNANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>";
        let hash = ByteString(Sha256::digest(rule).to_vec());
        let hash = serde_json::to_value(hash).unwrap();
        let checksum = [("x-amz-checksum-sha256", hash.as_str().unwrap())];
        let locked = server
            .ask(Method::PUT, "", &[("object-lock", "")], &checksum, rule)
            .await;
        assert_eq!(locked.0, 200, "{locked:?}");
        server
    }

    /// A request of the bucket that no client here has.
    pub(crate) async fn ask(
        &self,
        method: Method,
        key: &str,
        query: &[(&str, &str)],
        headers: &[(&'static str, &str)],
        body: &'static str,
    ) -> (u16, String) {
        let signed = headers.iter().fold(
            SignedUrlOptions::new().with_query(query.to_vec()),
            |options, (name, value)| {
                options.with_signed_header(name.parse().unwrap(), value.parse().unwrap())
            },
        );
        let (key, minute) = (ObjectPath::from(key), Duration::from_secs(60));
        let raw = self.raw();
        let url = raw.signed_url_opts(method.clone(), &key, minute, &signed).await;
        let mut request = reqwest::Client::new().request(method, url.unwrap()).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// Every version of every object, `Version`, or every marker of what was deleted, `DeleteMarker`: its key and its id.
    pub(crate) async fn kept(&self, what: &str) -> Vec<(String, String)> {
        let (status, list) = self.ask(Method::GET, "", &[("versions", "")], &[], "").await;
        assert_eq!(status, 200, "{list}");
        let of = |text: &str, name: &str| {
            let (_, rest) = text.split_once(&format!("<{name}>")).unwrap();
            rest.split_once('<').unwrap().0.to_owned()
        };
        let begin = format!("<{what}>");
        let versions = list.split(begin.as_str()).skip(1);
        let mut versions: Vec<_> = versions
            .map(|version| (of(version, "Key"), of(version, "VersionId")))
            .collect();
        versions.sort();
        versions
    }

    /// With its objects in `root`.
    pub(crate) async fn start_in(bin: &Path, root: TempDir) -> Self {
        Self::start_with(bin, root, None).await
    }

    /// With a certificate that a CA of one's own signed.
    pub(crate) async fn start_with_tls(bin: &Path) -> Self {
        // It changes its directory.
        let pki = std::path::absolute("tests/etcd_backup/pki").unwrap();
        let tls = ["both.crt", "both.key"].map(|name| pki.join(name));
        Self::start_with(bin, tempfile::tempdir().unwrap(), Some(tls)).await
    }

    async fn start_with(bin: &Path, root: TempDir, tls: Option<[PathBuf; 2]>) -> Self {
        std::fs::create_dir(root.path().join(BUCKET)).unwrap();
        let mut server = Self {
            process: None,
            root,
            bin: bin.to_owned(),
            port: free_port(),
            tls,
            versions: None,
        };
        server.up().await;
        server
    }

    pub(crate) async fn up(&mut self) {
        let tls = self.tls.iter().flat_map(|[certificate, key]| {
            let named = |flag: &str, file: &Path| format!("--{flag}={}", file.display());
            [named("cert", certificate), named("key", key)]
        });
        let versions = self.versions.iter();
        let versions = versions.map(|at| format!("--versioning-dir={}", at.path().display()));
        self.process = Some(Process::start(
            Command::new(self.bin.join("versitygw"))
                .args(["--quiet", "--port", &format!("127.0.0.1:{}", self.port)])
                .args(tls)
                .args(["--access", "identifier", "--secret", "secret-key", "posix"])
                .args(versions)
                .arg(self.root.path()),
        ));
        listening(self.port).await;
    }

    pub(crate) fn down(&mut self) {
        self.process = None;
    }

    pub(crate) fn endpoint(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    pub(crate) fn spec(&self) -> EtcdBackupStoreSpec {
        EtcdBackupStoreSpec {
            s3: Some(S3 {
                bucket: BUCKET.to_owned(),
                prefix: "clusters/one".to_owned(),
                endpoint: Some(self.endpoint()),
                region: "us-east-1".to_owned(),
                virtual_hosted_style: false,
                credentials_secret: Some(LocalReference {
                    name: SECRET_NAME.to_owned(),
                }),
                ca_bundle: None,
                server_side_encryption: None,
                checksum: None,
            }),
            ..EtcdBackupStoreSpec::default()
        }
    }

    pub(crate) fn credentials() -> Credentials {
        Credentials {
            access_key_id: "identifier".to_owned(),
            secret_access_key: "secret-key".to_owned(),
        }
    }

    pub(crate) fn store(&self) -> Store {
        Store::from_spec("main", &self.spec(), Self::credentials()).unwrap()
    }

    /// Another program's client of the same bucket.
    pub(crate) fn raw(&self) -> object_store::aws::AmazonS3 {
        // Whoever came first wins; it is the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        object_store::aws::AmazonS3Builder::new()
            .with_endpoint(format!("http://127.0.0.1:{}", self.port))
            .with_region("us-east-1")
            .with_bucket_name(BUCKET)
            .with_access_key_id("identifier")
            .with_secret_access_key("secret-key")
            .with_allow_http(true)
            .build()
            .unwrap()
    }

    /// Every object, as the server's own directory has it.
    pub(crate) fn objects(&self) -> Vec<String> {
        self.files(|path| !path.contains(".sgwtmp"))
    }

    /// Every part of an unfinished upload.
    pub(crate) fn parts(&self) -> Vec<String> {
        self.files(|path| path.contains("multipart"))
    }

    fn files(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let bucket = self.root.path().join(BUCKET);
        let mut found = vec![];
        let mut directories = vec![bucket.clone()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    directories.push(path);
                } else {
                    let path = path.strip_prefix(&bucket).unwrap().display().to_string();
                    found.extend(wanted(&path).then_some(path));
                }
            }
        }
        found.sort();
        found
    }
}
