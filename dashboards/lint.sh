#!/usr/bin/env bash
# All checks of this directory: the rules and their tests (promtool), and what holds the files together (lint.py).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
command -v promtool >/dev/null || { echo "$0: promtool not found: install the package prometheus" >&2; exit 2; }
python3 -c 'import yaml' 2>/dev/null || { echo "$0: Python's yaml not found: install the package python3-yaml" >&2; exit 2; }
promtool check rules "$here/alerts.yaml"
promtool test rules "$here/alerts_test.yaml"
PYTHONDONTWRITEBYTECODE=1 python3 "$here/lint.py"
