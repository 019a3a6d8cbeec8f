//! Compress, encrypt, hash, cut into parts; and back. On threads that may block, between bounded channels.

use std::io::{self, BufRead, BufReader, Read, Write};

use bytes::Bytes;
use lockkeeper_crds::{Compression, Encrypted};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::keys::Lock;
use super::upload::FRAME;
use super::{Fingerprint, Identities, PART_SIZE, hex};

/// zstd's fastest standard level: on one core it takes in four times what etcd streams, and the next levels cost
/// twice the time for a tenth of the size.
const LEVEL: i32 = 1;

/// What a reader must hold of a frame's past, as log2 of bytes. Level 1 uses 19; a frame that wants more than 8 MiB
/// is not ours, and would break the memory's bound.
const WINDOW: u32 = 23;

/// More than one of our frames takes when it is packed, even if nothing in it repeats.
const PACKED: usize = FRAME + FRAME / 8;

/// Between the decryption and the network: a chunk of age's.
const BUFFER: usize = 64 * 1024;

/// How a store packs what it keeps.
#[derive(Clone, Debug, Default)]
pub(super) struct Packing {
    pub(super) compression: Compression,
    pub(super) lock: Option<Lock>,
}

impl Packing {
    /// `snapshot.db` becomes `snapshot.db.zst.age`: what to undo, from the right.
    pub(super) fn name(&self, plain: &str) -> String {
        let zst = match self.compression {
            Compression::Zstd => ".zst",
            Compression::None => "",
        };
        let age = if self.lock.is_some() { ".age" } else { "" };
        format!("{plain}{zst}{age}")
    }
}

/// Packs what comes until there is no more, and sends it on in parts of [`PART_SIZE`], the last one smaller. Returns
/// what was sent. An end of `from` is taken for the end of the data: whoever breaks off drops what `to` leads to.
/// What came goes `back` empty, to be filled again: memory of this size is given back to the kernel when it is freed,
/// and fetched anew page by page, which cost a fifth of a backup's time.
pub(super) fn pack(
    from: mpsc::Receiver<Vec<u8>>,
    back: mpsc::UnboundedSender<Vec<u8>>,
    to: mpsc::Sender<Bytes>,
    packing: &Packing,
) -> io::Result<Fingerprint> {
    let (mut from, parts) = (Batches { from, back }, Parts::new(to));
    match (packing.compression, &packing.lock) {
        (Compression::None, None) => pour(&mut from, parts)?.finish(),
        (Compression::None, Some(lock)) => {
            let age = lock.encryptor()?.wrap_output(parts)?;
            pour(&mut from, age)?.finish()?.finish()
        }
        (Compression::Zstd, None) => {
            let zstd = Frames::new(parts)?;
            pour(&mut from, zstd)?.finish()?.finish()
        }
        (Compression::Zstd, Some(lock)) => {
            let age = lock.encryptor()?.wrap_output(parts)?;
            let zstd = Frames::new(age)?;
            pour(&mut from, zstd)?.finish()?.finish()?.finish()
        }
    }
}

struct Batches {
    from: mpsc::Receiver<Vec<u8>>,
    back: mpsc::UnboundedSender<Vec<u8>>,
}

fn pour<W: Write>(batches: &mut Batches, mut into: W) -> io::Result<W> {
    while let Some(mut batch) = batches.from.blocking_recv() {
        into.write_all(&batch)?;
        batch.clear();
        // Nobody wants it any more: then it was the last one.
        let _ = batches.back.send(batch);
    }
    Ok(into)
}

/// Makes a zstd frame of all that is written at once; readers take frames in a row for one. A stream's encoder copies
/// all into a window of its own first and searches it the slow way wherever that wraps.
struct Frames<W> {
    zstd: zstd::bulk::Compressor<'static>,
    /// The last one; none: nothing was written yet.
    frame: Vec<u8>,
    into: W,
}

impl<W: Write> Frames<W> {
    fn new(into: W) -> io::Result<Self> {
        Ok(Self {
            zstd: zstd::bulk::Compressor::new(LEVEL)?,
            frame: Vec::new(),
            into,
        })
    }

    /// Nothing at all is a frame too, or a reader would take it for one that was cut off.
    fn finish(mut self) -> io::Result<W> {
        if self.frame.is_empty() {
            self.frame(&[])?;
        }
        Ok(self.into)
    }

    fn frame(&mut self, data: &[u8]) -> io::Result<()> {
        self.frame.clear();
        self.frame.reserve(zstd::zstd_safe::compress_bound(data.len()));
        self.zstd.compress_to_buffer(data, &mut self.frame)?;
        self.into.write_all(&self.frame)
    }
}

impl<W: Write> Write for Frames<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.frame(data)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.into.flush()
    }
}

/// Cuts what is written into parts.
struct Parts {
    part: Vec<u8>,
    hash: Sha256,
    size: u64,
    to: mpsc::Sender<Bytes>,
}

impl Parts {
    fn new(to: mpsc::Sender<Bytes>) -> Self {
        Self {
            part: Vec::new(),
            hash: Sha256::new(),
            size: 0,
            to,
        }
    }

    fn send(&mut self) -> io::Result<()> {
        let part = Bytes::from(std::mem::take(&mut self.part));
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.to.blocking_send(part).map_err(gone)
    }

    fn finish(mut self) -> io::Result<Fingerprint> {
        if !self.part.is_empty() {
            self.send()?;
        }
        Ok(Fingerprint {
            size: self.size,
            sha256: hex(&self.hash.finalize()),
        })
    }
}

impl Write for Parts {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.part.capacity() == 0 {
            self.part.reserve_exact(PART_SIZE);
        }
        // All parts but the last are of the same size: some servers insist.
        let room = PART_SIZE.saturating_sub(self.part.len());
        let (now, _) = data.split_at(data.len().min(room));
        self.part.extend_from_slice(now);
        self.hash.update(now);
        self.size += now.len() as u64;
        if self.part.len() >= PART_SIZE {
            self.send()?;
        }
        Ok(now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// More than a header of age's with the sixteen recipients that a store may have.
const HEAD: usize = 8 * 1024;

/// Why what was packed cannot be read.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// It is encrypted, and none of the keys opens it.
    WrongKey,
    /// It is not what was packed; one line.
    Content(String),
}

/// What `from` gives, decrypted and decompressed.
pub(super) fn unpack<'a>(
    from: impl Read + 'a,
    compression: Compression,
    encrypted: Option<(&Encrypted, &Identities)>,
) -> Result<Box<dyn Read + 'a>, Unreadable> {
    let opened: Box<dyn Read + 'a> = match encrypted {
        None => Box::new(from),
        Some((encrypted, keys)) => Box::new(decrypt(from, encrypted, keys)?),
    };
    match compression {
        Compression::None => Ok(opened),
        Compression::Zstd => {
            let content = |e: io::Error| Unreadable::Content(e.to_string());
            let mut zstd = zstd::Decoder::with_buffer(Packed::of(opened)).map_err(content)?;
            zstd.window_log_max(WINDOW).map_err(content)?;
            Ok(Box::new(zstd))
        }
    }
}

/// What `from` gives, so much at a time that it holds a whole frame of ours: one that lies there whole, for a reader with
/// room for all of it, is unpacked to where it shall be; any other is unpacked elsewhere and copied.
struct Packed<R> {
    from: R,
    held: Vec<u8>,
    used: usize,
}

impl<R: Read> Packed<R> {
    fn of(from: R) -> Self {
        Self {
            from,
            held: Vec::with_capacity(2 * PACKED),
            used: 0,
        }
    }
}

impl<R: Read> BufRead for Packed<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.held.len() - self.used < PACKED {
            self.held.drain(..self.used);
            self.used = 0;
            let room = 2 * PACKED - self.held.len();
            self.from.by_ref().take(room as u64).read_to_end(&mut self.held)?;
        }
        Ok(self.held.get(self.used..).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.used += amount;
    }
}

impl<R: Read> Read for Packed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(into)?;
        self.consume(read);
        Ok(read)
    }
}

fn decrypt<'a>(
    mut from: impl Read + 'a,
    encrypted: &Encrypted,
    keys: &Identities,
) -> Result<impl Read + 'a, Unreadable> {
    let mut head = Vec::with_capacity(HEAD);
    let read = from.by_ref().take(HEAD as u64).read_to_end(&mut head);
    read.map_err(|e| Unreadable::Content(e.to_string()))?;
    // One by one: age takes the first passphrase that does not fit for the end of it.
    let keys = keys.of_kind(encrypted.kind);
    let opens = |key: &dyn age::Identity| -> Result<bool, Unreadable> {
        let file = age::Decryptor::new_buffered(head.as_slice()).map_err(|e| understood(&e))?;
        match file.decrypt(std::iter::once(key)).map(drop) {
            Ok(()) => Ok(true),
            Err(
                age::DecryptError::NoMatchingKeys
                | age::DecryptError::DecryptionFailed
                | age::DecryptError::KeyDecryptionFailed,
            ) => Ok(false),
            Err(other) => Err(understood(&other)),
        }
    };
    for key in &keys {
        if opens(key.as_ref())? {
            let whole = BufReader::with_capacity(BUFFER, io::Cursor::new(head).chain(from));
            let file = age::Decryptor::new_buffered(whole).map_err(|e| understood(&e))?;
            return file
                .decrypt(std::iter::once(key.as_ref()))
                .map_err(|e| understood(&e));
        }
    }
    Err(Unreadable::WrongKey)
}

/// age's own sentences are for a person at its command line.
fn understood(e: &age::DecryptError) -> Unreadable {
    Unreadable::Content(format!("it does not decrypt ({e:?})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packed(packing: &Packing, pieces: Vec<Vec<u8>>) -> (Vec<Bytes>, Fingerprint) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (give, taken) = mpsc::channel(2);
            let (send, mut parts) = mpsc::channel(1);
            let packing = packing.clone();
            let (back, _) = mpsc::unbounded_channel();
            let thread = std::thread::spawn(move || pack(taken, back, send, &packing));
            let feed = async {
                for piece in pieces {
                    give.send(piece).await.unwrap();
                }
                drop(give);
            };
            let collect = async {
                let mut all = vec![];
                while let Some(part) = parts.recv().await {
                    all.push(part);
                }
                all
            };
            let ((), parts) = tokio::join!(feed, collect);
            (parts, thread.join().unwrap().unwrap())
        })
    }

    fn ways() -> (Vec<Packing>, Identities) {
        let (keys, public, _) = Identities::generate();
        let lock = Some(Lock::recipients(&[public]).unwrap());
        let of = |compression, lock| Packing { compression, lock };
        let all = vec![
            of(Compression::None, None),
            of(Compression::Zstd, None),
            of(Compression::None, lock.clone()),
            of(Compression::Zstd, lock),
        ];
        (all, keys)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn what_was_packed_comes_back_however_it_is_cut(
            sizes in prop::collection::vec(0_usize..90_000, 0..6), seed: u8
        ) {
            let pieces: Vec<Vec<u8>> = sizes
                .iter()
                .map(|size| (0..*size).map(|i| (i * 7 % 251) as u8 ^ seed).collect())
                .collect();
            let whole = pieces.concat();
            let (ways, keys) = ways();
            for packing in ways {
                let (parts, told) = packed(&packing, pieces.clone());
                let stored = parts.concat();
                prop_assert_eq!(told.size, stored.len() as u64);
                prop_assert_eq!(told.sha256, hex(&Sha256::digest(&stored)));
                let encrypted = packing.lock.as_ref().map(Lock::described);
                let encrypted = encrypted.as_ref().map(|e| (e, &keys));
                let mut back = vec![];
                unpack(&stored[..], packing.compression, encrypted).unwrap().read_to_end(&mut back).unwrap();
                prop_assert!(back == whole);
            }
        }
    }

    #[test]
    fn frames_of_any_size_are_unpacked_one_of_another_program_too() {
        let mut state = 1_u64;
        // Nothing repeats: packed, it is as large.
        let mut noise = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        let plain: Vec<u8> = (0..FRAME / 2).flat_map(|_| noise()).collect();
        let packing = Packing::default();
        let frames = plain.chunks(FRAME - 1).map(<[u8]>::to_vec).collect();
        let ours = packed(&packing, frames).0.concat();
        let one = zstd::stream::encode_all(&plain[..], 3).unwrap();
        for stored in [ours, one] {
            assert!(stored.len() > 3 * PACKED);
            let mut back = vec![];
            unpack(&stored[..], packing.compression, None)
                .unwrap()
                .read_to_end(&mut back)
                .unwrap();
            assert!(back == plain);
        }
    }

    #[test]
    fn parts_are_of_one_size_but_for_the_last() {
        let packing = Packing {
            compression: Compression::None,
            lock: None,
        };
        let (parts, told) = packed(&packing, vec![vec![1; 1 << 20]; 17]);
        let sizes: Vec<usize> = parts.iter().map(Bytes::len).collect();
        assert_eq!(sizes, [PART_SIZE, PART_SIZE, 1 << 20]);
        assert_eq!(told.size, 17 << 20);
    }

    #[test]
    fn another_key_does_not_open_it_and_its_own_passphrase_does() {
        let lock = Lock::passphrase("a passphrase of some length", "keys").unwrap();
        let packing = Packing {
            compression: Compression::Zstd,
            lock: Some(lock.clone()),
        };
        let (parts, _) = packed(&packing, vec![b"secret data".to_vec()]);
        let (stored, described) = (parts.concat(), lock.described());
        assert!(!stored.windows(11).any(|w| w == b"secret data"));
        let open = |keys: &Identities| -> Result<Vec<u8>, Unreadable> {
            let mut back = vec![];
            unpack(&stored[..], Compression::Zstd, Some((&described, keys)))?
                .read_to_end(&mut back)
                .unwrap();
            Ok(back)
        };
        let right = Identities::none()
            .with_passphrase("another one that does not fit")
            .with_passphrase("a passphrase of some length\n");
        assert_eq!(open(&right).unwrap(), b"secret data");
        let wrong = Identities::none().with_passphrase("another one that does not fit");
        assert!(matches!(open(&wrong), Err(Unreadable::WrongKey)));
    }

    #[test]
    fn names_say_what_to_undo() {
        let names: Vec<String> = ways().0.iter().map(|way| way.name("snapshot.db")).collect();
        assert_eq!(
            names,
            [
                "snapshot.db",
                "snapshot.db.zst",
                "snapshot.db.age",
                "snapshot.db.zst.age"
            ]
        );
    }

    #[test]
    fn a_receiver_that_is_gone_ends_it() {
        let (give, taken) = mpsc::channel(1);
        let (send, parts) = mpsc::channel(1);
        drop(parts);
        let (back, _) = mpsc::unbounded_channel();
        let thread = std::thread::spawn(move || {
            pack(
                taken,
                back,
                send,
                &Packing {
                    compression: Compression::None,
                    lock: None,
                },
            )
        });
        while give.blocking_send(vec![0; 1 << 20]).is_ok() {}
        assert_eq!(
            thread.join().unwrap().unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }
}
