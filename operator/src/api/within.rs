//! A limit on every API call, and an error that says what was attempted and where.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{Endpoints, explain};

/// What a single call may take unless its site says otherwise. Above the 8 s after which a silent server
/// is given up ([`super::ANSWER_LIMIT`]), so that this one only ends what neither server nor network did.
pub const CALL_LIMIT: Duration = Duration::from_secs(10);

/// A call to the Kubernetes API that did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No answer in time.
    #[error("could not {what} within {} s; API servers: {servers}", limit.as_secs_f32())]
    Late {
        /// What was attempted.
        what: String,
        /// How long was waited.
        limit: Duration,
        /// The servers and what is remembered of them.
        servers: String,
    },
    /// An answer, and not the one that was wanted.
    #[error("could not {what}: {why}")]
    Refused {
        /// What was attempted.
        what: String,
        /// Status and message of the server, in one line.
        why: String,
        /// What the server said.
        #[source]
        source: kube::Error,
    },
    /// No server was reached, or the connection broke.
    #[error("could not {what}: {why}; API servers: {servers}")]
    Unreachable {
        /// What was attempted.
        what: String,
        /// The causes in one line.
        why: String,
        /// The servers and what is remembered of them.
        servers: String,
        /// The cause.
        #[source]
        source: kube::Error,
    },
}

impl ApiError {
    fn status(&self) -> Option<u16> {
        match self {
            Self::Refused {
                source: kube::Error::Api(status),
                ..
            } => Some(status.code),
            _ => None,
        }
    }

    /// The object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }

    /// The object exists already, or was changed by somebody else since it was read.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.status() == Some(409)
    }

    /// The service account may not do that: a mistake of installation, not of the moment.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        self.status() == Some(403)
    }

    /// A server refused the object itself; trying again changes nothing.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(self.status(), Some(400 | 422))
    }

    /// True when no server gave an answer: what was asked for may or may not have happened.
    #[must_use]
    pub const fn is_unanswered(&self) -> bool {
        matches!(self, Self::Late { .. } | Self::Unreachable { .. })
    }
}

/// Awaits one API call for at most `limit`. `what` completes the sentence "could not …".
///
/// # Errors
/// [`ApiError`], with `what` in it.
///
/// # Caveats
/// A call that ran out of time may still take effect on the server.
pub async fn within<T>(
    limit: Duration,
    what: impl Display,
    endpoints: &Endpoints,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ApiError> {
    match timeout(limit, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source @ kube::Error::Api(_))) => Err(ApiError::Refused {
            what: what.to_string(),
            why: explain(&source),
            source,
        }),
        Ok(Err(source)) => Err(ApiError::Unreachable {
            what: what.to_string(),
            why: explain(&source),
            servers: endpoints.describe(Instant::now()),
            source,
        }),
        Err(_) => Err(ApiError::Late {
            what: what.to_string(),
            limit,
            servers: endpoints.describe(Instant::now()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_without_an_answer_ends_and_says_what_and_where() {
        let endpoints = Endpoints::only("10.0.0.1:6443".parse().unwrap());
        let error = within(
            CALL_LIMIT,
            "read Lease kube-system/x",
            &endpoints,
            std::future::pending::<Result<(), kube::Error>>(),
        )
        .await
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "could not read Lease kube-system/x within 10 s; API servers: 10.0.0.1:6443"
        );
        assert!(error.is_unanswered());
    }

    #[tokio::test]
    async fn a_refusal_keeps_the_servers_words() {
        let endpoints = Endpoints::default();
        let status = kube::core::Status::failure("leases \"x\" not found", "NotFound").with_code(404);
        let error = within(CALL_LIMIT, "read Lease x", &endpoints, async {
            Err::<(), _>(kube::Error::Api(Box::new(status)))
        })
        .await
        .unwrap_err();
        assert!(error.is_not_found() && !error.is_unanswered());
        assert_eq!(
            error.to_string(),
            "could not read Lease x: leases \"x\" not found (404 NotFound)"
        );
    }
}
