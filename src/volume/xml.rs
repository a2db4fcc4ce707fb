//! libvirt's storage volume XML, as far as it describes an encrypted image in a file or in a Ceph cluster.

use std::path::PathBuf;

use uuid::Uuid;

use crate::domain::size;
use crate::secret::{SecretLookup, SecretRef, UsageKind};
use crate::xml::{Diagnostics, Element};

use super::size::round_up;
use super::{
    Backing, Cipher, CipherMode, CipherName, HashName, IvGenerator, Kdf, NewRbd, NewTarget, NewVolume, Owner,
    Preallocation, Qcow2Options, RbdFormat, RbdName, VolumeFormat,
};

/// Only its owner reads a volume, unless the XML says otherwise.
const DEFAULT_MODE: u32 = 0o600;

/// A volume and its secret, as the XML describes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeXml {
    /// The volume; the path of a file is empty if the XML names none.
    pub volume: NewTarget,
    /// The secret with its passphrase; `None` asks for a new one.
    pub secret: Option<SecretRef>,
}

impl VolumeXml {
    /// Reads a `<volume>` document's root, and says of what vmward does not honour that it does not.
    pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let found = Self::read(root, diagnostics);
        root.report_unread(diagnostics);
        found
    }

    fn read(root: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        if root.name != "volume" {
            diagnostics.error(root.span, format!("this is <{}>, not <volume>", root.name));
            return None;
        }
        let in_cluster = match root.attribute("type") {
            Some(kind) if kind.value == "network" => true,
            Some(kind) if kind.value != "file" => {
                let message =
                    format!("vmward makes volumes of type 'file' and 'network' (RBD), not '{}'", kind.value);
                diagnostics.error(kind.span, message);
                false
            }
            _ => false,
        };
        // What libvirt adds when it describes a volume that exists. It does not read them back either.
        for output in ["key", "physical"] {
            if let Some(e) = root.child(output) {
                e.mark_read();
            }
        }
        // The name is a storage pool's; vmward goes by the path.
        root.only_child("name", diagnostics).map(Element::text);
        // An empty <source/> is in what libvirt writes; one with content is where a pool takes a volume from.
        root.only_child("source", diagnostics);

        let capacity = bytes(root, "capacity", diagnostics).filter(|n| *n > 0);
        let size = match capacity.map(round_up) {
            Some(Err(why)) => {
                diagnostics.error(root.child("capacity")?.text_place(), why);
                None
            }
            Some(Ok(size)) => Some(size),
            None => None,
        };
        let allocation = bytes(root, "allocation", diagnostics).unwrap_or(0);
        let backing = root.only_child("backingStore", diagnostics).and_then(|e| backing(e, diagnostics));
        let Some(target) = root.only_child("target", diagnostics) else {
            diagnostics.error(root.span, "<volume> has no <target>, so nothing says how it is encrypted");
            return None;
        };
        if in_cluster {
            if let Some(e) = root.child("backingStore") {
                diagnostics.error(
                    e.span,
                    "an image of a cluster is made without a backing image; `rbd clone` makes one on another",
                );
            }
            if size.is_none() {
                diagnostics.error(root.span, "a volume without a backing image needs a <capacity>");
            }
            let (volume, secret) = image(target, size, diagnostics)?;
            return Some(Self { volume: NewTarget::Image(volume), secret });
        }
        if let Some(e) = target.child("timestamps") {
            // Written by libvirt about a volume that exists.
            e.mark_read();
        }
        let format = match target.only_child("format", diagnostics) {
            // libvirt's default for a volume in a directory.
            None => Some(VolumeFormat::Raw),
            Some(e) => e.require_keyword("type", diagnostics),
        };
        let (mode, owner) = permissions(target, diagnostics);
        let qcow2 = qcow2_options(target, diagnostics);
        let encryption = encryption_in(target, diagnostics)?;
        let (cipher, secret) = encryption_of(encryption, &["luks"], diagnostics);
        if capacity.is_none() && backing.is_none() {
            diagnostics.error(root.span, "a volume without a backing image needs a <capacity>");
        }
        Some(Self {
            volume: NewTarget::File(NewVolume {
                path: target.child_text("path").map(PathBuf::from).unwrap_or_default(),
                format: format?,
                size,
                cipher,
                kdf: Kdf::Auto,
                // As in libvirt, less than all of it is no promise.
                preallocation: match size {
                    Some(size) if allocation >= size => Preallocation::Falloc,
                    _ => Preallocation::Off,
                },
                backing,
                qcow2,
                mode,
                owner,
                replace: false,
            }),
            secret: secret?,
        })
    }

    /// The same document with the secret that was made for it.
    pub fn with_secret(mut root: Element, uuid: Uuid) -> Element {
        let inner =
            |e: &mut Element, name: &str| -> Option<usize> { e.children.iter().position(|c| c.name == name) };
        if let Some(target) = inner(&mut root, "target")
            && let Some(encryption) = inner(&mut root.children[target], "encryption")
        {
            let encryption = &mut root.children[target].children[encryption];
            let at = encryption.children.iter().position(|c| c.name == "secret").unwrap_or_else(|| {
                encryption.children.insert(0, Element::new("secret").with("type", "passphrase"));
                0
            });
            encryption.children[at].set("uuid", uuid.to_string());
        }
        root
    }
}

/// An image of a cluster, as libvirt's storage driver for RBD describes it, and what is added for its encryption: what a
/// disk's XML says of it (`engine`).
fn image(
    target: &Element,
    size: Option<u64>,
    diagnostics: &mut Diagnostics,
) -> Option<(NewRbd, Option<SecretRef>)> {
    let name = match target.only_child("path", diagnostics) {
        None => {
            diagnostics.error(
                target.span,
                "<target> has no <path>, which for a volume of type 'network' is POOL/IMAGE",
            );
            None
        }
        Some(path) => match RbdName::parse(&format!("{}{}", RbdName::PREFIX, path.text())) {
            Ok(name) => Some(name),
            Err(why) => {
                diagnostics.error(path.text_place(), why);
                None
            }
        },
    };
    if let Some(format) = target.only_child("format", diagnostics)
        && format.require("type", diagnostics).is_some_and(|kind| kind != "raw")
    {
        diagnostics.error(format.span, "the format of an image in a cluster is 'raw'");
    }
    let encryption = encryption_in(target, diagnostics)?;
    let luks2 = encryption.get("format") == Some("luks2");
    let format = match (encryption.get("engine"), luks2) {
        (Some("librbd"), true) => Some(RbdFormat::Luks2),
        (Some("librbd"), false) => Some(RbdFormat::Luks),
        (None | Some("qemu"), false) => Some(RbdFormat::Raw),
        (None | Some("qemu"), true) => {
            diagnostics
                .error(encryption.span, "QEMU's own engine does not open luks2")
                .hint("say engine='librbd', as in the disk's XML");
            None
        }
        (Some(other), _) => {
            let place = encryption.attribute("engine").map_or(encryption.span, |a| a.span);
            diagnostics.error(place, format!("an encryption's engine is 'qemu' or 'librbd', not '{other}'"));
            None
        }
    };
    let (cipher, secret) = encryption_of(encryption, &["luks", "luks2"], diagnostics);
    let new = NewRbd { name: name?, format: format?, size: size?, cipher, kdf: Kdf::Auto };
    if let Err(why) = new.check() {
        diagnostics.error(encryption.span, why.to_string());
    }
    Some((new, secret?))
}

fn encryption_in<'e>(target: &'e Element, diagnostics: &mut Diagnostics) -> Option<&'e Element> {
    let found = target.only_child("encryption", diagnostics);
    if found.is_none() {
        diagnostics
            .error(target.span, "this describes a plain volume; vmward makes encrypted ones")
            .hint("add <encryption format='luks'><secret type='passphrase' usage='...'/></encryption>");
    }
    found
}

/// A size whose default unit is the byte.
fn bytes(parent: &Element, name: &str, diagnostics: &mut Diagnostics) -> Option<u64> {
    let e = parent.only_child(name, diagnostics)?;
    size::of_element(e, 1, diagnostics)
}

fn backing(e: &Element, diagnostics: &mut Diagnostics) -> Option<Backing> {
    if let Some(permissions) = e.child("permissions") {
        // Those of the file that is there.
        permissions.mark_read();
    }
    let path = e.child_text("path");
    if path.is_none() {
        diagnostics.error(e.span, "<backingStore> has no <path>");
    }
    let format = match e.only_child("format", diagnostics) {
        Some(format) => format.require_keyword("type", diagnostics),
        None => {
            diagnostics
                .error(e.span, "<backingStore> has no <format>")
                .hint("say <format type='raw'/> or <format type='qcow2'/>: guessing it from the content is not safe");
            None
        }
    };
    Some(Backing { path: path?.into(), format: format? })
}

fn permissions(target: &Element, diagnostics: &mut Diagnostics) -> (u32, Owner) {
    let Some(e) = target.only_child("permissions", diagnostics) else {
        return (DEFAULT_MODE, Owner::default());
    };
    if let Some(label) = e.child("label") {
        // libvirt writes the SELinux label of a volume that exists, and does not set it on a new one either.
        label.mark_read();
    }
    let mode = e.only_child("mode", diagnostics).and_then(|m| {
        let mode = u32::from_str_radix(m.text(), 8).ok().filter(|m| *m <= 0o777);
        if mode.is_none() {
            diagnostics.error(m.text_place(), format!("'{}' is not a file mode in octal", m.text()));
        }
        mode
    });
    let mut id = |name: &str| -> Option<u32> {
        let e = e.only_child(name, diagnostics)?;
        // -1 is "whoever makes it".
        match e.text() {
            "-1" | "4294967295" => None,
            text => match text.parse() {
                Ok(id) => Some(id),
                Err(_) => {
                    diagnostics.error(e.text_place(), format!("'{text}' is not the number of a {name}"));
                    None
                }
            },
        }
    };
    let owner = Owner { uid: id("owner"), gid: id("group") };
    (mode.unwrap_or(DEFAULT_MODE), owner)
}

fn qcow2_options(target: &Element, diagnostics: &mut Diagnostics) -> Qcow2Options {
    if let Some(compat) = target.only_child("compat", diagnostics)
        && compat.text() != "1.1"
    {
        diagnostics
            .error(compat.text_place(), format!("vmward makes qcow2 of compat 1.1, not '{}'", compat.text()));
    }
    let mut options =
        Qcow2Options { cluster_size: bytes(target, "clusterSize", diagnostics), ..Qcow2Options::default() };
    if let Some(features) = target.only_child("features", diagnostics) {
        options.lazy_refcounts = features.only_child("lazy_refcounts", diagnostics).is_some();
        options.extended_l2 = features.only_child("extended_l2", diagnostics).is_some();
    }
    options
}

/// The cipher, and the secret: none was named, or one that could not be read.
fn encryption_of(
    e: &Element,
    formats: &[&str],
    diagnostics: &mut Diagnostics,
) -> (Cipher, Option<Option<SecretRef>>) {
    match e.require("format", diagnostics) {
        None => {}
        Some(format) if formats.contains(&format) => {}
        Some(other) => {
            let made = formats.join("' or '");
            let message = format!("vmward makes volumes with the encryption '{made}', not '{other}'");
            let said = diagnostics.error(e.attribute("format").map_or(e.span, |a| a.span), message);
            if other == "qcow" || other == "default" {
                said.hint("that is the old AES of qcow2, which QEMU's system emulators refuse");
            }
        }
    }
    let mut cipher = Cipher::default();
    if let Some(c) = e.only_child("cipher", diagnostics) {
        let name: Option<CipherName> = c.require_keyword("name", diagnostics);
        let bits = c.number::<u16>("size", diagnostics);
        match bits {
            Some(bits) if !Cipher::KEY_BITS.contains(&bits) => {
                diagnostics
                    .error(c.span, format!("no cipher has a key of {bits} bits; it is 128, 192 or 256"));
            }
            None if c.get("size").is_none() => {
                diagnostics.error(c.span, "<cipher> lacks the attribute 'size'");
            }
            _ => {}
        }
        cipher.algorithm = name.zip(bits);
        cipher.mode = c.keyword::<CipherMode>("mode", diagnostics);
        cipher.hash = c.keyword::<HashName>("hash", diagnostics);
    }
    if let Some(iv) = e.only_child("ivgen", diagnostics) {
        cipher.iv = iv.require_keyword::<IvGenerator>("name", diagnostics);
        cipher.iv_hash = iv.keyword::<HashName>("hash", diagnostics);
        if let Err(why) = cipher.check() {
            diagnostics.error(iv.span, why);
        }
    }
    let secret = match e.only_child("secret", diagnostics) {
        None => Some(None),
        Some(s) => {
            let kind = s.require("type", diagnostics);
            if kind.is_some_and(|k| k != "passphrase") {
                diagnostics.error(s.span, "an encryption's secret is of type 'passphrase'");
            }
            if s.attribute("uuid").is_none() && s.attribute("usage").is_none() {
                Some(None)
            } else {
                SecretLookup::from_xml(s, diagnostics).map(|lookup| {
                    Some(SecretRef { lookup, kind: UsageKind::Volume, text: true, span: s.span })
                })
            }
        }
    };
    (cipher, secret)
}

#[cfg(test)]
mod tests {
    use crate::xml;

    use super::*;

    fn read(source: &str) -> Result<VolumeXml, String> {
        let mut diagnostics = Diagnostics::new();
        let found = xml::parse(source, &mut diagnostics)
            .and_then(|root| VolumeXml::from_xml(&root, &mut diagnostics));
        let said = diagnostics.render("v.xml", source);
        found.filter(|_| !diagnostics.has_errors()).ok_or(said)
    }

    const FULL: &str = "<volume type='file'>
  <name>web1.qcow2</name>
  <key>/images/web1.qcow2</key>
  <capacity unit='GiB'>8</capacity>
  <allocation unit='GiB'>8</allocation>
  <target>
    <path>/images/web1.qcow2</path>
    <format type='qcow2'/>
    <permissions>
      <mode>0640</mode>
      <owner>64055</owner>
      <group>-1</group>
    </permissions>
    <compat>1.1</compat>
    <clusterSize unit='KiB'>128</clusterSize>
    <features>
      <lazy_refcounts/>
    </features>
    <encryption format='luks'>
      <secret type='passphrase' usage='/images/web1.qcow2'/>
      <cipher name='twofish' size='256' mode='cbc' hash='sha512'/>
      <ivgen name='essiv' hash='sha256'/>
    </encryption>
  </target>
  <backingStore>
    <path>base.qcow2</path>
    <format type='qcow2'/>
  </backingStore>
</volume>
";

    #[test]
    fn everything_is_read() {
        let VolumeXml { volume: NewTarget::File(volume), secret } = read(FULL).unwrap() else { panic!() };
        assert_eq!(volume.path, PathBuf::from("/images/web1.qcow2"));
        assert_eq!((volume.size, volume.format), (Some(8 << 30), VolumeFormat::Qcow2));
        assert_eq!(volume.preallocation, Preallocation::Falloc);
        assert_eq!((volume.mode, volume.owner.uid, volume.owner.gid), (0o640, Some(64055), None));
        assert_eq!(volume.qcow2.cluster_size, Some(128 << 10));
        assert!(volume.qcow2.lazy_refcounts && !volume.qcow2.extended_l2);
        assert_eq!(volume.cipher.algorithm, Some((CipherName::Twofish, 256)));
        assert_eq!(volume.cipher.iv, Some(IvGenerator::Essiv));
        assert_eq!(volume.backing.unwrap().path, PathBuf::from("base.qcow2"));
        assert_eq!(secret.unwrap().lookup, SecretLookup::Usage("/images/web1.qcow2".into()));
    }

    fn in_cluster(path: &str, encryption: &str) -> String {
        format!(
            "<volume type='network'>
  <name>web1</name>
  <key>guests/web1</key>
  <source>
  </source>
  <capacity unit='MiB'>20</capacity>
  <allocation unit='bytes'>0</allocation>
  <target>
    {path}
    <format type='raw'/>
    {encryption}
  </target>
</volume>"
        )
    }

    #[test]
    fn what_is_in_a_cluster_is_read() {
        let path = "<path>guests/web1</path>";
        for (encryption, format) in [
            ("<encryption format='luks2' engine='librbd'/>", RbdFormat::Luks2),
            ("<encryption format='luks' engine='librbd'/>", RbdFormat::Luks),
            ("<encryption format='luks' engine='qemu'/>", RbdFormat::Raw),
            ("<encryption format='luks'/>", RbdFormat::Raw),
        ] {
            let VolumeXml { volume: NewTarget::Image(new), secret } =
                read(&in_cluster(path, encryption)).unwrap()
            else {
                panic!()
            };
            assert_eq!((new.format, new.size, secret), (format, 20 << 20, None));
            assert_eq!(new.name.to_string(), "rbd:guests/web1");
        }
        let good = "<encryption format='luks'/>";
        for (path, encryption, said) in [
            ("", good, "POOL/IMAGE"),
            ("<path>web1</path>", good, "two names"),
            (path, "", "plain volume"),
            (path, "<encryption format='luks2'/>", "does not open luks2"),
            (path, "<encryption format='luks' engine='dm'/>", "not 'dm'"),
            (path, "<encryption format='luks-any' engine='librbd'/>", "'luks' or 'luks2'"),
            (
                path,
                "<encryption format='luks' engine='librbd'><cipher name='serpent' size='256'/></encryption>",
                "librbd has",
            ),
            ("<path>guests/web1</path><compat>1.1</compat>", good, "<compat>"),
            ("<path>guests/web1</path><permissions/>", good, "<permissions>"),
        ] {
            let e = read(&in_cluster(path, encryption)).unwrap_err();
            assert!(e.contains(said) && e.contains("v.xml:"), "{encryption}: {e}");
        }
        let document = in_cluster(path, good);
        let backed = document.replace("<target>", "<backingStore><path>a</path></backingStore><target>");
        assert!(read(&backed).unwrap_err().contains("rbd clone"));
        assert!(read(&document.replace("capacity", "key")).unwrap_err().contains("<capacity>"));
    }

    fn with_encryption(inner: &str) -> String {
        format!("<volume>\n<capacity>1048576</capacity>\n<target>\n{inner}\n</target>\n</volume>")
    }

    #[test]
    fn without_a_secret_one_is_made_and_filled_in() {
        for inner in ["<secret type='passphrase'/>", ""] {
            let source = with_encryption(&format!("<encryption format='luks'>{inner}</encryption>"));
            assert_eq!(read(&source).unwrap().secret, None);
            let root = xml::parse(&source, &mut Diagnostics::new()).unwrap();
            let filled = VolumeXml::with_secret(root, Uuid::nil()).to_string();
            let named = read(&filled).unwrap().secret.unwrap();
            assert_eq!(named.lookup, SecretLookup::Uuid(Uuid::nil()));
        }
    }

    #[test]
    fn what_would_not_be_done_is_an_error_at_its_line() {
        for (inner, said) in [
            ("", "v.xml:3:1"),
            ("<encryption format='qcow'/>", "old AES"),
            ("<encryption format='luks2'/>", "not 'luks2'"),
            ("<encryption/>", "lacks the attribute 'format'"),
            ("<encryption format='luks'><secret type='volume'/></encryption>", "of type 'passphrase'"),
            ("<encryption format='luks'><secret type='passphrase' uuid='x'/></encryption>", "not a UUID"),
            ("<encryption format='luks'><cipher name='aes' size='100'/></encryption>", "100 bits"),
            ("<encryption format='luks'><cipher name='des' size='128'/></encryption>", "aes, serpent"),
            ("<encryption format='luks'><ivgen name='essiv'/></encryption>", "needs a hash"),
            ("<encryption format='luks' engine='qemu'/>", "'engine'"),
            ("<encryption format='luks'/><nocow/>", "<nocow>"),
            ("<encryption format='luks'/><format type='vmdk'/>", "'vmdk'"),
            ("<encryption format='luks'/><permissions><mode>9</mode></permissions>", "octal"),
            ("<encryption format='luks'/><compat>0.10</compat>", "'0.10'"),
        ] {
            let e = read(&with_encryption(inner)).unwrap_err();
            assert!(e.contains(said) && e.contains("v.xml:"), "{inner}: {e}");
        }
        let block = read(
            "<volume type='block'><capacity>1</capacity><target><encryption format='luks'/></target></volume>",
        );
        assert!(block.unwrap_err().contains("'block'"));
        let no_size = read("<volume><target><encryption format='luks'/></target></volume>");
        assert!(no_size.unwrap_err().contains("<capacity>"));
        let guessed = read(
            "<volume><backingStore><path>/a</path></backingStore><target><encryption format='luks'/></target></volume>",
        );
        assert!(guessed.unwrap_err().contains("<format>"));
    }
}
