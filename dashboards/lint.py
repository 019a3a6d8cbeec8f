#!/usr/bin/env python3
"""Holds alerts, dashboard, inhibit rules and runbooks together.

Comes in: the files of this directory; dashboards/metrics.txt is the list of metrics that the code exposes.
Goes out: a line a fault, and 1 when there is one. Touches nothing.
Needs python3-yaml, and promtool (Debian: prometheus) for the syntax of the panels' queries.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

HERE = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent).resolve()
CRD = Path(__file__).resolve().parent.parent / "crds/manifests/clusterversions.yaml"
RUNBOOKS = "https://github.com/lockkeeper/lockkeeper/blob/main/dashboards/runbooks/"
HEADINGS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]
KEYWORDS = set("and or unless by without on ignoring group_left group_right bool offset inf nan".split())
# What Prometheus itself makes.
BUILT_IN = {"ALERTS", "up"}
# Pages for what no alert can tell, since nothing is left that could.
WITHOUT_ALERT = {"AllLost", "QuorumLost"}

faults = []


def fault(where, what):
    faults.append(f"{where}: {what}")


def metrics_of(expr):
    """The metric names in a PromQL expression."""
    expr = re.sub(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'', '""', expr)
    expr = re.sub(r"\{[^}]*\}", " ", expr)
    expr = re.sub(r"\[[^\]]*\]", " ", expr)
    expr = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", expr)
    names = re.findall(r"(?<![\w.$])([A-Za-z_:][\w:]*)\b(?!\s*\()", expr)
    return {n for n in names if n.lower() not in KEYWORDS}


def family(name):
    """A histogram's name, of any of its series."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


def exists(name, known):
    return name in known or name in BUILT_IN or family(name) in known


def check_expr(where, expr, known, states):
    names = metrics_of(expr)
    if not names:
        fault(where, "uses no metric")
    for name in sorted(names):
        if not exists(name, known):
            fault(where, f"uses {name}, which is not in metrics.txt")
    for matcher in re.findall(r"lockkeeper_upgrade_state\{[^}]*?\bstate=\"([^\"]*)\"", expr):
        if matcher not in states:
            fault(where, f"asks for state {matcher}, which no ClusterVersion has")


def check_alerts(known, states):
    alerts, used = {}, set()
    tests = yaml.safe_load((HERE / "alerts_test.yaml").read_text())["tests"]
    fires, silent = set(), set()
    for test in tests:
        for case in test["alert_rule_test"]:
            (fires if case["exp_alerts"] else silent).add(case["alertname"])
            for expected in case["exp_alerts"]:
                fires.add((case["alertname"], expected["exp_labels"]["severity"]))
    for group in yaml.safe_load((HERE / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            name = rule["alert"]
            severity = rule.get("labels", {}).get("severity")
            alerts.setdefault(name, set()).add(severity)
            where = f"alerts.yaml: {name}"
            check_expr(where, rule["expr"], known, states)
            used |= metrics_of(rule["expr"])
            if severity not in ("info", "warning", "critical"):
                fault(where, f"severity is {severity}, not info, warning or critical")
            notes = rule.get("annotations", {})
            for key in ("summary", "description"):
                if not notes.get(key):
                    fault(where, f"has no {key}")
            if notes.get("runbook_url") != f"{RUNBOOKS}{name}.md":
                fault(where, f"runbook_url is not {RUNBOOKS}{name}.md")
            if (name, severity) not in fires:
                fault(where, f"no test in alerts_test.yaml sees it fire as {severity}")
            if name not in silent:
                fault(where, "no test in alerts_test.yaml sees it silent")
    return alerts, used


def check_runbooks(alerts):
    for name in [*alerts, *sorted(WITHOUT_ALERT)]:
        path = HERE / "runbooks" / f"{name}.md"
        if not path.is_file():
            fault(f"runbooks/{name}.md", "is missing")
            continue
        text = path.read_text()
        if not text.startswith(f"# {name}\n"):
            fault(f"runbooks/{name}.md", f"does not begin with '# {name}'")
        sections = re.split(r"(?m)^## (.*)$", text)[1:]
        if sections[::2] != HEADINGS:
            fault(f"runbooks/{name}.md", f"its sections are not {', '.join(HEADINGS)}")
        for title, body in zip(sections[::2], sections[1::2]):
            if not body.strip():
                fault(f"runbooks/{name}.md", f"{title} is empty")
            if title == "Diagnosis" and "```" not in body:
                fault(f"runbooks/{name}.md", "Diagnosis has no command")
    for path in (HERE / "runbooks").glob("*.md"):
        if path.stem not in alerts and path.stem not in WITHOUT_ALERT:
            fault(f"runbooks/{path.name}", "is of no alert")


def check_inhibit_rules(alerts):
    for rule in yaml.safe_load((HERE / "inhibit-rules.yaml").read_text())["inhibit_rules"]:
        source, target = ", ".join(rule["source_matchers"]), ", ".join(rule["target_matchers"])
        where = f"inhibit-rules.yaml: {source}"
        if 'severity="warning"' not in target:
            fault(where, "mutes more than warnings")
        if "cluster" not in rule.get("equal", []):
            fault(where, "mutes other clusters' alerts")
        for name in re.findall(r"Lockkeeper\w+", source + target):
            if name not in alerts:
                fault(where, f"names {name}, which is no alert")


def check_dashboard(known, states, used):
    board = json.loads((HERE / "lockkeeper.json").read_text())
    variables = {v["name"]: v for v in board["templating"]["list"]}
    if variables.get("datasource", {}).get("type") != "datasource":
        fault("lockkeeper.json", "has no variable 'datasource' of type datasource")
    panels = [p for row in board["panels"] for p in [row, *row.get("panels", [])]]
    ids = [p["id"] for p in panels]
    if len(ids) != len(set(ids)):
        fault("lockkeeper.json", "two panels have one id")
    exprs = []
    for panel in panels:
        where = f"lockkeeper.json: panel {panel['id']} {panel.get('title', '')!r}"
        if not panel.get("title"):
            fault(where, "has no title")
        if panel["type"] == "row":
            continue
        if not panel.get("description"):
            fault(where, "has no description")
        if not panel.get("targets"):
            fault(where, "has no query")
        for thing in [panel, *panel.get("targets", [])]:
            if thing.get("datasource", {}).get("uid") != "${datasource}":
                fault(where, "does not use the variable ${datasource}")
        for target in panel.get("targets", []):
            check_expr(where, target["expr"], known, states)
            used |= metrics_of(target["expr"])
            exprs.append(target["expr"])
            if "cluster=~\"$cluster\"" not in target["expr"]:
                fault(where, "does not heed the variable $cluster")
    for note in board["annotations"]["list"]:
        if note["datasource"]["uid"] != "${datasource}":
            fault(f"lockkeeper.json: annotation {note['name']}", "does not use the variable ${datasource}")
        exprs.append(note["expr"])
    families = {family(name) for name in used}
    for name in sorted(known):
        # Every process has process_*; those of interest are shown.
        if not name.startswith("process_") and family(name) not in families:
            fault("lockkeeper.json", f"{name} is in metrics.txt, and on no panel and in no alert")
    check_syntax(exprs)


def check_syntax(exprs):
    """Lets promtool read the panels' queries, as if each were a recording rule."""
    rules = [
        {"record": f"panel:{i}", "expr": re.sub(r"\$__(rate_)?interval", "5m", expr)} for i, expr in enumerate(exprs)
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}, file)
        file.flush()
        # Two panels may well ask the same: the names differ, so promtool does not mind.
        done = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True)
    if done.returncode:
        fault("lockkeeper.json", f"promtool does not understand a query: {(done.stdout + done.stderr).strip()}")


def main():
    known = set((HERE / "metrics.txt").read_text().split())
    schema = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    states = schema["properties"]["status"]["properties"]["state"]["enum"]
    alerts, used = check_alerts(known, states)
    check_runbooks(alerts)
    check_inhibit_rules(alerts)
    check_dashboard(known, states, used)
    for line in faults:
        print(line, file=sys.stderr)
    print(f"dashboards: {len(alerts)} alerts, {len(known)} metrics, {len(faults)} faults")
    return 1 if faults else 0


sys.exit(main())
