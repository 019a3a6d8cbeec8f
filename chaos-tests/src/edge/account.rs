//! Credentials with few rights: a ServiceAccount's.

use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, PostParams};
use serde_json::json;

use super::{Colour, Pair, app};

/// Longer than any scenario.
const SECONDS: i64 = 3600;

impl Pair<'_> {
    /// Makes a ServiceAccount in namespace `default` of a colour's cluster; its kubeconfig.
    pub async fn account(&self, colour: Colour, name: &str) -> Result<String> {
        let client = self.client(colour).await?;
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "default"},
        });
        app::apply(self, &client, &account).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client, "default");
        let request = TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: Some(SECONDS),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let params = PostParams::default();
        let made = accounts.create_token_request(name, &params, &request).await?;
        self.kubeconfig_with(colour, &made.status.context("no token was given")?.token)
    }

    /// A kubeconfig with a token, and nothing else of the admin's.
    pub fn kubeconfig_with(&self, colour: Colour, token: &str) -> Result<String> {
        let mut kubeconfig: serde_yaml::Value = serde_yaml::from_str(&self.kubeconfig(colour)?)?;
        let user = kubeconfig
            .get_mut("users")
            .and_then(|users| users.get_mut(0)?.get_mut("user"))
            .context("the kubeconfig has no users[0].user")?;
        *user = serde_yaml::to_value(json!({"token": token}))?;
        Ok(serde_yaml::to_string(&kubeconfig)?)
    }
}
