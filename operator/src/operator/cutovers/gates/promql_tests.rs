//! Against answers as Prometheus and its kin give them. `operator/tests/real` asks a real one.

use super::*;
use serde_json::json;

fn spec(more: &str) -> PromQlGate {
    serde_yaml::from_str(&format!("{{url: 'http://p:9090/prefix/', query: 'a > 1'{more}}}")).unwrap()
}

fn vector(values: &[&str]) -> Value {
    let series = values
        .iter()
        .map(|v| json!({"metric": {"colour": "green"}, "value": [100.0, v]}));
    json!({"status": "success", "data": {"resultType": "vector", "result": series.collect::<Vec<_>>()}})
}

fn round(more: &str, reply: &Value) -> (Outcome, String) {
    let now = DateTime::from_timestamp(130, 0).unwrap();
    match read(reply.to_string().as_bytes()) {
        Ok(samples) => {
            let answer = judge(&spec(more), &samples, now);
            (answer.outcome, answer.message)
        }
        Err(NoValue::Query(why) | NoValue::Unknown(why)) => (Outcome::Unknown, why),
    }
}

#[test]
fn every_value_must_be_within_the_bounds() {
    for (bounds, values, outcome, told) in [
        (
            ", max: 0.05",
            &["0.05"][..],
            Outcome::Passed,
            "the value is 0.05, wanted is at most 0.05",
        ),
        (
            ", max: 0.05",
            &["0.01", "0.06"],
            Outcome::Failed,
            "colour=\"green\"} is 0.06",
        ),
        (
            ", min: 1",
            &["1", "2"],
            Outcome::Passed,
            "2 values are at least 1",
        ),
        (", min: 1, max: 2", &["0.99"], Outcome::Failed, "wanted is 1 to 2"),
    ] {
        let (found, message) = round(bounds, &vector(values));
        assert_eq!(found, outcome, "{message}");
        assert!(message.contains(told), "{message}");
    }
    let scalar = json!({"status": "success", "data": {"resultType": "scalar", "result": [100.0, "3"]}});
    assert_eq!(round(", max: 3", &scalar).0, Outcome::Passed);
}

#[test]
fn what_is_no_value_is_not_known() {
    let with = |key: &str, value: Value| {
        let mut reply = vector(&["0"]);
        reply.as_object_mut().unwrap().insert(key.to_owned(), value);
        reply
    };
    let of_type = |name: &str, result: Value| json!({"status": "success", "data": {"resultType": name, "result": result}});
    let old = of_type("scalar", json!([60.0, "0"]));
    for (reply, told) in [
        (vector(&[]), "no value"),
        (vector(&["0", "NaN"]), "NaN"),
        (vector(&["+Inf"]), "inf"),
        (
            with("warnings", json!(["a store did not answer"])),
            "a store did not answer",
        ),
        (of_type("matrix", json!([])), "matrix"),
        (of_type("string", json!([100.0, "0"])), "string"),
        (
            of_type("vector", json!([{"metric": {}, "histogram": [100.0, {}]}])),
            "something else",
        ),
        (
            json!({"status": "error", "errorType": "timeout", "error": "too slow"}),
            "timeout: too slow",
        ),
        (json!("nginx"), "not one of Prometheus"),
        (json!({"status": "success"}), "no data"),
        (old, "-70 s from now"),
    ] {
        let (outcome, message) = round(", max: 1000000", &reply);
        assert_eq!(outcome, Outcome::Unknown, "{message}");
        assert!(message.contains(told), "{message}");
    }
    // Remarks are no warnings.
    assert_eq!(
        round(", max: 1", &with("infos", json!(["not a counter"]))).0,
        Outcome::Passed
    );
}

#[test]
fn the_url_keeps_its_path_and_bears_the_query() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = PromQl::new(&spec(", max: 1")).url().unwrap();
    assert_eq!(
        url.as_str(),
        "http://p:9090/prefix/api/v1/query?query=a+%3E+1&timeout=5s"
    );
}
