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
        ("<cpu mode='maximum' check='hard'/>", "'hard' is not a value of 'check'"),
        ("<cpu><model fallback='no'>qemu64</model></cpu>", "'no' is not a value of 'fallback'"),
        ("<cpu><feature name='aes'/></cpu>", "without a <model>"),
        ("<cpu><arch>ppc64</arch><model>qemu64</model></cpu>", "not 'ppc64'"),
        ("<cpu><model>qemu64</model><cache mode='passthrough'/></cpu>", "host's caches"),
        ("<vcpu>300</vcpu>", "more than 255 vCPUs"),
        ("<defaultiothread thread_pool_min='9' thread_pool_max='8'/>", "minimum is more than its maximum"),
        ("<cputune><iothreadpin iothread='1' cpuset='0'/></cputune>", "no I/O thread 1"),
        ("<cputune><iothreadsched iothreads='1' scheduler='idle'/></cputune>", "no I/O thread 1"),
        ("<cputune><vcpusched vcpus='1' scheduler='idle'/></cputune>", "no vCPU 1"),
        ("<cputune><vcpusched vcpus='0' scheduler='rr'/></cputune>", "have a priority"),
        (
            "<cputune><vcpusched vcpus='0' scheduler='idle'/><vcpusched vcpus='0' scheduler='batch'/></cputune>",
            "two <vcpusched> of 0",
        ),
        ("<cputune><period>5</period></cputune>", "no value of <period>"),
        ("<memtune><min_guarantee>1</min_guarantee></memtune>", "guarantees no memory"),
        ("<numatune><memory mode='strict'/></numatune>", "the nodeset is given"),
        ("<resource><partition>x</partition></resource>", "starts with '/'"),
    ]);
}

#[test]
fn single_processors() {
    let list = |list: &str| format!("<vcpu>4</vcpu><vcpus>{list}</vcpus>");
    let first = "<vcpu id='0' enabled='yes' hotpluggable='no'/>";
    for (inside, words) in [
        (list("<vcpu id='0' enabled='yes' hotpluggable='yes'/>"), "vCPU 0 is always there"),
        (list("<vcpu id='1' enabled='yes' hotpluggable='no'/>"), "vCPU 0 is always there"),
        (list(&format!("{first}<vcpu id='4' enabled='no'/>")), "no vCPU 4"),
        (list(&format!("{first}{first}")), "listed twice"),
        (list(&format!("{first}<vcpu id='1'/>")), "lacks the attribute 'enabled'"),
        (list(&format!("{first}<vcpu id='1' enabled='no' hotpluggable='no'/>")), "never will be"),
        (list(&format!("{first}<vcpu id='1' enabled='yes' order='1'/>")), "all vCPUs that are enabled"),
        (list(&format!("{first}<vcpu id='2' enabled='yes' hotpluggable='no'/>")), "come first"),
        (
            list(&format!(
                "{first}<vcpu id='1' enabled='yes' hotpluggable='yes'/><vcpu id='2' enabled='yes'/>"
            )),
            "come first",
        ),
    ] {
        refused(&[(inside.as_str(), words)]);
    }
    let vcpus = accepted(&list(
        "<vcpu id='0' enabled='yes' order='1'/><vcpu id='1' enabled='no'/>\
         <vcpu id='2' enabled='yes' hotpluggable='yes' order='3'/><vcpu id='3' enabled='yes' hotpluggable='yes' order='2'/>",
    ))
    .vcpus;
    assert_eq!((vcpus.max, vcpus.current, vcpus.built_in()), (4, 3, 1));
    assert_eq!(vcpus.plugged, [3, 2], "by their order, not their number");
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
        (cells("<cell cpus='0' memory='0'/>"), "have no memory"),
        (
            cells("<cell memory='1024'><distances><sibling id='0' value='11'/></distances></cell>"),
            "to itself is 10",
        ),
        (
            cells(
                "<cell memory='1024'/><interconnects><latency initiator='0' target='0' cache='1' type='read' value='1'/></interconnects>",
            ),
            "no such <cache>",
        ),
        (
            cells(
                "<cell memory='1024'/><interconnects><latency initiator='0' target='7' type='read' value='1'/></interconnects>",
            ),
            "no NUMA cell 7",
        ),
        (
            cells(
                "<cell memory='1024'/><interconnects>\
                   <bandwidth initiator='0' target='0' type='read' value='1'/>\
                   <bandwidth initiator='0' target='0' type='read' value='2'/></interconnects>",
            ),
            "given twice",
        ),
        (
            format!(
                "{}<numatune><memory mode='strict' nodeset='0'/><memnode cellid='0' mode='restrictive' nodeset='0'/></numatune>",
                cells("<cell memory='1024'/>")
            ),
            "or none",
        ),
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
        ("<clock offset='absolute' start='-5'/>", "at or after 1970"),
        ("<features><hyperv><relaxed/></hyperv></features>", "lacks the attribute 'state'"),
        ("<features><ps2/></features>", "lacks the attribute 'state'"),
        ("<features><tcg><tb-cache>5</tb-cache></tcg></features>", "whole MiB"),
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
        (os("<bios useserial='yes'/>"), "needs a <serial> port"),
        (os("<acpi><table type='dsdt'>/t</table></acpi>"), "'dsdt' is not a value"),
        (os("<acpi><table type='slic'/></acpi>"), "names no file"),
        (
            os("<acpi><table type='slic'>/a</table><table type='slic'>/b</table></acpi>"),
            "more than one ACPI table",
        ),
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
        (smbios("<bios/><bios/>"), "more than one <bios>"),
        (smbios("<bios><entry name='vendor'>a</entry><entry name='vendor'>b</entry></bios>"), "two entries"),
        ("<sysinfo type='fwcfg'><entry name='x'>y</entry></sysinfo>".to_owned(), "starts with 'opt/'"),
        ("<sysinfo type='fwcfg'><entry name='opt/x'/></sysinfo>".to_owned(), "either text or a file"),
    ] {
        refused(&[(inside.as_str(), words)]);
    }
}

#[test]
fn what_is_not_honoured_can_be_allowed() {
    for (inside, words) in [
        ("<cputune><shares>5</shares></cputune>", "does not honour <shares>"),
        (
            "<cputune><emulatorsched scheduler='fifo' priority='1'/></cputune>",
            "does not honour <emulatorsched>",
        ),
        (
            "<cputune><cachetune vcpus='0'><cache id='0' level='3' type='both' size='1'/></cachetune></cputune>",
            "<cachetune>",
        ),
        ("<seclabel type='dynamic' model='selinux'/>", "<seclabel>"),
        ("<resource><fibrechannel appid='x'/></resource>", "storage network"),
        ("<perf><event name='cmt' enabled='yes'/></perf>", "counts no events"),
        (
            "<memory unit='MiB'>9</memory><numatune><memory mode='restrictive' nodeset='0'/></numatune>",
            "control group",
        ),
        ("<on_crash>coredump-restart</on_crash>", "no dump of a guest"),
        ("<clock offset='utc'><timer name='pit' present='no'/></clock>", "always have the timer 'pit'"),
        ("<clock offset='utc'><timer name='hpet' tickpolicy='merge'/></clock>", "no tickpolicy 'merge'"),
    ] {
        let source = guest(inside);
        let mut diagnostics = Diagnostics::new();
        let root = xml::parse(&source, &mut diagnostics).unwrap();
        let domain = Domain::from_xml(&root, &mut diagnostics);
        let said = diagnostics.render("g.xml", &source);
        assert!(said.contains(words), "{inside}\n{said}");
        assert!(domain.is_some() && diagnostics.has_errors(), "no guest is started with it: {said}");
        diagnostics.allow_showing();
        assert!(!diagnostics.has_errors(), "its command line can be shown: {said}");
    }
    accepted(
        "<seclabel type='none'/><memtune><hard_limit>9007199254740991</hard_limit></memtune>\
         <cputune><quota>-1</quota></cputune><perf><event name='cmt' enabled='no'/></perf>",
    );
}

#[test]
fn what_changes_nothing_is_said_and_holds_nothing_up() {
    for (inside, words) in [
        ("<features><viridian/></features>", "for other hypervisors"),
        ("<os><type machine='q35'>hvm</type><init>/sbin/init</init></os>", "for containers"),
        ("<on_lockfailure>pause</on_lockfailure>", "no lock manager"),
        ("<cputune><vcpupin vcpu='1' cpuset='0'/></cputune>", "no vCPU 1"),
        ("<cpu><model>qemu64</model><vendor>AMD</vendor></cpu>", "who made the host's processor"),
        (
            "<features><hyperv mode='passthrough'><relaxed state='on'/></hyperv></features>",
            "all features anyway",
        ),
    ] {
        let (domain, said) = read(inside);
        assert!(domain.is_some(), "{said}");
        assert!(said.starts_with("warning") && said.contains(words), "{inside}\n{said}");
    }
}

#[test]
fn protected_guests() {
    let security =
        |kind: &str, inside: &str| format!("<launchSecurity type='{kind}'>{inside}</launchSecurity>");
    for (inside, words) in [
        (security("s390-pv", ""), "'s390-pv' is not a value"),
        (security("sev", ""), "has a <policy>"),
        (security("sev", "<policy>0xz</policy>"), "not a number"),
        (security("sev", "<policy>1</policy><cbitpos>99</cbitpos>"), "not a number of bits"),
        (security("sev", "<policy>1</policy>"), "with KVM only"),
        (security("sev", "<policy>1</policy><hostData>x</hostData>"), "does not honour <hostData>"),
    ] {
        refused(&[(inside.as_str(), words)]);
    }
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
    let (domain, said) = read(&format!(
        "<q:capabilities xmlns:q='{space}'><q:del capability='name'/></q:capabilities>\
         <q:deprecation xmlns:q='{space}' behavior='reject'/>"
    ));
    assert!(said.contains("believes QEMU"), "{said}");
    assert_eq!(domain.unwrap().deprecation, Some(super::commandline::Deprecation::Reject));
    let (_, said) = read("<q:commandline xmlns:q='urn:other'><q:arg value='-x'/></q:commandline>");
    assert!(said.contains("does not honour <q:commandline>"), "{said}");
}
