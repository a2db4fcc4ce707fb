//! What QEMU says when it cannot open what it is told to, and what that means. It has codes for next to none of it: these
//! are its words, and those of the libraries and helpers that it passes on, the same at a start and while a guest runs.

use std::fmt;

use crate::secret::SecretLookup;

use super::{SecretObject, SecretSource, VNC_SECRET};

/// What a refusal comes down to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The value of a secret is not the right one.
    WrongSecret(Credential),
    /// It may not be opened.
    Forbidden,
    /// Somebody else has it open.
    InUse,
    /// It is not what the XML says.
    Data,
    /// It is not there.
    Missing,
    /// Something that is needed does not work here.
    Unavailable,
    /// The same again may help.
    TryAgain,
}

/// What a secret is to whom it opens something for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    /// The passphrase of an image.
    Passphrase,
    /// What logs in to a server.
    Login,
    /// The passphrase of a TLS key.
    TlsKey,
}

/// A refusal that is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meaning {
    /// What it comes down to.
    pub cause: Cause,
    /// What to do about it.
    pub hint: &'static str,
}

/// What to do about an image that the value of its secret does not open.
pub const PASSPHRASE: &str = "the value of the disk's secret is not the passphrase of its image: set the right one with `vmward secret set-value`";
/// What to do about a server that does not send what it has.
pub const SERVER: &str = "try again when the server answers: the guest could not read its disk either";
/// What to do about an image whose key is not to be had here.
pub const UNDERIVED: &str =
    "a guest that is started with `vmward run --unlock=qemu` has QEMU derive its keys";
const LOGIN: &str = "the server does not accept the user and the secret of <auth>, or the cookies, or asks for some: set the right \
                     value with `vmward secret set-value`";
const TLS_KEY: &str = "the private key for TLS is encrypted, and the value of the secret that <tls> in the XML or [tls] in vmward.toml names for \
                       it is not its passphrase, or none is named";

const NOT_ON_SERVER: &str = "the server has no such file: check name= in <source>";

/// The words and what they mean. The first that fit count: what is said by many comes last.
const WORDS: [(&str, Cause, &str); 37] = [
    // crypto/block-luks.c
    ("cannot unlock any keyslot", Cause::WrongSecret(Credential::Passphrase), PASSPHRASE),
    // block/rbd.c, with librbd's codes
    ("encryption load fail: Operation not permitted", Cause::WrongSecret(Credential::Passphrase), PASSPHRASE),
    (
        "encryption load fail: Invalid argument",
        Cause::Data,
        "the RBD image has no LUKS header of the version that <encryption format='...'> says",
    ),
    (
        "unknown image encryption format",
        Cause::Unavailable,
        "this host's librbd is too old for format='luks-any', which Ceph 18 has: write luks or luks2",
    ),
    (
        "RBD library does not support layered encryption",
        Cause::Unavailable,
        "this host's librbd is too old for an image with several secrets, which Ceph 18 opens",
    ),
    ("error connecting: Permission denied", Cause::WrongSecret(Credential::Login), LOGIN),
    ("error connecting: Operation not permitted", Cause::WrongSecret(Credential::Login), LOGIN),
    (
        "error connecting: Invalid argument",
        Cause::Data,
        "Ceph's library takes the value of the disk's cephx secret for no key, or cannot use ceph.conf: the value is what the key's \
         base64 stands for (`ceph auth print-key client.NAME | vmward secret set-value --base64`)",
    ),
    // libiscsi's lib/socket.c and iscsi.h: login status 0x0201 and 0x0202 (RFC 7143, 11.13.5)
    ("Authentication failure(513)", Cause::WrongSecret(Credential::Login), LOGIN),
    (
        "Authorization failure(514)",
        Cause::Forbidden,
        "the iSCSI target does not let this initiator in, or not without <auth>",
    ),
    // libcurl's CURLE_HTTP_RETURNED_ERROR
    ("URL returned error: 401", Cause::WrongSecret(Credential::Login), LOGIN),
    ("URL returned error: 403", Cause::WrongSecret(Credential::Login), LOGIN),
    ("URL returned error: 404", Cause::Missing, NOT_ON_SERVER),
    // crypto/tlscredsx509.c with GNUTLS_E_DECRYPTION_FAILED
    ("Decryption has failed", Cause::WrongSecret(Credential::TlsKey), TLS_KEY),
    // The same since QEMU 11, which does not say why.
    ("Unable to import private key", Cause::WrongSecret(Credential::TlsKey), TLS_KEY),
    (
        "TLS negotiation required",
        Cause::Data,
        "the server speaks with nobody but by TLS: write tls='yes' in <source>",
    ),
    (
        "TLS handshake failed",
        Cause::Unavailable,
        "the two ends do not trust each other: see the certificates or pre-shared keys of both",
    ),
    (
        "Unable to access credentials",
        Cause::Missing,
        "the directory for TLS (/etc/pki/qemu, or what vmward.toml says under [tls]) lacks the file",
    ),
    // swtpm
    (
        "Verification of HMAC failed",
        Cause::Forbidden,
        "the value of the TPM's secret is not the key of its state: set the right one with `vmward secret set-value`",
    ),
    (
        "Could not find plain data",
        Cause::Data,
        "the TPM's state is encrypted: name its key in the guest's XML, <encryption secret='UUID'/>",
    ),
    (
        "Wrong decryption key",
        Cause::Data,
        "the TPM's state is not encrypted, and the guest's XML says that it is (<encryption>): remove one or the other",
    ),
    (
        "Could not access KVM kernel module",
        Cause::Unavailable,
        "write <domain type='qemu'> for a host without KVM, or let QEMU's user open /dev/kvm (group kvm)",
    ),
    // block/file-posix.c
    (
        "\" lock",
        Cause::InUse,
        "another guest or qemu-img has the image open: end that first (`vmward list` shows the guests); if both are meant \
         to have it, both need <shareable/>",
    ),
    // nbdkit's plugins/ssh/ssh.c
    ("all possible authentication methods failed", Cause::WrongSecret(Credential::Login), LOGIN),
    (
        "the host key is unknown",
        Cause::Forbidden,
        "put the server's host key (`ssh-keyscan`) into ~/.ssh/known_hosts of QEMU's user, or into the file of <knownHosts>, once you \
         know that it is the server's",
    ),
    (
        "host key for server changed",
        Cause::Forbidden,
        "the server is another one than ~/.ssh/known_hosts of QEMU's user or the file of <knownHosts> says, or has a new key",
    ),
    // block/ssh.c
    (
        "no host key was found in known_hosts",
        Cause::Forbidden,
        "put the server's host key (`ssh-keyscan`) into ~/.ssh/known_hosts of QEMU's user, once you know that it is the server's",
    ),
    (
        "does not match the one in known_hosts",
        Cause::Forbidden,
        "the server is another one than QEMU's user knows, or has a new key: ~/.ssh/known_hosts",
    ),
    (
        "failed to authenticate using publickey",
        Cause::Forbidden,
        "the server accepts none of the keys in ~/.ssh of QEMU's user (each needs its .pub beside it), nor of the agent that \
         SSH_AUTH_SOCK of <qemu:env> names",
    ),
    (
        "SFTP server: Permission denied",
        Cause::Forbidden,
        "the user of <identity> may not open the file on the server",
    ),
    ("SFTP server: No such file", Cause::Missing, NOT_ON_SERVER),
    (
        "Permission denied",
        Cause::Forbidden,
        "QEMU's user must be able to open what vmward does not open for it, and to pass all directories above: a backing image that the \
         XML does not name (<backingStore>), sockets, certificates",
    ),
    ("No such file or directory", Cause::Missing, "check the path in the guest's XML"),
    ("annot allocate memory", Cause::TryAgain, "the host has not enough free memory for this guest"),
    (
        "Address already in use",
        Cause::TryAgain,
        "another program listens there: choose another port or socket in the guest's XML",
    ),
    ("Connection refused", Cause::Unavailable, "the server of the disk does not answer"),
    ("Image is not in", Cause::Data, "the <driver type='...'> of the disk must be the format of its image"),
];

/// What something that was said means, if it is known.
pub fn meaning(said: &str) -> Option<Meaning> {
    meaning_of_any(&[said])
}

/// What the first known words among these lines mean.
pub fn meaning_of_any(lines: &[impl AsRef<str>]) -> Option<Meaning> {
    let said = |words: &str| lines.iter().any(|line| line.as_ref().contains(words));
    let (_, cause, hint) = WORDS.into_iter().find(|(words, ..)| said(words))?;
    Some(Meaning { cause, hint })
}

/// A secret whose value was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongSecret {
    credential: Credential,
    /// How the XML names it; `None`: the value itself is in the XML.
    secret: Option<String>,
    /// Whose it is, as in "the disk 'vda'".
    of: String,
}

impl WrongSecret {
    /// The secret that was not accepted, where these words of QEMU's say that one was not. `said` holds what QEMU was
    /// told as well, with the ids of its secrets; `secrets` are all that it could be, with whose they are.
    pub fn find<'a>(
        said: &str,
        secrets: impl IntoIterator<Item = (&'a SecretObject, String)>,
    ) -> Option<Self> {
        let Cause::WrongSecret(credential) = meaning(said)?.cause else { return None };
        let suspects = secrets.into_iter().filter(|(secret, _)| credential.has(&secret.id));
        let (told, others): (Vec<_>, Vec<_>) =
            suspects.partition(|(secret, _)| said.contains(&format!("\"{}\"", secret.id)));
        // Of objects QEMU does not repeat what it was told: only a secret that can be no other is named. It makes them in order.
        let suspects = match told.is_empty() {
            false => told,
            true if others.iter().all(|(o, _)| o.named().is_some() && o.named() == others[0].0.named()) => {
                others
            }
            true => return None,
        };
        let (first, of) = suspects.first()?;
        // The layers of an image that librbd decrypts: it does not say which.
        let mut names: Vec<_> = suspects.iter().filter_map(|(secret, _)| secret.named()).collect();
        names.dedup();
        let names: Vec<_> = names.into_iter().map(ToString::to_string).collect();
        Some(Self { credential, secret: first.named().map(|_| names.join(" or ")), of: of.clone() })
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self.secret {
            Some(_) => "set the right value with `vmward secret set-value`",
            None => "write the right one in the XML",
        }
    }
}

impl SecretObject {
    /// How the XML or `vmward.toml` names it, if its value is in a keystore.
    fn named(&self) -> Option<&SecretLookup> {
        match &self.source {
            SecretSource::Keystore(reference) => Some(&reference.lookup),
            SecretSource::Xml(_) | SecretSource::Once(_) => None,
        }
    }
}

impl Credential {
    /// Whether a secret object with that id is one of these.
    fn has(self, id: &str) -> bool {
        match self {
            Self::Passphrase => id.contains("-encryption-secret"),
            Self::Login => id.contains("-auth-secret") || id.contains("-httpcookie-secret"),
            Self::TlsKey => id.contains("_tls0-secret") || id == VNC_SECRET || id.starts_with("char"),
        }
    }
}

impl fmt::Display for WrongSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = match &self.secret {
            Some(secret) => format!("the value of the secret with {secret}"),
            None => "what the XML has as cookies".to_owned(),
        };
        let of = &self.of;
        match self.credential {
            Credential::Passphrase => write!(f, "{value} is not the passphrase of {of}"),
            Credential::Login => write!(f, "{value} is not what the server of {of} accepts"),
            Credential::TlsKey => write!(f, "{value} is not the passphrase of the TLS key for {of}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{SecretRef, UsageKind};
    use crate::xml::Span;

    /// What QEMU 10.0 said, with the librbd of Ceph 16, libiscsi 1.19, libcurl 7.88 and GnuTLS 3.7.
    #[test]
    fn qemus_words_have_a_meaning() {
        use Cause as C;
        for (line, cause) in [
            (
                "-blockdev {...}: Invalid password, cannot unlock any keyslot",
                C::WrongSecret(Credential::Passphrase),
            ),
            ("encryption load fail: Operation not permitted", C::WrongSecret(Credential::Passphrase)),
            ("layered encryption load fail: Operation not permitted", C::WrongSecret(Credential::Passphrase)),
            ("encryption load fail: Invalid argument", C::Data),
            ("unknown image encryption format: 2: Operation not supported", C::Unavailable),
            ("error connecting: Permission denied", C::WrongSecret(Credential::Login)),
            ("error connecting: Connection timed out", C::Unavailable),
            (
                "iSCSI: Failed to connect to LUN : Failed to log in to target. Status: Authentication failure(513)",
                C::WrongSecret(Credential::Login),
            ),
            (
                "CURL: Error opening file: The requested URL returned error: 401",
                C::WrongSecret(Credential::Login),
            ),
            ("CURL: Error opening file: The requested URL returned error: 404", C::Missing),
            (
                "Cannot load certificate 'c.pem' & key 'k.pem': Decryption has failed.",
                C::WrongSecret(Credential::TlsKey),
            ),
            ("Unable to import private key /pki/server-key.pem", C::WrongSecret(Credential::TlsKey)),
            ("-device {...}: Failed to get \"write\" lock", C::InUse),
            ("Could not access KVM kernel module: Permission denied", C::Unavailable),
            ("-blockdev {...}: Could not open '/x': Permission denied", C::Forbidden),
            ("cannot set up guest memory 'pc.ram': Cannot allocate memory", C::TryAgain),
            ("swtpm: Verification of HMAC failed. Data integrity is compromised", C::Forbidden),
        ] {
            let found = meaning_of_any(&["a warning", line]).map(|m| m.cause);
            // What is not in the table is nobody's secret.
            assert_eq!(found.unwrap_or(C::Unavailable), cause, "{line}");
        }
        assert_eq!(meaning("qemu: something new"), None);
    }

    #[test]
    fn the_secret_is_the_one_that_the_words_are_about() {
        let secret = |id: &str, usage: &str, kind| {
            let lookup = SecretLookup::Usage(usage.to_owned());
            let reference = SecretRef { lookup, kind, text: true, span: Span::default() };
            SecretObject { id: id.to_owned(), source: SecretSource::Keystore(reference) }
        };
        let secrets = [
            secret("libvirt-1-storage-auth-secret0", "login", UsageKind::Ceph),
            secret("libvirt-1-storage-encryption-secret0", "image", UsageKind::Volume),
            secret("libvirt-2-storage-encryption-secret0", "other", UsageKind::Volume),
        ];
        let find = |said: &str| {
            let node = r#"{"key-secret":"libvirt-1-storage-auth-secret0","encrypt":{"key-secret":"libvirt-1-storage-encryption-secret0"}}"#;
            let secrets = secrets.iter().map(|s| (s, "the disk 'vda'".to_owned()));
            WrongSecret::find(&format!("qemu: -blockdev {node}: {said}"), secrets).map(|w| w.to_string())
        };
        assert_eq!(
            find("encryption load fail: Operation not permitted").as_deref(),
            Some("the value of the secret with usage 'image' is not the passphrase of the disk 'vda'")
        );
        assert_eq!(
            find("error connecting: Permission denied").as_deref(),
            Some(
                "the value of the secret with usage 'login' is not what the server of the disk 'vda' accepts"
            )
        );
        assert_eq!(find("Connection refused"), None);
        let layers = r#"{"key-secret":"libvirt-1-storage-encryption-secret0","parent":{"key-secret":"libvirt-2-storage-encryption-secret0"}}"#;
        assert_eq!(
            find(&format!("{layers} encryption load fail: Operation not permitted")).as_deref(),
            Some(
                "the value of the secret with usage 'image' or usage 'other' is not the passphrase of the disk 'vda'"
            )
        );
        // Without what QEMU was told: one of two.
        let secrets = secrets.iter().map(|s| (s, String::new()));
        assert_eq!(WrongSecret::find("encryption load fail: Operation not permitted", secrets), None);
        assert_eq!(find("Decryption has failed"), None);
    }
}
