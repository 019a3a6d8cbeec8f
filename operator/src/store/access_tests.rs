use k8s_openapi::ByteString;

use super::*;
use crate::store::StoreError;

fn secret(entries: &[(&str, &str)]) -> Secret {
    let entries = entries.iter().map(|(key, value)| {
        let value = ByteString(value.as_bytes().to_vec());
        ((*key).to_owned(), value)
    });
    Secret {
        data: Some(entries.collect()),
        ..Secret::default()
    }
}

const SERVICE_ACCOUNT: &str = r#"{"type": "service_account", "private_key": "VERYSECRET", "private_key_id": "1",
    "client_email": "a@b.iam.gserviceaccount.com", "token_uri": "https://oauth2.googleapis.com/token"}"#;

#[test]
fn a_secret_that_lacks_or_garbles_a_key_is_named_with_it_and_nothing_is_quoted() {
    for (kind, entries, says) in [
        (
            Kind::S3,
            vec![(ACCESS_KEY_ID, "VERYSECRET\n")],
            "has no key AWS_SECRET_ACCESS_KEY",
        ),
        (
            Kind::S3,
            vec![(ACCESS_KEY_ID, " ")],
            "holds nothing under AWS_ACCESS_KEY_ID",
        ),
        (Kind::Gcs, vec![], "has no key GOOGLE_SERVICE_ACCOUNT_KEY"),
        (
            Kind::Gcs,
            vec![(SERVICE_ACCOUNT_KEY, r#"{"private_key": {"VERYSECRET": 1}}"#)],
            "holds no service account's key",
        ),
        (Kind::Azure, vec![], "has neither a key"),
        (Kind::Azure, vec![(ACCOUNT_KEY, "VERYSECRET!")], "(base64)"),
        (
            Kind::Azure,
            vec![(SAS_TOKEN, "VERYSECRET")],
            "no shared access signature",
        ),
        (
            Kind::Azure,
            vec![(ACCOUNT_KEY, "VERYSECRET"), (SAS_TOKEN, "sv=1&sig=VERYSECRET")],
            "remove one",
        ),
    ] {
        let failure = Access::of_secret(kind, &secret(&entries), "key").unwrap_err();
        let told = StoreError::new("main", failure).to_string();
        assert!(told.contains("Secret key") && told.contains(says), "{told}");
        assert!(
            told.contains(kind.words().secret) && told.contains(kind.words().keys),
            "{told}"
        );
        assert!(!told.contains("VERYSECRET"), "{told}");
    }
}

#[test]
fn credentials_come_from_a_secret_an_environment_file_a_profile_or_a_key_file() {
    let file = |kind, text: &str| Access::of_file(kind, text, Path::new("/key"));
    for text in [
        "apiVersion: v1\nkind: Secret\ndata:\n  AWS_ACCESS_KEY_ID: aWQK\n  AWS_SECRET_ACCESS_KEY: a2V5\n",
        "kind: Secret\nstringData: {AWS_ACCESS_KEY_ID: id, AWS_SECRET_ACCESS_KEY: key}\n",
        "AWS_ACCESS_KEY_ID=id\nexport AWS_SECRET_ACCESS_KEY='key'\n",
        "[default]\naws_access_key_id = id\naws_secret_access_key = key\n",
    ] {
        let Access::KeyPair(pair) = file(Kind::S3, text).unwrap() else {
            panic!("{text}")
        };
        assert_eq!(
            (pair.access_key_id.as_str(), pair.secret_access_key.as_str()),
            ("id", "key")
        );
    }
    let sas = "AZURE_STORAGE_SAS_TOKEN='?sv=2021-08-06&sp=racwdl&sig=abc%3D'\n";
    let Access::Sas(read) = file(Kind::Azure, sas).unwrap() else {
        panic!("{sas}")
    };
    assert_eq!(read, "?sv=2021-08-06&sp=racwdl&sig=abc%3D");
    assert!(matches!(
        file(Kind::Azure, "AZURE_STORAGE_ACCOUNT_KEY=a2V5"),
        Ok(Access::AccountKey(key)) if key == "a2V5"
    ));
    assert!(matches!(
        file(Kind::Gcs, SERVICE_ACCOUNT),
        Ok(Access::ServiceAccount(key)) if key == SERVICE_ACCOUNT
    ));
    for (kind, text, says) in [
        (Kind::S3, "AWS_ACCESS_KEY_ID=VERYSECRET", "AWS_SECRET_ACCESS_KEY"),
        (
            Kind::Gcs,
            r#"{"private_key": "VERYSECRET"}"#,
            "GOOGLE_SERVICE_ACCOUNT_KEY",
        ),
        (Kind::Azure, "VERYSECRET", "AZURE_STORAGE_SAS_TOKEN"),
    ] {
        let told = file(kind, text).unwrap_err().to_string();
        assert!(told.contains("/key") && told.contains(says), "{told}");
        assert!(!told.contains("VERYSECRET"), "{told}");
    }
    let printed = format!("{:?}", file(Kind::Gcs, SERVICE_ACCOUNT));
    assert!(!printed.contains("VERYSECRET"), "{printed}");
}
