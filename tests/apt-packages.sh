#!/bin/bash
# Installs the packages that a list names, where that is ours to do: root on Debian. Elsewhere it says what is missing and
# how to get it, and goes on: the tests that need a missing program are skipped and say why.
#
# usage: apt-packages.sh             all of apt-packages.txt beside it: one package a line, "#" begins a comment
#        apt-packages.sh PACKAGE...  these
#
# A package is a name, or several with "|" between them, where Debian's releases differ: one of them is enough.
set -euo pipefail

# dpkg-query answers at once and offline; apt is asked only for what is missing.
installed() {
    local name
    for name in ${1//|/ }; do
        [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$name" 2>/dev/null || true)" != installed ] || return 0
    done
    return 1
}

# The first of its names that apt can install.
available() {
    local name
    for name in ${1//|/ }; do
        # Not "grep -q", which may leave apt-cache with a broken pipe.
        [ -z "$(apt-cache policy "$name" | sed -n 's/^  Candidate: [^(]/&/p')" ] || { echo "$name"; return 0; }
    done
    return 1
}

install() {
    local entry name names=()
    for entry in "${missing[@]}"; do
        name=$(available "$entry") || return 1
        names+=("$name")
    done
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends "${names[@]}" </dev/null
}

[ $# -gt 0 ] || set -- $(sed 's/#.*//' "$(dirname "$0")/apt-packages.txt")
missing=()
for package; do
    installed "$package" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    names=("${missing[@]%%|*}")
    echo "not installed: ${names[*]} (on Debian: sudo apt-get install --no-install-recommends ${names[*]})" >&2
    exit 0
fi

echo "installing: ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# With fresh lists this works at once; with stale or no lists it takes an update.
install >"$log" 2>&1 || { apt-get update --quiet </dev/null >>"$log" 2>&1 && install >>"$log" 2>&1; } ||
    { cat "$log" >&2; exit 1; }
