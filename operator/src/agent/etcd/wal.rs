//! How far a data directory's log goes, read from its files: also when no etcd runs.
//!
//! What raft itself compares when it elects: the term of the last entry, then its index. Read only; nothing is
//! checked but the framing, since this tells a person which copy to choose, and etcd itself judges what it opens.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Records larger than this are no entries of etcd (request size 1.5 MiB by default, facts.md 3.8).
const LARGEST: u64 = 64 * 1024 * 1024;

/// `entryType`, `stateType` and `snapshotType` of etcd's `server/storage/wal/wal.go`.
const ENTRY: i64 = 2;
const STATE: i64 = 3;
const SNAPSHOT: i64 = 5;

/// `walpb.Record`.
#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(bytes = "vec", tag = "3")]
    data: Vec<u8>,
}

/// `raftpb.Entry`, without its data.
#[derive(Clone, PartialEq, prost::Message)]
struct Entry {
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(uint64, tag = "3")]
    index: u64,
}

/// `raftpb.HardState`.
#[derive(Clone, PartialEq, prost::Message)]
struct HardState {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "3")]
    commit: u64,
}

/// `walpb.Snapshot`.
#[derive(Clone, PartialEq, prost::Message)]
struct Snapshot {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint64, tag = "2")]
    term: u64,
}

/// The end of a log. Ordered as raft orders it: the greater one has more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LogEnd {
    /// Of the last entry.
    pub(crate) term: u64,
    /// Of the last entry.
    pub(crate) index: u64,
    /// Up to which this member knows that entries are committed.
    pub(crate) committed: u64,
}

/// Reads the log under `<data>/member/wal`. None when there is none.
pub(crate) fn read(data: &Path) -> io::Result<Option<LogEnd>> {
    let directory = data.join("member/wal");
    let mut segments: Vec<PathBuf> = match fs::read_dir(&directory) {
        Ok(all) => all.flatten().map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    segments.retain(|path| path.extension().is_some_and(|e| e == "wal"));
    // Their names begin with their number, in hexadecimal of one length.
    segments.sort();
    let mut end: Option<LogEnd> = None;
    for segment in segments.iter().rev() {
        let found = Scan::of(io::BufReader::new(File::open(segment)?))?;
        let known = end.unwrap_or_default();
        let last = found.entry.or(found.snapshot);
        let committed = known.committed.max(found.committed);
        end = Some(match last {
            Some((term, index)) => LogEnd {
                term,
                index,
                committed,
            },
            None => LogEnd { committed, ..known },
        });
        if last.is_some() {
            break;
        }
    }
    Ok(end)
}

/// What one segment says last.
#[derive(Default)]
struct Scan {
    entry: Option<(u64, u64)>,
    snapshot: Option<(u64, u64)>,
    committed: u64,
}

impl Scan {
    /// Reads until the end, the preallocated zeros, or a record that a power cut left torn.
    fn of(mut file: impl Read) -> io::Result<Self> {
        use prost::Message as _;
        let mut found = Self::default();
        while let Some(bytes) = frame(&mut file)? {
            let Ok(record) = Record::decode(bytes.as_slice()) else {
                break;
            };
            let data = record.data.as_slice();
            match record.kind {
                ENTRY => {
                    let Ok(entry) = Entry::decode(data) else { break };
                    found.entry = Some((entry.term, entry.index));
                }
                STATE => {
                    let Ok(state) = HardState::decode(data) else { break };
                    found.committed = state.commit;
                }
                SNAPSHOT => {
                    let Ok(snapshot) = Snapshot::decode(data) else {
                        break;
                    };
                    found.snapshot = Some((snapshot.term, snapshot.index));
                    // One that came from a leader goes beyond the entries before it.
                    if found.entry.is_some_and(|(_, index)| index < snapshot.index) {
                        found.entry = None;
                    }
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

/// The next record's bytes: a length of 56 bits with the padding's length in the top byte, then both.
fn frame(file: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; 8];
    if !filled(file, &mut head)? {
        return Ok(None);
    }
    let field = u64::from_le_bytes(head);
    let length = field & 0x00ff_ffff_ffff_ffff;
    let padding = if field >> 63 == 1 { (field >> 56) & 0x7 } else { 0 };
    if length == 0 || length > LARGEST {
        return Ok(None);
    }
    let Ok(size) = usize::try_from(length + padding) else {
        return Ok(None);
    };
    let mut bytes = vec![0; size];
    if !filled(file, &mut bytes)? {
        return Ok(None);
    }
    bytes.truncate(usize::try_from(length).unwrap_or(size));
    Ok(Some(bytes))
}

/// False at the end of the file, also one in the middle.
fn filled(file: &mut impl Read, into: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(into) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    fn record(kind: i64, data: Vec<u8>) -> Vec<u8> {
        let bytes = Record { kind, data }.encode_to_vec();
        let padding = (8 - bytes.len() % 8) % 8;
        let mut field = bytes.len() as u64;
        if padding > 0 {
            field |= (0x80 | padding as u64) << 56;
        }
        let mut out = field.to_le_bytes().to_vec();
        out.extend(bytes);
        out.extend(vec![0; padding]);
        out
    }

    fn entry(term: u64, index: u64) -> Vec<u8> {
        record(ENTRY, Entry { term, index }.encode_to_vec())
    }

    fn log(segments: &[Vec<Vec<u8>>]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let wal = root.path().join("member/wal");
        fs::create_dir_all(&wal).unwrap();
        for (number, records) in segments.iter().enumerate() {
            let mut bytes = records.concat();
            bytes.extend(vec![0; 4096]);
            fs::write(wal.join(format!("{number:016x}-{number:016x}.wal")), bytes).unwrap();
        }
        root
    }

    #[test]
    fn the_last_entry_and_what_is_committed_are_found() {
        let state = |commit| record(STATE, HardState { term: 3, commit }.encode_to_vec());
        let root = log(&[
            vec![entry(2, 7), entry(3, 8), state(7)],
            vec![record(4, Vec::new()), state(8)],
        ]);
        let end = read(root.path()).unwrap().unwrap();
        assert_eq!((end.term, end.index, end.committed), (3, 8, 8));
    }

    #[test]
    fn a_torn_record_ends_the_log_and_a_snapshot_counts_where_no_entry_follows() {
        let snapshot = record(SNAPSHOT, Snapshot { index: 90, term: 4 }.encode_to_vec());
        let mut torn = entry(5, 92);
        torn.truncate(12);
        let root = log(&[vec![entry(4, 50), snapshot.clone()], vec![]]);
        assert_eq!(read(root.path()).unwrap().unwrap().index, 90);
        let wal = root.path().join("member/wal");
        fs::write(
            wal.join(format!("{:016x}-{:016x}.wal", 1, 91)),
            [snapshot, entry(4, 91), torn].concat(),
        )
        .unwrap();
        let end = read(root.path()).unwrap().unwrap();
        assert_eq!((end.term, end.index), (4, 91));
    }

    #[test]
    fn the_later_term_wins_over_the_longer_log() {
        let end = |term, index| LogEnd {
            term,
            index,
            committed: 0,
        };
        assert!(end(3, 10) > end(2, 900));
        assert!(end(3, 11) > end(3, 10));
    }

    #[test]
    fn no_log_is_none() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(read(root.path()).unwrap(), None);
    }
}
