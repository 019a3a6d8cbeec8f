//! Whom a client of a server that is no API server believes.

use reqwest::{Certificate, ClientBuilder};

/// With authorities: these alone. Without: those of the image, where TLS is spoken. Where it is not, no certificate will
/// be looked at, so an image without any is no reason to fail.
pub(crate) fn only(authorities: Option<Vec<Certificate>>, url: &str, client: ClientBuilder) -> ClientBuilder {
    match authorities {
        Some(authorities) => client.tls_certs_only(authorities),
        None if url.starts_with("http://") => client.tls_certs_only([]),
        None => client,
    }
}
