//! What uses which secret: one for many disks, several for one, and what `vmward secret list` shows of it.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod bare;
mod user;

use std::fs;

use serde_json::{Value, json};

use bare::{Host, SECRET, has_qemu_img};
use user::disk_xml;

/// Who uses the secret, according to `vmward secret list`.
fn used_by(host: &Host, uuid: &str, options: &[&str]) -> Value {
    let list = host.user.ok(&[&["secret", "list", "--json"], options].concat(), b"");
    let list: Value = serde_json::from_slice(&list).unwrap();
    let row = list.as_array().unwrap().iter().find(|row| row["uuid"] == uuid);
    row.unwrap_or_else(|| panic!("{uuid} is not in {list}"))["used-by"].clone()
}

#[test]
fn one_secret_opens_many_disks_and_the_list_says_whose() {
    if !has_qemu_img() {
        return;
    }
    let host = Host::new();
    let disks: Vec<_> = ["a", "b", "c"]
        .iter()
        .map(|name| {
            let path = host.image(&format!("{name}.qcow2"), "qcow2", true);
            disk_xml(path.to_str().unwrap(), "qcow2", SECRET, &format!("vd{name}"), "virtio")
        })
        .collect();
    let guest = host.guest("many", &disks[..2].concat());
    assert_eq!(used_by(&host, SECRET, &[]), json!([]));
    // Described only: in a file that is named, or in the guests' directory.
    let described = json!([{ "guest": "many", "running": false }]);
    assert_eq!(used_by(&host, SECRET, &["--guest", guest.to_str().unwrap()]), described);
    fs::create_dir(host.path("guests")).unwrap();
    fs::copy(&guest, host.path("guests/many.xml")).unwrap();
    fs::write(host.path("guests/broken.xml"), "<domain>").unwrap();
    fs::write(host.path("guests/notes.txt"), "not a guest").unwrap();
    assert_eq!(used_by(&host, SECRET, &[]), described);
    let said = String::from_utf8(host.user.run(&["secret", "list"], b"").stderr).unwrap();
    assert!(said.contains("broken.xml") && !said.contains("notes.txt"), "{said}");
    host.user.fails(66, &["secret", "list", "--guest", "/nowhere.xml"], b"");

    let run = host.running(&guest);
    let running = json!([{ "guest": "many", "running": true }]);
    assert_eq!(used_by(&host, SECRET, &[]), running);
    let table = String::from_utf8(host.user.ok(&["secret", "list"], b"")).unwrap();
    assert!(table.contains("many (running)"), "{table}");
    // A third disk, while it runs; and one with a secret that nothing has used so far.
    fs::remove_file(host.path("guests/many.xml")).unwrap();
    let attach = |xml: &str| host.user.ok(&["attach-device", "many", "-"], xml.as_bytes());
    attach(&disks[2]);
    let other = host.user.uuid(&["secret", "generate"], b"");
    let volume = host.path("other.qcow2");
    let volume = volume.to_str().unwrap();
    host.user.ok(&["volume", "create", volume, "--size", "1M", "--secret", &other], b"");
    assert_eq!(used_by(&host, &other, &[]), json!([]));
    attach(&disk_xml(volume, "qcow2", &other, "vdd", "virtio"));
    assert_eq!(used_by(&host, &other, &[]), running);
    run.signal(nix::sys::signal::Signal::SIGTERM);
    run.ends(0);
    assert_eq!(used_by(&host, SECRET, &[]), json!([]));
}

#[test]
fn a_volume_leads_to_its_secret() {
    if !has_qemu_img() {
        return;
    }
    let host = Host::new();
    let volume = host.path("web1.qcow2");
    let volume = volume.to_str().unwrap();
    let uuid = host.user.uuid(&["volume", "create", volume, "--size", "1M", "--generate"], b"");
    host.user.ok(&["secret", "generate", "--usage-volume", "/images/gone.qcow2"], b"");
    host.user.ok(&["secret", "generate", "--usage-tls", volume], b"");
    let list = host.user.ok(&["secret", "list", "--json", "--volume", volume], b"");
    let list: Value = serde_json::from_slice(&list).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
    assert_eq!((&list[0]["uuid"], &list[0]["used-by"]), (&json!(uuid), &json!([{ "volume": volume }])));
    let gone = host.user.ok(&["secret", "list", "--json", "--volume", "/images/gone.qcow2"], b"");
    let gone: Value = serde_json::from_slice(&gone).unwrap();
    assert_eq!(gone[0]["used-by"], json!([]));
    // By another name of the same file.
    let dir = host.path("sub");
    fs::create_dir(&dir).unwrap();
    let roundabout = dir.join("../web1.qcow2");
    let list = host.user.ok(&["secret", "list", "--volume", roundabout.to_str().unwrap()], b"");
    assert!(String::from_utf8(list).unwrap().contains(&uuid));
}

#[test]
fn what_the_host_has_for_tls_is_a_use() {
    let host = Host::new();
    let usual = host.user.uuid(&["secret", "generate", "--usage-tls", "server-key"], b"");
    let nbd = host.user.uuid(&["secret", "generate", "--usage-tls", "nbd-key"], b"");
    let config = host.path("vmward.toml");
    let stores = fs::read_to_string(&config).unwrap();
    let tables =
        format!("{stores}[tls]\nsecret = 'server-key'\n[tls.nbd]\ndirectory = '/pki'\nsecret = '{nbd}'\n");
    fs::write(&config, tables).unwrap();
    assert_eq!(used_by(&host, &usual, &[]), json!([{ "configuration": "tls" }]));
    assert_eq!(used_by(&host, &nbd, &[]), json!([{ "configuration": "tls.nbd" }]));
    let table = String::from_utf8(host.user.ok(&["secret", "list"], b"")).unwrap();
    assert!(table.contains("[tls.nbd] of vmward.toml"), "{table}");
    // Guests use it that say nothing of their own.
    let used = |xml: &str, uuid: &str| {
        let guest = host.guest("secure", xml);
        let users = used_by(&host, uuid, &["--guest", guest.to_str().unwrap()]);
        users.as_array().unwrap().contains(&json!({ "guest": "secure", "running": false }))
    };
    let vnc = "<graphics type='vnc'><listen type='socket' socket='/s'/><tls/></graphics>";
    let own = vnc.replace("<tls/>", "<tls directory='/own'/>");
    let disk = "<disk type='network'><source protocol='nbd' tls='yes'><host name='h'/></source><target dev='vda'/></disk>";
    assert!(used(vnc, &usual) && !used(vnc, &nbd));
    assert!(!used(&own, &usual));
    assert!(used(disk, &nbd) && !used(disk, &usual));
}

#[test]
fn one_disk_takes_several_secrets_from_the_keystore() {
    let host = Host::new();
    let (top, below) =
        (host.user.uuid(&["secret", "generate"], b""), host.user.uuid(&["secret", "generate"], b""));
    let ceph = host.user.uuid(&["secret", "generate", "--usage-ceph", "client.guests"], b"");
    let disk = format!(
        "<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='rbd' name='guests/clone'>\n\
         <host name='mon1.example.net' port='6789'/>\n\
         <auth username='guests'><secret type='ceph' usage='client.guests'/></auth>\n\
         <encryption format='luks2' engine='librbd'><secret type='passphrase' uuid='{top}'/>\n\
         <secret type='passphrase' uuid='{below}'/></encryption>\n\
         </source><target dev='vda' bus='virtio'/></disk>"
    );
    let guest = host.guest("layers", &disk);
    let argv = |options: &[&str]| {
        host.user.run(&[&["argv", "--assume-latest", guest.to_str().unwrap()], options].concat(), b"")
    };
    let made = argv(&["--json"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let line = String::from_utf8(made.stdout).unwrap();
    for n in 0..2 {
        assert!(line.contains(&format!("encryption-secret{n}")), "{line}");
    }
    assert!(line.contains("auth-secret0"), "{line}");
    for uuid in [&top, &below, &ceph] {
        let guest = guest.to_str().unwrap();
        assert_eq!(
            used_by(&host, uuid, &["--guest", guest]),
            json!([{ "guest": "layers", "running": false }])
        );
    }
    // All that are missing are said, each at its line.
    host.user.ok(&["secret", "undefine", &top], b"");
    host.user.ok(&["secret", "undefine", &ceph], b"");
    let missing = argv(&[]);
    let said = String::from_utf8(missing.stderr).unwrap();
    assert_eq!(missing.status.code(), Some(66), "{said}");
    assert!(said.contains(&top) && said.contains("client.guests") && !said.contains(&below), "{said}");
}
