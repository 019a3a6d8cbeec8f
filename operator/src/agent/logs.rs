//! The one sentence that a process left behind when it ended.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// The reason stands near the end; usage texts before it are some 10 KiB.
const TAIL: u64 = 16 * 1024;

/// A status message is read in a terminal.
const LONGEST: usize = 400;

/// The reason in the end of a container's log file (the CRI's format), or nothing.
pub(crate) fn reason(path: &Path) -> String {
    sentence(&tail(path))
}

/// The end of a container's log file (the CRI's format) as the process wrote it, or nothing.
pub(crate) fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_or_else(
        |_| String::new(),
        |bytes| {
            let text = String::from_utf8_lossy(&bytes);
            text.lines().flat_map(|line| [written(line), "\n"]).collect()
        },
    )
}

/// Of the lines that a Kubernetes process wrote: what it called its error, or the last one.
pub(crate) fn sentence(log: &str) -> String {
    let lines: Vec<&str> = log
        .lines()
        .map(written)
        .filter(|line| !line.trim().is_empty())
        .collect();
    let found = lines
        .iter()
        .rev()
        .find_map(|line| error_of(line))
        .or_else(|| lines.last().map(|line| (*line).trim().to_owned()))
        .unwrap_or_default();
    found.chars().take(LONGEST).collect()
}

/// Without the time, stream and tag of `2026-11-21T08:19:38.5Z stderr F text`.
fn written(line: &str) -> &str {
    let mut parts = line.splitn(4, ' ');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(_), Some("stdout" | "stderr"), Some(_), Some(text)) => text,
        _ => line,
    }
}

fn error_of(line: &str) -> Option<String> {
    if let Some((_, text)) = line.split_once("Error: ") {
        return Some(text.trim().to_owned());
    }
    if let Some(text) = line.strip_prefix("panic: ") {
        return Some(text.trim().to_owned());
    }
    if line.contains("\"command failed\"") || line.starts_with('F') {
        if let Some((_, rest)) = line.split_once(" err=") {
            // klog quotes like Go, of which JSON understands what occurs here.
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
            return match values.next() {
                Some(Ok(text)) => Some(text),
                _ => Some(rest.trim().to_owned()),
            };
        }
        if let Ok(record) = serde_json::from_str::<serde_json::Value>(line) {
            return record.get("err")?.as_str().map(str::to_owned);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_found_in_what_the_real_binaries_write() {
        for (log, reason) in [
            (
                "2026-11-21T08:19:40.1Z stderr F E1121 08:19:40.199101   13309 run.go:72] \"command failed\" err=\"unrecognized feature gate: HonorPVReclaimPolicy\"\n",
                "unrecognized feature gate: HonorPVReclaimPolicy",
            ),
            (
                "2026-11-21T08:19:40.1Z stderr F Error: unknown flag: --cloud-provider\n2026-11-21T08:19:40.1Z stderr F Usage:\n",
                "unknown flag: --cloud-provider",
            ),
            (
                "E1121 08:20:50.830838   13497 run.go:72] \"command failed\" err=\"failed to read file path \\\"/nope\\\": no such file\"",
                "failed to read file path \"/nope\": no such file",
            ),
            (
                "t stderr F {\"ts\":1.5,\"caller\":\"cli/run.go:72\",\"msg\":\"command failed\",\"err\":\"bad\"}",
                "bad",
            ),
            ("t stdout F one\nt stdout F two\n\n", "two"),
            ("", ""),
        ] {
            assert_eq!(sentence(log), reason);
        }
    }

    #[test]
    fn a_log_that_is_not_there_gives_nothing() {
        assert_eq!(reason(Path::new("/nonexistent/0.log")), "");
    }
}
