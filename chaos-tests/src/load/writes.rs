//! The books of the write stream: which counters were acknowledged, and whether the cluster still has them.

use std::collections::BTreeMap;

/// How many ConfigMaps take turns.
const SLOTS: usize = 50;

/// One ConfigMap that holds a rising counter. Only one write to it is under way at a time, so that a later
/// look must find at least the last acknowledged one.
#[derive(Debug, Clone)]
struct Slot {
    name: String,
    created: bool,
    busy: bool,
}

/// A write that may be sent now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    slot: usize,
    pub(super) name: String,
    pub(super) counter: u64,
    /// Whether the ConfigMap is there to be changed, or is to be made.
    pub(super) exists: bool,
}

/// All counters.
#[derive(Debug)]
pub(super) struct Books {
    run: String,
    slots: Vec<Slot>,
    names: u64,
    counter: u64,
    next: usize,
    acknowledged: BTreeMap<String, u64>,
    pub(super) acknowledgements: u64,
}

impl Books {
    pub(super) fn new(run: &str) -> Self {
        let mut books = Self {
            run: run.to_owned(),
            slots: Vec::new(),
            names: 0,
            counter: 0,
            next: 0,
            acknowledged: BTreeMap::new(),
            acknowledgements: 0,
        };
        for _ in 0..SLOTS {
            let slot = books.fresh();
            books.slots.push(slot);
        }
        books
    }

    fn fresh(&mut self) -> Slot {
        self.names += 1;
        Slot {
            name: format!("load-{}-{}", self.run, self.names),
            created: false,
            busy: false,
        }
    }

    /// The next write; `None` while every ConfigMap has one under way.
    pub(super) fn next(&mut self) -> Option<Write> {
        for offset in 0..self.slots.len() {
            let at = (self.next + offset) % self.slots.len();
            let Some(slot) = self.slots.get_mut(at).filter(|slot| !slot.busy) else {
                continue;
            };
            slot.busy = true;
            self.next = at + 1;
            self.counter += 1;
            return Some(Write {
                slot: at,
                name: slot.name.clone(),
                counter: self.counter,
                exists: slot.created,
            });
        }
        None
    }

    /// The server said that it has the write.
    pub(super) fn acknowledge(&mut self, write: &Write) {
        self.acknowledged.insert(write.name.clone(), write.counter);
        self.acknowledgements += 1;
        if let Some(slot) = self.slots.get_mut(write.slot) {
            slot.busy = false;
            slot.created = true;
        }
    }

    /// Nobody knows whether the write came through, or when it will. Its ConfigMap is not written again: a
    /// late one could otherwise overwrite a newer counter, and look like a loss.
    pub(super) fn unknown(&mut self, write: &Write) {
        let fresh = self.fresh();
        if let Some(slot) = self.slots.get_mut(write.slot) {
            *slot = fresh;
        }
    }

    /// Compares with what the cluster has, ConfigMap to counter.
    pub(super) fn lost(&self, found: &BTreeMap<String, u64>) -> Vec<String> {
        self.acknowledged
            .iter()
            .filter_map(|(name, wanted)| match found.get(name) {
                None => Some(format!(
                    "ConfigMap {name} is gone; counter {wanted} was acknowledged"
                )),
                Some(counter) if counter < wanted => Some(format!(
                    "ConfigMap {name} has counter {counter}; {wanted} was acknowledged"
                )),
                Some(_) => None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledged_counter_that_is_not_there_is_lost() {
        let mut books = Books::new("x");
        let first = books.next().unwrap();
        books.acknowledge(&first);
        assert_eq!(
            books.lost(&BTreeMap::from([(first.name.clone(), first.counter)])),
            Vec::<String>::new()
        );
        assert_eq!(books.lost(&BTreeMap::new()).len(), 1);
        assert_eq!(
            books
                .lost(&BTreeMap::from([(first.name.clone(), first.counter - 1)]))
                .len(),
            1
        );
    }

    #[test]
    fn a_write_of_unknown_fate_is_not_written_over() {
        let mut books = Books::new("x");
        let write = books.next().unwrap();
        books.unknown(&write);
        let names: Vec<String> = std::iter::from_fn(|| books.next())
            .map(|write| write.name)
            .collect();
        assert_eq!(names.len(), SLOTS);
        assert!(!names.contains(&write.name));
        assert!(books.next().is_none(), "all under way");
    }
}
