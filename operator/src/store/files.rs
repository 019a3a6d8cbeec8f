//! A store from files, where no API is there to ask.

use std::path::Path;

use lockkeeper_crds::{EtcdBackupStore, EtcdBackupStoreSpec};

use super::ground::At;
use super::{Access, Failure, Kind, Secrets, Store, StoreError};

impl Store {
    /// A store of what lies in files.
    ///
    /// `store` holds an `EtcdBackupStore` as YAML or JSON, as `kubectl get -o yaml` prints it. `credentials` holds its
    /// Secret in the same way, or the Secret's keys as lines `AWS_ACCESS_KEY_ID=…`, in upper or lower case: an
    /// environment file or `~/.aws/credentials` with one profile; or a service account's key as Google gives it out.
    /// None: a directory needs none, and for a bucket the environment says who we are.
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
        let secrets = credentials
            .into()
            .map(|path| Secrets::of_file(&parsed.spec, path))
            .transpose()
            .map_err(|failure| StoreError::new(name, failure))?
            .unwrap_or_default();
        Self::from_spec(name, &parsed.spec, secrets)
    }
}

impl Secrets {
    /// Credentials alone, of a file as [`Store::from_files`] takes it, for the place that the spec names.
    ///
    /// # Errors
    /// When it cannot be read or understood; it is named, and nothing of what it holds.
    pub fn of_file(spec: &EtcdBackupStoreSpec, path: &Path) -> Result<Self, Failure> {
        let access = match At::of(spec)?.kind() {
            // It needs none.
            Kind::Directory => None,
            kind => Some(Access::of_file(kind, &read(path)?, path)?),
        };
        Ok(Self {
            credentials: access,
            ..Self::default()
        })
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|e| Failure::File {
        path: path.display().to_string(),
        doing: "read",
        detail: e.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
