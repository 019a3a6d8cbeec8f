#!/usr/bin/env bash
# Runs one stage of `make test` and says how long it took.
#   timed.sh NAME COMMAND
set -euo pipefail
name=$1 command=$2 start=$SECONDS
printf '== %s\n' "$name"
if bash -c "$command"; then
  printf '== %s: done in %d s\n' "$name" $((SECONDS - start))
else
  code=$?
  printf '== %s: FAILED after %d s (exit code %d)\n' "$name" $((SECONDS - start)) "$code" >&2
  exit "$code"
fi
