//! What QEMU is told about machines.

use std::convert::Infallible;

use crate::domain::Domain;
use crate::qemu::{Capabilities, CommandLine, Preparation};
use crate::secret::SealedSecret;
use crate::xml::{self, Diagnostics};

/// The machine's options of a guest with these elements, one a line, and what was said.
fn built(kind: &str, inside: &str) -> (CommandLine, String) {
    let source = format!(
        "<domain type='{kind}'><name>g</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>{inside}</domain>"
    );
    let mut diagnostics = Diagnostics::new();
    let root = xml::parse(&source, &mut diagnostics).expect("the test's XML is well-formed");
    let domain = Domain::from_xml(&root, &mut diagnostics);
    let mut line = CommandLine::default();
    if let Some(domain) = &domain {
        super::arguments(domain, &Capabilities::latest(), &mut line, &mut diagnostics);
    }
    (line, diagnostics.render("g.xml", &source))
}

fn arguments(kind: &str, inside: &str) -> String {
    let (line, said) = built(kind, inside);
    assert!(said.is_empty(), "{said}");
    let seal = |_: &_| Ok::<_, Infallible>(SealedSecret { data: String::new(), iv: String::new() });
    let Ok(words) = line.render(seal);
    words.join(" ").replace(" -", "\n-")
}

const SMALL: &str = "<memory unit='MiB'>256</memory><os><type machine='q35'>hvm</type></os>";

#[test]
fn the_smallest_guest() {
    insta::assert_snapshot!(arguments("qemu", SMALL), @r#"
    -machine q35,usb=off,dump-guest-core=off,memory-backend=pc.ram,acpi=off
    -accel tcg
    -cpu qemu64
    -m size=262144k
    -object {"qom-type":"memory-backend-ram","id":"pc.ram","size":268435456}
    -overcommit mem-lock=off
    -smp 1,sockets=1,cores=1,threads=1
    -uuid c7a5fdbd-edaf-9455-926a-d65c16db1809
    -rtc base=utc
    -boot strict=on
    "#);
}

#[test]
fn a_guest_with_everything() {
    insta::assert_snapshot!(arguments("kvm", "
        <memory unit='KiB'>262143</memory>
        <memoryBacking><locked/><nosharepages/></memoryBacking>
        <vcpu current='1'>4</vcpu>
        <iothreads>2</iothreads>
        <os>
          <type machine='pc'>hvm</type><kernel>/k</kernel><initrd>/i</initrd><cmdline>a=1,2 b</cmdline>
          <bootmenu enable='yes' timeout='3000'/><bios rebootTimeout='0'/><smbios mode='sysinfo'/>
        </os>
        <sysinfo type='smbios'><system><entry name='product'>a, b</entry></system></sysinfo>
        <sysinfo type='fwcfg'><entry name='opt/x'>y</entry></sysinfo>
        <features>
          <acpi/><apic eoi='on'/><vmport state='off'/><pmu state='off'/><vmcoreinfo/>
          <hyperv><relaxed state='on'/><spinlocks state='on' retries='8191'/><stimer state='on'><direct state='on'/></stimer></hyperv>
          <kvm><hidden state='on'/></kvm>
        </features>
        <cpu mode='host-passthrough' migratable='off'>
          <topology sockets='1' cores='2' threads='2'/><feature name='vmx' policy='disable'/><cache mode='passthrough'/>
        </cpu>
        <clock offset='variable' adjustment='3600'>
          <timer name='rtc' tickpolicy='catchup' track='wall'/><timer name='hpet' present='no'/>
          <timer name='pit' tickpolicy='discard'/><timer name='hypervclock' present='yes'/>
        </clock>
        <pm><suspend-to-mem enabled='no'/></pm>
        <genid>e9392370-2917-565e-692b-d057f46512d6</genid>
    "), @r#"
    -machine pc,usb=off,vmport=off,dump-guest-core=off,mem-merge=off,memory-backend=pc.ram,hpet=off,acpi=on
    -accel kvm
    -cpu host,migratable=off,vmx=off,hv-time=on,kvm-pv-eoi=on,hv-relaxed=on,hv-stimer=on,hv-stimer-direct=on,hv-spinlocks=0x1fff,kvm=off,pmu=off,l3-cache=off,host-cache-info=on
    -m size=262144k
    -object {"qom-type":"memory-backend-ram","id":"pc.ram","size":268435456}
    -overcommit mem-lock=on
    -smp 1,maxcpus=4,sockets=1,dies=1,clusters=1,cores=2,threads=2
    -object {"qom-type":"iothread","id":"iothread1"}
    -object {"qom-type":"iothread","id":"iothread2"}
    -uuid c7a5fdbd-edaf-9455-926a-d65c16db1809
    -smbios type=1,product=a,, b
    -fw_cfg name=opt/x,string=y
    -rtc base=2009-02-14T00:31:30,clock=host,driftfix=slew
    -global kvm-pit.lost_tick_policy=discard
    -global PIIX4_PM.disable_s3=1
    -device {"driver":"vmcoreinfo"}
    -device {"driver":"vmgenid","guid":"e9392370-2917-565e-692b-d057f46512d6","id":"vmgenid0"}
    -boot menu=on,splash-time=3000,reboot-timeout=0,strict=on
    -kernel /k
    -initrd /i
    -append a=1,2 b
    "#);
}

#[test]
fn memory_of_numa_cells() {
    insta::assert_snapshot!(arguments("qemu", "
        <memory unit='MiB'>1</memory><maxMemory slots='4' unit='GiB'>4</maxMemory><vcpu>3</vcpu>
        <memoryBacking><hugepages><page size='2' unit='MiB' nodeset='0'/></hugepages><access mode='shared'/></memoryBacking>
        <numatune><memory mode='interleave' nodeset='0-1'/></numatune>
        <os><type machine='q35'>hvm</type></os>
        <cpu><numa>
          <cell cpus='0,2' memory='128' unit='MiB'><distances><sibling id='1' value='21'/></distances></cell>
          <cell cpus='1' memory='64' unit='MiB'/>
        </numa></cpu>
    "), @r#"
    -machine q35,usb=off,dump-guest-core=off,acpi=off
    -accel tcg
    -cpu qemu64
    -m size=196608k,slots=4,maxmem=4194304k
    -overcommit mem-lock=off
    -smp 3,sockets=3,cores=1,threads=1
    -object {"qom-type":"thread-context","id":"tc-ram-node0","node-affinity":[0,1]}
    -object {"qom-type":"memory-backend-file","id":"ram-node0","mem-path":"/dev/hugepages2M/libvirt/qemu/-1-g","share":true,"prealloc":true,"size":134217728,"host-nodes":[0,1],"policy":"interleave","prealloc-context":"tc-ram-node0"}
    -numa node,nodeid=0,cpus=0,cpus=2,memdev=ram-node0
    -object {"qom-type":"memory-backend-file","id":"ram-node1","mem-path":"/var/lib/libvirt/qemu/ram/-1-g/ram-node1","share":true,"size":67108864,"host-nodes":[0,1],"policy":"interleave"}
    -numa node,nodeid=1,cpus=1,memdev=ram-node1
    -numa dist,src=0,dst=0,val=10
    -numa dist,src=0,dst=1,val=21
    -numa dist,src=1,dst=0,val=21
    -numa dist,src=1,dst=1,val=10
    -uuid c7a5fdbd-edaf-9455-926a-d65c16db1809
    -rtc base=utc
    -boot strict=on
    "#);
}

#[test]
fn old_machine_types_keep_their_way() {
    let cells =
        "<memory>1</memory><vcpu>2</vcpu><cpu><numa><cell cpus='0-1' memory='64' unit='MiB'/></numa></cpu>";
    let old = arguments("qemu", &format!("{cells}<os><type machine='pc-i440fx-5.0'>hvm</type></os>"));
    assert!(old.contains("-numa node,nodeid=0,cpus=0-1,mem=64"), "{old}");
    let new = arguments("qemu", &format!("{cells}<os><type machine='pc-i440fx-5.1'>hvm</type></os>"));
    assert!(new.contains("memdev=ram-node0"), "{new}");
}

#[test]
fn a_firmware_is_chosen_by_what_is_asked() {
    let os = |os: &str| format!("<memory unit='MiB'>256</memory><features><acpi/></features>{os}");
    let secure = arguments("qemu", &os("<os firmware='efi'><type machine='q35'>hvm</type></os>"));
    assert!(secure.contains("secboot.fd") && secure.contains(",smm=on"), "{secure}");
    let plain = arguments("qemu", &os("<os firmware='efi'><type machine='pc'>hvm</type></os>"));
    assert!(plain.contains("/OVMF_CODE.fd") && !plain.contains("secure,value=on"), "{plain}");
    let bios = arguments("qemu", &os("<os firmware='bios'><type machine='pc'>hvm</type></os>"));
    assert!(bios.contains("-bios /usr/share/seabios/bios-256k.bin"), "{bios}");
    let (_, said) =
        built("qemu", &os("<os firmware='efi'><type machine='pc'>hvm</type><loader secure='yes'/></os>"));
    assert!(said.contains("needs a q35 machine"), "{said}");
}

#[test]
fn variables_are_copied_from_their_template() {
    let (line, said) = built(
        "qemu",
        "
        <memory unit='MiB'>256</memory><features><acpi/></features>
        <os><type machine='pc'>hvm</type><loader type='pflash'>/f</loader><nvram template='/t'>/n</nvram></os>
    ",
    );
    assert!(said.is_empty(), "{said}");
    assert!(
        matches!(&line.preparations[..], [Preparation::Copy { from, to, .. }]
            if from.as_os_str() == "/t" && to.as_os_str() == "/n"),
        "{:?}",
        line.preparations
    );
}

#[test]
fn what_the_host_lacks_is_said() {
    let page =
        format!("{SMALL}<memoryBacking><hugepages><page size='16' unit='MiB'/></hugepages></memoryBacking>");
    assert!(built("qemu", &page).1.contains("no hugetlbfs with pages of 16384 KiB"));
    let node = format!("{SMALL}<numatune><memory mode='strict' nodeset='7'/></numatune>");
    assert!(built("qemu", &node).1.contains("no NUMA node 7"));
}

#[test]
fn processors_are_told_as_libvirt_tells_them() {
    let cpu = |inside: &str| {
        let all = arguments("qemu", &format!("{SMALL}<vcpu>1</vcpu>{inside}"));
        all.lines().find_map(|line| line.strip_prefix("-cpu ").map(str::to_owned)).unwrap()
    };
    let named = |model: &str, features: &str| cpu(&format!("<cpu><model>{model}</model>{features}</cpu>"));
    let feature = |name: &str, policy: &str| format!("<feature name='{name}' policy='{policy}'/>");
    // What makers took back is off, but where the guest asks for it.
    assert_eq!(named("Icelake-Server", ""), "Icelake-Server,intel-pt=off,mpx=off");
    assert_eq!(named("EPYC", &feature("monitor", "require")), "EPYC,monitor=on");
    // What is no property of QEMU's is not named.
    assert_eq!(named("qemu64", &feature("osxsave", "require")), "qemu64");
    assert_eq!(named("qemu64", &feature("pconfig", "disable")), "qemu64");
    assert_eq!(named("qemu64", &feature("pconfig", "require")), "qemu64,pconfig=on");
    assert_eq!(named("qemu64", &feature("aes", "optional")), "qemu64,aes=on");
    assert_eq!(named("qemu64", "<cache mode='disable'/>"), "qemu64,l3-cache=off");
    assert_eq!(
        cpu("<cpu mode='maximum'><maxphysaddr mode='emulate'/></cpu>"),
        "max,migratable=on,host-phys-bits=off"
    );
    let emulator = "<devices><emulator>/usr/bin/qemu-system-i386</emulator></devices>";
    assert_eq!(cpu(emulator), "qemu32");
}

#[test]
fn clocks_count_from_local_time_and_older_words_mean_the_same() {
    let rtc = |clock: &str| {
        let all = arguments("qemu", &format!("{SMALL}{clock}"));
        all.lines().find_map(|line| line.strip_prefix("-rtc base=").map(str::to_owned)).unwrap()
    };
    // The assumed host is half an hour behind UTC, where it is 23:31:30.
    assert_eq!(rtc("<clock offset='variable' basis='localtime' adjustment='60'/>"), "2009-02-13T23:02:30");
    assert_eq!(rtc("<clock offset='localtime' adjustment='60'/>"), "2009-02-13T23:02:30");
    assert_eq!(rtc("<clock offset='utc' adjustment='-60'/>"), "2009-02-13T23:30:30");
    assert_eq!(rtc("<clock offset='utc' adjustment='reset'/>"), "utc");
    let pit = arguments("qemu", &format!("{SMALL}<clock offset='utc'><timer name='pit'/></clock>"));
    assert!(pit.contains("-global kvm-pit.lost_tick_policy=delay"), "{pit}");
}

#[test]
fn parts_of_the_platform() {
    let pc = arguments(
        "qemu",
        "<memory unit='MiB'>256</memory><genid/>
         <os><type machine='pc'>hvm</type><bios useserial='yes'/>
         <acpi><table type='slic'>/s</table><table type='raw'>/r</table></acpi></os>
         <devices><console type='pty'/>
         <controller type='pci' index='0' model='pci-root'><target hotplug='off'/></controller></devices>",
    );
    for part in [
        ",graphics=off",
        "-global PIIX4_PM.acpi-root-pci-hotplug=off",
        r#""guid":"00010203-0405-4607-8809-0a0b0c0d0e0f""#,
        "-acpitable sig=SLIC,file=/s",
        "-acpitable file=/r",
    ] {
        assert!(pc.contains(part), "{part} is not in {pc}");
    }
}

#[test]
fn memory_of_control_groups_is_not_qemus() {
    let (line, said) =
        built("qemu", &format!("{SMALL}<numatune><memory mode='restrictive' nodeset='0'/></numatune>"));
    assert!(said.contains("control group"), "{said}");
    assert!(!format!("{line:?}").contains("host-nodes"), "{line:?}");
    let threads =
        arguments("qemu", &format!("{SMALL}<memoryBacking><allocation threads='4'/></memoryBacking>"));
    assert!(threads.contains(r#""prealloc-threads":4"#) && !threads.contains(r#""prealloc":"#), "{threads}");
}

#[test]
fn a_firmware_that_is_named_is_described_by_its_descriptor() {
    let os = |attribute: &str, inside: &str| {
        format!(
            "<memory unit='MiB'>256</memory><features><acpi/></features>\
             <os {attribute}><type machine='q35'>hvm</type>{inside}</os>"
        )
    };
    let known = "<loader readonly='yes' type='pflash'>/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd</loader>";
    for attribute in ["", "firmware='efi'"] {
        let told = arguments("qemu", &os(attribute, known));
        assert!(told.contains(",smm=on") && told.contains("property=secure,value=on"), "{told}");
    }
    let other = "<loader readonly='yes' secure='yes' type='pflash'>/f</loader>";
    assert!(built("qemu", &os("firmware='efi'", other)).1.contains("no efi firmware"));
    assert!(built("qemu", &os("", other)).1.contains("what secure boot needs"));
    let template = "<loader readonly='yes' type='pflash'>/f</loader><nvram template='/t' templateFormat='qcow2' format='raw'/>";
    assert!(built("qemu", &os("", template)).1.contains("copies the template as it is"));
}

#[test]
fn protected_guests() {
    let guest = |kind: &str, inside: &str| {
        format!(
            "<memory unit='MiB'>256</memory><features><acpi/></features>\
             <os firmware='efi'><type machine='q35'>hvm</type><loader stateless='yes'/></os>\
             <launchSecurity {kind}>{inside}</launchSecurity>"
        )
    };
    let (line, said) =
        built("kvm", &guest("type='sev' kernelHashes='yes'", "<policy>0x5</policy><session>QQ==</session>"));
    assert!(said.is_empty(), "{said}");
    let written = line.preparations.iter().any(
        |p| matches!(p, Preparation::Write { path, contents } if path.ends_with("session.base64") && contents == "QQ=="),
    );
    assert!(written, "{:?}", line.preparations);
    let told =
        arguments("kvm", &guest("type='sev-snp' vcek='no'", "<policy>0x30000</policy><cbitpos>47</cbitpos>"));
    assert!(told.contains("confidential-guest-support=lsec0") && told.contains("OVMF.amdsev.fd"), "{told}");
    assert!(
        told.contains(r#"{"qom-type":"sev-snp-guest","id":"lsec0","cbitpos":47,"reduced-phys-bits":1,"policy":196608,"vcek-disabled":true}"#),
        "{told}"
    );
}

#[test]
fn variables_that_are_encrypted() {
    let os = |nvram: &str| {
        format!(
            "<memory unit='MiB'>256</memory><features><acpi/></features>
             <os><type machine='q35'>hvm</type><loader readonly='yes' type='pflash'>/f</loader>{nvram}</os>"
        )
    };
    let encrypted = |source: &str, rest: &str, engine: &str| {
        os(&format!(
            "<nvram {rest}><source {source}<encryption format='luks' {engine}><secret type='passphrase' usage='v'/></encryption></source></nvram>"
        ))
    };
    let told = arguments("qemu", &encrypted("file='/v'>", "type='file' format='raw'", ""));
    assert!(told.contains("pflash1=libvirt-pflash1-format"), "{told}");
    assert!(
        told.contains(r#""driver":"luks","key-secret":"libvirt-pflash1-format-encryption-secret0""#),
        "{told}"
    );
    let rbd = encrypted("protocol='rbd' name='p/v'>", "type='network' format='raw'", "engine='librbd'");
    let told = arguments("qemu", &rbd);
    assert!(told.contains("pflash1=libvirt-pflash1-storage"), "{told}");
    let file = encrypted("file='/v'>", "type='file'", "engine='librbd'");
    assert!(built("qemu", &file).1.contains("librbd decrypts RBD images only"));
    let copied = encrypted("file='/v'>", "type='file' template='/t'", "");
    assert!(built("qemu", &copied).1.contains("copies no template into encrypted variables"));
}
