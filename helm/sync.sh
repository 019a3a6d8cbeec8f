#!/usr/bin/env bash
# The chart carries copies of what others own: the CRDs, the admission policies, the alerts, the dashboard.
# (Helm packs no file from outside the chart, and follows no link to one.)
#
#   helm/sync.sh           makes the copies (`make generate`)
#   helm/sync.sh --check   1 when one differs from what it was made of, or is left over
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(dirname "$here")
files=$here/lockkeeper/files

fill() {
  mkdir -p "$1/crds" "$1/admission" "$1/monitoring"
  cp "$top"/crds/manifests/*.yaml "$1/crds/"
  cp "$top"/policies/admission/*.yaml "$1/admission/"
  cp "$top/dashboards/alerts.yaml" "$top/dashboards/lockkeeper.json" "$1/monitoring/"
}

case "${1-}" in
  '')
    rm -rf "$files"
    fill "$files" ;;
  --check)
    fresh=$(mktemp -d)
    trap 'rm -rf "$fresh"' EXIT
    fill "$fresh"
    diff -r "$fresh" "$files" || { echo "helm/lockkeeper/files differs from what it is made of: run 'make generate' and commit it" >&2; exit 1; } ;;
  *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
