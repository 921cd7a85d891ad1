# Sourced by the scripts beside it: packages of Debian 12.

# need PACKAGE... installs what is missing if it may, else says what that is.
need() {
  local package status missing=()
  for package; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || true
    [[ $status == installed ]] || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  local arch architectures=() indexes=(-o "APT::Architectures::=$(dpkg --print-architecture)")
  for arch in $(printf '%s\n' "${missing[@]}" | sed -n 's/.*://p' | sort -u); do
    dpkg --print-foreign-architectures | grep -qx "$arch" || architectures+=("dpkg --add-architecture $arch;")
    indexes+=(-o "APT::Architectures::=$arch")
  done
  if ! command -v apt-get >/dev/null || ((EUID != 0)); then
    echo "missing; as root, on Debian 12 or later: ${architectures[*]} apt-get update; apt-get install ${missing[*]}" >&2
    return 2
  fi
  for arch in "${architectures[@]}"; do ${arch%;}; done
  # No index of other architectures: one that cannot be had takes its source's others with it. Nor does one matter if the
  # packages can be had.
  apt-get update -q "${indexes[@]}" || echo "apt-get update failed" >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
}
