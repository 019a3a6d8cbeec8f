//! Whom Envoy leads to, as it tells itself: a weight that stands in a route is not yet heeded.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::objects::{Kind, NAMESPACE};
use crate::edge::Colour;

/// The socket of Envoy's own interface.
pub(super) const ADMIN: &str = "envoy-admin.sock";
const ANSWER: Duration = Duration::from_secs(2);

/// Where a kind's weights stand in what it tells: requests are led by routes, connections by their listener.
fn place(kind: Kind) -> (&'static str, &'static str, &'static str) {
    match kind {
        Kind::Http | Kind::Grpc => ("dynamic_route_configs", "/route_config/name", "/route_config"),
        Kind::Tls | Kind::Tcp => ("dynamic_listeners", "/name", "/active_state"),
    }
}

pub(super) async fn green_share(socket: PathBuf, kind: Kind) -> Result<u8> {
    let (resource, name, state) = place(kind);
    let exchange = async {
        let stream = UnixStream::connect(&socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::get(format!("/config_dump?resource={resource}")).header("host", "envoy");
        let answer = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
        let body = answer.into_body().collect().await?.to_bytes();
        anyhow::Ok(serde_json::from_slice::<Value>(&body)?)
    };
    let told = tokio::time::timeout(ANSWER, exchange);
    let told = told.await.context("Envoy does not answer")??;
    let wanted = kind.in_envoy();
    let mut all = told
        .get("configs")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let found = all.find(|config| config.pointer(name).and_then(Value::as_str) == Some(&wanted));
    let state = found.and_then(|config| config.pointer(state));
    share(state.with_context(|| format!("Envoy knows no {wanted}"))?)
}

fn share(told: &Value) -> Result<u8> {
    let [blue, green] = [Colour::Blue, Colour::Green].map(|colour| weight(told, colour).unwrap_or(0));
    ensure!(
        blue + green == 100,
        "Envoy gives {blue} to blue and {green} to green"
    );
    Ok(u8::try_from(green)?)
}

/// Wherever it lies: clusters are called NAMESPACE/SERVICE/PORT/HASH. Who has all of a listener is named alone, and who has
/// nothing of it not at all.
fn weight(told: &Value, colour: Colour) -> Option<u64> {
    let ours = format!("{NAMESPACE}/{}/", colour.name());
    let is_ours = |value: &Value| value.as_str().is_some_and(|name| name.starts_with(&ours));
    match told {
        Value::Object(fields) => {
            if let (Some(name), Some(weight)) = (fields.get("name"), fields.get("weight"))
                && is_ours(name)
            {
                return weight.as_u64();
            }
            if fields.get("cluster").is_some_and(is_ours) {
                return Some(100);
            }
            fields.values().find_map(|value| weight(value, colour))
        }
        Value::Array(items) => items.iter().find_map(|item| weight(item, colour)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn weights_are_found_in_what_envoy_tells() {
        let cluster =
            |name: &str, weight: u8| json!({"name": format!("{name}/80/da39a3ee5e"), "weight": weight});
        let both = json!({"clusters": [cluster("edge/blue", 75), cluster("edge/green", 25)]});
        let routes = json!({"name": "http-80", "virtual_hosts": [{"routes": [{"route": {"weighted_clusters": both}}]}]});
        assert_eq!(share(&routes).unwrap(), 25);
        let listener =
            |config: Value| json!({"listener": {"filter_chains": [{"filters": [{"typed_config": config}]}]}});
        assert_eq!(share(&listener(json!({"weighted_clusters": both}))).unwrap(), 25);
        assert_eq!(
            share(&listener(json!({"cluster": "edge/green/90/da39a3ee5e"}))).unwrap(),
            100
        );
        assert_eq!(
            share(&listener(json!({"cluster": "edge/blue/90/da39a3ee5e"}))).unwrap(),
            0
        );
        share(&json!({"name": "edge/blue/80/da39a3ee5e"})).unwrap_err();
    }
}
