//! Candidates against a Lease API in memory, with time that jumps.

use std::sync::Mutex;

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};

use hyper::body::Frame;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::*;

type Answer = UnsyncBoxBody<Bytes, BoxError>;

/// An API that knows one Lease.
#[derive(Clone)]
struct Fake {
    state: Arc<Mutex<State>>,
    news: broadcast::Sender<String>,
}

#[derive(Default)]
struct State {
    lease: Option<Value>,
    version: u64,
    requests: Vec<String>,
    cut_off: Vec<&'static str>,
}

impl Fake {
    fn new() -> Self {
        Self {
            state: Arc::default(),
            news: broadcast::channel(64).0,
        }
    }

    fn client(&self, who: &'static str) -> kube::Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move {
                fake.state.lock().unwrap().requests.push(who.to_owned());
                if fake.state.lock().unwrap().cut_off.contains(&who) {
                    std::future::pending::<()>().await;
                }
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                Ok::<_, BoxError>(fake.answer(&parts, &body))
            }
        });
        kube::Client::new(service, "ns")
    }

    fn answer(&self, parts: &http::request::Parts, body: &Bytes) -> Response<Answer> {
        let mut state = self.state.lock().unwrap();
        let query = parts.uri.query().unwrap_or_default();
        if query.contains("watch=true") {
            let events = stream::unfold(self.news.subscribe(), |mut news| async {
                let line = news.recv().await.ok()?;
                Some((Ok::<_, BoxError>(Frame::data(Bytes::from(line))), news))
            });
            return Response::new(StreamBody::new(events).boxed_unsync());
        }
        let named = parts.uri.path().ends_with(LEASE);
        match (&parts.method, named, &state.lease) {
            (&Method::GET, true, Some(lease)) => json_response(StatusCode::OK, lease),
            (&Method::GET, false, lease) => json_response(
                StatusCode::OK,
                &json!({"kind": "LeaseList", "apiVersion": "coordination.k8s.io/v1",
                    "metadata": {"resourceVersion": state.version.to_string()},
                    "items": lease.iter().collect::<Vec<_>>()}),
            ),
            (_, true, None) => failure(StatusCode::NOT_FOUND, "NotFound"),
            (&Method::POST, false, Some(_)) => failure(StatusCode::CONFLICT, "AlreadyExists"),
            (&Method::POST, false, None) => self.store(&mut state, body, "ADDED"),
            (&Method::PUT, true, Some(old)) => {
                let new: Value = serde_json::from_slice(body).unwrap();
                if new["metadata"]["resourceVersion"] == old["metadata"]["resourceVersion"] {
                    self.store(&mut state, body, "MODIFIED")
                } else {
                    failure(StatusCode::CONFLICT, "Conflict")
                }
            }
            other => panic!("unexpected request {other:?}"),
        }
    }

    fn store(&self, state: &mut State, body: &Bytes, event: &str) -> Response<Answer> {
        let mut lease: Value = serde_json::from_slice(body).unwrap();
        state.version += 1;
        lease["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let _ = self
            .news
            .send(format!("{}\n", json!({"type": event, "object": lease})));
        let response = json_response(StatusCode::OK, &lease);
        state.lease = Some(lease);
        response
    }

    fn cut_off(&self, who: &'static str) {
        self.state.lock().unwrap().cut_off.push(who);
    }

    fn holder(&self) -> Option<String> {
        let state = self.state.lock().unwrap();
        state.lease.as_ref()?["spec"]["holderIdentity"]
            .as_str()
            .map(str::to_owned)
    }

    fn requests(&self, who: &str) -> usize {
        self.state
            .lock()
            .unwrap()
            .requests
            .iter()
            .filter(|w| *w == who)
            .count()
    }
}

fn json_response(status: StatusCode, value: &Value) -> Response<Answer> {
    Response::builder()
        .status(status)
        .body(
            Full::new(Bytes::from(value.to_string()))
                .map_err(BoxError::from)
                .boxed_unsync(),
        )
        .unwrap()
}

fn failure(status: StatusCode, reason: &str) -> Response<Answer> {
    json_response(
        status,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": reason, "reason": reason, "code": status.as_u16()}),
    )
}

/// What a candidate did, in the order of time.
type Diary = Arc<Mutex<Vec<(&'static str, &'static str, Duration, i32)>>>;

struct World {
    fake: Fake,
    diary: Diary,
    start: Instant,
}

struct Running {
    task: JoinHandle<Result<(), LeaderError>>,
    shutdown: CancellationToken,
    exited: Arc<Mutex<Option<i32>>>,
}

impl World {
    fn new() -> Self {
        Self {
            fake: Fake::new(),
            diary: Diary::default(),
            start: Instant::now(),
        }
    }

    /// `obedient`: the work ends when its token says so.
    fn join(&self, who: &'static str, obedient: bool) -> Running {
        let mut candidate = Candidate::new(
            self.fake.client(who),
            Endpoints::default(),
            "ns",
            identity(who),
            Arc::new(|_| {}),
        );
        let exited = Arc::new(Mutex::new(None));
        let exit = Arc::clone(&exited);
        candidate.exit = Arc::new(move |code| *exit.lock().unwrap() = Some(code));
        let shutdown = CancellationToken::new();
        let (diary, start) = (Arc::clone(&self.diary), self.start);
        let work = move |leadership: Leadership| {
            let diary = Arc::clone(&diary);
            async move {
                let note = |what| {
                    diary
                        .lock()
                        .unwrap()
                        .push((who, what, start.elapsed(), leadership.epoch));
                };
                note("begins");
                leadership.token.cancelled().await;
                if !obedient {
                    std::future::pending::<()>().await;
                }
                note("ends");
                Ok(())
            }
        };
        Running {
            task: tokio::spawn(run_while_leader(candidate, shutdown.clone(), work)),
            shutdown,
            exited,
        }
    }

    fn entries(&self) -> Vec<(&'static str, &'static str, u64, i32)> {
        let diary = self.diary.lock().unwrap();
        diary
            .iter()
            .map(|(a, b, at, e)| (*a, *b, at.as_secs(), *e))
            .collect()
    }
}

async fn seconds(n: u64) {
    sleep(Duration::from_secs(n)).await;
}

#[tokio::test(start_paused = true)]
async fn a_killed_leader_is_replaced_within_the_lease() {
    let world = World::new();
    let a = world.join("a", true);
    seconds(1).await;
    let _b = world.join("b", true);
    seconds(49).await;
    assert_eq!(world.entries(), [("a", "begins", 0, 1)]);
    a.task.abort();
    seconds(31).await;
    let entries = world.entries();
    let (who, what, at, epoch) = *entries.last().unwrap();
    assert_eq!((who, what, epoch), ("b", "begins", 2));
    assert!((50..=80).contains(&at), "{at}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_asked_to_leave_hands_over_at_once() {
    let world = World::new();
    let a = world.join("a", true);
    seconds(1).await;
    let _b = world.join("b", true);
    seconds(9).await;
    a.shutdown.cancel();
    assert!(a.task.await.unwrap().is_ok());
    seconds(1).await;
    assert_eq!(
        world.entries(),
        [
            ("a", "begins", 0, 1),
            ("a", "ends", 10, 1),
            ("b", "begins", 10, 2)
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_stops_before_another_begins_and_stands_again() {
    let world = World::new();
    let a = world.join("a", true);
    seconds(1).await;
    let _b = world.join("b", true);
    seconds(4).await;
    world.fake.cut_off("a");
    seconds(60).await;
    let entries = world.entries();
    assert_eq!(
        entries
            .iter()
            .map(|(who, what, ..)| (*who, *what))
            .collect::<Vec<_>>(),
        [("a", "begins"), ("a", "ends"), ("b", "begins")]
    );
    assert!(entries[1].2 <= 20 && entries[2].2 >= 30, "{entries:?}");
    assert!(!a.task.is_finished());
    assert_eq!(*a.exited.lock().unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn work_that_outlives_the_lease_takes_the_process_with_it() {
    let world = World::new();
    let a = world.join("a", false);
    seconds(1).await;
    world.fake.cut_off("a");
    seconds(18).await;
    assert_eq!(*a.exited.lock().unwrap(), None);
    seconds(7).await;
    assert_eq!(*a.exited.lock().unwrap(), Some(EXIT_WORK_OUTLIVED_LEASE));
    assert!(matches!(a.task.await.unwrap(), Err(LeaderError::Outlived(_))));
}

#[tokio::test(start_paused = true)]
async fn a_restarted_container_leads_again_without_a_wait() {
    let world = World::new();
    let a = world.join("a", true);
    seconds(5).await;
    a.task.abort();
    let _ = a.task.await;
    let _again = world.join("a", true);
    seconds(1).await;
    assert_eq!(world.entries(), [("a", "begins", 0, 1), ("a", "begins", 5, 2)]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_pair_asks_for_little() {
    let world = World::new();
    let _a = world.join("a", true);
    seconds(1).await;
    let _b = world.join("b", true);
    seconds(600).await;
    assert!(world.fake.requests("a") <= 80, "{}", world.fake.requests("a"));
    assert!(world.fake.requests("b") <= 5, "{}", world.fake.requests("b"));
    assert!(world.fake.holder().unwrap().starts_with("a_"));
}

#[tokio::test(start_paused = true)]
async fn work_that_fails_ends_the_process_and_frees_the_lease() {
    let world = World::new();
    let candidate = Candidate::new(
        world.fake.client("a"),
        Endpoints::default(),
        "ns",
        identity("a"),
        Arc::new(|_| {}),
    );
    let error = run_while_leader(candidate, CancellationToken::new(), |_| async {
        Err("broken".into())
    })
    .await
    .unwrap_err();
    assert_eq!(error.to_string(), "the leader's work ended: broken");
    assert_eq!(world.fake.holder(), None);
}

#[tokio::test(start_paused = true)]
async fn one_who_slept_through_its_lease_may_not_write() {
    let leadership = Leadership::for_test();
    assert!(leadership.check().is_ok());
    tokio::time::advance(Duration::from_secs(86400)).await;
    assert_eq!(leadership.check(), Err(NotLeading));
}
