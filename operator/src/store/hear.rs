//! What a server's answers say beside what was asked for: the time, and whether the bucket keeps versions.

use async_trait::async_trait;
use chrono::Utc;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};

use super::clock::{Clock, Reading};
use super::versions::Versions;

/// Of one store's server, so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard {
    pub(super) clock: Clock,
    pub(super) versions: Versions,
}

impl HttpConnector for Heard {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Listener {
            client: ReqwestConnector::default().connect(options)?,
            heard: self.clone(),
        }))
    }
}

#[derive(Debug)]
struct Listener {
    client: HttpClient,
    heard: Heard,
}

#[async_trait]
impl HttpService for Listener {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let sent = Utc::now();
        let answer = self.client.execute(request).await?;
        let reading = Reading::of(answer.headers(), sent, Utc::now());
        self.heard.clock.note(reading);
        self.heard.versions.note(answer.status(), answer.headers());
        Ok(answer)
    }
}
