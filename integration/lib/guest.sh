# The small Linux guest: Debian's kernel, its drivers and busybox in an initramfs of a few MB.
# To be sourced; needs common.sh. Made without root; nothing of it is installed on this machine.

# What the guest is to have a driver for; each brings its dependencies. Built-in ones are not found, and need not be.
GUEST_DRIVERS="virtio_pci virtio_blk virtio_scsi virtio_net virtio_balloon virtio_rng virtio_console
    sd_mod sr_mod ahci ata_piix usb_storage uas xhci_pci ehci_pci uhci_hcd
    ext4 crc32c_generic crc32c_intel crct10dif_generic button evdev i6300esb pvpanic-mmio pvpanic-pci
    virtiofs 9pnet_virtio 9p tpm_crb tpm_tis af_packet e1000 e1000e 8139cp vmw_vsock_virtio_transport"

# guest_build DIR: puts vmlinuz and initramfs.gz into DIR, unless they are there and as new as their sources.
guest_build() {
    local dir=$1 work package
    if [ -s "$dir/vmlinuz" ] && [ "$dir/initramfs.gz" -nt "$REPO/fixtures/guest/init" ] &&
        [ "$dir/initramfs.gz" -nt "$REPO/integration/lib/guest.sh" ]; then
        return
    fi
    mkdir -p "$dir"
    work=$(mktemp -d "$dir/build.XXXXXX")
    package=$(guest_kernel_package) || die "apt knows no linux-image-amd64"
    say "building the guest from $package"
    (
        cd "$work"
        if ! apt-get -qq download "$package" 2>apt.log; then
            apt_update
            # The name has the ABI in it, and the old lists had an old one.
            package=$(guest_kernel_package)
            apt-get -qq download "$package"
        fi
        mkdir tree root
        # The whole package is 400 MB unpacked, what the guest needs of it is a tenth.
        dpkg-deb --fsys-tarfile "$package"_*.deb | tar -x -C tree --wildcards --no-anchored \
            './boot/vmlinuz-*' 'kernel/drivers/acpi/*' 'kernel/drivers/ata/*' 'kernel/drivers/block/virtio*' \
            'kernel/drivers/cdrom/*' 'kernel/drivers/char/*' 'kernel/drivers/input/*' 'kernel/drivers/misc/pvpanic/*' \
            'kernel/drivers/net/*failover*' 'kernel/drivers/net/virtio*' 'kernel/net/core/*' 'kernel/drivers/scsi/*' \
            'kernel/drivers/usb/*' 'kernel/drivers/virtio/*' 'kernel/drivers/watchdog/*' \
            'kernel/drivers/net/ethernet/intel/e1000*' 'kernel/drivers/net/ethernet/realtek/8139*' 'kernel/drivers/net/mii*' \
            'kernel/net/9p/*' 'kernel/net/packet/*' 'kernel/net/vmw_vsock/*' \
            'kernel/fs/9p/*' 'kernel/fs/fscache/*' 'kernel/fs/fuse/*' 'kernel/fs/netfs/*' \
            'kernel/fs/ext4/*' 'kernel/fs/jbd2/*' 'kernel/fs/mbcache*' 'kernel/lib/*' 'kernel/crypto/*' 'kernel/arch/*/crypto/*' 'kernel/block/*'
        guest_tree tree root
        find root -mindepth 1 -printf '%P\n' | (cd root && busybox cpio -o -H newc 2>/dev/null) | gzip -9 >initramfs.gz
        mv tree/boot/vmlinuz-* ../vmlinuz
        mv initramfs.gz ../initramfs.gz
    )
    rm -rf "$work"
}

# The package that Debian's meta-package for the newest kernel of this release stands for. The cloud flavour
# boots a second faster but has no driver for USB and SATA, which the tests want to see hot-plugged.
guest_kernel_package() {
    apt-cache depends linux-image-amd64 | awk '/Depends: linux-image-/ && !found++ { print $2 } END { exit !found }'
}

# guest_tree KERNEL ROOT: what the initramfs holds.
guest_tree() {
    local kernel=$1 root=$2 version
    version=$(basename "$(echo "$kernel"/boot/vmlinuz-*)")
    version=${version#vmlinuz-}
    mkdir -p "$root"/bin "$root"/dev "$root"/proc "$root"/sys "$root"/etc/acpi "$root"/lib
    cp "$(command -v busybox)" "$root/bin/busybox"
    cp "$REPO/fixtures/guest/init" "$root/init"
    chmod 755 "$root/init"
    # What busybox's acpid runs for the power button, by its built-in table.
    mkdir "$root/etc/acpi/PWRF"
    printf '#!/bin/sh\necho "guest: power button" >/dev/ttyS0\nsync\npoweroff -f\n' >"$root/etc/acpi/PWRF/00000080"
    chmod 755 "$root/etc/acpi/PWRF/00000080"
    # Debian 12 packs /lib/modules, Debian 13 /usr/lib/modules, some of it compressed.
    find "$kernel" -name '*.ko.xz' -exec xz -d {} +
    find "$kernel" -name '*.ko' | while read -r file; do
        echo "$(basename "$file" .ko | tr - _) $file"
    done >"$kernel/index"
    for driver in $GUEST_DRIVERS; do
        guest_module "$kernel/index" "$driver" "$root"
    done
}

# guest_module INDEX NAME ROOT: copies a module after those that it depends on; etc/modules keeps the order.
guest_module() {
    local index=$1 name file dependency root=$3
    name=$(echo "$2" | tr - _)
    file=$(awk -v name="$name" '$1 == name { print $2; exit }' "$index")
    if [ -z "$file" ] || [ -e "$root/lib/$name.ko" ]; then
        return
    fi
    # modules.dep is made only when the package is installed; each module names its own in .modinfo.
    for dependency in $(tr '\0' '\n' <"$file" | sed -n 's/^depends=//p' | tr , ' '); do
        guest_module "$index" "$dependency" "$root"
    done
    cp "$file" "$root/lib/$name.ko"
    echo "/lib/$name.ko" >>"$root/etc/modules"
}
