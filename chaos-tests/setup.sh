#!/usr/bin/env bash
# Installs what the build and the lab need, and does nothing where all is there. Debian, as root.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
say() { printf '%s\n' "$*" >&2; }

if [ "$(id -u)" != 0 ]; then say "make setup installs packages and makes namespaces: run it as root"; exit 1; fi
if ! command -v apt-get >/dev/null; then say "this is no Debian: install what chaos-tests/packages.txt names, Rust by rustup, and Go 1.24 or newer"; exit 1; fi

wanted=()
while read -r package; do
  case $package in ''|'#'*) continue;; esac
  dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || wanted+=("$package")
done < "$here/packages.txt"
# rustup and Go are often there by other means; Debian's packages only fill the gap.
command -v rustup >/dev/null || wanted+=(rustup)
command -v go >/dev/null || wanted+=(golang-go)
if [ ${#wanted[@]} -gt 0 ]; then
  say "installing: ${wanted[*]}"
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp); trap 'rm -f "$log"' EXIT
  # A package that starts a daemon must not do so here: the lab starts its own.
  if ! { apt-get update && RUNLEVEL=1 apt-get install -y --no-install-recommends "${wanted[@]}"; } >"$log" 2>&1; then
    tail -20 "$log" >&2
    say "could not install: ${wanted[*]}. On Debian 12 rustup and a Go of 1.21 or newer are not packaged: install them by the makers' instructions, then run this again"
    exit 1
  fi
fi
# Go 1.21 and newer fetch the toolchain that a module asks for by themselves.
version=$(go env GOVERSION | sed 's/^go//')
if [ "$(printf '%s\n1.21\n' "$version" | sort -V | head -1)" != 1.21 ]; then
  say "go $version is too old: 1.21 or newer is needed"; exit 1
fi
# The toolchain that rust-toolchain.toml pins, with its static target.
(cd "$here/.." && rustup show active-toolchain >/dev/null 2>&1 || rustup toolchain install >/dev/null)
(cd "$here/.." && rustup target add x86_64-unknown-linux-musl >/dev/null 2>&1)
