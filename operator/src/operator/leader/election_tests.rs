//! Tables for [`decide`], and electors under delays, losses, partitions, pauses and clocks of their own.

use proptest::prelude::*;

use super::*;

fn record(holder: Option<&str>, version: &str) -> Record {
    Record {
        holder: holder.map(str::to_owned),
        version: version.to_owned(),
        duration: Duration::from_secs(30),
        transitions: 4,
    }
}

fn me() -> Identity {
    Identity::new("pod-1", "aaaa")
}

fn decide_after(holder: Option<&str>, seconds: u64, renewed: bool) -> Decision {
    let start = Instant::now();
    let observed = Observed {
        record: Some(record(holder, "1")),
        changed_at: start,
    };
    let now = start + Duration::from_secs(seconds);
    match decide(
        &observed,
        renewed.then_some(start),
        now,
        &me(),
        &Timing::default(),
    ) {
        // Comparable across calls.
        Decision::Follow { until } => Decision::Follow {
            until: now + (until - start),
        },
        other => other,
    }
}

#[test]
fn a_follower_waits_until_the_lease_has_not_changed_for_its_duration() {
    assert!(matches!(
        decide_after(Some("pod-2_b"), 29, false),
        Decision::Follow { .. }
    ));
    assert_eq!(decide_after(Some("pod-2_b"), 30, false), Decision::Acquire);
}

#[test]
fn a_released_lease_and_that_of_a_dead_predecessor_are_taken_at_once() {
    assert_eq!(decide_after(None, 0, false), Decision::Acquire);
    assert_eq!(decide_after(Some("pod-1_zzzz"), 0, false), Decision::Acquire);
    assert!(matches!(
        decide_after(Some("pod-11_zzzz"), 0, false),
        Decision::Follow { .. }
    ));
    assert!(matches!(
        decide_after(Some("pod-1"), 0, false),
        Decision::Follow { .. }
    ));
    let nothing = Observed {
        record: None,
        changed_at: Instant::now(),
    };
    assert_eq!(
        decide(&nothing, None, Instant::now(), &me(), &Timing::default()),
        Decision::Acquire
    );
}

#[test]
fn a_leader_renews_in_time_and_steps_down_when_late_or_displaced() {
    assert!(matches!(
        decide_after(Some("pod-1_aaaa"), 7, true),
        Decision::Hold { .. }
    ));
    assert_eq!(decide_after(Some("pod-1_aaaa"), 8, true), Decision::Renew);
    assert_eq!(decide_after(Some("pod-1_aaaa"), 20, true), Decision::StepDown);
    assert_eq!(decide_after(Some("pod-2_b"), 1, true), Decision::StepDown);
    assert_eq!(decide_after(None, 1, true), Decision::StepDown);
}

#[test]
fn a_nonsensical_promise_locks_nobody_out() {
    let start = Instant::now();
    for (promise, expected) in [(0, 30), (1, 30), (60, 60), (1_000_000, 300)] {
        let observed = Observed {
            record: Some(Record {
                duration: Duration::from_secs(promise),
                ..record(Some("x_y"), "1")
            }),
            changed_at: start,
        };
        assert_eq!(
            decide(&observed, None, start, &me(), &Timing::default()),
            Decision::Follow {
                until: start + Duration::from_secs(expected)
            }
        );
    }
}

#[test]
fn the_epoch_rises_with_every_change_of_hands_and_with_no_renewal() {
    let start = Instant::now();
    let mut election = Election::new(me(), Timing::default());
    assert_eq!(election.next(start), Next::Look);
    election.saw(start, Some(record(None, "7")));
    assert_eq!(
        election.next(start),
        Next::Write {
            replacing: Some("7".to_owned()),
            transitions: 5,
            acquiring: true
        }
    );
    election.wrote(
        start,
        start,
        Record {
            transitions: 5,
            ..record(Some("pod-1_aaaa"), "8")
        },
    );
    assert_eq!(
        election.next(start + Duration::from_secs(9)),
        Next::Write {
            replacing: Some("8".to_owned()),
            transitions: 5,
            acquiring: false
        }
    );
}

#[test]
fn a_leader_whose_answer_was_lost_finds_its_own_write_and_leads_on() {
    let start = Instant::now();
    let mut election = Election::new(me(), Timing::default());
    election.wrote(start, start, record(Some("pod-1_aaaa"), "1"));
    let later = start + Duration::from_secs(9);
    election.had_no_answer(later);
    let later = later + Duration::from_secs(1);
    assert!(matches!(election.next(later), Next::Write { .. }));
    election.lost_the_race(later);
    assert!(matches!(election.next(later), Next::Wait { .. }));
    let later = later + Duration::from_secs(1);
    assert_eq!(election.next(later), Next::Look);
    election.saw(later, Some(record(Some("pod-1_aaaa"), "2")));
    assert!(
        matches!(election.next(later), Next::Write { replacing: Some(v), acquiring: false, .. } if v == "2")
    );
}

// === a world of electors ===

const TICK: Duration = Duration::from_millis(250);

/// The lease as etcd has it.
#[derive(Clone, Default)]
struct Store {
    record: Option<Record>,
    version: u64,
}

impl Store {
    fn write(&mut self, replacing: Option<&str>, new: Record) -> Option<Record> {
        if self.record.as_ref().map(|r| r.version.as_str()) != replacing {
            return None;
        }
        self.version += 1;
        let new = Record {
            version: self.version.to_string(),
            ..new
        };
        self.record = Some(new.clone());
        Some(new)
    }
}

enum Request {
    Read,
    Write {
        replacing: Option<String>,
        record: Record,
    },
}

enum Answer {
    Seen(Option<Record>),
    Written(Record),
    Refused,
}

/// A request on its way. Times are those of the world.
struct Flight {
    request: Option<Request>,
    arrives: u32,
    answer: Option<Answer>,
    returns: u32,
    sent_local: Instant,
    gives_up: u32,
}

struct Candidate {
    election: Election,
    flight: Option<Flight>,
    /// Requests that were given up by their sender, and may still arrive.
    ghosts: Vec<Flight>,
    lives: u32,
}

/// What the world does to a candidate in a stretch of 5 s.
#[derive(Clone, Debug)]
struct Weather {
    /// Ticks to the server, and back.
    there: u32,
    back: u32,
    /// The candidate's process does not run at all.
    paused: bool,
    /// It is killed and started again at the beginning of the stretch.
    killed: bool,
    /// It hears of changes at once.
    watching: bool,
}

fn weather() -> impl Strategy<Value = Weather> {
    // 60 ticks are 15 s: beyond the limit of a call, up to half a lease.
    let delay = prop_oneof![4 => 0..2_u32, 2 => 2..24_u32, 1 => 24..400_u32];
    (
        delay.clone(),
        delay,
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.05),
        any::<bool>(),
    )
        .prop_map(|(there, back, paused, killed, watching)| Weather {
            there,
            back,
            paused,
            killed,
            watching,
        })
}

fn local(start: Instant, tick: u32, speed: f64) -> Instant {
    start + (TICK * tick).mul_f64(speed)
}

/// Runs the world; returns how many ticks somebody led and how often leadership changed hands.
fn run(candidates: usize, speeds: &[f64], script: &[Vec<Weather>]) -> Result<(u32, i32), TestCaseError> {
    let start = Instant::now();
    let timing = Timing::default();
    let stretch = 20;
    let mut store = Store::default();
    let mut all: Vec<Candidate> = (0..candidates)
        .map(|i| Candidate {
            election: Election::new(Identity::new(format!("pod-{i}"), "life-0"), timing),
            flight: None,
            ghosts: vec![],
            lives: 0,
        })
        .collect();
    let mut led = 0;
    for tick in 0..(u32::try_from(script.len()).unwrap() * stretch) {
        let weather = &script[(tick / stretch) as usize];
        for (i, candidate) in all.iter_mut().enumerate() {
            let weather = &weather[i];
            let now = local(start, tick, speeds[i]);
            // The network and the server work whatever the candidate does.
            for flight in candidate.flight.iter_mut().chain(candidate.ghosts.iter_mut()) {
                if tick >= flight.arrives
                    && let Some(request) = flight.request.take()
                {
                    flight.answer = Some(match request {
                        Request::Read => Answer::Seen(store.record.clone()),
                        Request::Write { replacing, record } => store
                            .write(replacing.as_deref(), record)
                            .map_or(Answer::Refused, Answer::Written),
                    });
                }
            }
            candidate.ghosts.retain(|ghost| ghost.request.is_some());
            if weather.killed && tick % stretch == 0 {
                candidate.lives += 1;
                candidate.ghosts.extend(candidate.flight.take());
                let me = Identity::new(format!("pod-{i}"), format!("life-{}", candidate.lives));
                candidate.election = Election::new(me, timing);
            }
            if weather.paused {
                continue;
            }
            live(candidate, now, tick, weather, &store);
        }
        let acting = all
            .iter()
            .enumerate()
            .filter(|(i, candidate)| {
                // Its work may go on until then; the process is gone after. A paused process does nothing,
                // and counts all the same: on waking it must find that its time is over.
                candidate
                    .election
                    .leads_until()
                    .is_some_and(|until| local(start, tick, speeds[*i]) < until + timing.stop_within)
            })
            .count();
        prop_assert!(acting <= 1, "{acting} leaders at {:?}", TICK * tick);
        led += u32::from(acting == 1);
    }
    Ok((led, store.record.map_or(0, |record| record.transitions)))
}

fn live(candidate: &mut Candidate, now: Instant, tick: u32, weather: &Weather, store: &Store) {
    let election = &mut candidate.election;
    if weather.watching && election.leads_until().is_none() && store.record.is_some() {
        election.saw(now, store.record.clone());
    }
    if let Some(flight) = &mut candidate.flight {
        if tick >= flight.returns
            && let Some(answer) = flight.answer.take()
        {
            match answer {
                Answer::Seen(record) => election.saw(now, record),
                Answer::Written(record) => election.wrote(flight.sent_local, now, record),
                Answer::Refused => election.lost_the_race(now),
            }
            candidate.flight = None;
        } else if tick >= flight.gives_up {
            election.had_no_answer(now);
            candidate.ghosts.extend(candidate.flight.take());
        } else {
            // As the shell does: the deadline holds also while a request is on its way.
            if election.leads_until().is_some_and(|until| now >= until) {
                election.stepped_down();
                candidate.ghosts.extend(candidate.flight.take());
            }
            return;
        }
    }
    let request = match election.next(now) {
        Next::Wait { .. } => return,
        Next::StepDown => return election.stepped_down(),
        Next::Look => Request::Read,
        Next::Write {
            replacing,
            transitions,
            ..
        } => Request::Write {
            replacing,
            record: Record {
                holder: Some(election.me().holder()),
                version: String::new(),
                duration: Duration::from_secs(30),
                transitions,
            },
        },
    };
    candidate.flight = Some(Flight {
        request: Some(request),
        arrives: tick + weather.there,
        answer: None,
        returns: tick + weather.there + weather.back,
        sent_local: now,
        // 5 s
        gives_up: tick + 20,
    });
}

fn fine() -> Weather {
    Weather {
        there: 0,
        back: 0,
        paused: false,
        killed: false,
        watching: true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn never_do_two_act_at_once(
        speeds in prop::collection::vec(0.95..1.05_f64, 3),
        script in prop::collection::vec(prop::collection::vec(weather(), 3), 10..60),
    ) {
        run(3, &speeds, &script)?;
    }

    #[test]
    fn once_all_is_well_somebody_leads_within_a_lease_and_stays(
        script in prop::collection::vec(prop::collection::vec(weather(), 2), 1..30),
    ) {
        let speeds = [1.0, 1.0];
        let calm = |n: usize| std::iter::repeat_n(vec![fine(), fine()], n);
        let before: Vec<_> = script.iter().cloned().chain(calm(40)).collect();
        let (led_before, hands_before) = run(2, &speeds, &before)?;
        // A request that is on its way for 100 s may arrive late and delay things; 200 s outlast it.
        let after: Vec<_> = before.into_iter().chain(calm(20)).collect();
        let (led_after, hands_after) = run(2, &speeds, &after)?;
        prop_assert_eq!(led_after - led_before, 20 * 20);
        prop_assert_eq!(hands_after, hands_before);
    }
}

#[test]
fn a_dead_leader_is_replaced_after_one_lease() {
    let dead = Weather {
        there: 10_000,
        back: 0,
        paused: true,
        killed: false,
        watching: false,
    };
    // 10 s of calm, then the first dies for good.
    let script: Vec<_> = std::iter::repeat_n(vec![fine(), fine()], 2)
        .chain(std::iter::repeat_n(vec![dead, fine()], 8))
        .collect();
    let (_, hands) = run(2, &[1.0, 1.0], &script).unwrap();
    assert_eq!(hands, 2);
}
