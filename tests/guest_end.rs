//! How a running Linux ends, and what the supervisor makes of it.

mod guest;
mod user;

use guest::{Description, Guest, files};
use user::{User, disk};

fn boot(description: &Description) -> Option<Guest> {
    Some(Guest::boot(User::new(), &files()?, description))
}

#[test]
fn shutdown_presses_the_power_button() {
    let Some(guest) = boot(&Description::default()) else { return };
    guest.user.ok(&["shutdown", "guest"], b"");
    let (status, said) = guest.ended();
    assert!(status.success(), "{said}");
}

#[test]
fn a_guest_that_powers_itself_off_ends_the_supervisor() {
    let Some(mut guest) = boot(&Description { machine: "pc", ..Description::default() }) else { return };
    guest.type_in("poweroff -f");
    let (status, said) = guest.ended();
    assert!(status.success(), "{said}");
}

#[test]
fn a_guest_that_reboots_goes_on_with_its_disks() {
    let Some(files) = files() else { return };
    let user = User::new();
    let system = disk(&user, "system.qcow2", "vda", "virtio");
    let data = disk(&user, "data.luks", "vdb", "virtio");
    let mut guest = Guest::boot(user, &files, &Description { devices: &system, ..Description::default() });
    guest.fill("/dev/vda", "before");
    guest.attached(&data);
    let qemu = guest.qemu();
    guest.type_in("reboot -f");
    guest.ready();
    assert_eq!(guest.filled("/dev/vda"), "before");
    guest.sh("[ -b /dev/vdb ]");
    assert_eq!(guest.qemu(), qemu);
    guest.user.ok(&["destroy", "guest"], b"");
    guest.ended();
}

#[test]
fn a_guest_that_crashes_is_no_success() {
    let description = Description {
        domain: "<on_crash>destroy</on_crash>",
        devices: "<panic model='isa'/>",
        ..Description::default()
    };
    let Some(mut guest) = boot(&description) else { return };
    guest.type_in("echo c >/proc/sysrq-trigger");
    let (status, said) = guest.ended();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("crashed"), "{said}");
}
