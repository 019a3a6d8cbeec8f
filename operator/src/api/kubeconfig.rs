//! From the text of a kubeconfig, as a Secret holds it, or from a person's own, to the API servers that it names.

use std::path::Path;

use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};

use super::{ApiServers, SetupError};

/// Named in messages instead of a path.
const WHERE: &str = "in the Secret";

impl ApiServers {
    /// From a kubeconfig that somebody else wrote. Its current context is used.
    ///
    /// # Guarantees
    /// Only what stands in the text is used: it may start no program, read no file of this pod, send credentials
    /// through no proxy and skip no check of the server's certificate.
    ///
    /// # Errors
    /// When it is none, lacks something, or asks for one of these.
    pub async fn from_kubeconfig(text: &str) -> Result<Self, SetupError> {
        let kubeconfig = Kubeconfig::from_yaml(text).map_err(of_no_use)?;
        if let Some(what) = refused(&kubeconfig) {
            return Err(SetupError::Foreign(what));
        }
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(of_no_use)?;
        config.proxy_url = None;
        Self::from_config(by_its_host(config), None)
    }

    /// From a person's own kubeconfig, as kubectl uses it: any cluster, not only one with kubeadm's certificates.
    ///
    /// # Errors
    /// When it is none, lacks something, or has no such context.
    pub async fn of_person(path: &Path, context: Option<&str>) -> Result<Self, SetupError> {
        let of_no_use = |source| SetupError::Kubeconfig {
            path: path.display().to_string(),
            source,
        };
        let options = KubeConfigOptions {
            context: context.map(str::to_owned),
            ..KubeConfigOptions::default()
        };
        let kubeconfig = Kubeconfig::read_from(path).map_err(of_no_use)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        Self::from_config(by_its_host(config.map_err(of_no_use)?), None)
    }
}

/// Not every cluster of others has kubeadm's certificates: the name to expect is the one in the URL.
fn by_its_host(mut config: Config) -> Config {
    if config.tls_server_name.is_none() {
        let host = config.cluster_url.host().unwrap_or_default();
        config.tls_server_name = Some(host.trim_matches(['[', ']']).to_owned());
    }
    config
}

fn of_no_use(source: KubeconfigError) -> SetupError {
    SetupError::Kubeconfig {
        path: WHERE.to_owned(),
        source,
    }
}

/// What in it reaches beyond itself.
fn refused(kubeconfig: &Kubeconfig) -> Option<&'static str> {
    let users = kubeconfig.auth_infos.iter().filter_map(|u| u.auth_info.as_ref());
    for user in users {
        let asked = [
            (
                user.exec.is_some(),
                "exec: no program is started; use a token or a client certificate",
            ),
            (
                user.auth_provider.is_some(),
                "auth-provider: it is not supported; use a token or a client certificate",
            ),
            (
                user.token_file.is_some(),
                "tokenFile: write the token itself, as token",
            ),
            (
                user.client_certificate.is_some(),
                "client-certificate: write the certificate itself, as client-certificate-data",
            ),
            (
                user.client_key.is_some(),
                "client-key: write the key itself, as client-key-data",
            ),
        ];
        if let Some((_, what)) = asked.iter().find(|(asks, _)| *asks) {
            return Some(what);
        }
    }
    let clusters = kubeconfig.clusters.iter().filter_map(|c| c.cluster.as_ref());
    for cluster in clusters {
        let asked = [
            (
                cluster.insecure_skip_tls_verify == Some(true),
                "insecure-skip-tls-verify: give the certificate authority, as certificate-authority-data",
            ),
            (
                cluster.certificate_authority.is_some(),
                "certificate-authority: write the certificate itself, as certificate-authority-data",
            ),
            (cluster.proxy_url.is_some(), "proxy-url: it is not supported"),
        ];
        if let Some((_, what)) = asked.iter().find(|(asks, _)| *asks) {
            return Some(what);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubeconfig(cluster: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: \"https://10.0.0.1:6443\"{cluster}}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\n"
        )
    }

    #[tokio::test]
    async fn nothing_outside_of_the_text_is_used() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        for (cluster, user, word) in [
            (
                "",
                "exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/sh}",
                "exec",
            ),
            (
                "",
                "tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token",
                "tokenFile",
            ),
            (
                "",
                "client-certificate: /etc/kubernetes/pki/a.crt",
                "client-certificate",
            ),
            ("", "client-key: /etc/kubernetes/pki/a.key", "client-key"),
            ("", "auth-provider: {name: gcp, config: {}}", "auth-provider"),
            (
                ", insecure-skip-tls-verify: true",
                "token: t",
                "insecure-skip-tls-verify",
            ),
            (
                ", certificate-authority: /etc/passwd",
                "token: t",
                "certificate-authority",
            ),
            (", proxy-url: \"http://10.0.0.2\"", "token: t", "proxy-url"),
        ] {
            let error = ApiServers::from_kubeconfig(&kubeconfig(cluster, user))
                .await
                .err();
            let text = error.map(|e| e.to_string()).unwrap_or_default();
            assert!(text.contains(word), "{word}: {text}");
        }
    }

    #[tokio::test]
    async fn a_plain_one_is_taken_and_what_is_none_is_refused() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        ApiServers::from_kubeconfig(&kubeconfig("", "token: t"))
            .await
            .unwrap();
        for text in ["", "hello", "apiVersion: v1\nkind: Config\n"] {
            assert!(ApiServers::from_kubeconfig(text).await.is_err(), "{text:?}");
        }
    }
}
