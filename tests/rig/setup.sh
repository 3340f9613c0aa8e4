# What ./demo and ./check need on a plain Debian 12 machine. Sourced, not run.

packages_build="g++ meson ninja-build pkg-config libdpdk-dev liburing-dev libnuma-dev libboost-dev
  libspdlog-dev nlohmann-json3-dev libtomlplusplus-dev libcli11-dev libsystemd-dev libgtest-dev
  libgmock-dev libbenchmark-dev libpcap-dev libbsd-dev libjansson-dev libmnl-dev"
packages_guests="qemu-system-x86 busybox-static cpio kmod iperf3 ethtool e2fsprogs iproute2 python3"
packages_tests="dpdk dpdk-dev debootstrap ccache clang-16 libclang-rt-16-dev gdb strace
  acpica-tools crash"

say() { printf '\n\033[1m==> %s\033[0m\n' "$*"; }
fail() { printf 'failed: %s\n' "$*" >&2; exit 1; }

# Installs those of its arguments that are not there yet.
install_packages() {
  local package missing=""
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' ||
      missing="$missing $package"
  done
  [ -n "$missing" ] || return 0
  [ "$(id -u)" = 0 ] || fail "as root, please: packages are to be installed:$missing"
  say "installing:$missing"
  export DEBIAN_FRONTEND=noninteractive
  # shellcheck disable=SC2086
  apt_get install -y -q --no-install-recommends $missing && return 0
  apt_get update -q || fail "apt-get update"
  # shellcheck disable=SC2086
  apt_get install -y -q --no-install-recommends $missing || fail "apt-get install"
}

apt_get() { apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" </dev/null; }

# The guests' kernel is downloaded from where apt's lists say.
need_package_lists() {
  apt-cache depends linux-image-cloud-amd64 2>/dev/null | grep -q 'Depends: linux-image-6' ||
    apt_get update -q || fail "apt-get update"
}

# build_in FOLDER [meson options]: configures once, then builds all, or what $build_targets names.
build_in() {
  local folder=$1
  shift
  if [ ! -f "$folder/build.ninja" ]; then
    meson setup "$folder" "$@" </dev/null || fail "meson setup $folder (see above)"
  fi
  # shellcheck disable=SC2086
  ninja -C "$folder" ${build_targets:-} </dev/null || fail "the build in $folder"
}
