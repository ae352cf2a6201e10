#!/bin/bash
# Installs the packages that a list names, where that is ours to do: root on Debian. Elsewhere it says what is missing and
# how to get it, and goes on: the tests that need a missing program are skipped and say why.
#
# usage: apt-packages.sh          reads apt-packages.txt beside it: one package a line, "#" begins a comment
set -euo pipefail

missing=()
for package in $(sed 's/#.*//' "$(dirname "$0")/apt-packages.txt"); do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed: ${missing[*]} (on Debian: sudo apt-get install --no-install-recommends ${missing[*]})" >&2
    exit 0
fi

export DEBIAN_FRONTEND=noninteractive
install=(apt-get install --yes --quiet --no-install-recommends "${missing[@]}")
echo "installing: ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# With fresh lists this works at once; with stale or no lists it takes an update.
"${install[@]}" </dev/null >"$log" 2>&1 ||
    { apt-get update --quiet >>"$log" 2>&1 && "${install[@]}" </dev/null >>"$log" 2>&1; } ||
    { cat "$log" >&2; exit 1; }
