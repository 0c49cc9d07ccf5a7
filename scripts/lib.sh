# shellcheck shell=bash
# Helpers for the scripts beside this file; sourced, not run.

# The lowest toolchain that builds Holdfast; Cargo.toml's rust-version says the same.
readonly MINIMUM_CARGO=1.95.0

step() { printf '\n==> %s\n' "$*"; }

fail() {
    printf '\nerror: %s\n' "$1" >&2
    shift
    if (($#)); then printf '       %s\n' "$@" >&2; fi
    exit 1
}

require_root() {
    ((EUID == 0)) || fail "${0##*/} needs root: it makes loop devices and mounts." "Run it again with sudo."
}

# is_there COMMAND-OR-PATTERN-OF-FILES
is_there() {
    if [[ $1 == /* ]]; then compgen -G "$1" >/dev/null; else command -v "$1" >/dev/null; fi
}

# install_missing WHAT=PACKAGE...: installs the packages whose command or file is not there.
install_missing() {
    local pair packages=()
    for pair in "$@"; do
        is_there "${pair%%=*}" || packages+=("${pair#*=}")
    done
    ((${#packages[@]})) || return 0
    command -v apt-get >/dev/null ||
        fail "These packages are missing: ${packages[*]}." "This system has no apt-get; install them by hand and run ${0##*/} again."
    require_root
    step "Installing ${packages[*]}"
    apt_install "${packages[@]}"
}

# What a build needs beside Rust: a linker, and for the crate devicemapper the kernel's structures as libdevmapper's
# header has them, read by libclang.
install_build() {
    install_missing cc=gcc pkg-config=pkg-config /usr/include/libdevmapper.h=libdevmapper-dev \
        '/usr/lib/llvm-*/lib/libclang*.so*=libclang1-14' '/usr/lib/llvm-*/lib/clang/*/include/stddef.h=libclang-common-14-dev'
}

# What hosts of the lab (docs/lab.md) are made of and have inside.
install_lab() {
    install_missing cc=gcc linux.uml=user-mode-linux uml_mconsole=uml-utilities modprobe=kmod ip=iproute2 unshare=util-linux \
        dmsetup=dmsetup thin_check=thin-provisioning-tools rpc.nfsd=nfs-kernel-server mount.nfs=nfs-common \
        mkfs.ext4=e2fsprogs mkfs.xfs=xfsprogs mkfs.btrfs=btrfs-progs docker=docker.io dockerd=docker.io iptables=iptables \
        busybox=busybox-static
}

# A server of Amazon's protocols that keeps everything in memory. Debian has none, so it gets a place of its own.
install_moto() {
    local version=5.2.5 place
    place=${XDG_CACHE_HOME:-$HOME/.cache}/holdfast/moto-$version
    if [[ ! -x $place/bin/moto_server ]]; then
        install_missing python3=python3 '/usr/lib/python3*/ensurepip=python3-venv'
        step "Installing moto $version"
        rm -rf "$place"
        python3 -m venv "$place"
        "$place/bin/pip" install --quiet --disable-pip-version-check "moto[s3,server]==$version" ||
            { rm -rf "$place"; fail "moto cannot be installed." "Install the Python package moto[s3,server] $version by hand."; }
    fi
    export HOLDFAST_MOTO_SERVER=$place/bin/moto_server
}

# The package lists of a fresh machine are empty or old: they are fetched only when the first try fails.
apt_install() {
    local options=(-y -q --no-install-recommends)
    DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "$@" && return
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "$@"
}

# A user's rustup lives in the home directory, which a root shell's PATH may not name.
require_cargo() {
    if ! command -v cargo >/dev/null && [[ -x $HOME/.cargo/bin/cargo ]]; then
        PATH=$HOME/.cargo/bin:$PATH
    fi
    local help=(
        "Get the current stable Rust with rustup (https://rustup.rs):"
        "    apt-get install -y curl ca-certificates"
        "    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
        "    . \"\$HOME/.cargo/env\""
        "or, where rustup is there already: rustup update stable"
        "Then run ${0##*/} again."
    )
    command -v cargo >/dev/null || fail "cargo is not installed; Holdfast needs $MINIMUM_CARGO or newer." "${help[@]}"
    local found
    found=$(cargo --version | cut -d' ' -f2)
    printf '%s\n' "$MINIMUM_CARGO" "${found%%-*}" | sort --version-sort --check=quiet ||
        fail "cargo is $found; Holdfast needs $MINIMUM_CARGO or newer." "${help[@]}"
}

# wait_for SECONDS COMMAND...: true as soon as the command succeeds, false when it has not by then.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}
