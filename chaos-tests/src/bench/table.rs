//! The figures as a table in BENCHMARKS.md, between two marks; what stands outside them stays.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Figures, Upgrade};
use crate::cache::write_whole;

const BEGIN: &str = "<!-- lab bench: begin -->";
const END: &str = "<!-- lab bench: end -->";
const HEAD: &str =
    "# Benchmarks\n\nMeasured by `make bench`; only ratios within one run are to be compared.\n";

/// The file given, or BENCHMARKS.md of the checkout that the command is run in.
pub(super) fn place(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let here = std::env::current_dir()?;
    here.ancestors()
        .find(|dir| dir.join("helm/lockkeeper/Chart.yaml").is_file())
        .map(|dir| dir.join("BENCHMARKS.md"))
        .context("no checkout here or above: run this in it, or give --table")
}

pub(super) fn write(path: &Path, figures: &Figures) -> Result<()> {
    let old = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let today = chrono::Utc::now().format("%Y-%m-%d").to_string();
    write_whole(path, merged(&old, &render(figures, &today))?.as_bytes())
}

fn merged(old: &str, table: &str) -> Result<String> {
    let block = format!("{BEGIN}\n{table}{END}\n");
    match (old.split_once(BEGIN), old.split_once(END)) {
        (Some((before, _)), Some((_, after))) => Ok(format!(
            "{before}{block}{}",
            after.strip_prefix('\n').unwrap_or(after)
        )),
        (None, None) if old.is_empty() => Ok(format!("{HEAD}\n{block}")),
        (None, None) => Ok(format!("{}\n\n{block}", old.trim_end())),
        _ => bail!("one of the marks `{BEGIN}` and `{END}` is missing: restore it, or remove the other"),
    }
}

fn render(figures: &Figures, today: &str) -> String {
    let Figures {
        from,
        to,
        nodes,
        cores,
        ..
    } = figures;
    let mut text = format!(
        "{today}, {cores} cores, {nodes} node(s), {from} to {to}; clients at 60 requests a second in three streams.\n\n\
         | round | who | time | requests | failed | after client-go's retries | longest gap | writes lost |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    );
    for (who, upgrades) in [("Lockkeeper", &figures.lockkeeper), ("kubeadm", &figures.kubeadm)] {
        for (round, upgrade) in upgrades.iter().enumerate() {
            text.push_str(&row(round + 1, who, upgrade));
        }
    }
    text.push_str("\n| what | figure | goal |\n| --- | --- | --- |\n");
    let mut line = |what: &str, figure: String, goal: &str| {
        text.push_str(&format!("| {what} | {figure} | {goal} |\n"));
    };
    if let Some(ratio) = figures.time_ratio {
        line(
            "time, Lockkeeper by kubeadm (medians)",
            format!("{ratio:.2}"),
            "at most 0.6",
        );
    }
    if let Some(rest) = &figures.at_rest {
        line("operator at rest", mib(rest.operator_mib), "at most 40 MiB");
        line("agent at rest", mib(rest.agent_mib), "at most 40 MiB");
        let requests = format!("{:.1} a minute", rest.api_requests_per_minute);
        line(
            "API requests at rest, operators and agents together",
            requests,
            "under 20 a minute",
        );
    }
    if let Some(saved) = &figures.during_snapshot {
        let what = format!("highest during a snapshot of {:.0} MiB", saved.snapshot_mib);
        line(
            &format!("operator, {what}"),
            mib(saved.operator_mib),
            "at most 96 MiB",
        );
        line(&format!("agent, {what}"), mib(saved.agent_mib), "at most 96 MiB");
        line("that snapshot, read back", format!("{:.1} s", saved.seconds), "");
    }
    text.push_str(
        "\nkubeadm: `upgrade apply` on the first node, `upgrade node` on the others, with `--etcd-upgrade=false`, \
         without the addons; neither touches the kubelets. Each upgrade runs in a fresh cluster. Memory is resident \
         memory from /proc, the largest of each kind; requests are counted by the API servers in a flow of our \
         service accounts' own. Repeat it: `make bench`.\n",
    );
    text
}

fn row(round: usize, who: &str, upgrade: &Upgrade) -> String {
    format!(
        "| {round} | {who} | {:.0} s | {} | {} | {} | {:.2} s | {} |\n",
        upgrade.seconds,
        upgrade.requests,
        upgrade.failed_raw,
        upgrade.failed_after_retry,
        upgrade.longest_gap_seconds,
        upgrade.lost_writes
    )
}

fn mib(value: f64) -> String {
    format!("{value:.1} MiB")
}

#[cfg(test)]
mod tests {
    use super::super::{AtRest, DuringSnapshot};
    use super::*;

    #[test]
    fn every_figure_has_its_row() {
        let upgrade = |seconds| Upgrade {
            seconds,
            requests: 100,
            failed_raw: 2,
            failed_after_retry: 1,
            longest_gap_seconds: 0.5,
            lost_writes: 0,
        };
        let figures = Figures {
            from: "v1.35.4".into(),
            to: "v1.36.3".into(),
            nodes: 3,
            cores: 2,
            lockkeeper: vec![upgrade(200.0)],
            kubeadm: vec![upgrade(400.0)],
            time_ratio: Some(0.5),
            at_rest: Some(AtRest {
                operator_mib: 20.0,
                agent_mib: 15.0,
                api_requests_per_minute: 7.0,
            }),
            during_snapshot: Some(DuringSnapshot {
                filled_mib: 1024,
                snapshot_mib: 1030.0,
                seconds: 9.0,
                operator_mib: 21.0,
                agent_mib: 60.0,
            }),
        };
        let text = render(&figures, "2026-01-01");
        for row in [
            "| 1 | Lockkeeper | 200 s | 100 | 2 | 1 | 0.50 s | 0 |",
            "| 1 | kubeadm | 400 s |",
            "| 0.50 | at most 0.6 |",
            "| agent, highest during a snapshot of 1030 MiB | 60.0 MiB |",
            "together | 7.0 a minute |",
        ] {
            assert!(text.contains(row), "{row} in {text}");
        }
    }

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let first = merged("", "one\n").unwrap();
        assert!(first.starts_with("# Benchmarks") && first.contains("one\n"));
        let told = format!("{first}\nMore words.\n");
        let second = merged(&told, "two\n").unwrap();
        assert!(!second.contains("one\n") && second.contains("two\n"));
        assert!(second.ends_with("\nMore words.\n"), "{second}");
        assert_eq!(merged(&second, "two\n").unwrap(), second);
        assert!(merged(&format!("x {BEGIN}"), "").is_err());
    }
}
