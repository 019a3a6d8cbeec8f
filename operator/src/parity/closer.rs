//! Which fields differ: the objects that differ are read once more, a bounded number of them.

use std::time::Duration;

use kube::Client;
use lockkeeper_policies::parity::{Kind, fields, normalise};
use serde_json::Value;
use tokio::time::timeout;

use super::inventory::Order;

/// Fields named of one object.
const FIELDS: usize = 5;
/// For one object.
const LIMIT: Duration = Duration::from_secs(10);

/// The paths of the fields in which an object differs between the clusters; empty when it does not any more; none when
/// it could not be read.
pub(super) async fn look(
    blue: &Client,
    green: &Client,
    order: &Order,
    namespace: &str,
    name: &str,
) -> Option<Vec<String>> {
    let path = order.path_of(namespace, name);
    let both = async { tokio::try_join!(read(blue, &path, &order.kind), read(green, &path, &order.kind)) };
    let (blue, green) = timeout(LIMIT, both).await.ok()?.ok()?;
    Some(fields(&blue?, &green?, FIELDS))
}

/// None: there is no such object any more, or it is not one to compare.
async fn read(client: &Client, path: &str, kind: &Kind) -> Result<Option<Value>, kube::Error> {
    let request = http::Request::get(path)
        .body(Vec::new())
        .map_err(kube::Error::HttpError)?;
    let object: Value = client.request(request).await?;
    Ok(normalise(kind, object).ok().flatten().map(|n| n.value))
}
