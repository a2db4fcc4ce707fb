# libvirt's daemon in a root directory of its own (libvirt-root.sh). To be sourced.

# libvirt_session ROOT CONFIG SCRIPT: runs a shell script in which `virsh` talks to the libvirt of ROOT about secrets;
# its daemon ends with the script. CONFIG is its /etc/libvirt, and is where the secrets are afterwards. Needs namespaces,
# and those of users where it is not run by root.
libvirt_session() {
    libvirt_namespaces bash -euc '. "$1"; libvirt_inside "${@:2}"' libvirt "${BASH_SOURCE[0]}" "$@"
}

# libvirt_namespaces COMMAND...: runs a command in namespaces of its own.
libvirt_namespaces() {
    local users=()
    [ "$(id -u)" = 0 ] || users=(--user --map-root-user)
    unshare "${users[@]}" --mount --pid --fork --kill-child --propagation private "$@"
}

# libvirt_possible: whether they can be had.
libvirt_possible() {
    libvirt_namespaces true 2>/dev/null
}

# What libvirt_session does in them.
libvirt_inside() {
    local root=$1 config=$2 script=$3 device tries=1200 daemon
    mount -t proc proc "$root/proc"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for device in null zero random urandom; do
        touch "$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    mount --bind "$config" "$root/etc/libvirt"
    chroot "$root" /usr/sbin/libvirtd >"$config/libvirtd.log" 2>&1 &
    daemon=$!
    until virsh uri >/dev/null 2>&1; do
        [ $((tries--)) -gt 0 ] && kill -0 $daemon || { cat "$config/libvirtd.log"; return 1; }
        sleep 0.05
    done
    (eval "$script")
    kill $daemon
    wait $daemon || true
}

virsh() {
    LC_ALL=C chroot "$root" /usr/bin/virsh --connect secret:///system "$@"
}
