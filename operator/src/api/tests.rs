//! The client against small TLS servers that die, hang and come back.

use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::testing::{CA, Manner, TlsServer as Server, api_servers as servers};
use super::*;

async fn ask(client: &Client) -> Result<String, kube::Error> {
    let request = http::Request::get("/version").body(vec![]).unwrap();
    Ok(client.request::<serde_json::Value>(request).await?["gitVersion"]
        .as_str()
        .unwrap()
        .to_owned())
}

#[tokio::test]
async fn when_the_first_dies_the_next_request_lands_on_the_second() {
    let (a, b) = (
        Server::start("a", Manner::Answers).await,
        Server::start("b", Manner::Answers).await,
    );
    let api = servers(&b.address);
    api.endpoints().learn([a.address.clone()]);
    assert_eq!(ask(&api.client()).await.unwrap(), "a");
    a.kill().await;
    assert_eq!(ask(&api.client()).await.unwrap(), "b");
}

#[tokio::test]
async fn a_new_list_takes_effect_for_the_next_connection() {
    let (a, b) = (
        Server::start("a", Manner::Answers).await,
        Server::start("b", Manner::Answers).await,
    );
    let api = servers(&a.address);
    assert_eq!(ask(&api.client()).await.unwrap(), "a");
    api.endpoints().learn([b.address.clone()]);
    a.kill().await;
    assert_eq!(ask(&api.client()).await.unwrap(), "b");
}

/// A listener whose backlog is full: the kernel drops further SYNs, as a powered-off node would.
async fn blackhole() -> (Address, Vec<tokio::net::TcpStream>, tokio::net::TcpListener) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = vec![];
    while let Ok(Ok(stream)) = timeout_short(tokio::net::TcpStream::connect(address)).await {
        held.push(stream);
    }
    (address.to_string().parse().unwrap(), held, listener)
}

async fn timeout_short<T>(future: impl Future<Output = T>) -> Result<T, tokio::time::error::Elapsed> {
    tokio::time::timeout(Duration::from_millis(200), future).await
}

#[tokio::test]
async fn an_address_that_does_not_accept_costs_a_second_once() {
    let b = Server::start("b", Manner::Answers).await;
    let (hole, _held, _listener) = blackhole().await;
    let api = servers(&b.address);
    api.endpoints().learn([hole]);
    let start = std::time::Instant::now();
    assert_eq!(ask(&api.client()).await.unwrap(), "b");
    assert!(
        start.elapsed() < Duration::from_millis(1500),
        "{:?}",
        start.elapsed()
    );
    assert!(
        start.elapsed() >= Duration::from_millis(900),
        "the hole was not tried"
    );
    // A second client shares no connection, but the memory.
    let client = build(
        &api.shared.config,
        &api.shared.tls,
        &api.shared.name,
        api.endpoints().clone(),
        Patience::Enduring,
    )
    .unwrap();
    let start = std::time::Instant::now();
    assert_eq!(ask(&client).await.unwrap(), "b");
    assert!(
        start.elapsed() < Duration::from_millis(500),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_with_all_its_connections() {
    let (a, b) = (
        Server::start("a", Manner::Hangs).await,
        Server::start("b", Manner::Answers).await,
    );
    let api = servers(&b.address);
    api.endpoints().learn([a.address.clone()]);
    let watch = watch(&api, &a).await;
    let start = std::time::Instant::now();
    let error = api.within("ask", ask(&api.client())).await.unwrap_err();
    assert!(start.elapsed() < ANSWER_LIMIT + Duration::from_secs(1));
    assert!(
        error
            .to_string()
            .contains(&format!("{} left GET /version unanswered for 8 s", a.address)),
        "{error}"
    );
    let watch = timeout_short(watch)
        .await
        .expect("the watch still hangs")
        .unwrap();
    assert!(watch.unwrap_err().to_string().contains("was given up"));
    assert_eq!(ask(&api.client()).await.unwrap(), "b");
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_by_a_caller_too_who_cannot_wait_so_long() {
    let (a, b) = (
        Server::start("a", Manner::Hangs).await,
        Server::start("b", Manner::Answers).await,
    );
    let api = servers(&b.address);
    api.endpoints().learn([a.address.clone()]);
    let mut watch = watch(&api, &a).await;
    let client = api.client();
    let dropped = async |after| tokio::time::timeout(Duration::from_secs(after), ask(&client)).await;
    assert!(dropped(1).await.is_err());
    let early = tokio::time::timeout(Duration::from_millis(200), &mut watch);
    assert!(
        early.await.is_err(),
        "who drops a request early has a reason of its own"
    );
    assert!(dropped(5).await.is_err());
    let watch = timeout_short(watch)
        .await
        .expect("the watch still hangs")
        .unwrap();
    assert!(watch.unwrap_err().to_string().contains("was given up"));
    assert_eq!(ask(&client).await.unwrap(), "b");
}

#[tokio::test]
async fn a_watch_follows_to_the_server_that_is_asked() {
    let (a, b, service) = (
        Server::start("a", Manner::Begins).await,
        Server::start("b", Manner::Answers).await,
        Server::start("service", Manner::Answers).await,
    );
    let api = servers(&service.address);
    api.endpoints().learn([a.address.clone()]);
    let mut watch = watch(&api, &a).await;
    while api.endpoints().current() != Some(a.address.clone()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    api.endpoints().learn([b.address.clone(), a.address.clone()]);
    assert_eq!(ask(&api.client()).await.unwrap(), "b");
    assert!(
        timeout_short(&mut watch).await.is_err(),
        "others may wait for an answer there"
    );
    let limit = ANSWER_LIMIT + Duration::from_secs(1);
    let watch = tokio::time::timeout(limit, watch).await;
    let watch = watch.expect("the watch stays where nobody asks").unwrap();
    let error = explain(&watch.unwrap_err());
    assert!(error.contains("was given up"), "{error}");
}

#[tokio::test]
async fn an_agent_comes_home_to_its_own_nodes_server() {
    let (own, service) = (
        Server::start("own", Manner::Answers).await,
        Server::start("service", Manner::Hangs).await,
    );
    let api = servers(&service.address);
    api.endpoints().prefer(Some(own.address.clone()));
    api.endpoints()
        .failed(&own.address, tokio::time::Instant::now(), "it is upgraded");
    let watch = watch(&api, &service).await;
    tokio::time::pause();
    tokio::time::advance(connect::REFUGE_LIMIT).await;
    tokio::time::resume();
    let watch = timeout_short(watch).await.expect("it stays away").unwrap();
    assert!(watch.unwrap_err().to_string().contains("is left for"));
    assert_eq!(ask(&api.client()).await.unwrap(), "own");
}

/// A request to this server that waits as a watch would, without a limit of its own.
async fn watch(
    api: &ApiServers,
    server: &Server,
) -> tokio::task::JoinHandle<Result<serde_json::Value, kube::Error>> {
    let watcher = Client::new(
        call::Caller {
            http: HttpClient::builder(TokioExecutor::new()).build(connect::Dialer::new(
                api.endpoints().clone(),
                Arc::clone(&api.shared.tls),
                api.shared.name.clone(),
            )),
            endpoints: api.endpoints().clone(),
            limit: Duration::from_secs(300),
        },
        "default",
    );
    let watch = tokio::spawn(async move {
        let request = http::Request::get("https://x/watch").body(vec![]).unwrap();
        watcher.request::<serde_json::Value>(request).await
    });
    while server.requests() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    watch
}

#[tokio::test]
async fn a_retry_goes_elsewhere_when_a_server_says_that_it_is_leaving() {
    let (a, b) = (
        Server::start("a", Manner::Leaves).await,
        Server::start("b", Manner::Answers).await,
    );
    let api = servers(&b.address);
    api.endpoints().learn([a.address.clone()]);
    assert_eq!(ask(&api.client()).await.unwrap(), "b");
    assert_eq!(a.requests(), 1);
}

#[tokio::test]
async fn a_bound_client_falls_back_on_nobody() {
    let (a, b) = (
        Server::start("a", Manner::Answers).await,
        Server::start("b", Manner::Answers).await,
    );
    let api = servers(&b.address);
    let bound = api.client_for(&a.address).unwrap();
    assert_eq!(ask(&bound).await.unwrap(), "a");
    let address = a.address.clone();
    a.kill().await;
    let error = within(CALL_LIMIT, "ask", &Endpoints::only(address.clone()), ask(&bound))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(address.as_str()) && error.contains("refused"),
        "{error}"
    );
    assert_eq!(b.requests(), 0);
}

#[tokio::test]
async fn a_server_with_another_certificate_is_not_believed() {
    let a = Server::start("a", Manner::Answers).await;
    let mut config = Config::new(format!("https://{}", a.address).parse().unwrap());
    config.root_cert = Some(vec![CertificateDer::from_pem_slice(CA).unwrap().to_vec()]);
    config.tls_server_name = Some("kubernetes.example.org".to_owned());
    let api = ApiServers::from_config(config, None).unwrap();
    let error = api
        .within("ask", ask(&api.client()))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("certificate"), "{error}");
    assert_eq!(a.requests(), 0);
}

#[test]
fn a_url_without_tls_is_refused_with_the_way_out() {
    let config = Config::new("http://127.0.0.1:8001".parse().unwrap());
    let error = ApiServers::from_config(config, None).err().unwrap().to_string();
    assert_eq!(
        error,
        "the API server's URL http://127.0.0.1:8001/ is of no use: it is not https; write https://host:port"
    );
}
