use super::*;
use proptest::prelude::*;

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_763_700_000, 0).unwrap()
}

fn object(text: &str) -> DynamicObject {
    serde_yaml::from_str(text).unwrap()
}

fn deployment(replicas: i64, observed: i64, there: i64, ready: i64, annotations: &str) -> DynamicObject {
    object(&format!(
        "{{metadata: {{name: a, generation: 3, resourceVersion: \"7\", annotations: {{{annotations}}}}}, spec: {{replicas: {replicas}}}, status: {{observedGeneration: {observed}, replicas: {there}, readyReplicas: {ready}}}}}"
    ))
}

fn duty(object: &DynamicObject, kind: SingletonKind, left: usize) -> Duty {
    let left = is_off(kind, object).then_some(left);
    judge(kind, object, left, now()).duty
}

#[test]
fn nothing_counts_as_stopped_before_its_controller_has_heard_of_it_and_all_of_it_is_gone() {
    use SingletonKind::Deployment;
    let fence = "lockkeeper.dev/cutover-fence: forward 2025-11-21T04:00:00.000Z";
    let cases = [
        (deployment(2, 3, 2, 2, ""), 2, Duty::Running),
        (deployment(2, 3, 2, 1, ""), 2, Duty::Starting),
        (deployment(2, 2, 2, 2, ""), 2, Duty::Starting),
        (deployment(0, 2, 0, 0, fence), 0, Duty::Stopping),
        (deployment(0, 3, 1, 0, fence), 0, Duty::Stopping),
        (deployment(0, 3, 0, 0, fence), 1, Duty::Stopping),
        (
            deployment(0, 3, 0, 0, fence),
            0,
            Duty::Stopped(Some(Fence::Forward)),
        ),
        (deployment(0, 3, 0, 0, ""), 0, Duty::Stopped(None)),
        (
            deployment(0, 3, 0, 0, "lockkeeper.dev/cutover-fence: somebody's"),
            0,
            Duty::Stopped(None),
        ),
    ];
    for (object, left, wanted) in cases {
        assert_eq!(duty(&object, Deployment, left), wanted, "{object:?}, {left} left");
    }
}

#[test]
fn a_suspended_cron_job_is_given_time_to_hear_of_it() {
    let at = |ago: i64| {
        let mark = text(Fence::Back, now() - TimeDelta::seconds(ago));
        object(&format!(
            "{{metadata: {{name: a, annotations: {{lockkeeper.dev/cutover-fence: \"{mark}\"}}}}, spec: {{suspend: true}}}}"
        ))
    };
    let kind = SingletonKind::CronJob;
    assert_eq!(duty(&at(3), kind, 0), Duty::Stopping);
    assert_eq!(duty(&at(11), kind, 1), Duty::Stopping);
    assert_eq!(duty(&at(11), kind, 0), Duty::Stopped(Some(Fence::Back)));
    assert_eq!(
        duty(&object("{metadata: {name: a}, spec: {}}"), kind, 0),
        Duty::Running
    );
}

#[test]
fn what_it_had_before_it_was_stopped_is_what_it_gets_back() {
    let replicas = |object: &DynamicObject| judge(SingletonKind::Deployment, object, None, now()).replicas;
    assert_eq!(replicas(&deployment(3, 3, 3, 3, "")), Some(3));
    assert_eq!(
        replicas(&deployment(0, 3, 0, 0, "lockkeeper.dev/cutover-replicas: \"3\"")),
        Some(3)
    );
    assert_eq!(replicas(&deployment(0, 3, 0, 0, "")), None);
}

#[test]
fn a_pod_that_is_being_deleted_lives_and_one_that_has_ended_does_not() {
    let pod = |text: &str| -> Pod { serde_yaml::from_str(text).unwrap() };
    assert!(lives(&pod(
        "{metadata: {deletionTimestamp: 2026-11-21T00:00:00Z}, status: {phase: Running}}"
    )));
    assert!(lives(&pod("{status: {phase: Unknown}}")));
    assert!(!lives(&pod("{status: {phase: Failed}}")));
}

fn found(duty: Duty) -> Found {
    Found {
        duty,
        fence: None,
        version: None,
        replicas: None,
        told: String::new(),
    }
}

fn duties() -> impl Strategy<Value = Duty> {
    prop_oneof![
        Just(Duty::Unknown("away".to_owned())),
        Just(Duty::Running),
        Just(Duty::Starting),
        Just(Duty::Stopping),
        Just(Duty::Stopped(None)),
        Just(Duty::Stopped(Some(Fence::Forward))),
        Just(Duty::Stopped(Some(Fence::Back))),
    ]
}

proptest! {
    #[test]
    fn they_are_stopped_when_each_is_and_run_when_each_does(all in prop::collection::vec(duties(), 1..6)) {
        let found: Vec<Found> = all.iter().cloned().map(found).collect();
        let (stop, start) = (together(&found, Sense::Stop), together(&found, Sense::Start));
        let every = |wanted: fn(&Duty) -> bool| all.iter().all(wanted);
        prop_assert_eq!(matches!(stop, Duty::Stopped(_)), every(|d| matches!(d, Duty::Stopped(_))));
        prop_assert_eq!(start == Duty::Running, every(|d| *d == Duty::Running));
        if let Duty::Stopped(Some(fence)) = stop {
            prop_assert!(all.iter().all(|d| *d == Duty::Stopped(Some(fence))));
        }
        let unknown = all.iter().any(|d| matches!(d, Duty::Unknown(_)));
        prop_assert_eq!(matches!(stop, Duty::Unknown(_)), unknown);
        prop_assert_eq!(matches!(start, Duty::Unknown(_)), unknown);
    }
}
