//! Which parts of the file system a guest needs: places that are the same for all, and what QEMU is told of.

use std::iter;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, path_beneath_rules,
};
use nix::unistd::{Uid, User, geteuid};
use serde_json::Value;

use crate::domain::disk::{Image, Protocol, Source};
use crate::qemu::{Argument, CommandLine, Preparation, Resource, SocketPath};
use crate::xml::keywords;

use super::{Guest, Places, real};

keywords! {
    /// What is done with a file.
    pub enum Access {
        /// It is read.
        Read = "read",
        /// It is made, changed or removed.
        Write = "write to",
    }
}

/// The system's programs and what they need. Nothing of it is changed, even if it is named.
const SYSTEM: &[&str] = &[
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix", "/gnu", "/etc", "/boot", "/proc",
    "/sys",
];
/// What else programs read: sockets and what daemons say, other software, authorities on certificates, users from a server.
const READABLE: &[&str] = &["/run", "/opt", "/var/lib/ca-certificates", "/var/lib/sss"];
/// Devices with the memory of `/dev/shm` and huge pages, and where images usually are.
const WRITABLE: &[&str] = &["/dev", "/var/lib/libvirt", "/srv", "/mnt", "/media"];
/// Directories of directories: a file in one of them does not open what is beside it.
const SHARED: &[&str] = &["/", "/home", "/root", "/var", "/var/lib"];

/// In the home of QEMU's user.
const SSH: &str = ".ssh";

/// The accesses that are ruled on: all that the first ABIs know. A kernel that knows fewer is asked for those.
const KNOWN: ABI = ABI::V5;
/// The oldest kernels first. Those of the later ones are about other things than files.
const ABIS: [ABI; 5] = [ABI::V1, ABI::V2, ABI::V3, ABI::V4, ABI::V5];

/// What may be read and what may be changed, with all that is beneath it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rules {
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
}

impl Rules {
    /// Those of a guest's QEMU.
    pub(super) fn of_guest(places: &Places, guest: &Guest<'_>) -> Self {
        let constant = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        let mut rules = Self { read: constant(SYSTEM), write: constant(WRITABLE) };
        rules.read.extend(constant(READABLE));
        rules.write.push(guest.runtime_dir.to_owned());
        rules.read.extend(guest.program.and_then(home_of));
        rules.read.extend(guest.line.environment.iter().filter_map(|(_, value)| absolute(value)));
        rules.read.extend(keys_of_qemu(guest));
        let images = guest.domain.devices.disks.iter().flat_map(|disk| disk.chain());
        let images = images.filter_map(|image| image.source.local_path()).map(PathBuf::from);
        let apart: Vec<_> = places.own_read.iter().map(|path| real(path)).collect();
        images.chain(named(guest.line)).for_each(|path| rules.serve(&path, &apart));
        rules.with(&places.read, &places.write)
    }

    /// These and more.
    pub(super) fn with(&self, read: &[PathBuf], write: &[PathBuf]) -> Self {
        let more = |list: &[PathBuf], more: &[PathBuf]| {
            topmost(list.iter().chain(more).map(|path| real(path)).collect())
        };
        Self { read: more(&self.read, read), write: more(&self.write, write) }
    }

    /// Adds what QEMU is told of: a directory, or a file with what is beside it, where its overlays are to be, and where a
    /// socket is removed. What is the supervisor's alone (`apart`) is not opened by a file that lies above it.
    fn serve(&mut self, path: &Path, apart: &[PathBuf]) {
        let path = real(path);
        if SYSTEM.iter().any(|system| path.starts_with(system)) {
            return;
        }
        let is_shared = |parent: &Path| {
            SHARED.iter().any(|shared| parent == Path::new(shared))
                || apart.iter().any(|own| own.starts_with(parent))
        };
        let beside = path.parent().filter(|parent| !is_shared(parent));
        let served = match beside {
            Some(parent) if !path.is_dir() => parent.to_owned(),
            _ => path,
        };
        self.write.push(served);
    }

    /// Whether a path is in one of these places.
    pub(super) fn allow(&self, path: &Path, access: Access) -> bool {
        let path = real(path);
        let beneath = |list: &[PathBuf]| list.iter().any(|place| path.starts_with(place));
        beneath(&self.write) || access == Access::Read && beneath(&self.read)
    }

    /// Holds the calling thread, and what is started from it, to these rules. Returns whether the kernel can do that.
    pub(super) fn restrict(&self) -> Result<bool, RulesetError> {
        let restricted = Ruleset::default()
            .handle_access(AccessFs::from_all(KNOWN))?
            .create()?
            .add_rules(path_beneath_rules(&self.read, AccessFs::from_read(KNOWN)))?
            .add_rules(path_beneath_rules(&self.write, changes()))?
            .restrict_self()?;
        Ok(restricted.ruleset != RulesetStatus::NotEnforced)
    }
}

/// All that is done with images, sockets and devices. What was written there is not executed, and devices are the
/// system's to make.
fn changes() -> BitFlags<AccessFs> {
    AccessFs::from_all(KNOWN) & !(AccessFs::Execute | AccessFs::MakeBlock | AccessFs::MakeChar)
}

/// The newest version of Landlock's rules on files that this kernel has, if it has any.
pub fn landlock_abi() -> Option<u32> {
    let has = |abi: &ABI| {
        let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        ruleset.handle_access(AccessFs::from_all(*abi)).and_then(Ruleset::create).is_ok()
    };
    (1..).zip(&ABIS).filter(|(_, abi)| has(abi)).map(|(number, _)| number).last()
}

/// The directory of a program that is not the system's, with what is beside its `bin`.
fn home_of(program: &Path) -> Option<PathBuf> {
    let program = real(program);
    let directory = program.parent()?;
    let above = directory.parent().filter(|above| directory.ends_with("bin") && *above != Path::new("/"));
    Some(above.unwrap_or(directory).to_owned())
}

/// Where QEMU has its keys for servers and knows them from, if it has use for that: a user of its own has nothing else there.
fn keys_of_qemu(guest: &Guest<'_>) -> Option<PathBuf> {
    let mut images = guest.domain.devices.disks.iter().flat_map(|disk| disk.chain());
    let is_ssh = |image: &Image| matches!(&image.source, Source::Network(n) if matches!(n.protocol, Protocol::Ssh { .. }));
    let uid = guest.user.map(|user| user.uid);
    ssh_directory(uid.or_else(|| images.any(is_ssh).then(geteuid))?)
}

/// The directory of a user's keys for ssh.
pub(super) fn ssh_directory(user: Uid) -> Option<PathBuf> {
    Some(User::from_uid(user).ok().flatten()?.dir.join(SSH))
}

/// Everything on this host that QEMU is told of by its path, and what is made for it there.
fn named(line: &CommandLine) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for argument in &line.arguments {
        match argument {
            Argument::Text(_, text) | Argument::Raw(text) => in_option(text, &mut found),
            Argument::Json(_, object) => object.values().for_each(|value| in_json(value, &mut found)),
            Argument::Flag(_) | Argument::Secret(_) => {}
        }
    }
    found.extend(line.preparations.iter().map(|preparation| match preparation {
        // It goes with the guest, for which the directory above is needed.
        Preparation::Directory(path) => path.join(".."),
        Preparation::Copy { to, .. } => to.clone(),
        Preparation::Write { path, .. } => path.clone(),
    }));
    found.extend(line.descriptors.iter().filter_map(|descriptor| match &descriptor.resource {
        Resource::UnixListener(SocketPath::Given(path)) => Some(path.clone()),
        _ => None,
    }));
    found
}

fn in_json(value: &Value, found: &mut Vec<PathBuf>) {
    match value {
        Value::String(text) => found.extend(absolute(text)),
        Value::Array(list) => list.iter().for_each(|value| in_json(value, found)),
        Value::Object(object) => object.values().for_each(|value| in_json(value, found)),
        _ => {}
    }
}

/// In QEMU's key=value syntax, where a comma in a value is doubled, or as it is.
fn in_option(text: &str, found: &mut Vec<PathBuf>) {
    if let Ok(value @ Value::Object(_)) = serde_json::from_str(text) {
        return in_json(&value, found);
    }
    found.extend(absolute(text));
    let mut rest = Some(text);
    let parts = iter::from_fn(|| {
        let text = rest?;
        let mut part = String::new();
        let mut characters = text.char_indices().peekable();
        while let Some((at, character)) = characters.next() {
            match character {
                ',' if characters.next_if(|(_, next)| *next == ',').is_some() => part.push(','),
                ',' => {
                    rest = text.get(at + 1..);
                    return Some(part);
                }
                other => part.push(other),
            }
        }
        rest = None;
        Some(part)
    });
    for part in parts {
        found.extend(absolute(part.split_once('=').map_or(part.as_str(), |(_, value)| value)));
    }
}

/// A value that is a path, or the address of a file or socket.
fn absolute(value: &str) -> Option<PathBuf> {
    let value = ["unix:", "file:"].iter().find_map(|scheme| value.strip_prefix(scheme)).unwrap_or(value);
    value.starts_with('/').then(|| value.into())
}

/// Without what is beneath another one.
fn topmost(mut list: Vec<PathBuf>) -> Vec<PathBuf> {
    list.sort();
    list.dedup();
    let mut top: Vec<PathBuf> = Vec::new();
    for path in list {
        if !top.last().is_some_and(|last| path.starts_with(last)) {
            top.push(path);
        }
    }
    top
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::xml::Diagnostics;
    use crate::{domain::Domain, qemu, xml};

    fn found_in(text: &str) -> Vec<String> {
        let mut found = Vec::new();
        in_option(text, &mut found);
        found.iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn paths_are_found_in_options_as_qemu_reads_them() {
        assert_eq!(found_in("file=/a,,b.img,if=none,readonly=on"), ["/a,b.img"]);
        assert_eq!(found_in("unix:/run/x.sock,sasl=on"), ["/run/x.sock,sasl=on", "/run/x.sock"]);
        assert_eq!(found_in("/boot/vmlinuz"), ["/boot/vmlinuz", "/boot/vmlinuz"]);
        assert_eq!(
            found_in(r#"{"driver":"file","filename":"/a=b.img","x":[{"y":"/c"}]}"#),
            ["/a=b.img", "/c"]
        );
        assert!(found_in("id=a,size=1G").is_empty());
    }

    #[test]
    fn a_file_opens_what_is_beside_it_where_that_is_the_guests() {
        let dir = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(base.join("shared")).unwrap();
        let mut rules = Rules::default();
        for path in ["images/a.qcow2", "shared"].map(|name| base.join(name)) {
            rules.serve(&path, &[]);
        }
        for path in ["/vmlinuz", "/home/disk.img", "/usr/share/OVMF/OVMF_CODE.fd", "/etc/passwd"] {
            rules.serve(Path::new(path), &[]);
        }
        let wanted = [base.join("images"), base.join("shared"), "/vmlinuz".into(), "/home/disk.img".into()];
        assert_eq!(rules.write, wanted.map(|path| real(&path)));
    }

    #[test]
    fn links_lead_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(base.join("in")).unwrap();
        fs::create_dir(base.join("out")).unwrap();
        std::os::unix::fs::symlink(base.join("out"), base.join("in/link")).unwrap();
        let rules = Rules { read: vec![base.join("in")], write: vec![] };
        assert!(rules.allow(&base.join("in/a"), Access::Read));
        assert!(!rules.allow(&base.join("in/a"), Access::Write));
        assert!(!rules.allow(&base.join("in/link/a"), Access::Read));
        assert!(!rules.allow(&base.join("inside"), Access::Read));
    }

    #[test]
    fn a_guest_has_its_images_and_what_it_is_given() {
        let source = "<domain type='qemu'><name>a</name><memory>1024</memory>\
            <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>\
            <disk type='file'><source file='/images/a/top.img'/><target dev='vda' bus='virtio'/></disk>\
            <serial type='unix'><source mode='bind' path='/sockets/serial.sock'/></serial>\
            </devices></domain>";
        let mut said = Diagnostics::new();
        let xml = xml::parse(source, &mut said).unwrap();
        let mut domain = Domain::from_xml(&xml, &mut said).unwrap();
        let line = qemu::build(&mut domain, &qemu::Capabilities::latest(), &mut said).unwrap();
        let guest = Guest {
            domain: &domain,
            line: &line,
            program: Some(Path::new("/opt/qemu/bin/qemu-system-x86_64")),
            user: None,
            runtime_dir: Path::new("/run/vmward-test"),
        };
        let places =
            Places { write: vec!["/more".into()], own_read: vec!["/keys".into()], ..Places::default() };
        let rules = Rules::of_guest(&places, &guest);
        for path in
            ["/images/a/overlay.img", "/sockets/serial.sock", "/run/vmward-test/a", "/more/b", "/dev/sda"]
        {
            assert!(rules.allow(Path::new(path), Access::Write), "{path} {rules:?}");
        }
        for path in ["/usr/lib/x", "/etc/resolv.conf", "/opt/qemu/share/bios.bin"] {
            assert!(rules.allow(Path::new(path), Access::Read), "{path}");
            assert!(!rules.allow(Path::new(path), Access::Write), "{path}");
        }
        for path in ["/keys/a", "/images/b", "/home/u/.ssh/id", "/home/u/.bashrc"] {
            assert!(!rules.allow(Path::new(path), Access::Read), "{path}");
        }
        assert!(rules.with(&places.own_read, &[]).allow(Path::new("/keys/a"), Access::Read));

        let places = Places { own_read: vec!["/images/a/secrets".into()], ..Places::default() };
        let rules = Rules::of_guest(&places, &guest);
        assert!(rules.allow(Path::new("/images/a/top.img"), Access::Write));
        for path in ["/images/a/secrets/key", "/images/a/overlay.img"] {
            assert!(!rules.allow(Path::new(path), Access::Read), "a keystore is beside the image: {path}");
        }
    }
}
