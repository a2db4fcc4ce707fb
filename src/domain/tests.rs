//! What of a domain is refused, with the words in which it is said.

use crate::xml::{self, Diagnostics};

use super::{Domain, overrides};

/// A guest with these elements in it.
fn guest(inside: &str) -> String {
    let os = if inside.contains("<os") { "" } else { "<os><type machine='q35'>hvm</type></os>\n" };
    let memory = if inside.contains("<memory") { "" } else { "<memory unit='MiB'>256</memory>\n" };
    format!("<domain type='qemu'>\n<name>g</name>\n{memory}{os}{inside}\n</domain>")
}

fn read(inside: &str) -> (Option<Domain>, String) {
    let source = guest(inside);
    let mut diagnostics = Diagnostics::new();
    let root = xml::parse(&source, &mut diagnostics).expect("the test's XML is well-formed");
    let domain = Domain::from_xml(&root, &mut diagnostics);
    (domain, diagnostics.render("g.xml", &source))
}

/// Each of these is refused, and the first line of what is said has these words in it.
pub(in crate::domain) fn refused(cases: &[(&str, &str)]) {
    for (inside, words) in cases {
        let (domain, said) = read(inside);
        assert!(domain.is_none(), "accepted: {inside}");
        assert!(said.contains(words), "{inside}\n{said}");
        assert!(said.contains("g.xml:"), "no line: {said}");
    }
}

pub(in crate::domain) fn accepted(inside: &str) -> Domain {
    let (domain, said) = read(inside);
    assert!(said.is_empty(), "{said}");
    domain.expect("nothing was said against it")
}

#[test]
fn a_plain_guest() {
    let domain =
        accepted("<title>t</title><description>d</description><metadata><x:y xmlns:x='u'/></metadata>");
    assert_eq!(domain.name(), "g");
    assert!(!domain.general.uuid.is_nil());
    assert_eq!(domain.memory.total, 256 << 20);
    assert_eq!(domain.memory.current, 256 << 20);
    assert_eq!((domain.vcpus.max, domain.vcpus.current), (1, 1));
}

#[test]
fn all_problems_are_said_at_once() {
    let source = "<domain type='xen'>\n<name>a/b</name>\n<memory unit='XB'>1</memory>\n<vcpu>zero</vcpu>\n<foo/>\n</domain>";
    let mut diagnostics = Diagnostics::new();
    let root = xml::parse(source, &mut diagnostics).unwrap();
    assert!(Domain::from_xml(&root, &mut diagnostics).is_none());
    insta::assert_snapshot!(diagnostics.render("g.xml", source), @r#"
    error: the guest has no <os>
     --> g.xml:1:1
      |
    1 | <domain type='xen'>
      | ^^^^^^^^^^^^^^^^^^^
      |
      = help: write <os><type arch='x86_64' machine='q35'>hvm</type></os>
    error: 'xen' is not a value of 'type' in <domain>; it takes kvm or qemu
     --> g.xml:1:15
      |
    1 | <domain type='xen'>
      |               ^^^
    error: 'a/b' cannot be the name of a guest
     --> g.xml:2:7
      |
    2 | <name>a/b</name>
      |       ^^^
      |
      = help: a name is also a directory's: it has no '/', no control character and no '.' at its start
    error: 'XB' is not a unit of sizes
     --> g.xml:3:15
      |
    3 | <memory unit='XB'>1</memory>
      |               ^^
      |
      = help: units are b, KiB, MiB, GiB, TiB, and KB, MB, ... for powers of 1000
    error: 'zero' is not a number of vCPUs
     --> g.xml:4:7
      |
    4 | <vcpu>zero</vcpu>
      |       ^^^^
    error: vmward does not honour <foo> in <domain>
     --> g.xml:5:1
      |
    5 | <foo/>
      | ^^^^^^
      |
      = help: --allow-unsupported starts the guest without it
    "#);
}

#[test]
fn general() {
    refused(&[
        ("<uuid>x</uuid>", "'x' is not a UUID"),
        ("<title>a\nb</title>", "one line"),
        ("<name>h</name>", "more than one <name>"),
        ("<os/>", "no <type>"),
        ("<os><type>xen</type></os>", "guests of type hvm"),
        ("<os><type arch='alpha'>hvm</type></os>", "x86_64 guests"),
        ("<os><type machine='virt'>hvm</type></os>", "machine type 'virt'"),
        ("<on_reboot>rename-restart</on_reboot>", "not an action"),
    ]);
}

#[test]
fn memory_and_processors() {
    refused(&[
        ("<memory>0</memory>", "no memory"),
        ("<memory unit='EiB'>99</memory>", "too large"),
        ("<memory>9007199254740991</memory>", "so much memory"),
        ("<maxMemory unit='MiB'>100</maxMemory>", "less than <memory>"),
        ("<vcpu>0</vcpu>", "at least one vCPU"),
        ("<vcpu>4294967295</vcpu>", "at most 16384"),
        ("<vcpu current='3'>2</vcpu>", "current='3'"),
        (
            "<vcpu>3</vcpu><cpu><topology sockets='1' cores='2' threads='1'/></cpu>",
            "the topology has 2 vCPUs",
        ),
        ("<vcpu cpuset='3-1'>1</vcpu>", "not a set of numbers"),
        ("<cpu mode='host-passthrough'/>", "only be passed through with KVM"),
        ("<cpu mode='custom'/>", "names its <model>"),
        ("<cpu><model>a,b</model></cpu>", "not the name of a CPU model"),
        ("<cpu><model>qemu64</model><feature name='x,y'/></cpu>", "not the name of a CPU feature"),
        ("<cpu mode='maximum'><cache mode='emulate' level='2'/></cpu>", "level 3 only"),
        ("<cputune><vcpupin vcpu='1' cpuset='0'/></cputune>", "no vCPU 1"),
        ("<cputune><iothreadpin iothread='1' cpuset='0'/></cputune>", "no I/O thread 1"),
    ]);
}

#[test]
fn numa_cells() {
    let cells = |cells: &str| format!("<vcpu>2</vcpu><cpu><numa>{cells}</numa></cpu>");
    for (inside, words) in [
        (cells("<cell id='1' cpus='0' memory='1024'/>"), "without gaps"),
        (cells("<cell cpus='0' memory='1024'/><cell cpus='0-1' memory='1024'/>"), "vCPU 0 is in two"),
        (
            cells("<cell id='0' cpus='0' memory='1024'/><cell id='0' cpus='1' memory='1024'/>"),
            "with the id 0",
        ),
        (cells("<cell cpus='0-2' memory='1024'/>"), "no vCPU 2"),
        (cells("<cell cpus='0-1'/>"), "lacks the attribute 'memory'"),
        ("<numatune><memnode cellid='0' mode='strict' nodeset='0'/></numatune>".to_owned(), "no NUMA cell 0"),
    ] {
        refused(&[(inside.as_str(), words)]);
    }
    let domain = accepted(&cells("<cell cpus='1' memory='2048'/><cell memory='1024'/>"));
    assert_eq!(domain.cpu.numa.cells[0].cpus.to_string(), "0-1", "vCPUs that no cell names are in the first");
    assert_eq!(domain.memory.total, 3 << 20, "the cells say how much memory there is");
}

#[test]
fn features_and_clock() {
    refused(&[
        ("<features><smm state='on'><tseg unit='KiB'>5</tseg></smm></features>", "whole MiB"),
        (
            "<os><type machine='pc'>hvm</type></os><features><smm state='on'><tseg>48</tseg></smm></features>",
            "belongs to q35",
        ),
        (
            "<features><hyperv><spinlocks state='on' retries='10'/></hyperv></features>",
            "at least 4095 retries",
        ),
        ("<features><kvm><dirty-ring state='on' size='1000'/></kvm></features>", "power of two"),
        ("<features><hyperv><vendor_id state='on' value='thirteen char'/></hyperv></features>", "at most 12"),
        ("<clock offset='timezone'/>", "lacks the attribute 'timezone'"),
        ("<clock offset='utc'><timer name='rtc' tickpolicy='merge'/></clock>", "no tickpolicy 'merge'"),
        ("<clock offset='utc'><timer name='pit' present='no'/></clock>", "always have the timer 'pit'"),
        ("<clock offset='utc'><timer name='tsc' frequency='5'/></clock>", "with KVM only"),
    ]);
}

#[test]
fn firmware_and_boot() {
    let os = |inside: &str| format!("<os><type machine='q35'>hvm</type>{inside}</os>");
    for (inside, words) in [
        (os("<loader/>"), "names no firmware"),
        (os("<loader>relative</loader>"), "starts with '/'"),
        (os("<loader>/f</loader><nvram>/n</nvram>"), "only a firmware in flash"),
        (os("<loader type='pflash'>/f</loader>"), "UEFI needs ACPI"),
        (os("<loader type='pflash' stateless='yes'>/f</loader><nvram>/n</nvram>"), "stateless firmware"),
        (os("<loader readonly='no'>/f</loader>"), "a ROM is read-only"),
        (os("<initrd>/i</initrd>"), "needs a <kernel>"),
        (os("<boot dev='disk'/>"), "'disk' is not a value"),
        (os("<bootmenu enable='yes' timeout='70000'/>"), "at most 65535"),
        (os("<bios rebootTimeout='-2'/>"), "between -1"),
        (os("<smbios mode='sysinfo'/>"), "no <sysinfo"),
    ] {
        refused(&[(inside.as_str(), words)]);
    }
}

#[test]
fn system_information() {
    let smbios = |inside: &str| format!("<sysinfo type='smbios'>{inside}</sysinfo>");
    for (inside, words) in [
        (smbios("<bios><entry name='date'>99/99/2020</entry></bios>"), "mm/dd/yyyy"),
        (smbios("<bios><entry name='colour'>red</entry></bios>"), "no entry 'colour'"),
        (
            smbios("<system><entry name='uuid'>c7a5fdbd-edaf-9455-926a-d65c16db1809</entry></system>"),
            "not that of the guest",
        ),
        ("<sysinfo type='fwcfg'><entry name='x'>y</entry></sysinfo>".to_owned(), "starts with 'opt/'"),
        ("<sysinfo type='fwcfg'><entry name='opt/x'/></sysinfo>".to_owned(), "either text or a file"),
    ] {
        refused(&[(inside.as_str(), words)]);
    }
}

#[test]
fn what_is_not_honoured_can_be_allowed() {
    let (domain, said) =
        read("<cputune><shares>5</shares></cputune><seclabel type='dynamic' model='selinux'/>");
    assert!(domain.is_some(), "nothing is wrong with it: {said}");
    assert!(said.contains("does not honour <shares>") && said.contains("<seclabel>"), "{said}");
    accepted("<seclabel type='none'/><memtune><hard_limit>9007199254740991</hard_limit></memtune>");
}

#[test]
fn arguments_are_passed_through_whatever_their_prefix() {
    let space = "http://libvirt.org/schemas/domain/qemu/1.0";
    for inside in [
        format!(
            "<q:commandline xmlns:q='{space}'><q:arg value='-x'/><q:env name='A' value='1'/></q:commandline>"
        ),
        format!("<commandline xmlns='{space}'><arg value='-x'/><env name='A' value='1'/></commandline>"),
    ] {
        let domain = accepted(&inside);
        assert_eq!(domain.passed_through.arguments, ["-x"]);
        assert_eq!(domain.passed_through.environment, [("A".to_owned(), "1".to_owned())]);
    }
    let overrides = accepted(&format!(
        "<q:override xmlns:q='{space}'><q:device alias='x'><q:frontend>\
         <q:property name='a' type='signed' value='-1'/><q:property name='b' type='remove'/>\
         </q:frontend></q:device></q:override>"
    ))
    .overrides;
    assert_eq!(overrides[0].alias, "x");
    assert_eq!(overrides[0].properties[0], ("a".to_owned(), overrides::PropertyValue::Number(-1)));
    assert_eq!(overrides[0].properties[1].1, overrides::PropertyValue::Removed);
    refused(&[(
        &format!("<q:commandline xmlns:q='{space}'><q:env name='LD_PRELOAD' value='/x'/></q:commandline>"),
        "which code runs",
    )]);
    let (_, said) = read("<q:commandline xmlns:q='urn:other'><q:arg value='-x'/></q:commandline>");
    assert!(said.contains("does not honour <q:commandline>"), "{said}");
}
