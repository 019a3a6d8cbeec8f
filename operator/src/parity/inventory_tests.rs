use serde_json::{Value, json};

use super::super::testing::config_map;
use super::*;
use crate::api::testing::{Answer, client, ok, refused};
use lockkeeper_policies::parity::KEY_LENGTH;

fn order(namespaces: &[&str]) -> Order {
    Order {
        kind: Kind::new("", "ConfigMap"),
        served: Served {
            version: "v1".to_owned(),
            plural: "configmaps".to_owned(),
            namespaced: true,
        },
        scope: Scope {
            namespaces: namespaces.iter().map(|n| (*n).to_owned()).collect(),
            kinds: Vec::new(),
        },
        selector: None,
    }
}

async fn names(client: &Client, order: &Order) -> Result<Vec<String>, String> {
    let (records, _) = take(client, order, Keyed::new(&[1; KEY_LENGTH])).await?;
    Ok(records.iter().map(|r| r.name.to_string()).collect())
}

fn page_of(names: &[&str], next: &str) -> Value {
    let items: Vec<_> = names.iter().map(|n| config_map(n, "1")).collect();
    json!({"kind": "ConfigMapList", "metadata": {"continue": next}, "items": items})
}

/// Answers by how often it was asked before.
fn in_turn(answers: Vec<Answer>) -> impl Fn(&str) -> Answer + Send + Sync {
    let answers = std::sync::Mutex::new(answers.into_iter());
    move |_| answers.lock().unwrap().next().expect("asked once too often")
}

#[tokio::test(start_paused = true)]
async fn pages_are_read_to_the_last() {
    let (client, asked) = client(in_turn(vec![
        ok(&page_of(&["a", "b"], "t1")),
        ok(&page_of(&[], "t2")),
        ok(&page_of(&["c"], "")),
    ]));
    assert_eq!(names(&client, &order(&[])).await.unwrap(), ["a", "b", "c"]);
    let asked = asked.lock().unwrap().clone();
    assert_eq!(asked[0], "/api/v1/configmaps?&limit=500");
    assert!(
        asked[1].contains("continue=t1") && asked[2].contains("continue=t2"),
        "{asked:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn named_namespaces_are_listed_one_by_one_with_the_selector() {
    let (client, asked) = client(|_| ok(&page_of(&[], "")));
    let mut order = order(&["jobs", "shop"]);
    order.selector = Some("app=web,tier!=x".to_owned());
    names(&client, &order).await.unwrap();
    let asked = asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 2);
    assert!(
        asked[0].starts_with("/api/v1/namespaces/jobs/configmaps?"),
        "{asked:?}"
    );
    assert!(
        asked[1].starts_with("/api/v1/namespaces/shop/configmaps?"),
        "{asked:?}"
    );
    assert!(
        asked[0].contains("labelSelector=app%3Dweb%2Ctier%21%3Dx"),
        "{asked:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_list_that_has_expired_is_begun_again_and_counts_nothing_twice() {
    let (client, asked) = client(in_turn(vec![
        ok(&page_of(&["a", "b"], "t1")),
        refused(410, "Expired"),
        ok(&page_of(&["a", "b"], "t2")),
        ok(&page_of(&["c"], "")),
    ]));
    assert_eq!(names(&client, &order(&[])).await.unwrap(), ["a", "b", "c"]);
    assert!(!asked.lock().unwrap()[2].contains("continue"));
}

#[tokio::test(start_paused = true)]
async fn a_page_that_breaks_off_is_asked_for_again_in_smaller_pieces() {
    let whole = page_of(&["b", "c"], "").to_string();
    let half = whole[..whole.len() - 30].to_owned();
    let (client, asked) = client(in_turn(vec![
        ok(&page_of(&["a"], "t1")),
        (200, half),
        refused(500, "etcdserver: request timed out"),
        (200, whole),
    ]));
    assert_eq!(names(&client, &order(&[])).await.unwrap(), ["a", "b", "c"]);
    let asked = asked.lock().unwrap().clone();
    for (request, limit) in asked
        .iter()
        .zip(["limit=500", "limit=500", "limit=125", "limit=31"])
    {
        assert!(request.contains(limit), "{asked:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_or_never_whole_is_unknown_and_not_a_shorter_list() {
    let (forbidden, asked) = client(|_| refused(403, "configmaps is forbidden"));
    let why = names(&forbidden, &order(&[])).await.unwrap_err();
    assert!(
        why.contains("configmaps cannot be listed") && why.contains("forbidden"),
        "{why}"
    );
    assert_eq!(asked.lock().unwrap().len(), 1, "asking again is of no use");

    let (expiring, _) = client(|what| {
        if what.contains("continue") {
            refused(410, "Expired")
        } else {
            ok(&page_of(&["a"], "t"))
        }
    });
    assert!(names(&expiring, &order(&[])).await.is_err());

    let (broken, _) = client(|_| (200, r#"{"items": [{"metadata""#.to_owned()));
    let why = names(&broken, &order(&[])).await.unwrap_err();
    assert!(why.contains("not whole"), "{why}");

    let (other, _) = client(|_| ok(&json!({"kind": "Table", "rows": []})));
    assert!(names(&other, &order(&[])).await.unwrap_err().contains("no list"));
}
