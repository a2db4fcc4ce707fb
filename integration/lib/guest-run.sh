# A guest with an encrypted disk and no system, for scenarios that are about where its secret is. To be sourced; needs
# scenario.sh.

# guest_xml NAME IMAGE LOOKUP: its XML; LOOKUP is how the secret is named, as in uuid='...'.
guest_xml() {
    cat <<XML
<domain type='qemu'>
  <name>$1</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='$2'>
        <encryption format='luks'><secret type='passphrase' $3/></encryption>
      </source>
      <target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>
XML
}

# guest_plugs NAME XML SUPERVISOR: plugs in a copy of its first disk. By now the supervisor has given up its rights, in each
# of its threads, and gets the secret all the same.
guest_plugs() {
    local image
    image=$(sed -n "s/.*<source file='\([^']*\)'.*/\1/p" "$2" | sed -n 1p)
    cp "$image" "$image.hot"
    awk '/<disk/, /<.disk>/; /<.disk>/ { exit }' "$2" | sed "/<source/s#$image#$image.hot#; s/vda/vdh/" >"$WORK/hot.xml"
    "$vmward" attach-device "$1" "$WORK/hot.xml" || return 1
    rm "$image.hot"
    [ -d "/proc/$3" ] && equal "$(grep -L '^NoNewPrivs:.1$' "/proc/$3/task/"*/status)" ""
}

# guest_runs NAME XML [OPTION...]: starts it, waits until it runs, plugs a disk in, and ends it.
guest_runs() {
    local name=$1 xml=$2 as_user=() running
    shift 2
    [ "$(id -u)" != 0 ] || as_user=(--user root)
    "$vmward" "$@" run "${as_user[@]}" "$xml" </dev/null &
    running=$!
    SERVERS+=($running)
    until "$vmward" list | has -E "$name.*running"; do
        kill -0 $running 2>/dev/null || return 1
        sleep 0.1
    done
    guest_plugs "$name" "$xml" $running || return 1
    "$vmward" destroy "$name"
    ends_within 20 $running
}
