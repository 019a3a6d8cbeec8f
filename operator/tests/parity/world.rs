//! Two clusters, what is put into them, and `lockkeeper parity` run on them.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use kube::Client;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::cluster::Cluster;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Blue,
    Green,
}

pub(crate) struct Pair {
    blue: Cluster,
    green: Cluster,
    clients: [Client; 2],
}

/// What a run left.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
    /// The highest resident memory, KiB.
    pub(crate) peak: u64,
}

impl Pair {
    pub(crate) async fn start() -> Self {
        let (blue, green) = (Cluster::start(1).await, Cluster::start(1).await);
        let clients = [blue.api_servers().client(), green.api_servers().client()];
        Self { blue, green, clients }
    }

    pub(crate) fn client(&self, side: Side) -> Client {
        self.clients[usize::from(side == Side::Green)].clone()
    }

    const fn cluster(&self, side: Side) -> &Cluster {
        match side {
            Side::Blue => &self.blue,
            Side::Green => &self.green,
        }
    }

    pub(crate) async fn create(&self, side: Side, path: &str, object: &Value) {
        create(&self.client(side), path, object).await;
    }

    pub(crate) fn lockkeeper(&self) -> PathBuf {
        self.blue.lockkeeper()
    }

    pub(crate) fn log(&self, name: &str) -> Stdio {
        self.blue.log(name)
    }

    /// Ours, in blue.
    pub(crate) async fn install_crds(&self) {
        let ours: Vec<Value> = lockkeeper_crds::all()
            .iter()
            .map(|crd| serde_json::to_value(crd).unwrap())
            .collect();
        self.install(&ours, "/apis/lockkeeper.dev/v1alpha1/clustercutovers")
            .await;
    }

    /// CRDs in blue, until one of them is served.
    pub(crate) async fn install(&self, crds: &[Value], served: &str) {
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        for crd in crds {
            self.create(Side::Blue, path, crd).await;
        }
        let served = http::Request::get(served).body(vec![]).unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        while let Err(error) = self.client(Side::Blue).request::<Value>(served.clone()).await {
            assert!(Instant::now() < end, "{error}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub(crate) async fn namespace(&self, side: Side, name: &str) {
        self.create(side, "/api/v1/namespaces", &json!({"metadata": {"name": name}}))
            .await;
    }

    pub(crate) async fn replace_data(&self, side: Side, what: &str, data: &Value) {
        let request = http::Request::patch(format!("/api/v1/namespaces/shop/{what}"))
            .header("content-type", "application/merge-patch+json")
            .body(serde_json::to_vec(&json!({"data": data})).unwrap());
        self.client(side)
            .request::<Value>(request.unwrap())
            .await
            .unwrap();
    }

    /// An account that may list and get these of the core's, and its token in a kubeconfig.
    pub(crate) async fn reader(&self, side: Side, resources: &[&str]) -> String {
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        let role = json!({"metadata": {"name": "reader"}, "rules": [{"apiGroups": [""], "resources": resources, "verbs": ["get", "list"]}]});
        self.create(side, &format!("{rbac}/clusterroles"), &role).await;
        let binding = json!({
            "metadata": {"name": "reader"}, "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": "shop"}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader"}
        });
        self.create(side, &format!("{rbac}/clusterrolebindings"), &binding)
            .await;
        let accounts = "/api/v1/namespaces/shop/serviceaccounts";
        self.create(side, accounts, &json!({"metadata": {"name": "reader"}}))
            .await;
        let request = http::Request::post(format!("{accounts}/reader/token")).body(b"{\"spec\":{}}".to_vec());
        let answer: Value = self.client(side).request(request.unwrap()).await.unwrap();
        let token = answer["status"]["token"].as_str().unwrap();
        std::fs::write(self.reader_config(side), self.config(side, token)).unwrap();
        token.to_owned()
    }

    pub(crate) fn config(&self, side: Side, token: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
             clusters: [{{name: c, cluster: {{server: 'https://{}', certificate-authority: ca.pem, tls-server-name: kubernetes.default.svc}}}}]\n\
             users: [{{name: u, user: {{token: {token}}}}}]\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n",
            self.cluster(side).addresses[0]
        )
    }

    fn reader_config(&self, side: Side) -> PathBuf {
        self.cluster(side).kubeconfig().with_file_name("reader.conf")
    }

    /// Of an administrator, with the name that the servers' certificates bear.
    pub(crate) fn admin_config(&self, side: Side) -> PathBuf {
        let path = self.cluster(side).kubeconfig().with_file_name("admin.conf");
        std::fs::write(&path, self.config(side, crate::cluster::TOKEN)).unwrap();
        path
    }

    pub(crate) async fn compare(&self, more: &[&str]) -> (i32, Value) {
        self.json(self.admin_config(Side::Green), more).await
    }

    pub(crate) async fn compare_as_reader(&self, more: &[&str]) -> (i32, Value) {
        self.json(self.reader_config(Side::Green), more).await
    }

    async fn json(&self, green: PathBuf, more: &[&str]) -> (i32, Value) {
        let ran = self.parity(green, &[more, &["-o", "json"]].concat()).await;
        let report = serde_json::from_slice(&ran.stdout);
        (
            ran.code,
            report.unwrap_or_else(|error| panic!("{error}: {}", ran.stderr)),
        )
    }

    /// Runs it.
    pub(crate) async fn parity(&self, green: PathBuf, more: &[&str]) -> Ran {
        let mut command = Command::new(self.blue.lockkeeper());
        command
            .arg("parity")
            .arg("--blue-kubeconfig")
            .arg(self.admin_config(Side::Blue));
        command.arg("--green-kubeconfig").arg(green).args(more);
        run(command).await
    }

    pub(crate) async fn same_twice(&self) -> (i32, String) {
        let ran = self.parity(self.admin_config(Side::Blue), &[]).await;
        (ran.code, ran.stderr)
    }

    /// Green's address answers nobody.
    pub(crate) async fn without_green(&self) -> (i32, String) {
        let text = std::fs::read_to_string(self.admin_config(Side::Green)).unwrap();
        let path = self.green.kubeconfig().with_file_name("away.conf");
        let address = self.green.addresses[0].to_string();
        std::fs::write(&path, text.replace(&address, "127.0.0.1:1")).unwrap();
        let ran = self.parity(path, &[]).await;
        (ran.code, String::from_utf8(ran.stdout).unwrap())
    }

    pub(crate) fn kind<'a>(&self, report: &'a Value, kind: &str) -> &'a Value {
        let kinds = report["kinds"].as_array().unwrap();
        kinds
            .iter()
            .find(|k| k["kind"] == kind)
            .unwrap_or_else(|| panic!("no {kind}: {report:#}"))
    }

    /// The findings of a kind; and blue, green, missing, different, not ready, extra.
    pub(crate) fn counts<'a>(&self, report: &'a Value, kind: &str) -> (&'a [Value], [u64; 6]) {
        let found = self.kind(report, kind);
        let findings = found["findings"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let names = ["blue", "green", "missing", "different", "notReady", "extra"];
        (findings, names.map(|name| found[name].as_u64().unwrap()))
    }
}

pub(crate) async fn create(client: &Client, path: &str, object: &Value) {
    let request = http::Request::post(path).body(serde_json::to_vec(object).unwrap());
    let answer = client.request::<Value>(request.unwrap()).await;
    answer.unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// As people write them: a container with limits, probes and an environment.
pub(crate) fn deployment(name: &str, replicas: u32) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"app": name, "app.kubernetes.io/part-of": "shop"}},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{
                "name": "web", "image": "registry.example.com/shop/web:1.2.3", "ports": [{"containerPort": 8080}],
                "env": [{"name": "REGION", "value": "west"}, {"name": "LOG", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "log"}}}],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}},
                "volumeMounts": [{"name": "settings", "mountPath": "/etc/web"}]
            }], "volumes": [{"name": "settings", "configMap": {"name": "settings"}}]}
        }}
    })
}

/// Runs a program to its end, looking at its memory meanwhile.
pub(crate) async fn run(mut command: Command) -> Ran {
    let began = Instant::now();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let child = command.spawn().unwrap();
    let pid = child.id().unwrap();
    let (end, mut ended) = tokio::sync::oneshot::channel::<()>();
    let watching = tokio::spawn(async move {
        let mut peak = 0;
        // The kernel keeps the highest; it is gone with the process.
        while ended.try_recv().is_err() {
            peak = high_water(pid).unwrap_or(0).max(peak);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        peak
    });
    let output = child.wait_with_output().await.unwrap();
    let took = began.elapsed();
    let _ = end.send(());
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        took,
        peak: watching.await.unwrap(),
    }
}

fn high_water(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}
