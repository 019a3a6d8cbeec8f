//! Programs of the machine: run with a time limit, ended when the lab is interrupted, and known by pid *and*
//! start time, so that a reused pid is never signalled.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::interrupt;

/// What a program left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// The exit status; 128 + the signal where a signal ended it.
    pub status: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Whether it ended well.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status == 0
    }
}

/// A program about to be run.
#[derive(Debug)]
pub struct Run {
    command: Command,
    words: Vec<String>,
    stdin: Option<PathBuf>,
    input: Option<Vec<u8>>,
    log: Option<PathBuf>,
    limit: Duration,
    heeds_interrupt: bool,
}

impl Run {
    /// A program by name or path. The limit is a minute until [`Run::limit`] says otherwise.
    pub fn new(program: impl AsRef<std::ffi::OsStr>) -> Self {
        let program = program.as_ref();
        Self {
            command: Command::new(program),
            words: vec![program.to_string_lossy().into_owned()],
            stdin: None,
            input: None,
            log: None,
            limit: Duration::from_secs(60),
            heeds_interrupt: true,
        }
    }

    /// A program from a list whose first word is its name.
    pub fn argv<S: AsRef<str>>(argv: &[S]) -> Result<Self> {
        let (program, rest) = argv.split_first().context("an empty command")?;
        Ok(Self::new(program.as_ref()).args(rest.iter().map(AsRef::as_ref)))
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<std::ffi::OsStr>) -> Self {
        self.words.push(arg.as_ref().to_string_lossy().into_owned());
        self.command.arg(arg);
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        for arg in args {
            self = self.arg(arg);
        }
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Runs in this folder.
    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Reads standard input from a file.
    #[must_use]
    pub fn stdin_file(mut self, path: &Path) -> Self {
        self.stdin = Some(path.to_owned());
        self
    }

    /// Gives these bytes as standard input.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// Appends both outputs to a file instead of keeping them apart.
    #[must_use]
    pub fn log(mut self, path: &Path) -> Self {
        self.log = Some(path.to_owned());
        self
    }

    /// The longest it may run.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs to its end even after Ctrl-C: for taking things down.
    #[must_use]
    pub fn to_the_end(mut self) -> Self {
        self.heeds_interrupt = false;
        self
    }

    /// Runs it and returns what it left, whatever the status.
    pub fn output(mut self) -> Result<Output> {
        if self.heeds_interrupt {
            interrupt::check()?;
        }
        let mut stdout = tempfile::tempfile()?;
        let mut stderr = tempfile::tempfile()?;
        self.command.stdin(self.open_stdin()?);
        match &self.log {
            Some(path) => {
                let log = append(path)?;
                stdout = log.try_clone()?;
                stderr = log.try_clone()?;
                self.command.stdout(log.try_clone()?).stderr(log);
            }
            None => {
                self.command
                    .stdout(stdout.try_clone()?)
                    .stderr(stderr.try_clone()?);
            }
        }
        let mut child = self
            .command
            .spawn()
            .with_context(|| format!("cannot start `{}`", self.words.join(" ")))?;
        let status = self.wait(&mut child)?;
        let logged = self.log.is_some();
        let read = |file: &mut File| -> Result<String> {
            if logged {
                return Ok(String::new());
            }
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(0))?;
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Output {
            status,
            stdout: read(&mut stdout)?,
            stderr: read(&mut stderr)?,
        })
    }

    /// Runs it and returns its standard output; any other status than 0 is an error with its last words.
    pub fn check(self) -> Result<String> {
        let words = self.words.join(" ");
        let log = self.log.clone();
        let output = self.output()?;
        if output.success() {
            return Ok(output.stdout);
        }
        let said = match &log {
            Some(path) => format!("{}\n(the whole log: {})", last_lines(path, 40), path.display()),
            None => {
                let both = [output.stdout.trim(), output.stderr.trim()];
                both.into_iter()
                    .filter(|said| !said.is_empty())
                    .collect::<Vec<_>>()
                    .join("\n")
            }
        };
        bail!(
            "`{}` ended with status {}: {said}",
            shortened(&words),
            output.status
        )
    }

    fn open_stdin(&self) -> Result<Stdio> {
        if let Some(path) = &self.stdin {
            return Ok(File::open(path)
                .with_context(|| format!("cannot open {}", path.display()))?
                .into());
        }
        if let Some(bytes) = &self.input {
            let mut file = tempfile::tempfile()?;
            std::io::Write::write_all(&mut file, bytes)?;
            file.seek(SeekFrom::Start(0))?;
            return Ok(file.into());
        }
        Ok(Stdio::null())
    }

    fn wait(&self, child: &mut Child) -> Result<i32> {
        use std::os::unix::process::ExitStatusExt;
        let began = Instant::now();
        // Short programs (ip, mount) end within a few milliseconds; long ones need no close watch.
        let mut nap = Duration::from_millis(1);
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status
                    .code()
                    .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
            }
            if self.heeds_interrupt && interrupt::raised() {
                let _ = child.kill();
                let _ = child.wait();
                return Err(interrupt::Interrupted.into());
            }
            if began.elapsed() > self.limit {
                let _ = child.kill();
                let _ = child.wait();
                let hint = self
                    .log
                    .as_ref()
                    .map(|path| format!(":\n{}", last_lines(path, 40)));
                bail!(
                    "`{}` took longer than {} s and was ended{}",
                    shortened(&self.words.join(" ")),
                    self.limit.as_secs(),
                    hint.unwrap_or_default()
                );
            }
            std::thread::sleep(nap);
            nap = (nap * 2).min(Duration::from_millis(50));
        }
    }
}

fn shortened(words: &str) -> String {
    match words.char_indices().nth(300) {
        Some((at, _)) => format!("{} …", words.get(..at).unwrap_or(words)),
        None => words.to_owned(),
    }
}

/// Opens a file for appending, with the folders above it.
pub fn append(path: &Path) -> Result<File> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The last lines of a file, for an error message.
#[must_use]
pub fn last_lines(path: &Path, count: usize) -> String {
    let text = std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(count)..)
        .unwrap_or_default()
        .join("\n")
}

/// Starts a program that outlives this one: its own session, its output in a log file.
pub fn start_daemon(argv: &[&str], log: &Path) -> Result<ProcessId> {
    let file = append(log)?;
    let child = Command::new("setsid")
        .args(argv)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("cannot start `{}`", argv.join(" ")))?;
    // `setsid` becomes the program: the pid stays.
    let id = ProcessId::of(child.id()).with_context(|| format!("`{}` ended at once", argv.join(" ")))?;
    // Reaps it if it ends while this process still runs; otherwise init does.
    std::thread::spawn(move || {
        let mut child = child;
        let _ = child.wait();
    });
    Ok(id)
}

/// One process for good: a pid is reused, a pid with its start time is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid on the machine.
    pub pid: u32,
    /// Clock ticks after boot at which it started.
    pub started: u64,
}

impl ProcessId {
    /// The process that has this pid now.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        Some(Self {
            pid,
            started: stat(pid)?.1,
        })
    }

    /// This process.
    #[must_use]
    pub fn own() -> Self {
        let pid = std::process::id();
        Self {
            pid,
            started: stat(pid).map_or(0, |(_, started)| started),
        }
    }

    /// Whether it still runs (a zombie does not).
    #[must_use]
    pub fn alive(self) -> bool {
        stat(self.pid).is_some_and(|(state, started)| started == self.started && state != 'Z' && state != 'X')
    }

    /// Signals it, if it is still the same process. Says whether it was.
    pub fn signal(self, signal: Signal) -> bool {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return false;
        };
        self.alive() && rustix::process::kill_process(pid, signal).is_ok()
    }

    /// Ends it: SIGTERM, then SIGKILL after the grace.
    pub fn end(self, grace: Duration) {
        if self.signal(Signal::TERM) && !self.gone_within(grace) {
            self.signal(Signal::KILL);
            let _ = self.gone_within(Duration::from_secs(5));
        }
    }

    /// Waits until it is gone. Says whether it is.
    #[must_use = "a process that does not end is a finding"]
    pub fn gone_within(self, limit: Duration) -> bool {
        let began = Instant::now();
        while self.alive() {
            if began.elapsed() > limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// The arguments it was started with.
    #[must_use]
    pub fn arguments(self) -> Vec<String> {
        std::fs::read(format!("/proc/{}/cmdline", self.pid))
            .map(|bytes| {
                bytes
                    .split(|byte| *byte == 0)
                    .filter(|word| !word.is_empty())
                    .map(|word| String::from_utf8_lossy(word).into_owned())
                    .collect()
            })
            .unwrap_or_default()
    }

    /// Its direct children.
    #[must_use]
    pub fn children(self) -> Vec<ProcessId> {
        std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid))
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|pid| Self::of(pid.parse().ok()?))
            .collect()
    }
}

/// State and start time from `/proc/PID/stat`. The name in it may hold spaces and parentheses, so the
/// fields count from the last closing one.
fn stat(pid: u32) -> Option<(char, u64)> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<(char, u64)> {
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?.chars().next()?;
    // starttime is field 22 of the line, the state is field 3.
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let line = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 2 3";
        assert_eq!(parse_stat(line), Some(('S', 4242)));
    }

    #[test]
    fn this_process_is_alive_and_the_same_pid_with_another_start_is_not() {
        let own = ProcessId::own();
        assert!(own.alive());
        assert!(
            !ProcessId {
                started: own.started + 1,
                ..own
            }
            .alive()
        );
    }

    #[test]
    fn a_program_that_takes_too_long_is_ended_and_named() {
        let error = Run::new("sleep")
            .arg("20")
            .limit(Duration::from_millis(20))
            .check()
            .unwrap_err();
        assert!(error.to_string().contains("`sleep 20` took longer"), "{error}");
    }

    #[test]
    fn a_failing_program_reports_its_last_words() {
        let error = Run::new("sh")
            .args(["-c", "echo why >&2; exit 3"])
            .check()
            .unwrap_err();
        assert!(error.to_string().contains("status 3: why"), "{error}");
    }
}
