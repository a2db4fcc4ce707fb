# Installs what is missing, through the machine's ordinary package clients. To be sourced; needs common.sh.
# Everything comes from the Debian release that the machine has; the apt sources and preferences of the machine are
# never changed.

# What each thing is needed for, as "COMMAND PACKAGE". Present commands are taken from wherever they are.
PACKAGES_QEMU="qemu-system-x86_64 qemu-system-x86
qemu-img qemu-utils"
PACKAGES_DEMO="busybox busybox-static
cc gcc
xz xz-utils
socat socat
debugfs e2fsprogs"
PACKAGES_TEST="$PACKAGES_DEMO
git git
python3 python3-minimal
pgrep procps
ss iproute2
openssl openssl
cryptsetup cryptsetup-bin
swtpm swtpm
swtpm_setup swtpm-tools
passt passt
nbdkit nbdkit"
# The servers that the scenarios storage-*.sh start themselves.
PACKAGES_ISCSI="tgtd tgt"
PACKAGES_NFS="ganesha.nfsd nfs-ganesha
ganesha.nfsd nfs-ganesha-vfs
rpcbind rpcbind"
PACKAGES_NBD="nbdkit nbdkit
certtool gnutls-bin"
PACKAGES_HTTP="nginx nginx-light
curl curl"
PACKAGES_SSH="sshd openssh-server
ssh-agent openssh-client"
PACKAGES_CEPH="ceph-mon ceph-mon
ceph-osd ceph-osd
rbd ceph-common"

# A rustup that was installed by hand is often only on the PATH of login shells; debugfs is in sbin.
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/local/sbin:/usr/sbin:/sbin

# packages_missing LIST: the packages of a list whose command is not there.
packages_missing() {
    local command package
    while read -r command package; do
        command -v "$command" >/dev/null || echo "$package"
    done <<<"$1"
}

# packages_install LIST: installs QEMU and the packages of a list, as far as they are missing.
packages_install() {
    local missing
    mapfile -t missing < <(packages_missing "$1")
    if [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then
        missing+=(ca-certificates)
    fi
    if [ ${#missing[@]} -gt 0 ]; then
        apt_install "${missing[@]}" || die "apt-get could not install ${missing[*]}"
    fi
    mapfile -t missing < <(packages_missing "$PACKAGES_QEMU")
    if [ ${#missing[@]} -gt 0 ]; then
        apt_install "${missing[@]}" || qemu_install_matching "${missing[@]}" ||
            die "apt-get could not install ${missing[*]}"
    fi
}

# qemu_module_install MODULE PACKAGE: a part of QEMU that Debian packs apart.
qemu_module_install() {
    compgen -G "/usr/lib/*/qemu/$1.so" >/dev/null || qemu_install_matching "$2" || apt_install "$2"
}

# qemu_install_matching PACKAGE...: the same from the release's backports, for a machine that has one half of QEMU from
# there: qemu-system-x86 and qemu-utils of different versions refuse each other, and what is installed is the owner's.
# The backports are known to this one run of apt-get only, which installs nothing else from there than what the
# packages depend on.
qemu_install_matching() {
    local release dir
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    [[ $(dpkg-query -W -f '${Version}\n' qemu-utils qemu-system-x86 2>/dev/null) == *~bpo* ]] || return 1
    dir=$(mktemp -d)
    mkdir -p "$dir/lists/partial"
    cp -r /etc/apt/sources.list.d "$dir/parts"
    cp /etc/apt/sources.list "$dir/sources.list" 2>/dev/null || true
    echo "deb [signed-by=$DEBIAN_KEYRING] $(debian_mirror) $release-backports main" >>"$dir/sources.list"
    chmod -R a+rX "$dir"
    # apt_install sees this, as functions do in the shell.
    local APT_OPTIONS=(-o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts="$dir/parts"
        -o Dir::State::Lists="$dir/lists" -o APT::Sandbox::User=root -t "$release-backports") code=0
    say "$* of $release-backports goes with the other half of QEMU that is here"
    apt_alone "${APT_OPTIONS[@]}" update && apt_install "$@" || code=$?
    as_root rm -rf "$dir"
    return $code
}

DEBIAN_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# debian_mirror: the mirror from which this machine's own apt has its release.
debian_mirror() {
    local mirror
    mirror=$(apt-get indextargets --format '$(SITE) $(ORIGIN) $(LABEL)' 'Created-By: Packages' |
        awk '$2 == "Debian" && $3 == "Debian" && !found++ { print $1 }')
    [ -n "$mirror" ] || die "apt has no lists of a Debian mirror: run apt-get update first"
    echo "$mirror"
}

# apt_alone ARGUMENT...: runs apt-get when no other script here does. What a package starts does not inherit the lock.
apt_alone() {
    mkdir -p "$TARGET"
    (
        flock 9
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 "$@" 9>&-
    ) 9>"$TARGET/apt.lock"
}

# apt_update: refreshes apt's lists, once per run.
apt_update() {
    if [ -z "${APT_UPDATED:-}" ]; then
        apt_alone update
        APT_UPDATED=1
    fi
}

APT_OPTIONS=()

# apt_install PACKAGE...: installs packages, removes none.
apt_install() {
    apt_update
    say "installing $*"
    apt_alone "${APT_OPTIONS[@]}" install --yes --no-install-recommends --no-remove -o Dpkg::Use-Pty=0 "$@" >/dev/null
}

# rust_install: sees to a Rust toolchain that is new enough for Cargo.toml's rust-version.
#
# 1. What is there is used if it is new enough, wherever it came from.
# 2. A rustup that is there is asked for the current stable one (from the Rust project's own server).
# 3. rustc-web and cargo-web of the release: the Rust that Debian keeps current in its stable releases to build
#    browsers with (1.96 in Debian 12's security updates and in Debian 13). The releases' plain rustc, 1.63 and
#    1.85, is too old, and both packages provide /usr/bin/rustc: if the plain one is installed, apt would have to
#    remove it, which is left to the machine's owner.
rust_install() {
    local wanted
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REPO/Cargo.toml")
    if rust_is_at_least "$wanted"; then
        return
    fi
    if command -v rustup >/dev/null; then
        say "Rust $wanted is needed; asking rustup for the stable toolchain"
        if rustup toolchain install stable --profile minimal >&2; then
            export RUSTUP_TOOLCHAIN=stable
            rust_is_at_least "$wanted" && return
        fi
    fi
    apt_install rustc-web cargo-web || die "there is no Rust toolchain of at least $wanted.
If Debian's own, older rustc is installed, \`apt-get install rustc-web cargo-web\` replaces it; or install one with rustup."
    PATH=/usr/bin:$PATH
    hash -r
    rust_is_at_least "$wanted" || die "Rust $wanted is needed, this machine's packages have $(rustc --version)"
}

# rust_is_at_least VERSION: whether cargo and rustc are there and as new.
rust_is_at_least() {
    local found
    command -v cargo >/dev/null && found=$(rustc --version 2>/dev/null) || return 1
    found=$(echo "$found" | awk '{ print $2 }')
    [ "$(printf '%s\n%s\n' "$1" "$found" | sort -V | sed -n 1p)" = "$1" ]
}

# rust_lints_install: cargo fmt and cargo clippy for the toolchain in use.
rust_lints_install() {
    if cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1; then
        return
    fi
    if command -v rustup >/dev/null; then
        rustup component add rustfmt clippy >&2
    else
        apt_install rustfmt-web rust-web-clippy || die "there are no packages of rustfmt and clippy for this Rust"
    fi
}

# virtiofsd_install: the daemon of virtiofs. Debian 13 has it as a package; for Debian 12, whose QEMU has none since its
# backports took it out, it is built once, from crates.io, into target/virtiofsd, where the tests look for it as well.
virtiofsd_install() {
    if [ -x /usr/libexec/virtiofsd ] || [ -x /usr/lib/qemu/virtiofsd ] || [ -x "$TARGET/virtiofsd/bin/virtiofsd" ]; then
        return
    fi
    if [ -n "$(apt-cache search --names-only '^virtiofsd$')" ]; then
        apt_install virtiofsd
        return
    fi
    apt_install libcap-ng-dev libseccomp-dev
    say "building virtiofsd"
    cargo install --quiet --locked --root "$TARGET/virtiofsd" virtiofsd
}
