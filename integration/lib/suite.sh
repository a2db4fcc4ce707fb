# Another Debian suite's packages in a directory of their own. To be sourced; needs common.sh and packages.sh.
#
# Neither root nor a chroot is needed and the machine's own packages and apt sources stay as they are: apt works on
# lists, a package database and a cache inside the directory, so nothing of the suite can get into the machine.

# suite_fetch SUITE DIR COMMAND...: unpacks what the command prints, packages one a line, with all that they depend on,
# into DIR. The command may ask that suite's apt.
suite_fetch() {
    local suite=$1 dir=$2 mirror merged s package packages
    shift 2
    mirror=$(debian_mirror)
    mkdir -p "$dir"/apt/{state/lists/partial,cache/archives/partial,sources.d,preferences.d} "$dir"/usr/{bin,sbin,lib,lib64}
    for merged in bin sbin lib lib64; do
        ln -sfn "usr/$merged" "$dir/$merged"
    done
    : >"$dir/apt/status"
    for s in "${suite%-backports}" "$suite"; do
        echo "deb [signed-by=$DEBIAN_KEYRING] $mirror $s main"
    done | sort -u >"$dir/apt/sources.list"
    cat >"$dir/apt/apt.conf" <<CONF
Dir::State "$dir/apt/state";
Dir::State::status "$dir/apt/status";
Dir::Cache "$dir/apt/cache";
Dir::Etc::sourcelist "$dir/apt/sources.list";
Dir::Etc::sourceparts "$dir/apt/sources.d";
Dir::Etc::preferences "$dir/apt/preferences";
Dir::Etc::preferencesparts "$dir/apt/preferences.d";
APT::Sandbox::User "";
APT::Install-Recommends "false";
Acquire::Languages "none";
CONF
    (
        export APT_CONFIG=$dir/apt/apt.conf
        apt-get -qq update
        mapfile -t packages < <("$@")
        apt-get -qq install --yes --download-only -t "$suite" "${packages[@]}" >/dev/null
    )
    for package in "$dir"/apt/cache/archives/*.deb; do
        # dpkg-deb -x would put a directory in the place of the link that lib is: packages of Debian 12 still have ./lib.
        dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$dir"
    done
    rm -rf "$dir/apt/cache" "$dir/apt/state"
}
