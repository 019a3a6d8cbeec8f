//! Single answers, and a load balancer that is moved by Jobs which take their time, are ended and removed at any moment.

use proptest::prelude::*;

use super::super::made::Live;
use super::*;

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_763_700_000 + second, 0).unwrap()
}

fn terms() -> Terms {
    Terms {
        target: "job edge/shop in this cluster".to_owned(),
        template: "h".to_owned(),
        timeout: TimeDelta::seconds(20),
        read_every: TimeDelta::seconds(30),
    }
}

fn job(number: u64, action: Action) -> Made {
    let asked = at(i64::try_from(number).unwrap() * 10);
    Made {
        name: format!("shop-traffic-{number}"),
        uid: format!("u-{number}"),
        mark: Mark {
            number,
            action,
            template: "h".to_owned(),
        },
        created: asked,
        asked,
        leaves: false,
        ended: None,
    }
}

/// Five seconds after it was asked for.
fn ended(number: u64, action: Action, told: Result<u8, &str>) -> Made {
    let job = job(number, action);
    Made {
        ended: Some(Ended {
            at: job.asked + TimeDelta::seconds(5),
            told: told.map(Weights::of_green).map_err(str::to_owned),
        }),
        ..job
    }
}

fn found(jobs: &[Made]) -> Found {
    Found {
        jobs: jobs.to_vec(),
        pods: vec![],
    }
}

fn set(green: u8) -> Action {
    Action::Set(Weights::of_green(green))
}

/// What is done, in words.
fn deeds<T>(next: &Next<T>) -> Vec<String> {
    let deeds = next.deeds.iter();
    deeds
        .map(|deed| match deed {
            Deed::End(job) => format!("end {}", job.mark.number),
            Deed::Remove(job) => format!("remove {}", job.mark.number),
            Deed::Make(mark) => format!("make {}: {}", mark.number, mark.action),
        })
        .collect()
}

fn is_at_work<T>(next: &Next<T>, words: &str) -> bool {
    matches!(&next.answer, Err(error @ TrafficError::AtWork { .. }) if error.to_string().contains(words))
}

#[test]
fn what_was_read_a_moment_ago_is_told_again_and_then_read_anew() {
    let nothing = terms().ask(Action::Get, &found(&[]), at(0));
    assert_eq!(deeds(&nothing), ["make 1: reads the weights"]);
    assert!(is_at_work(&nothing, "reads the weights"));

    let read = ended(1, set(25), Ok(25));
    let asked = |jobs: &[Made], second| terms().ask(Action::Get, &found(jobs), at(second));
    assert_eq!(
        asked(std::slice::from_ref(&read), 44),
        Next::only(Ok(Weights::of_green(25)))
    );
    let anew = asked(std::slice::from_ref(&read), 45);
    assert_eq!(deeds(&anew), ["make 2: reads the weights"]);
    assert_eq!(anew.answer, Ok(Weights::of_green(25)), "it still counts");
    let both = [read, job(2, Action::Get)];
    assert_eq!(asked(&both, 64), Next::only(Ok(Weights::of_green(25))));
    let late = asked(&both, 65);
    assert!(deeds(&late).is_empty() && is_at_work(&late, "shop-traffic-2 reads the weights"));
    let stuck = asked(&both, 71);
    assert!(
        matches!(&stuck.answer, Err(TrafficError::Refused { detail, .. }) if detail.contains("has not ended in its time")),
        "{stuck:?}"
    );
}

#[test]
fn a_failure_is_told_and_tried_again_with_a_pause() {
    let failed = [
        ended(1, Action::Get, Ok(0)),
        ended(2, Action::Get, Err("failed: Why")),
    ];
    for (second, made) in [(29, vec![]), (30, vec!["make 3: reads the weights"])] {
        let next = terms().ask(Action::Get, &found(&failed), at(second));
        assert_eq!(deeds(&next), made);
        let told = next.answer.unwrap_err().to_string();
        assert_eq!(
            told,
            "job edge/shop in this cluster does not obey: Job shop-traffic-2, which reads the weights, failed: Why"
        );
    }
    // What was to be set is tried again with a pause too; something else is set at once.
    let failed = [ended(2, set(25), Err("failed: Why"))];
    let next = |green, second| terms().set(Weights::of_green(green), &found(&failed), at(second));
    assert!(matches!(next(25, 29).answer, Err(TrafficError::Refused { .. })));
    assert_eq!(deeds(&next(25, 30)), ["make 3: sets 75 % blue, 25 % green"]);
    assert_eq!(deeds(&next(0, 29)), ["make 3: sets 100 % blue, 0 % green"]);
}

#[test]
fn nothing_is_read_while_something_is_set_and_what_was_read_before_does_not_count() {
    let jobs = [ended(1, Action::Get, Ok(0)), job(2, set(25))];
    for how in [Action::Get, Action::Check] {
        let next = terms().ask(how, &found(&jobs), at(21));
        assert!(deeds(&next).is_empty() && is_at_work(&next, "shop-traffic-2 sets 75 % blue, 25 % green"));
    }
    let before = [
        ended(1, Action::Get, Ok(0)),
        ended(2, set(0), Err("failed")),
        ended(3, Action::Get, Ok(0)),
        job(4, Action::Get),
    ];
    let next = terms().set(Weights::of_green(25), &found(&before), at(41));
    assert_eq!(
        deeds(&next),
        [
            "remove 4",
            "remove 3",
            "remove 1",
            "make 5: sets 75 % blue, 25 % green"
        ],
        "the last that failed is kept for its logs"
    );
    assert_eq!(next.answer, Ok(()));
}

#[test]
fn a_set_is_made_once_and_gives_way_to_another_only_when_its_pods_have_ended() {
    let of = |found: &Found, green| terms().set(Weights::of_green(green), found, at(21));
    let mut there = found(&[job(2, set(25))]);
    let pod = Live {
        name: "shop-traffic-2-x".to_owned(),
        node: "node-1".to_owned(),
        job: "u-2".to_owned(),
        mark: there.jobs[0].mark.clone(),
    };
    there.pods.push(pod);
    assert_eq!(of(&there, 25), Next::only(Ok(())));
    let other = of(&there, 0);
    assert_eq!(deeds(&other), ["end 2"]);
    assert!(is_at_work(&other, "shop-traffic-2 sets"));

    there.jobs[0].leaves = true;
    for green in [0, 25] {
        let next = of(&there, green);
        assert!(deeds(&next).is_empty() && is_at_work(&next, "was told to end"));
    }
    // Its Job is gone, or says that it has failed; the pod is not seen ended.
    for jobs in [vec![], vec![ended(2, set(25), Err("failed"))]] {
        there.jobs = jobs;
        for green in [0, 25] {
            let next = of(&there, green);
            assert!(deeds(&next).is_empty() && is_at_work(&next, "pod shop-traffic-2-x on node-1"));
            assert!(is_at_work(&terms().ask(Action::Get, &there, at(21)), "on node-1"));
        }
    }
    there.pods.clear();
    assert_eq!(deeds(&of(&there, 0)), ["make 3: sets 100 % blue, 0 % green"]);
    // One of another template is another one, whatever it sets.
    let mut foreign = job(2, set(25));
    foreign.mark.template = "other".to_owned();
    assert_eq!(deeds(&of(&found(&[foreign]), 25)), ["end 2"]);
}

#[test]
fn what_is_set_is_not_set_again() {
    let read = found(&[ended(1, Action::Get, Ok(25))]);
    let next = |second| terms().set(Weights::of_green(25), &read, at(second));
    assert_eq!(next(44), Next::only(Ok(())));
    assert_eq!(
        deeds(&next(45)),
        ["remove 1", "make 2: sets 75 % blue, 25 % green"]
    );
}

#[test]
fn a_check_listens_to_checks_and_tells_what_it_read() {
    let jobs = [
        ended(1, Action::Check, Err("failed: it may not")),
        ended(2, Action::Get, Ok(0)),
    ];
    let next = terms().ask(Action::Check, &found(&jobs), at(26));
    assert!(next.answer.unwrap_err().to_string().contains("it may not"));
    let well = found(&[ended(1, Action::Check, Ok(0))]);
    for how in [Action::Check, Action::Get] {
        assert_eq!(terms().ask(how, &well, at(20)), Next::only(Ok(Weights::BLUE)));
    }
}

#[test]
fn what_another_template_tells_does_not_count_and_what_it_sets_does() {
    let foreign = |action| {
        let mut job = ended(2, action, Ok(0));
        job.mark.template = "other".to_owned();
        job
    };
    let asked = |jobs: &[Made]| terms().ask(Action::Get, &found(jobs), at(26));
    let alone = asked(&[foreign(Action::Get)]);
    assert!(is_at_work(&alone, "reads"), "green may be another one there");
    assert_eq!(deeds(&alone), ["make 3: reads the weights"]);
    let ours = ended(1, Action::Get, Ok(25));
    assert_eq!(
        asked(&[ours.clone(), foreign(Action::Get)]),
        Next::only(Ok(Weights::of_green(25)))
    );
    let set_since = asked(&[ours.clone(), foreign(set(0))]);
    assert!(is_at_work(&set_since, "reads"));
    let next = terms().set(Weights::of_green(50), &found(&[ours, foreign(set(0))]), at(26));
    assert_eq!(
        deeds(&next),
        ["remove 2", "remove 1", "make 3: sets 50 % blue, 50 % green"]
    );
}

/// What happens.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The operator looks, and follows what it decides up to so many deeds: then it is killed.
    Look(usize),
    /// It is to set this from now on, and does as often.
    Want(u8),
    Set(usize),
    Pass(i64),
    /// A pod of one that works does its work, or ends well, or badly.
    Work,
    Ends(bool),
    /// The cluster takes note of what was told to end, or of what was removed.
    Gone,
    /// Somebody else removes a Job, by its place.
    Removes(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0usize..5).prop_map(Event::Look),
        2 => prop_oneof![Just(0u8), Just(25), Just(100)].prop_map(Event::Want),
        6 => (0usize..5).prop_map(Event::Set),
        4 => (1i64..12).prop_map(Event::Pass),
        5 => Just(Event::Work),
        5 => any::<bool>().prop_map(Event::Ends),
        3 => Just(Event::Gone),
        1 => (0usize..4).prop_map(Event::Removes),
    ]
}

struct World {
    now: DateTime<Utc>,
    green: u8,
    wanted: u8,
    found: Found,
    /// How many Jobs there were so far.
    made: u64,
}

impl World {
    fn follow<T>(&mut self, next: &Next<T>, deeds: usize) -> bool {
        for deed in next.deeds.iter().take(deeds) {
            match deed {
                Deed::End(job) => self.leave(&job.uid),
                Deed::Remove(job) => self.found.jobs.retain(|other| other.uid != job.uid),
                Deed::Make(mark) => self.make(mark),
            }
        }
        deeds >= next.deeds.len()
    }

    fn leave(&mut self, uid: &str) {
        for job in self.found.jobs.iter_mut().filter(|job| job.uid == uid) {
            job.leaves = true;
        }
    }

    /// With its pod, at once.
    fn make(&mut self, mark: &Mark) {
        let name = format!("shop-traffic-{}", mark.number);
        if self.found.jobs.iter().any(|job| job.name == name) {
            return;
        }
        self.made += 1;
        let uid = format!("u-{}", self.made);
        if mark.action.is_set() {
            assert!(self.found.pods.is_empty(), "two set at once");
            self.found.pods.push(Live {
                name: format!("{name}-x"),
                node: "n".to_owned(),
                job: uid.clone(),
                mark: mark.clone(),
            });
        }
        self.found.jobs.push(Made {
            name,
            uid,
            mark: mark.clone(),
            created: self.now,
            asked: self.now,
            leaves: false,
            ended: None,
        });
    }

    fn work(&mut self) {
        if let Some(Action::Set(weights)) = self.found.pods.first().map(|pod| pod.mark.action) {
            self.green = weights.green;
        }
    }

    /// A pod that ends well has done its work, and reads.
    fn ends(&mut self, well: bool) {
        if well {
            self.work();
        }
        let (green, now) = (self.green, self.now);
        let job = self.found.jobs.iter_mut().find(|job| job.ended.is_none());
        let pod = self.found.pods.pop();
        let Some(job) = job else { return };
        if job.leaves || job.mark.action.is_set() && pod.is_some_and(|pod| pod.job != job.uid) {
            return;
        }
        job.ended = Some(Ended {
            at: now,
            told: if well {
                Ok(Weights::of_green(green))
            } else {
                Err("failed".to_owned())
            },
        });
    }

    fn gone(&mut self) {
        let pods = self.found.pods.clone();
        let has_pod = |job: &Made| pods.iter().any(|pod| pod.job == job.uid);
        self.found.jobs.retain(|job| !job.leaves || has_pod(job));
    }

    fn look(&mut self, deeds: usize) -> Option<Weights> {
        let next = terms().ask(Action::Get, &self.found, self.now);
        let whole = self.follow(&next, deeds);
        next.answer.ok().filter(|_| whole)
    }

    fn set(&mut self, deeds: usize) {
        let next = terms().set(Weights::of_green(self.wanted), &self.found, self.now);
        self.follow(&next, deeds);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Look(deeds) => {
                if let Some(seen) = self.look(deeds) {
                    assert_eq!(seen.green, self.green, "what is told is not so");
                }
            }
            Event::Want(green) => self.wanted = green,
            Event::Set(deeds) => self.set(deeds),
            Event::Pass(seconds) => self.now += TimeDelta::seconds(seconds),
            Event::Work => self.work(),
            Event::Ends(well) => self.ends(well),
            Event::Gone => self.gone(),
            Event::Removes(at) => {
                if at < self.found.jobs.len() {
                    self.found.jobs.remove(at);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whoever is killed, ended or removed: two never set at once, what is told is so, and in the end what is wanted is set.
    #[test]
    fn what_is_told_is_so_and_what_is_wanted_is_set(events in prop::collection::vec(event(), 0..80)) {
        let mut world = World {
            now: at(0), green: 0, wanted: 0, found: Found::default(), made: 0,
        };
        for event in events {
            world.happen(event);
        }
        let mut seen = None;
        for _ in 0..20 {
            seen = world.look(9);
            if seen != Some(Weights::of_green(world.wanted)) {
                world.set(9);
            }
            world.gone();
            world.ends(true);
            world.gone();
            world.now += TimeDelta::seconds(3);
        }
        prop_assert_eq!(seen, Some(Weights::of_green(world.wanted)), "{:?}", world.found);
        prop_assert_eq!(world.green, world.wanted);
        prop_assert!(world.found.jobs.len() <= 3, "{:?}", world.found);
    }
}
