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

prefix=/usr/local action=install
while [ $# -gt 0 ]; do
  case $1 in
    --prefix) prefix=${2:?--prefix: expected a folder}; shift ;;
    --check) action=check ;;
    --remove) action=remove ;;
    --help) echo "$usage"; exit 0 ;;
    *) echo "$usage" >&2; exit 2 ;;
  esac
  shift
done
case $prefix in /*) ;; *) prefix=$from/$prefix ;; esac
fail() { echo "install.sh: $1" >&2; exit 1; }

# Where things go.
bin=$prefix/bin/secateur
man=$prefix/share/man/man1
bash=$prefix/share/bash-completion/completions/secateur
zsh=$prefix/share/zsh/site-functions/_secateur
fish=$prefix/share/fish/vendor_completions.d/secateur.fish
units=/etc/systemd/system/secateur.service
users=/etc/sysusers.d/secateur.conf
folders=/etc/tmpfiles.d/secateur.conf
# A service needs root, and the place that the unit names.
service=no
if [ "$(id -u)" = 0 ] && [ -d /run/systemd/system ]; then service=yes; fi

if [ "$action" = remove ]; then
  [ -e "$bin" ] || fail "$bin is not there: nothing to remove"
  if [ "$service" = yes ] && [ -e "$units" ]; then
    systemctl stop secateur.service
    systemctl disable secateur.service
    rm -f "$units" "$users" "$folders"
    systemctl daemon-reload
  fi
  rm -f "$bin" "$bash" "$zsh" "$fish"
  for page in man/*.1; do rm -f "$man/${page##*/}"; done
  echo "removed; models, images and settings are still in /var/lib/secateur, /var/spool/secateur and /etc/secateur"
  exit 0
fi

# -- checks
[ -e REQUIRES ] || fail "run it in the unpacked tarball"
target=$(sed -n 's/.*target=\([^ ]*\).*/\1/p' REQUIRES) glibc=$(sed -n 's/.*glibc=\([^ ]*\).*/\1/p' REQUIRES)
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
place=$prefix
while [ ! -e "$place" ]; do place=$(dirname "$place"); done
[ -w "$place" ] || fail "$place cannot be written to: sudo, or --prefix with another folder"
free=$(df -Pk "$place" | awk 'NR == 2 { print $4 }')
[ "$free" -gt 65536 ] || fail "$place: expected 64 MB free, got $((free / 1024)) MB"
echo "checked: $said, glibc $have, $place"
[ "$action" = install ] || exit 0

# -- the program; a running one keeps its file
install -D -m 755 secateur "$bin.new"
mv -f "$bin.new" "$bin"
for page in man/*.1; do install -D -m 644 "$page" "$man/${page##*/}"; done
install -D -m 644 completions/secateur.bash "$bash"
install -D -m 644 completions/_secateur "$zsh"
install -D -m 644 completions/secateur.fish "$fish"

# -- the service
if [ "$service" = yes ]; then
  mkdir -p "$(dirname "$users")" "$(dirname "$folders")"
  sed "s#^ExecStart=/usr/bin/secateur#ExecStart=$bin#" systemd/secateur.service >"$units"
  install -m 644 systemd/secateur-sysusers.conf "$users"
  install -m 644 systemd/secateur-tmpfiles.conf "$folders"
  # Settings that are there stay.
  [ -e /etc/secateur/secateur.toml ] || install -D -m 644 secateur.toml /etc/secateur/secateur.toml
  systemd-sysusers
  systemd-tmpfiles --create secateur.conf
  systemctl daemon-reload
  echo "next: name a teacher in /etc/secateur/secateur.toml, then systemctl enable --now secateur"
fi
"$bin" doctor "$(dirname "$bin")" || echo "see the advice above"
