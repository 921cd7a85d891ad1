# Sourced by the scripts beside it: packages of Debian 12.

# need PACKAGE... installs what is missing if it may, else says what that is.
need() {
  local package status missing=()
  for package; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || true
    [[ $status == installed ]] || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  local arch architectures=()
  for arch in $(printf '%s\n' "${missing[@]}" | sed -n 's/.*://p' | sort -u); do
    dpkg --print-foreign-architectures | grep -qx "$arch" || architectures+=("dpkg --add-architecture $arch;")
  done
  if ! command -v apt-get >/dev/null || ((EUID != 0)); then
    echo "missing; as root, on Debian 12 or later: ${architectures[*]} apt-get update; apt-get install ${missing[*]}" >&2
    return 2
  fi
  for arch in "${architectures[@]}"; do ${arch%;}; done
  # One index that cannot be had does not matter if the packages can.
  apt-get update -q || echo "apt-get update failed" >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
}
