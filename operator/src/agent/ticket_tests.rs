use super::*;
use lockkeeper_crds::Component::{KubeApiserver, KubeScheduler};

const OLD: &str = "r/kube-apiserver:v1.35.4";
const NEW: &str = "r/kube-apiserver:v1.36.3";

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_763_700_000 + second, 0).unwrap()
}

fn ticket(number: i64, verdict: Verdict) -> Ticket {
    Ticket {
        number,
        rollout: "r".to_owned(),
        changes: vec![Change {
            component: KubeApiserver,
            manifest_hash: "old".to_owned(),
            image: NEW.to_owned(),
            version: "v1.36.3".to_owned(),
        }],
        ready_seconds: 100,
        confirm_seconds: 50,
        drain_seconds: 10,
        unconfirmed: Unconfirmed::Undo,
        verdict,
        reason: Some("a gate failed".to_owned()),
    }
}

fn live(state: TicketState) -> JournalState {
    JournalState::Known(Journal {
        format: 1,
        last_number: 7,
        entry: Some(Entry {
            ticket: ticket(7, Verdict::Pending),
            state,
            since: at(0),
            applied_at: at(0),
            ready_deadline: at(100),
            confirm_deadline: (state == TicketState::Ready).then(|| at(60)),
            files: vec![FileRecord {
                component: KubeApiserver,
                old_hash: "old".to_owned(),
                new_hash: "new".to_owned(),
                old_image: OLD.to_owned(),
                new_image: NEW.to_owned(),
                old_pod: Some("old pod".to_owned()),
                bridges: vec![],
            }],
            message: "why".to_owned(),
        }),
    })
}

fn idle() -> JournalState {
    JournalState::Known(Journal {
        format: 1,
        last_number: 6,
        entry: None,
    })
}

fn running(image: &str, created: i64, version: Option<&str>, ready: Tristate) -> RunningSeen {
    RunningSeen {
        id: image.to_owned(),
        closed_at: None,
        images: BTreeSet::from([image.to_owned()]),
        created_at: at(created),
        version: version.map(str::to_owned),
        ready,
        message: "said".to_owned(),
    }
}

fn node(file: FileSeen, running: Option<RunningSeen>) -> NodeSeen {
    NodeSeen {
        components: BTreeMap::from([(
            KubeApiserver,
            ComponentSeen {
                file,
                problems: vec![],
                running,
                newest: None,
                exits: vec![],
            },
        )]),
        images: BTreeMap::from([(NEW.to_owned(), Tristate::True)]),
        alone: false,
    }
}

fn hash(text: &str) -> FileSeen {
    FileSeen::Hash(text.to_owned())
}

fn old_node() -> NodeSeen {
    node(
        hash("old"),
        Some(running(OLD, -1000, Some("v1.35.4"), Tristate::True)),
    )
}

fn new_node(ready: Tristate) -> NodeSeen {
    node(hash("new"), Some(running(NEW, 5, Some("v1.36.3"), ready)))
}

fn refused(action: &Action) -> &str {
    match action {
        Action::Refuse(_, why) => why,
        other => panic!("{other:?}"),
    }
}

fn undone(action: &Action) -> &str {
    match action {
        Action::BeginUndo(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_fresh_ticket_is_taken_up_and_a_stale_one_never() {
    let seen = old_node();
    let fresh = ticket(7, Verdict::Pending);
    assert_eq!(
        decide(&idle(), Some(&fresh), &seen, at(0)),
        Action::Accept(fresh, Pods::new())
    );
    for number in [5, 6] {
        let stale = ticket(number, Verdict::Pending);
        assert_eq!(
            decide(&idle(), Some(&stale), &seen, at(0)),
            Action::Wait(String::new())
        );
    }
    assert_eq!(decide(&idle(), None, &seen, at(0)), Action::Wait(String::new()));
}

#[test]
fn a_broken_journal_takes_up_nothing() {
    let broken = JournalState::Broken("bad".to_owned());
    let fresh = ticket(7, Verdict::Pending);
    assert_eq!(
        decide(&broken, Some(&fresh), &old_node(), at(0)),
        Action::Wait("bad".to_owned())
    );
}

#[test]
fn a_ticket_whose_preconditions_fail_is_refused_with_the_reason() {
    let fresh = ticket(7, Verdict::Pending);
    let mut stray = old_node();
    stray.components.get_mut(&KubeApiserver).unwrap().problems = vec!["a stray".to_owned()];
    let mut imageless = old_node();
    imageless.images.insert(NEW.to_owned(), Tristate::False);
    for (seen, part) in [
        (node(hash("edited"), None), "edited meanwhile"),
        (node(FileSeen::Absent, None), "missing"),
        (stray, "a stray"),
        (imageless, "not on this node"),
    ] {
        let action = decide(&idle(), Some(&fresh), &seen, at(0));
        assert!(refused(&action).contains(part), "{action:?}");
    }
    for verdict in [Verdict::Withdrawn, Verdict::Confirmed] {
        refused(&decide(&idle(), Some(&ticket(7, verdict)), &old_node(), at(0)));
    }
    let mut empty = ticket(7, Verdict::Pending);
    empty.changes.clear();
    refused(&decide(&idle(), Some(&empty), &old_node(), at(0)));
}

#[test]
fn what_cannot_be_seen_is_waited_for_not_refused() {
    let fresh = ticket(7, Verdict::Pending);
    let mut blind = old_node();
    blind.images.clear();
    for seen in [
        blind,
        NodeSeen::default(),
        node(FileSeen::Unknown("EIO".to_owned()), None),
    ] {
        assert!(matches!(decide(&idle(), Some(&fresh), &seen, at(0)), Action::Wait(why) if !why.is_empty()));
    }
}

#[test]
fn applying_writes_what_is_old_skips_what_is_new_and_touches_nothing_else() {
    let state = live(TicketState::Applying);
    assert_eq!(
        decide(&state, None, &old_node(), at(1)),
        Action::WriteNew(KubeApiserver)
    );
    assert_eq!(
        decide(&state, None, &new_node(Tristate::Unknown), at(1)),
        Action::MarkStarting
    );
    assert!(undone(&decide(&state, None, &node(hash("x"), None), at(1))).contains("Somebody else edited"));
    assert!(undone(&decide(&state, None, &node(FileSeen::Absent, None), at(1))).contains("removed"));
    undone(&decide(&state, None, &old_node(), at(100)));
}

#[test]
fn ready_needs_image_start_version_and_readiness() {
    let state = live(TicketState::Starting);
    let wait = |running| match decide(&state, None, &node(hash("new"), running), at(10)) {
        Action::Wait(why) => why,
        other => panic!("{other:?}"),
    };
    assert!(wait(None).contains("does not run"));
    assert!(wait(Some(running(OLD, -5, Some("v1.35.4"), Tristate::True))).contains("does not run"));
    assert!(wait(Some(running(NEW, 0, Some("v1.36.3"), Tristate::True))).contains("does not run"));
    assert!(wait(Some(running(NEW, 5, Some("v1.35.4"), Tristate::True))).contains("reports version"));
    assert!(wait(Some(running(NEW, 5, None, Tristate::True))).contains("not told its version"));
    assert!(wait(Some(running(NEW, 5, Some("v1.36.3"), Tristate::False))).contains("not ready"));
    assert!(matches!(
        decide(&state, None, &new_node(Tristate::True), at(10)),
        Action::MarkReady(_)
    ));
}

#[test]
fn a_scheduler_that_cannot_be_asked_is_accepted_after_a_while_and_it_is_said() {
    let JournalState::Known(mut journal) = live(TicketState::Starting) else {
        panic!()
    };
    let entry = journal.entry.as_mut().unwrap();
    entry.files[0].component = KubeScheduler;
    entry.ticket.changes[0].component = KubeScheduler;
    let state = JournalState::Known(journal);
    let mut seen = node(hash("new"), Some(running(NEW, 5, None, Tristate::True)));
    let component = seen.components.remove(&KubeApiserver).unwrap();
    seen.components.insert(KubeScheduler, component);
    assert!(matches!(decide(&state, None, &seen, at(24)), Action::Wait(_)));
    assert!(
        matches!(decide(&state, None, &seen, at(25)), Action::MarkReady(why) if why.contains("kube-scheduler could not be asked"))
    );
}

#[test]
fn late_withdrawn_or_crashing_is_undone() {
    let state = live(TicketState::Starting);
    let seen = new_node(Tristate::False);
    assert!(
        undone(&decide(&state, None, &seen, at(100)))
            .contains("Not ready within 100 s: kube-apiserver is not ready")
    );
    let withdrawn = ticket(7, Verdict::Withdrawn);
    for state in [TicketState::Applying, TicketState::Starting, TicketState::Ready] {
        let action = decide(&live(state), Some(&withdrawn), &seen, at(1));
        assert!(undone(&action).contains("a gate failed"));
    }
    let mut crashing = node(hash("new"), None);
    let exit = |created| ExitSeen {
        created_at: at(created),
        code: 1,
        last_line: "unknown flag".to_owned(),
    };
    crashing.components.get_mut(&KubeApiserver).unwrap().exits = vec![exit(-9), exit(1), exit(12)];
    assert!(matches!(decide(&state, None, &crashing, at(13)), Action::Wait(_)));
    crashing
        .components
        .get_mut(&KubeApiserver)
        .unwrap()
        .exits
        .push(exit(33));
    let action = decide(&state, None, &crashing, at(34));
    assert!(undone(&action).contains("ended 3 times"), "{action:?}");
    assert!(undone(&action).contains("unknown flag"), "{action:?}");
}

#[test]
fn only_the_word_for_this_ticket_confirms_it() {
    let state = live(TicketState::Ready);
    let seen = new_node(Tristate::True);
    let confirmed = ticket(7, Verdict::Confirmed);
    assert_eq!(
        decide(&state, Some(&confirmed), &seen, at(1)),
        Action::MarkConfirmed("Confirmed.".to_owned())
    );
    // In the very moment of the deadline, too.
    assert_eq!(
        decide(&state, Some(&confirmed), &seen, at(60)),
        Action::MarkConfirmed("Confirmed.".to_owned())
    );
    for other in [
        None,
        Some(ticket(8, Verdict::Confirmed)),
        Some(ticket(7, Verdict::Pending)),
    ] {
        assert!(matches!(
            decide(&state, other.as_ref(), &seen, at(59)),
            Action::Wait(_)
        ));
        assert!(undone(&decide(&state, other.as_ref(), &seen, at(60))).contains("Not confirmed"));
    }
}

#[test]
fn a_way_back_that_nobody_confirms_is_kept() {
    let JournalState::Known(mut journal) = live(TicketState::Ready) else {
        panic!()
    };
    journal.entry.as_mut().unwrap().ticket.unconfirmed = Unconfirmed::Keep;
    let state = JournalState::Known(journal);
    let seen = new_node(Tristate::True);
    assert!(matches!(decide(&state, None, &seen, at(59)), Action::Wait(_)));
    assert!(
        matches!(decide(&state, None, &seen, at(60)), Action::MarkConfirmed(why) if why.contains("kept"))
    );
    let withdrawn = ticket(7, Verdict::Withdrawn);
    undone(&decide(&state, Some(&withdrawn), &seen, at(1)));
}

#[test]
fn undoing_is_not_turned_round_and_ends_when_the_old_one_is_back() {
    let state = live(TicketState::Undoing);
    let confirmed = ticket(7, Verdict::Confirmed);
    assert_eq!(
        decide(&state, Some(&confirmed), &new_node(Tristate::True), at(1)),
        Action::WriteOld(KubeApiserver)
    );
    assert_eq!(
        decide(&state, None, &node(FileSeen::Absent, None), at(1)),
        Action::WriteOld(KubeApiserver)
    );
    let back = |created, ready, now| {
        decide(
            &state,
            Some(&confirmed),
            &node(hash("old"), Some(running(OLD, created, None, ready))),
            at(now),
        )
    };
    assert!(matches!(back(5, Tristate::False, 100_000), Action::Wait(_)));
    assert_eq!(back(5, Tristate::True, 6), Action::MarkUndone("why".to_owned()));
    // Never restarted: only after a while.
    assert!(matches!(back(-500, Tristate::True, 9), Action::Wait(_)));
    assert_eq!(
        back(-500, Tristate::True, 10),
        Action::MarkUndone("why".to_owned())
    );
}

#[test]
fn an_edit_of_somebody_else_is_left_alone_on_the_way_back() {
    let action = decide(
        &live(TicketState::Undoing),
        None,
        &node(hash("theirs"), None),
        at(1),
    );
    assert!(matches!(action, Action::MarkUndone(why) if why.contains("left as it is")));
}

#[test]
fn an_api_server_that_is_replaced_is_ended_once_it_has_been_closed_for_its_time_and_not_before() {
    let ended = |state, file, image, closed: Option<i64>, now| {
        let mut process = running(image, -500, None, Tristate::False);
        process.closed_at = closed.map(at);
        let (journal, seen) = (live(state), node(hash(file), Some(process)));
        outstayed(journal.live().unwrap(), &seen, at(now)).map(str::to_owned)
    };
    use TicketState::{Applying, Ready, Starting, Undoing};
    assert_eq!(ended(Starting, "new", OLD, Some(5), 14), None);
    assert_eq!(ended(Starting, "new", OLD, Some(5), 15).as_deref(), Some(OLD));
    // It still listens: the kubelet may not have seen the manifest, and would start it again.
    assert_eq!(ended(Starting, "new", OLD, None, 90), None);
    // The one that is wanted.
    assert_eq!(ended(Starting, "new", NEW, Some(5), 90), None);
    assert_eq!(ended(Undoing, "old", OLD, Some(5), 90), None);
    assert_eq!(ended(Undoing, "old", NEW, Some(5), 15).as_deref(), Some(NEW));
    // The manifest does not say so yet, or no more.
    assert_eq!(ended(Undoing, "new", NEW, Some(5), 90), None);
    assert_eq!(ended(Starting, "theirs", OLD, Some(5), 90), None);
    assert_eq!(ended(Applying, "new", OLD, Some(5), 90), None);
    assert_eq!(ended(Ready, "new", OLD, Some(5), 90), None);
}
