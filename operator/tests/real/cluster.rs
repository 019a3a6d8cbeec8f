//! An etcd and API servers as processes of this test, on loopback ports of their own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lockkeeper::api::{Address, ApiServers};
use rustix::process::{Pid, Signal, kill_process};

pub(crate) const CA: &str = include_str!("../../src/api/testdata/ca.pem");
const CERTIFICATE: &str = include_str!("../../src/api/testdata/server.pem");
const KEY: &str = include_str!("../../src/api/testdata/server-key.pem");
pub(crate) const TOKEN: &str = "of-this-test-only";

/// A process that dies with the test.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(
            command
                .spawn()
                .unwrap_or_else(|error| panic!("{command:?}: {error}")),
        )
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.0);
        kill_process(pid, signal).unwrap();
    }

    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub(crate) fn wait(mut self) -> std::process::ExitStatus {
        self.0.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) struct Cluster {
    directory: tempfile::TempDir,
    etcd_url: String,
    _etcd: Process,
    pub(crate) servers: Vec<Option<Process>>,
    pub(crate) addresses: Vec<Address>,
}

fn binary(variable: &str) -> PathBuf {
    std::env::var_os(variable)
        .unwrap_or_else(|| panic!("{variable} names no binary: this test runs a real one"))
        .into()
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn log(directory: &Path, name: &str) -> Stdio {
    let path = directory.join(format!("{name}.log"));
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap()
        .into()
}

impl Cluster {
    pub(crate) async fn start(servers: usize) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        for (name, text) in [
            ("ca.pem", CA),
            ("server.pem", CERTIFICATE),
            ("server-key.pem", KEY),
            ("tokens.csv", &format!("{TOKEN},admin,admin,system:masters\n")),
        ] {
            std::fs::write(path.join(name), text).unwrap();
        }
        // A copy: builds of others in the same target directory may replace it meanwhile, or have done so.
        let ours = std::env::var_os("LOCKKEEPER_TEST_LOCKKEEPER");
        let ours = ours.unwrap_or_else(|| env!("CARGO_BIN_EXE_lockkeeper").into());
        std::fs::copy(ours, path.join("lockkeeper")).unwrap();
        let etcd_url = format!("http://127.0.0.1:{}", free_port());
        let peer_url = format!("http://127.0.0.1:{}", free_port());
        let etcd = Process::start(
            Command::new(binary("LOCKKEEPER_TEST_ETCD"))
                .arg("--data-dir")
                .arg(path.join("etcd"))
                .args([
                    "--listen-client-urls",
                    &etcd_url,
                    "--advertise-client-urls",
                    &etcd_url,
                ])
                .args([
                    "--listen-peer-urls",
                    &peer_url,
                    "--initial-advertise-peer-urls",
                    &peer_url,
                ])
                .args([
                    "--initial-cluster",
                    &format!("default={peer_url}"),
                    "--unsafe-no-fsync",
                ])
                .stdout(Stdio::null())
                .stderr(log(path, "etcd")),
        );
        let addresses = (0..servers)
            .map(|_| Address::new("127.0.0.1", free_port()).unwrap())
            .collect();
        let mut cluster = Self {
            directory,
            etcd_url,
            _etcd: etcd,
            servers: (0..servers).map(|_| None).collect(),
            addresses,
        };
        for index in 0..servers {
            cluster.start_server(index).await;
        }
        cluster
    }

    pub(crate) async fn start_server(&mut self, index: usize) {
        let path = self.directory.path();
        let file = |name: &str| path.join(name).display().to_string();
        let port = self.addresses[index].as_str().rsplit_once(':').unwrap().1;
        let server = Process::start(
            Command::new(binary("LOCKKEEPER_TEST_APISERVER"))
                .arg(format!("--etcd-servers={}", self.etcd_url))
                .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
                .arg(format!("--secure-port={port}"))
                .arg(format!("--tls-cert-file={}", file("server.pem")))
                .arg(format!("--tls-private-key-file={}", file("server-key.pem")))
                .arg(format!("--token-auth-file={}", file("tokens.csv")))
                .args(["--authorization-mode=RBAC", "--endpoint-reconciler-type=none"])
                .arg("--service-account-issuer=https://kubernetes.default.svc")
                .arg(format!("--service-account-key-file={}", file("server-key.pem")))
                .arg(format!(
                    "--service-account-signing-key-file={}",
                    file("server-key.pem")
                ))
                .arg("--service-cluster-ip-range=10.96.0.0/16")
                .stdout(Stdio::null())
                .stderr(log(path, &format!("server-{index}"))),
        );
        self.servers[index] = Some(server);
        let client = self.api_servers().client_for(&self.addresses[index]).unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let request = http::Request::get("/readyz").body(vec![]).unwrap();
            let answer = client.request_text(request).await;
            if answer.as_ref().is_ok_and(|text| text == "ok") {
                return;
            }
            let log =
                || std::fs::read_to_string(path.join(format!("server-{index}.log"))).unwrap_or_default();
            assert!(Instant::now() < end, "not ready: {answer:?}\n{}", log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub(crate) fn lockkeeper(&self) -> PathBuf {
        self.directory.path().join("lockkeeper")
    }

    pub(crate) fn log(&self, name: &str) -> Stdio {
        log(self.directory.path(), name)
    }

    pub(crate) fn read_log(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory.path().join(format!("{name}.log"))).unwrap_or_default()
    }

    pub(crate) fn kill_server(&mut self, index: usize) {
        self.servers[index].take().unwrap().kill();
    }

    /// A kubeconfig that knows the first server only.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        let path = self.directory.path().join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
             clusters: [{{name: c, cluster: {{server: 'https://{}', certificate-authority: ca.pem}}}}]\n\
             users: [{{name: u, user: {{token: {TOKEN}}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u, namespace: default}}}}]\n",
            self.addresses[0]
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A client as the operator has it once it has learned the servers.
    pub(crate) fn api_servers(&self) -> ApiServers {
        let kubeconfig = kube::config::Kubeconfig::read_from(self.kubeconfig()).unwrap();
        let config = futures::executor::block_on(kube::Config::from_custom_kubeconfig(
            kubeconfig,
            &kube::config::KubeConfigOptions::default(),
        ))
        .unwrap();
        let api = ApiServers::from_config(config, None).unwrap();
        api.endpoints().learn(self.addresses.clone());
        api
    }
}
