//! What an image's first bytes say, held against what the XML says. Pure: who starts a guest or attaches a disk
//! reads the bytes of local images and asks [`mismatch`] before anything is spawned.

use crate::domain::disk::{Disk, Engine, Format, Image};
use crate::xml::Span;

/// How many bytes [`sniff`] looks at.
pub const SNIFF_LEN: usize = 64;

/// What an image seems to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A LUKS header of that version.
    Luks(u16),
    /// A qcow2 header.
    Qcow2(Crypt),
    /// Neither: raw data, or another format.
    Other,
}

/// The encryption that a qcow2 header names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crypt {
    /// None.
    None,
    /// The old AES, which QEMU refuses to run.
    Aes,
    /// LUKS.
    Luks,
    /// One that is not known.
    Unknown(u32),
}

const LUKS_MAGIC: &[u8] = b"LUKS\xba\xbe";
const QCOW2_MAGIC: &[u8] = b"QFI\xfb";

/// Where `crypt_method` stands in a qcow2 header (docs/interop/qcow2.rst).
const QCOW2_CRYPT_METHOD: usize = 32;

/// What an image that starts with these bytes seems to be. Fewer bytes than [`SNIFF_LEN`] are a short image.
pub fn sniff(first: &[u8]) -> Kind {
    if first.starts_with(LUKS_MAGIC) {
        let version = first.get(6..8).and_then(|b| b.try_into().ok()).map_or(0, u16::from_be_bytes);
        return Kind::Luks(version);
    }
    if first.starts_with(QCOW2_MAGIC) {
        let method = first
            .get(QCOW2_CRYPT_METHOD..QCOW2_CRYPT_METHOD + 4)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u32::from_be_bytes);
        return Kind::Qcow2(match method {
            0 => Crypt::None,
            1 => Crypt::Aes,
            2 => Crypt::Luks,
            other => Crypt::Unknown(other),
        });
    }
    Kind::Other
}

/// An image that is not what the XML says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// What is wrong, in a sentence.
    pub message: String,
    /// What to do about it.
    pub hint: &'static str,
    /// Where the XML says otherwise.
    pub span: Span,
}

/// The images of a disk whose first bytes can be read on this host, with their paths: those to hold against
/// [`mismatch`]. Slices start elsewhere and are left out.
pub fn readable(disk: &Disk) -> impl Iterator<Item = (&Image, &str)> {
    disk.chain()
        .filter(|image| image.slice.is_none())
        .filter_map(|image| Some((image, image.source.local_path()?)))
}

/// Whether an image's header contradicts the XML about encryption.
pub fn mismatch(image: &Image, found: Kind) -> Option<Mismatch> {
    let encrypted = image.encryption.as_ref().is_some_and(|e| e.engine == Engine::Qemu);
    let span = image.encryption.as_ref().map_or(image.span, |e| e.span);
    let say = |message: &str, hint| Some(Mismatch { message: message.to_owned(), hint, span });
    match (image.format, encrypted, found) {
        (Format::Raw, true, Kind::Luks(1)) | (Format::Qcow2, true, Kind::Qcow2(Crypt::Luks)) => None,
        (Format::Raw, true, Kind::Luks(_)) => say(
            "the image is LUKS version 2, and QEMU opens version 1 only",
            "make it anew with vmward volume create",
        ),
        (Format::Qcow2, _, Kind::Qcow2(Crypt::Aes)) => say(
            "the image has the old AES encryption, which QEMU does not run",
            "convert it to LUKS with qemu-img convert",
        ),
        (Format::Qcow2, false, Kind::Qcow2(Crypt::Luks)) => say(
            "the image is encrypted, and the XML does not say so",
            "add <encryption format='luks'> with its <secret> to <source>",
        ),
        (Format::Raw, false, Kind::Luks(_)) => say(
            "the image is encrypted, and the XML does not say so: the guest would see and could overwrite the header",
            "add <encryption format='luks'> with its <secret> to <source>",
        ),
        (Format::Raw, false, Kind::Qcow2(_)) => {
            say("the image is qcow2, and the XML says raw", "write type='qcow2' in <driver>")
        }
        (Format::Qcow2, true, Kind::Qcow2(_)) => say(
            "the image is not encrypted, and the XML says it is",
            "copy it into a volume of vmward volume create, with qemu-img convert -n",
        ),
        (Format::Raw | Format::Qcow2, true, _) => say(
            "the image has no header of an encrypted image, and the XML says it is encrypted",
            "check the path, or copy the image into a volume of vmward volume create, with qemu-img convert -n",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qcow2(method: u32) -> Vec<u8> {
        let mut header = vec![0; SNIFF_LEN];
        header[..4].copy_from_slice(QCOW2_MAGIC);
        header[32..36].copy_from_slice(&method.to_be_bytes());
        header
    }

    #[test]
    fn headers_are_told_apart() {
        assert_eq!(sniff(b"LUKS\xba\xbe\x00\x01aes"), Kind::Luks(1));
        assert_eq!(sniff(b"LUKS\xba\xbe\x00\x02\x00\x00"), Kind::Luks(2));
        assert_eq!(sniff(&qcow2(0)), Kind::Qcow2(Crypt::None));
        assert_eq!(sniff(&qcow2(1)), Kind::Qcow2(Crypt::Aes));
        assert_eq!(sniff(&qcow2(2)), Kind::Qcow2(Crypt::Luks));
        assert_eq!(sniff(&qcow2(7)), Kind::Qcow2(Crypt::Unknown(7)));
        for short in [&b""[..], b"LUKS", b"QFI", b"\0\0\0\0"] {
            assert_eq!(sniff(short), Kind::Other);
        }
        assert_eq!(sniff(b"QFI\xfb"), Kind::Qcow2(Crypt::None));
    }
}
