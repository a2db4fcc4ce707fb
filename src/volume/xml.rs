//! libvirt's storage volume XML, as far as it describes an encrypted image in a file.

use std::path::PathBuf;

use uuid::Uuid;

use crate::domain::size;
use crate::secret::{SecretLookup, SecretRef, UsageKind};
use crate::xml::{Diagnostics, Element};

use super::size::round_up;
use super::{
    Backing, Cipher, CipherMode, CipherName, HashName, IvGenerator, Kdf, NewVolume, Owner, Preallocation,
    Qcow2Options, VolumeFormat,
};

/// Only its owner reads a volume, unless the XML says otherwise.
const DEFAULT_MODE: u32 = 0o600;

/// A volume and its secret, as the XML describes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeXml {
    /// The volume; its path is empty if the XML names none.
    pub volume: NewVolume,
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
        if let Some(kind) = root.attribute("type").filter(|a| a.value != "file") {
            diagnostics
                .error(kind.span, format!("vmward makes volumes of type 'file', not '{}'", kind.value));
        }
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
        let Some(encryption) = target.only_child("encryption", diagnostics) else {
            diagnostics
                .error(target.span, "this describes a plain volume; vmward makes encrypted ones")
                .hint("add <encryption format='luks'><secret type='passphrase' usage='...'/></encryption>");
            return None;
        };
        let (cipher, secret) = encryption_of(encryption, diagnostics);
        if capacity.is_none() && backing.is_none() {
            diagnostics.error(root.span, "a volume without a backing image needs a <capacity>");
        }
        Some(Self {
            volume: NewVolume {
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
            },
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
fn encryption_of(e: &Element, diagnostics: &mut Diagnostics) -> (Cipher, Option<Option<SecretRef>>) {
    match e.require("format", diagnostics) {
        None | Some("luks") => {}
        Some(other) => {
            let message = format!("vmward makes volumes with the encryption 'luks', not '{other}'");
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
        let VolumeXml { volume, secret } = read(FULL).unwrap();
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
