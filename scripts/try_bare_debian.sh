#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tries the project as a new user would: a bare Debian 12 with nothing but git and make, a clone of
# this repository's HEAD, then `make demo` and `make test`. Needs root and debootstrap.
#
#   scripts/try_bare_debian.sh [OPTION]... [MAKE_TARGET]...
#
#   --root FOLDER  where the system is made (default: a temporary folder, removed at the end; one
#                  that is named is kept and, if it holds a system already, used again)
#   --mirror URL   Debian mirror (default: debootstrap's own)
#   --copy PATH    also copy this file or folder of the host into the system, to the same place,
#                  for machines whose apt or pip need settings of their own; may be repeated
#   --env NAME     hand this environment variable in; may be repeated
set -euo pipefail
cd "$(dirname "$0")/.."

# In a mount namespace of its own, so that mounts end with this process.
if [ -z "${QUIRE_OWN_MOUNTS:-}" ]; then
  QUIRE_OWN_MOUNTS=1 exec unshare --mount scripts/try_bare_debian.sh "$@"
fi

suite=bookworm
root='' mirror='' copies=() variables=() targets=()
while [ $# -gt 0 ]; do
  case "$1" in
    --root) root=$2 && shift 2 ;;
    --mirror) mirror=$2 && shift 2 ;;
    --copy) copies+=("$2") && shift 2 ;;
    --env) variables+=("$2=${!2}") && shift 2 ;;
    -*) sed -n '3,15s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
    *) targets+=("$1") && shift ;;
  esac
done
[ ${#targets[@]} -gt 0 ] || targets=(demo test)

if [ -z "$root" ]; then
  root=$(mktemp -d)
  trap 'rm -rf --one-file-system "$root"' EXIT
fi
if [ ! -x "$root/usr/bin/make" ]; then
  debootstrap --variant=minbase --include=git,make "$suite" "$root" ${mirror:+"$mirror"}
fi
for copy in "${copies[@]}"; do
  mkdir -p "$root$(dirname "$copy")"
  cp -r "$copy" "$root$(dirname "$copy")/"
done
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"

rm -rf "$root/root/quire"
git clone --quiet --depth 1 "file://$PWD" "$root/root/quire"
for target in "${targets[@]}"; do
  start=$(date +%s)
  chroot "$root" env -i HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    "${variables[@]}" make -C /root/quire "$target"
  echo "try_bare_debian: make $target passed in $(($(date +%s) - start)) s"
done
