//! A store from files, where no API is there to ask.

use std::path::Path;

use k8s_openapi::api::core::v1::Secret;
use lockkeeper_crds::EtcdBackupStore;

use super::open::{ACCESS_KEY_ID, SECRET_ACCESS_KEY, key_pair};
use super::{Credentials, Failure, Secrets, Store, StoreError};

impl Store {
    /// A store of what lies in files.
    ///
    /// `store` holds an `EtcdBackupStore` as YAML or JSON, as `kubectl get -o yaml` prints it. `credentials` holds its
    /// Secret in the same way, or lines `AWS_ACCESS_KEY_ID=…` and `AWS_SECRET_ACCESS_KEY=…`, the names in upper or
    /// lower case: an environment file or `~/.aws/credentials` with one profile. None: a directory needs none, and for
    /// a bucket the environment says who we are.
    ///
    /// It reads what is there. What it would keep is encrypted for the store's recipients; a passphrase is not given
    /// here, and without it nothing is kept. The keys that open a backup are [`super::Identities`].
    ///
    /// # Errors
    /// When a file cannot be read or understood; it is named, and nothing of what it holds.
    pub fn from_files<'a>(
        store: &Path,
        credentials: impl Into<Option<&'a Path>>,
    ) -> Result<Self, StoreError> {
        let at = store.display().to_string();
        let fail = |failure| StoreError::new(&at, failure);
        let text = read(store).map_err(fail)?;
        let parsed: EtcdBackupStore = serde_yaml::from_str(&text).map_err(|e| {
            fail(Failure::File {
                path: at.clone(),
                doing: "understood as an EtcdBackupStore",
                detail: e.to_string(),
            })
        })?;
        let name = parsed.metadata.name.as_deref().unwrap_or("from-file");
        let credentials = credentials
            .into()
            .map(Credentials::from_file)
            .transpose()
            .map_err(|failure| StoreError::new(name, failure))?;
        let secrets = Secrets {
            credentials,
            ..Secrets::default()
        };
        Self::from_spec(name, &parsed.spec, secrets)
    }
}

impl Credentials {
    /// Of a file as [`Store::from_files`] takes it.
    ///
    /// # Errors
    /// When it cannot be read or understood; it is named, and nothing of what it holds.
    pub fn from_file(path: &Path) -> Result<Self, Failure> {
        parse(&read(path)?, path)
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|e| Failure::File {
        path: path.display().to_string(),
        doing: "read",
        detail: e.to_string(),
    })
}

/// Without the parser's own words: they quote what they stumbled over.
fn parse(text: &str, path: &Path) -> Result<Credentials, Failure> {
    let path = path.display().to_string();
    if let Ok(mut secret) = serde_yaml::from_str::<Secret>(text)
        && (secret.data.is_some() || secret.string_data.is_some())
    {
        let plain = secret.string_data.take().unwrap_or_default();
        let data = secret.data.get_or_insert_default();
        for (key, value) in plain {
            data.insert(key, k8s_openapi::ByteString(value.into_bytes()));
        }
        return key_pair(&secret, &format!("in {path}"));
    }
    let find = |wanted: &'static str| {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        let mut values = lines
            .map(|(key, value)| (key.trim().trim_start_matches("export ").trim(), value.trim()))
            .filter(|(key, value)| key.eq_ignore_ascii_case(wanted) && !value.is_empty())
            .map(|(_, value)| value.trim_matches(['"', '\'']).to_owned());
        values.next().ok_or_else(|| Failure::File {
            path: path.clone(),
            doing: "used for credentials",
            detail: format!("it is no Secret, and has no line {wanted}=…"),
        })
    };
    Ok(Credentials {
        access_key_id: find(ACCESS_KEY_ID)?,
        secret_access_key: find(SECRET_ACCESS_KEY)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_come_from_a_secret_an_environment_file_or_an_aws_profile() {
        for text in [
            "apiVersion: v1\nkind: Secret\ndata:\n  AWS_ACCESS_KEY_ID: aWQK\n  AWS_SECRET_ACCESS_KEY: a2V5\n",
            "kind: Secret\nstringData: {AWS_ACCESS_KEY_ID: id, AWS_SECRET_ACCESS_KEY: key}\n",
            "AWS_ACCESS_KEY_ID=id\nexport AWS_SECRET_ACCESS_KEY='key'\n",
            "[default]\naws_access_key_id = id\naws_secret_access_key = key\n",
        ] {
            let read = parse(text, Path::new("x")).unwrap();
            assert_eq!(
                (read.access_key_id.as_str(), read.secret_access_key.as_str()),
                ("id", "key")
            );
        }
        let told = parse("AWS_ACCESS_KEY_ID=VERYSECRET", Path::new("/key"))
            .unwrap_err()
            .to_string();
        assert!(
            told.contains("/key") && told.contains("AWS_SECRET_ACCESS_KEY"),
            "{told}"
        );
        assert!(!told.contains("VERYSECRET"), "{told}");
    }

    #[test]
    fn a_store_is_made_of_its_two_files() {
        let at = tempfile::tempdir().unwrap();
        let (store, key) = (at.path().join("store.yaml"), at.path().join("key"));
        std::fs::write(&key, "AWS_ACCESS_KEY_ID=id\nAWS_SECRET_ACCESS_KEY=key\n").unwrap();
        assert_eq!(
            Store::from_files(&store, key.as_path()).unwrap_err().reason(),
            "FileUnusable"
        );
        let yaml = "apiVersion: lockkeeper.dev/v1alpha1\nkind: EtcdBackupStore\nmetadata: {name: main}\n\
            spec: {s3: {bucket: backups, prefix: one, endpoint: 'http://127.0.0.1:1', credentialsSecret: {name: s3}}}\n";
        std::fs::write(&store, yaml).unwrap();
        let store = Store::from_files(&store, key.as_path()).unwrap();
        assert_eq!(store.name(), "main");
        let manifest = store.key("nightly", "0123456789").manifest;
        assert_eq!(
            store.uri(&manifest),
            "s3://backups/one/nightly-01234567/manifest.json"
        );
    }
}
