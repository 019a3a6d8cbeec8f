//! Single decisions, as a person would ask for them.

use super::*;

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_763_700_000 + second, 0).unwrap()
}

fn wanted() -> Wanted {
    let step = |green| Step {
        green,
        soak: TimeDelta::seconds(10),
        approval: false,
    };
    Wanted {
        steps: vec![step(25), step(100)],
        promoted: 0,
        paused: false,
        abort: false,
        budget: Budget::default(),
        window: TimeDelta::seconds(60),
        takes: TimeDelta::seconds(30),
        settles: TimeDelta::zero(),
        lost_after: TimeDelta::seconds(30),
        blue_lost: WhenLost::Hold,
        green_lost: WhenLost::GoBack,
        hand_over: false,
        hand_over_limit: TimeDelta::seconds(300),
        freeze: None,
    }
}

fn seen(weights: &[u8]) -> Seen {
    Seen {
        weights: Weights::Known(weights.to_vec()),
        obstacles: vec![],
        ready_at: Some(at(0)),
        gates: vec![],
        blue_lost: None,
        green_lost: None,
        blue: Duty::Running,
        green: Duty::Stopped(None),
        frozen: Some(false),
        spent: Spent::default(),
    }
}

#[test]
fn what_is_still_being_looked_at_holds_a_beginning_and_calls_for_nobody() {
    let obstacle = |message: &str, pending| Obstacle {
        message: message.to_owned(),
        pending,
    };
    let decided = |obstacles: Vec<Obstacle>| {
        let me = memory(Stage::Checking, false);
        let seen = Seen {
            obstacles,
            ..seen(&[0])
        };
        decide(&me, &wanted(), &seen, at(0))
    };
    let pending = obstacle("compared", true);
    assert_eq!(reason(&decided(vec![pending.clone()])), Some(Reason::Looking));
    let both = vec![pending, obstacle("missing", false)];
    assert!(
        matches!(decided(both), Act::Wait(held) if held.reason == Reason::Blocked && held.message == "missing")
    );
    assert!(matches!(decided(vec![]), Act::Mark(_)));
}

fn memory(stage: Stage, reached: bool) -> Memory {
    Memory {
        stage,
        reached: reached.then(|| at(0)),
        ..Memory::new(at(0))
    }
}

fn reason(act: &Act) -> Option<Reason> {
    match act {
        Act::Wait(held) => Some(held.reason),
        _ => None,
    }
}

fn stage(act: &Act) -> Option<Stage> {
    match act {
        Act::Mark(memory) => Some(memory.stage),
        _ => None,
    }
}

#[test]
fn a_weight_is_written_down_then_set_then_seen() {
    let (wanted, now) = (wanted(), at(5));
    let act = decide(&memory(Stage::Checking, false), &wanted, &seen(&[0]), now);
    assert_eq!(stage(&act), Some(Stage::Step(0)));
    let me = memory(Stage::Step(0), false);
    assert_eq!(decide(&me, &wanted, &seen(&[0]), now), Act::Set(25));
    assert_eq!(decide(&me, &wanted, &seen(&[25, 0]), now), Act::Set(25));
    let Act::Mark(next) = decide(&me, &wanted, &seen(&[25, 25]), now) else {
        panic!("not seen");
    };
    assert_eq!(next.reached, Some(now));
    assert_eq!(
        reason(&decide(&next, &wanted, &seen(&[25]), at(10))),
        Some(Reason::Soaking)
    );
    assert_eq!(
        stage(&decide(&next, &wanted, &seen(&[25]), at(15))),
        Some(Stage::Step(1))
    );
}

#[test]
fn the_old_answers_of_a_dns_are_waited_for_whatever_the_soak() {
    let wanted = Wanted {
        settles: TimeDelta::seconds(600),
        ..wanted()
    };
    let act = decide(&memory(Stage::Step(0), true), &wanted, &seen(&[25]), at(599));
    assert_eq!(reason(&act), Some(Reason::Soaking));
}

#[test]
fn nothing_is_moved_before_a_longer_ttl_has_run_out() {
    let checking = memory(Stage::Checking, false);
    let mut unprepared = seen(&[0]);
    unprepared.ready_at = None;
    assert_eq!(decide(&checking, &wanted(), &unprepared, at(1)), Act::Prepare);
    unprepared.ready_at = Some(at(300));
    let act = decide(&checking, &wanted(), &unprepared, at(299));
    assert_eq!(reason(&act), Some(Reason::Preparing));
    let act = decide(&checking, &wanted(), &unprepared, at(300));
    assert_eq!(stage(&act), Some(Stage::Step(0)));
}

#[test]
fn weights_that_nobody_here_asked_for_stop_it_and_are_named() {
    for (me, weights) in [
        (memory(Stage::Step(0), false), vec![40]),
        (memory(Stage::Step(0), true), vec![0]),
        (memory(Stage::Step(1), true), vec![100, 99]),
        (memory(Stage::Window, false), vec![25]),
        (memory(Stage::Step(0), false), vec![]),
    ] {
        let act = decide(&me, &wanted(), &seen(&weights), at(20));
        assert_eq!(reason(&act), Some(Reason::WeightsChanged), "{me:?} {act:?}");
    }
}

#[test]
fn what_cannot_be_read_holds_forward_and_never_back() {
    let unread = Seen {
        weights: Weights::Unknown("the edge is away".to_owned()),
        ..seen(&[])
    };
    for me in [memory(Stage::Step(0), true), memory(Stage::Window, false)] {
        assert_eq!(
            reason(&decide(&me, &wanted(), &unread, at(500))),
            Some(Reason::TrafficUnknown)
        );
    }
    assert_eq!(
        decide(&memory(Stage::Back, false), &wanted(), &unread, at(5)),
        Act::Set(0)
    );
}

#[test]
fn what_is_being_set_is_waited_for_and_calls_for_nobody() {
    let not_yet = Seen {
        weights: Weights::NotYet("a Job sets them".to_owned()),
        ..seen(&[])
    };
    for (stage, waits) in [
        (Stage::Checking, Reason::Looking),
        (Stage::Step(0), Reason::AtWork),
        (Stage::Window, Reason::AtWork),
    ] {
        let act = decide(&memory(stage, false), &wanted(), &not_yet, at(5));
        assert_eq!(reason(&act), Some(waits), "{stage:?}");
    }
    let late = decide(&memory(Stage::Step(0), false), &wanted(), &not_yet, at(500));
    assert!(
        matches!(
            late,
            Act::Mark(Memory {
                stage: Stage::Back,
                ..
            })
        ),
        "{late:?}"
    );
    assert_eq!(
        decide(&memory(Stage::Back, false), &wanted(), &not_yet, at(5)),
        Act::Set(0)
    );
}

#[test]
fn each_cause_takes_all_back_and_says_so() {
    let me = memory(Stage::Step(0), true);
    let failing = Gate {
        name: "shop".to_owned(),
        passes: 0,
        passes_wanted: 3,
        failures: 3,
        failures_limit: 3,
        message: "7 of 20 requests failed".to_owned(),
    };
    let mut by_gate = seen(&[25]);
    by_gate.gates = vec![failing];
    let mut by_budget = seen(&[25]);
    by_budget.spent.failed_requests = 11;
    let mut by_loss = seen(&[25]);
    by_loss.green_lost = Some(at(-60));
    let budget = Wanted {
        budget: Budget {
            failed_requests: Some(10),
            failing_seconds: None,
        },
        ..wanted()
    };
    let aborted = Wanted {
        abort: true,
        ..wanted()
    };
    for (wanted, seen, word) in [
        (&wanted(), by_gate, "gate shop has failed 3 times"),
        (&budget, by_budget, "the budget is 10"),
        (&wanted(), by_loss, "the API of green has not answered for 61 s"),
        (&aborted, seen(&[25]), "aborted"),
    ] {
        let Act::Mark(next) = decide(&me, wanted, &seen, at(1)) else {
            panic!("{word}");
        };
        assert_eq!(next.stage, Stage::Back);
        assert!(next.reason.contains(word), "{}", next.reason);
    }
}

#[test]
fn a_lost_blue_holds_and_does_not_send_its_traffic_back_to_it() {
    let mut lost = seen(&[25]);
    lost.blue_lost = Some(at(-600));
    let act = decide(&memory(Stage::Step(0), true), &wanted(), &lost, at(60));
    assert_eq!(reason(&act), Some(Reason::ClusterLost));
}

#[test]
fn once_green_has_diverged_only_a_persons_word_goes_back() {
    let mut me = memory(Stage::Window, false);
    me.diverged = true;
    let mut lost = seen(&[100]);
    lost.green_lost = Some(at(-600));
    let act = decide(&me, &wanted(), &lost, at(1));
    assert_eq!(reason(&act), Some(Reason::GreenDiverged));
    let aborted = Wanted {
        abort: true,
        ..wanted()
    };
    assert_eq!(stage(&decide(&me, &aborted, &lost, at(1))), Some(Stage::Back));
}

#[test]
fn approval_is_for_a_share_and_not_for_all_that_comes() {
    let mut wanted = wanted();
    for step in &mut wanted.steps {
        step.approval = true;
    }
    let checking = memory(Stage::Checking, false);
    assert_eq!(
        reason(&decide(&checking, &wanted, &seen(&[0]), at(1))),
        Some(Reason::AwaitingApproval)
    );
    wanted.promoted = 25;
    assert_eq!(
        stage(&decide(&checking, &wanted, &seen(&[0]), at(1))),
        Some(Stage::Step(0))
    );
    let act = decide(&memory(Stage::Step(0), true), &wanted, &seen(&[25]), at(60));
    assert_eq!(reason(&act), Some(Reason::AwaitingApproval));
}

/// In the last step, frozen until a second 60.
fn frozen(reached: Option<i64>) -> Memory {
    Memory {
        reached: reached.map(at),
        frozen_until: Some(at(60)),
        handed: true,
        ..memory(Stage::Step(1), false)
    }
}

#[test]
fn a_freeze_lasts_until_the_last_client_heeds_that_green_has_all() {
    let wanted = Wanted {
        settles: TimeDelta::seconds(20),
        ..wanted()
    };
    let now_frozen = Seen {
        frozen: Some(true),
        blue: Duty::Stopped(Some(Fence::Forward)),
        ..seen(&[100])
    };
    let me = frozen(Some(30));
    let act = decide(&me, &wanted, &now_frozen, at(49));
    assert_eq!(reason(&act), Some(Reason::Soaking));
    let Act::Mark(diverged) = decide(&me, &wanted, &now_frozen, at(50)) else {
        panic!("it is not lifted");
    };
    assert!(diverged.diverged);
    assert_eq!(decide(&diverged, &wanted, &now_frozen, at(51)), Act::Thaw);
}

#[test]
fn what_has_not_come_to_the_last_client_before_the_freeze_ends_goes_back() {
    let wanted = Wanted {
        settles: TimeDelta::seconds(20),
        takes: TimeDelta::seconds(300),
        ..wanted()
    };
    for (reached, now, goes_back) in [
        (None, 59, false),
        (None, 60, true),
        (Some(41), 59, false),
        (Some(41), 60, true),
        // It was lifted by itself before, and nobody looked.
        (Some(41), 600, true),
        (Some(40), 600, false),
    ] {
        let act = decide(&frozen(reached), &wanted, &seen(&[100]), at(now));
        let back = stage(&act) == Some(Stage::Back);
        assert_eq!(
            back, goes_back,
            "reached at {reached:?}, looked at {now}: {act:?}"
        );
    }
}
