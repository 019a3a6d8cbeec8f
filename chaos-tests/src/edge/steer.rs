//! A Job that steers a backend of the edge's which Lockkeeper does not know, by the contract of `spec.traffic.job`.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::app::{IMAGE, NAMESPACE};
use super::proxy::{BESIDE, Proxy};

/// What it moves, as the spec calls it.
const NAME: &str = "beside";
/// How long it takes to give green anything. It does not heed a word to end meanwhile: a container's first process that
/// handles no signals ignores SIGTERM.
const SECONDS: u64 = 6;

/// What the program does in a Job's container, as its environment says.
pub async fn run() -> Result<()> {
    let told = |name: &str| std::env::var(name).with_context(|| format!("{name} is not told"));
    let action = told("LOCKKEEPER_ACTION")?;
    match action.as_str() {
        "get" | "check" => {}
        "set" => {
            let share = |name: &str| Ok::<u8, anyhow::Error>(told(name)?.parse()?);
            let (blue, green) = (share("LOCKKEEPER_BLUE")?, share("LOCKKEEPER_GREEN")?);
            if green > 0 {
                tokio::time::sleep(Duration::from_secs(SECONDS)).await;
            }
            let mut both = [("blue", blue), ("green", green)];
            // The larger first: somebody always has some.
            both.sort_by_key(|(_, share)| 100 - share);
            let lines = both.map(|(server, share)| format!("set server {BESIDE}/{server} weight {share}"));
            let answer = Proxy::say(&lines.join("; ")).await?;
            ensure!(answer.trim().is_empty(), "the edge answers {answer:?}");
        }
        other => bail!("{other}: no such action"),
    }
    let (blue, green) = Proxy::weights(BESIDE).await?;
    let message = json!({"blue": blue, "green": green});
    println!("{action}: {message}");
    std::fs::write("/dev/termination-log", message.to_string())?;
    Ok(())
}

/// For a cutover's `spec.traffic`, in the cluster in which Lockkeeper lives.
#[must_use]
pub fn traffic() -> Value {
    let template = json!({"spec": {"backoffLimit": 0, "template": {"spec": {
        "restartPolicy": "Never", "automountServiceAccountToken": false, "tolerations": [{"operator": "Exists"}],
        "containers": [{"name": "steer", "image": IMAGE, "imagePullPolicy": "Never", "args": ["steer"]}],
    }}}});
    json!({
        "cluster": {"thisCluster": true}, "namespace": NAMESPACE, "name": NAME, "template": template,
        "readEverySeconds": 10,
    })
}
