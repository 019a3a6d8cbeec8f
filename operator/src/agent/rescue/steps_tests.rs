//! The decisions, one by one.

use super::*;
use crate::agent::rescue::book::Bridge;
use std::path::PathBuf;

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_763_700_000 + second, 0).unwrap()
}

fn entry(kind: Kind, step: Step) -> Entry {
    Entry {
        id: "1".into(),
        kind,
        step,
        since: at(0),
        begun: at(0),
        message: String::new(),
        api: Some("api".into()),
        etcd: "old".into(),
        etcd_new: Some("new".into()),
        bridges: Vec::new(),
        name: "cp1".into(),
        peer_url: "https://10.0.0.1:2380".into(),
        data: PathBuf::from("/var/lib/etcd"),
        aside: PathBuf::from("/aside"),
        peers: Vec::new(),
        via: Some("https://10.0.0.2:2379".into()),
        restored: None,
        backup: None,
        learner: Some(7),
        touched: false,
    }
}

fn off() -> PartSeen {
    PartSeen {
        file: FileSeen::Absent,
        running: None,
        last_pod: Some("pod".into()),
        last_made: Some(at(-90)),
        quiet_since: Some(at(-60)),
        last_words: String::new(),
    }
}

fn on(hash: &str, created: i64, forced: bool) -> PartSeen {
    PartSeen {
        file: FileSeen::Hash(hash.into()),
        running: Some(Running {
            id: "container".into(),
            pod: "pod2".into(),
            created_at: at(created),
            forced: Some(forced),
        }),
        quiet_since: None,
        ..off()
    }
}

fn seen() -> Seen {
    Seen {
        api: off(),
        api_ready: Ok(()),
        etcd: off(),
        local: Err("no leader".into()),
        via: Err("no answer".into()),
        data: true,
        aside: true,
        alive: Vec::new(),
        restored: false,
        cleansed: Ok(false),
        kubelet: None,
    }
}

fn member(id: u64, name: &str, learner: bool) -> Listed {
    Listed {
        id,
        name: name.into(),
        peer_urls: vec![format!("https://{name}:2380")],
        client_urls: Vec::new(),
        learner,
    }
}

fn told(act: &Act) -> &str {
    match act {
        Act::Go(_, why) | Act::Wait(why) | Act::Stop(why) => why,
        _ => "",
    }
}

#[test]
fn a_component_is_off_when_its_file_is_gone_and_nothing_has_run_for_a_while() {
    let entry = entry(Kind::RecoverQuorum, Step::StoppingApi);
    let look = |api: PartSeen, now| {
        let seen = Seen { api, ..seen() };
        decide(&entry, Step::Done, &seen, at(now))
    };
    assert_eq!(look(on("api", -9, false), 0), Act::TakeOff(Part::Api));
    let still = PartSeen {
        file: FileSeen::Absent,
        ..on("api", -9, false)
    };
    assert!(matches!(look(still.clone(), 5), Act::Wait(_)));
    // A kubelet without an API takes no pod away.
    assert_eq!(look(still, 10), Act::End("container".into()));
    let just = PartSeen {
        quiet_since: Some(at(3)),
        ..off()
    };
    assert!(matches!(look(just.clone(), 6), Act::Wait(_)));
    assert!(matches!(look(just, 7), Act::Go(Step::StoppingEtcd, _)));
    let edited = look(on("somebody's", -9, false), 0);
    assert!(told(&edited).contains("kube-apiserver.yaml"), "{edited:?}");
}

#[test]
fn nothing_is_forced_without_a_copy_or_beside_a_living_peer() {
    let entry = entry(Kind::RecoverQuorum, Step::Copying);
    let look = |seen: &Seen| decide(&entry, Step::Done, seen, at(1));
    assert_eq!(
        look(&Seen {
            aside: false,
            ..seen()
        }),
        Act::Copy
    );
    let alive = look(&Seen {
        alive: vec!["cp2 (https://10.0.0.2:2380)".into()],
        ..seen()
    });
    assert!(matches!(alive, Act::Go(Step::PuttingBack, _)));
    assert!(
        told(&alive).contains("cp2") && told(&alive).contains("rescue fence"),
        "{alive:?}"
    );
    assert!(matches!(look(&seen()), Act::Go(Step::Forcing, _)));
    let late = Seen {
        etcd: PartSeen {
            last_made: Some(at(0)),
            ..off()
        },
        ..seen()
    };
    assert_eq!(look(&late), Act::Recopy);
    // Whatever started it again.
    let up = Seen {
        etcd: PartSeen {
            file: FileSeen::Absent,
            ..on("old", 0, false)
        },
        ..seen()
    };
    assert!(matches!(look(&up), Act::Wait(_)));
}

#[test]
fn forced_and_alone_goes_on_and_anything_else_is_waited_for_and_then_put_back() {
    let entry = entry(Kind::RecoverQuorum, Step::Forcing);
    let look = |seen: &Seen, now| decide(&entry, Step::Done, seen, at(now));
    assert_eq!(look(&seen(), 1), Act::Write(Part::Etcd, Age::New));
    let mut up = Seen {
        etcd: on("new", 2, true),
        ..seen()
    };
    assert!(matches!(look(&up, 3), Act::Wait(_)));
    assert!(matches!(look(&up, 360), Act::Go(Step::PuttingBack, _)));
    up.local = Ok(vec![member(1, "cp1", false), member(2, "cp2", false)]);
    assert!(matches!(look(&up, 3), Act::Wait(_)));
    up.local = Ok(vec![member(1, "cp1", false)]);
    assert!(matches!(look(&up, 3), Act::Go(Step::Unforcing, _)));
    // The process that runs was started without the flag, and the kubelet restarts none for a flag alone.
    up.etcd = on("new", 2, false);
    assert!(matches!(look(&up, 3), Act::Wait(_)));
    assert_eq!(look(&up, 17), Act::End("container".into()));
}

#[test]
fn the_flag_is_out_of_the_running_process_before_the_api_server_comes_back() {
    let entry = entry(Kind::RecoverQuorum, Step::Unforcing);
    let look = |seen: &Seen| decide(&entry, Step::Done, seen, at(5));
    let alone = || Ok(vec![member(1, "cp1", false)]);
    let flagged = Seen {
        etcd: on("new", -5, true),
        local: alone(),
        ..seen()
    };
    assert_eq!(look(&flagged), Act::Write(Part::Etcd, Age::Old));
    let stale = Seen {
        etcd: on("old", -5, true),
        local: alone(),
        ..seen()
    };
    assert!(matches!(look(&stale), Act::Wait(_)));
    let good = Seen {
        etcd: on("old", 2, false),
        local: alone(),
        ..seen()
    };
    assert!(matches!(look(&good), Act::Go(Step::StartingApi, _)));
}

#[test]
fn a_kubelet_that_keeps_another_pod_gets_the_manifest_under_its_uid_once() {
    let mut entry = entry(Kind::RecoverQuorum, Step::Forcing);
    let unnoticed = PartSeen {
        file: FileSeen::Hash("new".into()),
        ..off()
    };
    let seen = Seen {
        etcd: unnoticed,
        ..seen()
    };
    assert!(matches!(decide(&entry, Step::Done, &seen, at(119)), Act::Wait(_)));
    assert_eq!(
        decide(&entry, Step::Done, &seen, at(120)),
        Act::Bridge(Age::New, "pod".into())
    );
    entry.bridges.push(Bridge {
        of: Age::New,
        pod: "pod".into(),
        hash: "bridge".into(),
    });
    let bridged = Seen {
        etcd: PartSeen {
            file: FileSeen::Hash("bridge".into()),
            ..off()
        },
        ..seen.clone()
    };
    assert!(matches!(
        decide(&entry, Step::Done, &bridged, at(70)),
        Act::Wait(_)
    ));
    // Done with the API server back, the plain manifest follows.
    entry.step = Step::StartingApi;
    let back = Seen {
        api: on("api", 1, false),
        local: Ok(vec![member(1, "cp1", false)]),
        ..bridged
    };
    assert!(matches!(
        decide(&entry, Step::Done, &back, at(71)),
        Act::Go(Step::Unbridging, _)
    ));
    entry.step = Step::Unbridging;
    assert_eq!(
        decide(&entry, Step::Done, &back, at(71)),
        Act::Write(Part::Etcd, Age::Old)
    );
}

#[test]
fn a_node_joins_as_a_learner_and_only_alone() {
    let step = |step, members: Vec<Listed>| {
        let mut entry = entry(Kind::Rejoin, step);
        entry.learner = None;
        let seen = Seen {
            via: Ok(members),
            data: false,
            aside: false,
            ..seen()
        };
        decide(&entry, Step::Done, &seen, at(1))
    };
    assert_eq!(
        step(
            Step::Removing,
            vec![member(3, "cp1", false), member(2, "cp2", false)]
        ),
        Act::Remove(3)
    );
    assert!(matches!(
        step(Step::Removing, vec![member(2, "cp2", false)]),
        Act::Go(Step::MovingAside, _)
    ));
    assert_eq!(step(Step::Adding, vec![member(2, "cp2", false)]), Act::AddLearner);
    let busy = step(
        Step::Adding,
        vec![member(2, "cp2", false), member(4, "cp3", true)],
    );
    assert!(matches!(&busy, Act::Wait(why) if why.contains("cp3")), "{busy:?}");
    let mut mine = member(7, "", true);
    mine.peer_urls = vec!["https://10.0.0.1:2380".into()];
    assert_eq!(
        step(Step::Adding, vec![member(2, "cp2", false), mine]),
        Act::Adopt(7, "cp2=https://cp2:2380,cp1=https://10.0.0.1:2380".into())
    );
}

#[test]
fn a_learner_is_promoted_before_the_api_server_comes_back() {
    let entry = entry(Kind::Rejoin, Step::Promoting);
    let look = |members: Vec<Listed>| {
        let seen = Seen {
            via: Ok(members),
            etcd: on("new", 1, false),
            ..seen()
        };
        decide(&entry, Step::Done, &seen, at(2))
    };
    assert_eq!(
        look(vec![member(7, "cp1", true), member(2, "cp2", false)]),
        Act::Promote(7)
    );
    assert!(matches!(
        look(vec![member(7, "cp1", false)]),
        Act::Go(Step::StartingApi, _)
    ));
    assert!(told(&look(vec![member(2, "cp2", false)])).contains("--put-back"));
}

#[test]
fn a_fenced_node_rests_until_it_is_told_to_rejoin() {
    let entry = entry(Kind::Rejoin, Step::Fenced);
    assert_eq!(decide(&entry, Step::Fenced, &seen(), at(1)), Act::Rest);
    assert!(matches!(
        decide(&entry, Step::Done, &seen(), at(1)),
        Act::Go(Step::Removing, _)
    ));
}

#[test]
fn what_is_put_back_is_data_first_then_both_manifests() {
    let mut entry = entry(Kind::RecoverQuorum, Step::PuttingBack);
    entry.touched = true;
    entry.learner = None;
    let up = Seen {
        etcd: on("new", -20, true),
        ..seen()
    };
    assert_eq!(decide(&entry, Step::Done, &up, at(0)), Act::TakeOff(Part::Etcd));
    assert_eq!(decide(&entry, Step::Done, &seen(), at(0)), Act::PutDataBack);
    entry.touched = false;
    assert_eq!(
        decide(&entry, Step::Done, &seen(), at(0)),
        Act::Write(Part::Etcd, Age::Old)
    );
    let half = Seen {
        etcd: on("old", 1, false),
        ..seen()
    };
    assert_eq!(
        decide(&entry, Step::Done, &half, at(0)),
        Act::Write(Part::Api, Age::Old)
    );
    let whole = Seen {
        api: on("api", 1, false),
        ..half
    };
    assert!(matches!(
        decide(&entry, Step::Done, &whole, at(0)),
        Act::Go(Step::PutBack, _)
    ));
}

#[test]
fn a_manifest_that_has_the_new_flags_already_is_not_written_for_ever() {
    let mut entry = entry(Kind::Rejoin, Step::Joining);
    entry.etcd_new = Some("old".into());
    let seen = Seen {
        etcd: on("old", 1, false),
        via: Ok(vec![member(7, "cp1", true), member(2, "cp2", false)]),
        ..seen()
    };
    assert!(matches!(
        decide(&entry, Step::Done, &seen, at(2)),
        Act::Go(Step::Promoting, _)
    ));
}

#[test]
fn a_restore_places_the_data_only_while_all_is_off_and_nobody_else_answers() {
    let entry = entry(Kind::Restore, Step::Placing);
    let look = |seen: Seen| decide(&entry, Step::Done, &seen, at(10));
    let with = |data, restored| Seen {
        data,
        restored,
        ..seen()
    };
    assert_eq!(look(with(false, true)), Act::Place);
    assert_eq!(look(with(true, true)), Act::MoveStray);
    assert!(matches!(look(with(true, false)), Act::Go(Step::Booting, _)));
    assert!(matches!(look(with(false, false)), Act::Go(Step::PuttingBack, _)));
    let alive = Seen {
        alive: vec!["cp2".into()],
        ..with(false, true)
    };
    let back = look(alive);
    assert!(matches!(back, Act::Go(Step::PuttingBack, _)) && told(&back).contains("fence"));
    let running = Seen {
        etcd: on("old", -9, false),
        ..with(false, true)
    };
    assert_eq!(look(running), Act::TakeOff(Part::Etcd));
}

#[test]
fn what_cannot_be_cleansed_of_its_time_is_put_back_with_the_reason() {
    let entry = entry(Kind::Restore, Step::Cleansing);
    let look = |cleansed: Result<bool, String>, now| {
        let seen = Seen { cleansed, ..seen() };
        decide(&entry, Step::Done, &seen, at(now))
    };
    assert_eq!(look(Ok(false), 1), Act::Cleanse);
    assert!(matches!(look(Ok(true), 1), Act::Go(Step::StartingApi, _)));
    let corrupt = || Err("the backup holds the alarm CORRUPT".to_owned());
    assert!(matches!(look(corrupt(), 1), Act::Wait(_)));
    let back = look(corrupt(), 130);
    assert!(matches!(back, Act::Go(Step::PuttingBack, _)) && told(&back).contains("CORRUPT"));
}
