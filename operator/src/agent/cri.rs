//! The container runtime's own word on what runs: a client for the few CRI calls that the agent needs.
//!
//! Messages are written by hand after `k8s.io/cri-api/pkg/apis/runtime/v1/api.proto` (field numbers are the
//! protocol; fields left out are skipped by the decoder). Every call has a deadline.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// A runtime that answers later than this is not well; looking again is cheap.
const DEADLINE: Duration = Duration::from_secs(5);

/// The kubelet's own limit on a CRI message.
const LARGEST: usize = 16 * 1024 * 1024;

/// `CONTAINER_RUNNING`.
pub(crate) const RUNNING: i32 = 1;
/// `CONTAINER_EXITED`.
pub(crate) const EXITED: i32 = 2;

/// Labels that the kubelet puts on every container.
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";

#[derive(Clone, PartialEq, prost::Message)]
struct ListContainersRequest {
    #[prost(message, optional, tag = "1")]
    filter: Option<ContainerFilter>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerFilter {
    #[prost(map = "string, string", tag = "4")]
    label_selector: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ListContainersResponse {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Container>,
}

/// A container as it is listed.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Container {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "4")]
    pub(crate) image: Option<ImageSpec>,
    #[prost(string, tag = "5")]
    pub(crate) image_ref: String,
    #[prost(int32, tag = "6")]
    pub(crate) state: i32,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "7")]
    pub(crate) created_at: i64,
    #[prost(map = "string, string", tag = "8")]
    pub(crate) labels: HashMap<String, String>,
    #[prost(string, tag = "10")]
    pub(crate) image_id: String,
}

impl Container {
    /// A label's value, or nothing.
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    /// Whether this is the container `name` of the static pod `name`, which goes by its name and the node's: pods
    /// that Lockkeeper itself starts beside them are not taken for them.
    pub(crate) fn is_of_static_pod(&self, name: &str) -> bool {
        let of_pod = |pod: &str| pod.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'));
        self.label(CONTAINER_NAME) == name && of_pod(self.label(POD_NAME))
    }
}

/// A container's name and how often it was started anew in its pod.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ContainerMetadata {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(uint32, tag = "2")]
    pub(crate) attempt: u32,
}

/// A reference to an image.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ImageSpec {
    /// What the kubelet asked for: often the image's id, not its name.
    #[prost(string, tag = "1")]
    pub(crate) image: String,
    /// What the manifest asked for; runtimes before CRI 1.28 do not keep it.
    #[prost(string, tag = "18")]
    pub(crate) user_specified_image: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerStatusRequest {
    #[prost(string, tag = "1")]
    container_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<ContainerStatus>,
}

/// A container in detail. Times are nanoseconds since 1970, zero when it has not come to that.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ContainerStatus {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(int32, tag = "3")]
    pub(crate) state: i32,
    #[prost(int64, tag = "5")]
    pub(crate) started_at: i64,
    #[prost(int64, tag = "6")]
    pub(crate) finished_at: i64,
    #[prost(int32, tag = "7")]
    pub(crate) exit_code: i32,
    #[prost(message, optional, tag = "8")]
    pub(crate) image: Option<ImageSpec>,
    #[prost(string, tag = "9")]
    pub(crate) image_ref: String,
    #[prost(string, tag = "10")]
    pub(crate) reason: String,
    #[prost(string, tag = "11")]
    pub(crate) message: String,
    #[prost(string, tag = "15")]
    pub(crate) log_path: String,
    #[prost(string, tag = "17")]
    pub(crate) image_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ImageStatusResponse {
    #[prost(message, optional, tag = "1")]
    image: Option<Image>,
}

/// An image on this node.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Image {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, repeated, tag = "2")]
    pub(crate) repo_tags: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    pub(crate) repo_digests: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PullImageResponse {
    #[prost(string, tag = "1")]
    image_ref: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StopContainerRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    /// Seconds between the signal to end and the kill.
    #[prost(int64, tag = "2")]
    timeout: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StopContainerResponse {}

/// Why the runtime could not be asked.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CriError {
    #[error("--cri-socket {given} is not of the form unix:///path")]
    Socket { given: String },
    #[error("the container runtime did not answer {call} within {seconds} s")]
    Deadline { call: &'static str, seconds: u64 },
    #[error("the container runtime refused {call}: {}", status.message())]
    Status {
        call: &'static str,
        status: Box<tonic::Status>,
    },
    #[error("the container runtime cannot be reached for {call}: {why}")]
    Connect { call: &'static str, why: String },
}

/// A client of the runtime's socket. Connects when first used, and again after the runtime was restarted.
#[derive(Clone, Debug)]
pub(crate) struct Cri {
    channel: Channel,
}

impl Cri {
    /// A client for `unix:///run/containerd/containerd.sock` or another runtime's socket.
    pub(crate) fn new(socket: &str) -> Result<Self, CriError> {
        let path = socket
            .strip_prefix("unix://")
            .filter(|p| p.starts_with('/'))
            .map(PathBuf::from)
            .ok_or_else(|| CriError::Socket {
                given: socket.to_owned(),
            })?;
        let connector = tower::service_fn(move |_: http::Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The address is a formality: the connector knows the socket.
        let channel = Endpoint::from_static("http://localhost")
            .connect_timeout(DEADLINE)
            .connect_with_connector_lazy(connector);
        Ok(Self { channel })
    }

    async fn call<Q, R>(
        &self,
        call: &'static str,
        path: &'static str,
        request: Q,
        deadline: Duration,
    ) -> Result<R, CriError>
    where
        Q: prost::Message + Send + Sync + 'static,
        R: prost::Message + Default + Send + Sync + 'static,
    {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(LARGEST);
        let answer = tokio::time::timeout(deadline, async {
            grpc.ready().await.map_err(|error| CriError::Connect {
                call,
                why: error.to_string(),
            })?;
            grpc.unary(
                tonic::Request::new(request),
                PathAndQuery::from_static(path),
                ProstCodec::<Q, R>::default(),
            )
            .await
            .map_err(|status| CriError::Status {
                call,
                status: Box::new(status),
            })
        })
        .await;
        match answer {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(CriError::Deadline {
                call,
                seconds: deadline.as_secs(),
            }),
        }
    }

    /// Every container of the namespace `kube-system`, running or not.
    pub(crate) async fn containers(&self) -> Result<Vec<Container>, CriError> {
        let filter = ContainerFilter {
            label_selector: HashMap::from([(POD_NAMESPACE.to_owned(), "kube-system".to_owned())]),
        };
        let request = ListContainersRequest { filter: Some(filter) };
        let answer: ListContainersResponse = self
            .call(
                "ListContainers",
                "/runtime.v1.RuntimeService/ListContainers",
                request,
                DEADLINE,
            )
            .await?;
        Ok(answer.containers)
    }

    /// One container in detail; none when it is gone.
    pub(crate) async fn container(&self, id: &str) -> Result<Option<ContainerStatus>, CriError> {
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
        };
        let answer: Result<ContainerStatusResponse, _> = self
            .call(
                "ContainerStatus",
                "/runtime.v1.RuntimeService/ContainerStatus",
                request,
                DEADLINE,
            )
            .await;
        match answer {
            Ok(answer) => Ok(answer.status),
            Err(CriError::Status { status, .. }) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Kills a container that has been told to end before. One that is gone is none to complain about.
    pub(crate) async fn kill(&self, id: &str) -> Result<(), CriError> {
        self.end(id, 0).await
    }

    /// Tells a container to end, and kills it after so many seconds.
    pub(crate) async fn end(&self, id: &str, seconds: u8) -> Result<(), CriError> {
        let request = StopContainerRequest {
            container_id: id.to_owned(),
            timeout: i64::from(seconds),
        };
        let _: StopContainerResponse = self
            .call(
                "StopContainer",
                "/runtime.v1.RuntimeService/StopContainer",
                request,
                DEADLINE + Duration::from_secs(seconds.into()),
            )
            .await?;
        Ok(())
    }

    /// An image by any reference or id; none when it is not on this node.
    pub(crate) async fn image(&self, reference: &str) -> Result<Option<Image>, CriError> {
        let answer: Result<ImageStatusResponse, _> = self
            .call(
                "ImageStatus",
                "/runtime.v1.ImageService/ImageStatus",
                image_request(reference),
                DEADLINE,
            )
            .await;
        match answer {
            Ok(answer) => Ok(answer.image),
            Err(CriError::Status { status, .. }) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Pulls an image, without credentials of its own: the runtime's configuration has them where they are needed.
    pub(crate) async fn pull(&self, reference: &str, deadline: Duration) -> Result<(), CriError> {
        let _: PullImageResponse = self
            .call(
                "PullImage",
                "/runtime.v1.ImageService/PullImage",
                image_request(reference),
                deadline,
            )
            .await?;
        Ok(())
    }
}

fn image_request(reference: &str) -> ImageRequest {
    ImageRequest {
        image: Some(ImageSpec {
            image: reference.to_owned(),
            user_specified_image: String::new(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn a_socket_must_be_a_unix_socket() {
        assert!(matches!(
            Cri::new("/run/containerd/containerd.sock"),
            Err(CriError::Socket { .. })
        ));
        assert!(matches!(
            Cri::new("tcp://127.0.0.1:1"),
            Err(CriError::Socket { .. })
        ));
    }

    #[test]
    fn the_filter_is_what_the_protocol_says() {
        // filter = 1 { label_selector = 4 { key = 1 "a", value = 2 "b" } }
        let request = ListContainersRequest {
            filter: Some(ContainerFilter {
                label_selector: HashMap::from([("a".to_owned(), "b".to_owned())]),
            }),
        };
        assert_eq!(
            request.encode_to_vec(),
            [0x0a, 8, 0x22, 6, 0x0a, 1, b'a', 0x12, 1, b'b']
        );
    }
}
