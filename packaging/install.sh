#!/bin/sh
# Installs secateur from the folder that this script is in, an unpacked tarball. Everything is checked before anything is
# changed. On Debian, Ubuntu and Raspberry Pi OS the package is the better way: it can be removed and upgraded.
#
#   ./install.sh                    into /usr/local, as root
#   ./install.sh --prefix ~/.local  without root: no service
#   ./install.sh --check            only the checks
#   ./install.sh --remove           the program goes, models, images and settings stay
set -eu
from=$PWD
cd "$(dirname "$0")"
usage="usage: install.sh [--prefix FOLDER] [--check | --remove]"

fail() { echo "install.sh: $1" >&2; exit 1; }

prefix=/usr/local action=install
while [ $# -gt 0 ]; do
  case $1 in
    --prefix)
      case ${2-} in "" | -*) fail "--prefix: expected a folder" ;; esac
      prefix=$2
      shift
      ;;
    --prefix=?*) prefix=${1#--prefix=} ;;
    --check) action=check ;;
    --remove) action=remove ;;
    -h | --help) echo "$usage"; exit 0 ;;
    *) echo "$usage" >&2; exit 2 ;;
  esac
  shift
done
case $prefix in /*) ;; *) prefix=$from/$prefix ;; esac
prefix=${prefix%/}

# Where things go.
bin=$prefix/bin/secateur
man=$prefix/share/man/man1
bash=$prefix/share/bash-completion/completions/secateur
zsh=$prefix/share/zsh/site-functions/_secateur
fish=$prefix/share/fish/vendor_completions.d/secateur.fish
units=/etc/systemd/system/secateur.service
users=/etc/sysusers.d/secateur.conf
folders=/etc/tmpfiles.d/secateur.conf
# A service needs root, a name that a unit file takes as it is, and a place that its protection does not hide from it.
service=no
if [ "$(id -u)" = 0 ] && [ -d /run/systemd/system ]; then
  service=yes
  case $prefix in
    *[!A-Za-z0-9/._+-]*) service=no no_service="$prefix has characters that a unit file would read as something else" ;;
  esac
  # ProtectHome and PrivateTmp of the unit.
  for hidden in /home /root /run/user /tmp /var/tmp; do
    case $prefix/ in "$hidden"/*) service=no no_service="$prefix is hidden from it" ;; esac
  done
fi

if [ "$action" = remove ]; then
  found=no
  for page in man/*.1; do if [ -e "$man/${page##*/}" ]; then found=yes; fi; done
  for file in "$bin" "$bin.new" "$bash" "$zsh" "$fish"; do if [ -e "$file" ]; then found=yes; fi; done
  [ "$found" = yes ] || fail "$bin is not there: nothing to remove"
  # Another prefix has a service of its own.
  runs=$(sed -n 's/^ExecStart=\([^ ]*\).*/\1/p' "$units" 2>/dev/null) || runs=
  if [ "$service" = yes ] && { [ "$runs" = "$bin" ] || [ "$runs" -ef "$bin" ]; }; then
    systemctl stop secateur.service || fail "the service does not stop"
    systemctl disable secateur.service || fail "the service cannot be disabled"
    rm -f "$units" "$users" "$folders"
    systemctl daemon-reload
  fi
  for page in man/*.1; do rm -f "$man/${page##*/}" "$man/${page##*/}.new"; done
  for file in "$bash" "$zsh" "$fish" "$bin"; do rm -f "$file" "$file.new"; done
  echo "removed"
  for data in /var/lib/secateur /var/spool/secateur /etc/secateur; do
    if [ -e "$data" ]; then echo "still there: $data"; fi
  done
  exit 0
fi

# -- checks
[ -e REQUIRES ] || fail "run it in the unpacked tarball"
target=$(sed -n 's/.*target=\([^ ]*\).*/\1/p' REQUIRES) glibc=$(sed -n 's/.*glibc=\([^ ]*\).*/\1/p' REQUIRES)
[ -n "$target" ] && [ -n "$glibc" ] || fail "REQUIRES is damaged: get the tarball again"
machine=$(uname -m)
case "$target $machine" in
  "aarch64-"*" aarch64" | "x86_64-"*" x86_64" | "armv7-"*" armv7l" | "armv7-"*" armv8l") ;;
  "armv7-"*" aarch64") echo "note: the processor can do 64 bits; with a 64-bit system, the build for aarch64 is faster" ;;
  *) fail "this is the build for $target, this machine is $machine" ;;
esac
have=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d' ' -f2) || have=
[ -n "$have" ] || fail "this system has no glibc; it takes glibc $glibc or later"
older=$(printf '%s\n%s\n' "$glibc" "$have" | sort -V | head -n 1)
[ "$older" = "$glibc" ] || fail "this system has glibc $have; it takes $glibc or later"
sha256sum --quiet -c SHA256SUMS || fail "the files are not those that were packed: get the tarball again"
said=$(./secateur --version) || fail "the program does not run here"
if command -v dpkg-query >/dev/null && dpkg-query -W -f '${db:Status-Status}' secateur 2>/dev/null | grep -q '^installed'; then
  fail "the package secateur is installed: upgrade it, or remove it first"
fi
for file in "$fish" "$zsh" "$bash" "$man/x" "$bin"; do
  place=$(dirname "$file")
  while [ ! -e "$place" ]; do place=$(dirname "$place"); done
  [ -d "$place" ] || fail "$place: expected a folder"
  [ -w "$place" ] || fail "$place cannot be written to: sudo, or --prefix with another folder"
  [ ! -d "$file" ] || fail "$file: expected a file, or nothing"
done
free=$(df -Pk "$place" | awk 'NR == 2 { print $4 }')
[ "$free" -gt 65536 ] || fail "$place: expected 64 MB free, got $((free / 1024)) MB"
echo "checked: $said, glibc $have, $place"
[ "$action" = install ] || exit 0

# put MODE FILE TO: the name shows the whole file or what was there before; a running program keeps its own.
put() {
  install -D -m "$1" "$2" "$3.new"
  mv -f "$3.new" "$3"
}

# -- the program
for page in man/*.1; do put 644 "$page" "$man/${page##*/}"; done
put 644 completions/secateur.bash "$bash"
put 644 completions/_secateur "$zsh"
put 644 completions/secateur.fish "$fish"
put 755 secateur "$bin"

# -- the service
if [ -n "${no_service-}" ]; then echo "note: no service, $no_service"; fi
if [ "$service" = yes ]; then
  unit=$(mktemp)
  trap 'rm -f "$unit"' EXIT
  sed "s#^ExecStart=/usr/bin/secateur#ExecStart=$bin#" systemd/secateur.service >"$unit"
  put 644 "$unit" "$units"
  put 644 systemd/secateur-sysusers.conf "$users"
  put 644 systemd/secateur-tmpfiles.conf "$folders"
  # Settings that are there stay.
  [ -e /etc/secateur/secateur.toml ] || put 644 secateur.toml /etc/secateur/secateur.toml
  systemd-sysusers
  systemd-tmpfiles --create secateur.conf
  systemctl daemon-reload
  echo "next: name a teacher in /etc/secateur/secateur.toml, then systemctl enable --now secateur"
fi
status=0
"$bin" doctor "$(dirname "$bin")" || status=$?
case $status in
  0) ;;
  1) echo "see the advice above" ;;
  *) fail "$bin doctor ended with $status" ;;
esac
