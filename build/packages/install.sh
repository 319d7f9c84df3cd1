#!/usr/bin/env bash
# Installs what building, testing and the demo need, by Debian's package manager,
# and only what is missing. Nothing that comes with a package is started.
set -euo pipefail

packages=(
  containerd runc containernetworking-plugins iptables iproute2 procps util-linux
  busybox-static mosquitto mosquitto-clients chromium
  gcc libc6-dev
  gcc-aarch64-linux-gnu libc6-dev-arm64-cross
  gcc-arm-linux-gnueabihf libc6-dev-armhf-cross
  qemu-user-static
  python3-pymodbus python3-serial-asyncio
  ca-certificates git
)
# kubectl may come from elsewhere; Debian's package is taken when there is none.
command -v kubectl >/dev/null || packages+=(kubernetes-client)

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ]; then
  echo "these packages are missing: ${missing[*]}" >&2
  echo "install them with: sudo make packages" >&2
  exit 1
fi

# A package must not start its service: tests and demo run a containerd of their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 0755 "$policy"
  trap 'rm -f "$policy"' EXIT
fi

echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
quiet() {
  local log
  log=$(mktemp)
  if ! "$@" >"$log" 2>&1; then
    cat "$log" >&2
    echo "this failed: $*" >&2
    exit 1
  fi
  rm -f "$log"
}
quiet apt-get -o DPkg::Lock::Timeout=300 -q update
quiet apt-get -o DPkg::Lock::Timeout=300 -q -y --no-install-recommends install "${missing[@]}"
