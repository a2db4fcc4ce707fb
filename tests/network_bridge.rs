//! A guest on a bridge, in a network of its own: its tap device is there while it runs, and gone afterwards.

use std::process::Command;

/// Run in new network and mount namespaces: `/etc` is replaced by one that allows the bridge.
const SCRIPT: &str = r#"
set -eu
ip link add vmwardbr0 type bridge
ip link set vmwardbr0 up
mount -t tmpfs -o mode=755 none /etc
mkdir /etc/qemu
echo 'allow vmwardbr0' > /etc/qemu/bridge.conf
echo 'root:x:0:0::/root:/bin/sh' > /etc/passwd
mount -t tmpfs -o mode=700 none "$DIRECTORY"
export VMWARD_RUNTIME_DIR="$DIRECTORY" VMWARD_CONFIG=/dev/null
"$VMWARD" run --stop-timeout 1 "$GUEST" 2> "$DIRECTORY/said" &
supervisor=$!
for second in $(seq 30); do
    if grep -q 'runs (QEMU' "$DIRECTORY/said"; then break; fi
    sleep 1
done
echo "running: $(ip -o link | grep -c ' tap')"
kill -TERM $supervisor || cat "$DIRECTORY/said" >&2
wait $supervisor || cat "$DIRECTORY/said"
echo "ended: $(ip -o link | grep -c ' tap' || true)"
"#;

#[test]
fn the_tap_device_comes_and_goes_with_the_guest() {
    let possible = ["/usr/lib/qemu/qemu-bridge-helper", "/usr/bin/qemu-system-x86_64", "/dev/net/tun"]
        .iter()
        .all(|path| std::path::Path::new(path).exists())
        && Command::new("unshare")
            .args(["-nm", "ip", "link", "add", "vmwardbr0", "type", "bridge"])
            .output()
            .is_ok_and(|output| output.status.success());
    if !possible {
        eprintln!(
            "skipped: QEMU's bridge helper, and root's rights to make namespaces and bridges, are needed"
        );
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new("unshare")
        .args(["-nm", "sh", "-c", SCRIPT])
        .env("DIRECTORY", directory.path())
        .env("VMWARD", env!("CARGO_BIN_EXE_vmward"))
        .env("GUEST", concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/devices/bridge.xml"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "running: 1\nended: 0\n", "{}", String::from_utf8_lossy(&output.stderr));
}
