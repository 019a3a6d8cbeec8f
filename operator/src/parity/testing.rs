//! A client of answers that a test gives, for what a real API server does not do on demand: lists that expire, break
//! off or are refused in the middle.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// Status and body.
pub(super) type Answer = (u16, String);

/// What was asked, in order.
pub(super) type Asked = Arc<Mutex<Vec<String>>>;

/// A client whose every request, path and query, is answered by `answer`.
pub(super) fn client(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> (Client, Asked) {
    let asked = Asked::default();
    let (log, answer) = (Arc::clone(&asked), Arc::new(answer));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
        async move {
            let what = request.uri().path_and_query().unwrap().as_str().to_owned();
            let (status, body) = answer(&what);
            log.lock().unwrap().push(what);
            let response = Response::builder()
                .status(status)
                .body(Body::from(body.into_bytes()));
            Ok::<_, Infallible>(response.unwrap())
        }
    });
    (Client::new(service, "default"), asked)
}

/// An answer.
pub(super) fn ok(body: &Value) -> Answer {
    (200, body.to_string())
}

/// A refusal in an API server's words.
pub(super) fn refused(code: u16, reason: &str) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code});
    (code, status.to_string())
}

/// A ConfigMap.
pub(super) fn config_map(name: &str, value: &str) -> Value {
    json!({"metadata": {"namespace": "shop", "name": name, "uid": value}, "data": {"value": value}})
}
