//! Guests with tap devices, in a network of their own: what is there while they run, and what is left.

use std::process::Command;

use tempfile::TempDir;

/// Run in new network and mount namespaces: `/etc` is replaced by one that allows the bridge.
const NETWORK: &str = r#"
set -eu
ip link add vmwardbr0 type bridge
ip link set vmwardbr0 up
mount -t tmpfs -o mode=755 none /etc
mkdir /etc/qemu
echo 'allow vmwardbr0' > /etc/qemu/bridge.conf
printf 'root:x:0:0::/root:/bin/sh\nguest:x:4711:4711::/:/bin/sh\n' > /etc/passwd
mount -t tmpfs -o mode=755 none "$DIRECTORY"
mkdir -m 700 "$DIRECTORY/run"
cp "$VMWARD" "$DIRECTORY/vmward"
export VMWARD_RUNTIME_DIR="$DIRECTORY/run" VMWARD_CONFIG=/dev/null
xml() {
    cat > "$DIRECTORY/guest.xml" <<END
<domain type='qemu'>
  <name>connected</name>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>$1</devices>
</domain>
END
}
start() {
    # The shell that runs vmward would empty it, later than this one looks into it.
    : > "$DIRECTORY/said"
    "$@" "$DIRECTORY/vmward" run --stop-timeout 1 "$DIRECTORY/guest.xml" 2> "$DIRECTORY/said" &
    supervisor=$!
    trap 'kill -KILL $supervisor' EXIT
    for second in $(seq 300); do
        kill -0 $supervisor || cat "$DIRECTORY/said"
        if grep -qs 'runs (QEMU\|taken back (QEMU' "$DIRECTORY/said" || ! kill -0 $supervisor; then break; fi
        sleep 1
    done
}
stop() {
    kill -TERM $supervisor || true
    wait $supervisor || cat "$DIRECTORY/said"
    trap - EXIT
}
devices() { ip -br link | grep -cE '^(vnet|tap|web)' || true; }
refused() {
    code=0
    words=$1
    shift
    "$@" "$DIRECTORY/vmward" run "$DIRECTORY/guest.xml" > "$DIRECTORY/said" 2>&1 || code=$?
    echo "$code $(grep -o "$words" "$DIRECTORY/said" || cat "$DIRECTORY/said")"
}
"#;

/// What the script says, or `None` where it cannot run.
fn in_network(script: &str) -> Option<String> {
    let possible = ["/usr/bin/qemu-system-x86_64", "/dev/net/tun"]
        .iter()
        .all(|path| std::path::Path::new(path).exists())
        && Command::new("unshare")
            .args(["-nm", "ip", "link", "add", "vmwardbr0", "type", "bridge"])
            .output()
            .is_ok_and(|output| output.status.success());
    if !possible {
        eprintln!("skipped: QEMU, and root's rights to make namespaces, bridges and tap devices, are needed");
        return None;
    }
    let directory = TempDir::new().expect("a directory");
    let output = Command::new("unshare")
        .args(["-nm", "sh", "-c", &format!("{NETWORK}{script}")])
        .env("DIRECTORY", directory.path())
        .env("VMWARD", env!("CARGO_BIN_EXE_vmward"))
        .output()
        .expect("unshare");
    let said = String::from_utf8_lossy(&output.stdout);
    Some(said.into_owned() + &String::from_utf8_lossy(&output.stderr))
}

fn expect(script: &str, expected: &str) {
    if let Some(said) = in_network(script) {
        assert_eq!(said, expected);
    }
}

#[test]
fn a_device_on_a_bridge_comes_and_goes_with_the_guest() {
    expect(
        r#"
ip link set vmwardbr0 mtu 1400
xml "<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='vmwardbr0'/></interface>"
start
ip -o link show vnet0 | grep -oE 'mtu [0-9]+|master [^ ]+|[<,]UP[,>]|link/ether [^ ]+'
stop
devices
"#,
        ",UP,\nmtu 1400\nmaster vmwardbr0\nlink/ether fe:54:00:00:00:01\n0\n",
    );
}

#[test]
fn a_named_device_with_queues_and_an_mtu_is_put_on_the_bridge() {
    expect(
        r#"
xml "<interface type='bridge'>
  <source bridge='vmwardbr0'/><target dev='web7'/><model type='virtio'/><driver queues='2'/><mtu size='1300'/>
</interface>"
start
ip -o link show web7 | grep -oE 'mtu [0-9]+|master [^ ]+|[<,]UP[,>]'
ip -d -o link show web7 | grep -oE 'multi_queue|vnet_hdr on'
stop
devices
"#,
        ",UP,\nmtu 1300\nmaster vmwardbr0\nvnet_hdr on\nmulti_queue\n0\n",
    );
}

#[test]
fn devices_outside_bridges_have_the_users_name_or_the_kernels() {
    expect(
        r#"
xml "<interface type='ethernet'><target dev='web0'/><model type='virtio'/><mtu size='1200'/></interface>
<interface type='ethernet'/>"
start
ip -o link show web0 | grep -oE 'mtu [0-9]+|[<,]UP[,>]'
ip -o link show vnet0 | grep -oE 'mtu [0-9]+|[<,]UP[,>]'
stop
devices
"#,
        ",UP,\nmtu 1200\n,UP,\nmtu 1500\n0\n",
    );
}

#[test]
fn a_device_of_somebody_elses_is_used_and_stays_as_it_is() {
    expect(
        r#"
ip tuntap add web1 mode tap
ip tuntap add web2 mode tap multi_queue
ip link set web1 up
ip link set web2 address 02:00:00:00:00:02
xml "<interface type='ethernet'><target dev='web1' managed='no'/></interface>
<interface type='ethernet'>
  <target dev='web2' managed='no'/><model type='virtio'/><driver queues='2'/>
</interface>"
start
ip -o link show web1 | grep -oE '[<,]UP[,>]|NO-CARRIER'
ip -o link show web2 | grep -oE '[<,]UP[,>]|link/ether [^ ]+'
stop
ip -o link show web1 | grep -oE '[<,]UP[,>]|NO-CARRIER'
devices
"#,
        ",UP,\nlink/ether 02:00:00:00:00:02\nNO-CARRIER\n,UP>\n2\n",
    );
}

#[test]
fn a_device_that_cannot_be_is_refused_and_nothing_is_left() {
    expect(
        r#"
ip tuntap add web0 mode tap
xml "<interface type='ethernet'><target dev='web0'/></interface>"
refused 'guest.xml:.*\|has a network device .*already'
xml "<interface type='ethernet'><target dev='web9' managed='no'/></interface>"
refused 'has no tap device .*, '
xml "<interface type='bridge'><source bridge='vmwardbr9'/></interface>"
refused 'has no bridge .*'
xml "<interface type='ethernet'><target dev='web3'/></interface>
<interface type='ethernet'><target dev='web3'/></interface>"
refused 'has a network device .*already'
xml "<interface type='bridge'><source bridge='web0'/></interface>"
refused 'could not be put on its bridge'
xml "<interface type='ethernet'><target dev='web3'/><mtu size='66000'/></interface>"
refused 'could not be given its MTU'
devices
"#,
        "69 has a network device 'web0' already\nguest.xml:6:12\n69 has no tap device 'web9', \n\
         69 has no bridge 'vmwardbr9'\n69 has a network device 'web3' already\n\
         69 could not be put on its bridge\n69 could not be given its MTU\n1\n",
    );
}

#[test]
fn without_rights_there_is_the_helper() {
    if !std::path::Path::new("/usr/lib/qemu/qemu-bridge-helper").exists() {
        eprintln!("skipped: QEMU's bridge helper is needed");
        return;
    }
    expect(
        r#"
chown 4711 "$DIRECTORY/run"
chmod 755 "$DIRECTORY/vmward"
cp /usr/lib/qemu/qemu-bridge-helper "$DIRECTORY/helper"
chmod 4755 "$DIRECTORY/helper"
mount --bind "$DIRECTORY/helper" /usr/lib/qemu/qemu-bridge-helper
mknod -m 666 "$DIRECTORY/tun" c 10 200
mount --bind "$DIRECTORY/tun" /dev/net/tun
export XDG_CACHE_HOME="$DIRECTORY/run"
guest='setpriv --reuid=4711 --regid=4711 --clear-groups'
xml "<interface type='bridge'><source bridge='vmwardbr0'/></interface>"
start $guest
ip -o link show tap0 | grep -oE 'master [^ ]+|[<,]UP[,>]'
stop
devices
xml "<interface type='ethernet'><target dev='web3'/></interface>"
refused 'root.s rights' $guest
ip link add vmwardbr1 type bridge
xml "<interface type='bridge'><source bridge='vmwardbr1'/></interface>"
refused "allow vmwardbr1" $guest
"#,
        ",UP,\nmaster vmwardbr0\n0\n77 root's rights\n69 allow vmwardbr1\n",
    );
}

#[test]
fn a_guest_is_on_an_interface_of_the_host_by_macvtap() {
    let Some(possible) = in_network(
        "ip link add vmwardv0 type veth peer name vmwardv1; ip link add link vmwardv0 type macvtap",
    ) else {
        return;
    };
    if !possible.is_empty() {
        eprintln!("skipped: this kernel has no macvtap or veth devices: {possible}");
        return;
    }
    expect(
        r#"
# All namespaces share /dev, where a macvtap device has its interface's number: one of its own for this one.
for number in $(seq 300); do ip link add type bridge; done
ip link add vmwardv0 type veth peer name vmwardv1
ip link set vmwardv0 up
xml "<interface type='direct'>
  <mac address='52:54:00:00:00:01'/><source dev='vmwardv0' mode='bridge'/><model type='virtio'/>
  <driver queues='2'/>
</interface>
<interface type='direct'>
  <source dev='vmwardv0'/><target dev='web8'/><model type='e1000e'/><mtu size='1300'/>
</interface>"
start
ip -o -d link show macvtap0 | grep -oE '@vmwardv0|macvtap mode [a-z]+|mtu 1[0-9]+|[<,]UP[,>]|link/ether [^ ]+'
ip -o -d link show web8 | grep -oE 'macvtap mode [a-z]+|mtu 1[0-9]+|[<,]UP[,>]'
stop
ip -br link | grep -cE '^(macvtap|web)' || true
# A supervisor that was killed takes its guest back, or removes what is left of it.
start
kill -KILL $supervisor
wait $supervisor 2>/dev/null || true
start
stop
ip -br link | grep -cE '^(macvtap|web)' || true
start
kill -KILL $supervisor
wait $supervisor 2>/dev/null || true
qemu=$(sed -E 's/.*"process":\{"pid":([0-9]+).*/\1/' "$DIRECTORY/run/connected/state.json")
kill -KILL $qemu
while [ -n "$(cat /proc/$qemu/cmdline 2>/dev/null | tr -d '\0')" ]; do sleep 0.1; done
xml ""
start
ip -br link | grep -cE '^(macvtap|web)' || true
stop
"#,
        "@vmwardv0\n,UP>\nmtu 1500\nlink/ether 52:54:00:00:00:01\nmacvtap mode bridge\n,UP>\nmtu 1300\n\
         macvtap mode vepa\n0\n0\n0\n",
    );
}

#[test]
fn a_macvtap_device_that_cannot_be_is_refused() {
    expect(
        r#"
xml "<interface type='direct'><source dev='vmward9'/></interface>"
refused 'guest.xml:.*\|has no network device .*'
xml "<interface type='direct'><source dev='vmwardbr0' mode='passthrough'/></interface>"
refused 'which vmward does not do'
"#,
        "69 has no network device 'vmward9'\nguest.xml:6:12\n69 which vmward does not do\n",
    );
}
