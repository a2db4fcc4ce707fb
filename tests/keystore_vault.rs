//! The Vault keystore against OpenBao, where one needs to look into the process or to keep a store open. The rest is
//! in integration/scenarios/keystore-vault.sh, which also fetches the server.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod memory;
mod port;

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use memory::{count, memory};
use port::free_port;
use tempfile::TempDir;
use uuid::Uuid;
use vmward::keystore::file::IdentitySources;
use vmward::keystore::{Keystores, StoreOptions};
use vmward::secret::{SecretDefinition, SecretLookup, SecretValue, Usage, UsageKind};

const ROOT_TOKEN: &str = "the-token-of-root";

/// A server that keeps everything in memory, with a role that may do what a keystore does.
struct Bao {
    dir: TempDir,
    tls: bool,
    address: String,
    program: PathBuf,
    child: Child,
}

impl Drop for Bao {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Bao {
    fn start() -> Option<Self> {
        Self::start_with(false)
    }

    fn start_with(tls: bool) -> Option<Self> {
        let target = Path::new(env!("CARGO_BIN_EXE_vmward")).ancestors().nth(2).unwrap();
        let program = target.join("pypi/openbao/bin/bao");
        if !program.exists() {
            println!("skipped: integration/scenarios.sh keystore-vault fetches the server, and did not yet");
            return None;
        }
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let dir = TempDir::new().unwrap();
        let child = Command::new(&program)
            .args(["server", if tls { "-dev-tls" } else { "-dev" }, "-dev-no-store-token"])
            .args(tls.then(|| format!("-dev-tls-cert-dir={}", dir.path().display())))
            .arg(format!("-dev-listen-address={address}"))
            .arg(format!("-dev-root-token-id={ROOT_TOKEN}"))
            .env("HOME", dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let bao = Self { dir, tls, address, program, child };
        let end = Instant::now() + Duration::from_secs(120);
        while TcpStream::connect(&bao.address).is_err() || !bao.status(&["token", "lookup"]) {
            assert!(Instant::now() < end, "the server does not come up");
            sleep(Duration::from_millis(50));
        }
        Some(bao)
    }

    fn scheme(&self) -> &str {
        if self.tls { "https" } else { "http" }
    }

    fn authority(&self) -> String {
        let tls = self.dir.path().read_dir().unwrap().map(|e| e.unwrap().path());
        let ca = tls.into_iter().find(|p| p.to_str().unwrap().ends_with("-ca.pem"));
        ca.map_or(String::new(), |path| path.to_str().unwrap().to_owned())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .env("BAO_ADDR", format!("{}://{}", self.scheme(), self.address))
            .env("BAO_CACERT", self.authority())
            .env("BAO_TOKEN", ROOT_TOKEN)
            .env("HOME", self.dir.path());
        command
    }

    fn status(&self, args: &[&str]) -> bool {
        self.command(args).output().unwrap().status.success()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn private(&self, name: &str, content: &str) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn stores(&self, query: &str) -> Keystores {
        let identity = IdentitySources { credentials: None, key_file: "/nonexistent".into() };
        let ca = if self.tls { format!("&ca={}", self.authority()) } else { String::new() };
        let uri = format!("vault+{}://{}/secret/vmward?{query}{ca}", self.scheme(), self.address);
        Keystores::open(&[uri], &StoreOptions::new(identity)).unwrap()
    }

    fn as_root(&self) -> Keystores {
        self.stores(&format!("token-file={}", self.private("token", ROOT_TOKEN)))
    }
}

fn secret() -> SecretDefinition {
    let uuid = Uuid::new_v4();
    let usage = Some(Usage { kind: UsageKind::Volume, id: format!("/images/{uuid}") });
    let (private, description, value_uri, recipients) = (false, None, None, Vec::new());
    SecretDefinition { uuid, ephemeral: false, private, description, usage, value_uri, recipients }
}

#[test]
fn a_login_that_ends_is_renewed_and_one_that_lasts_is_used_again() {
    let Some(bao) = Bao::start() else { return };
    bao.ok(&["auth", "enable", "approle"]);
    let policy =
        bao.private("policy", "path \"secret/*\" { capabilities = [\"create\", \"read\", \"update\"] }");
    bao.ok(&["policy", "write", "vmward", &policy]);
    bao.ok(&[
        "write",
        "auth/approle/role/host",
        "token_policies=vmward",
        "token_ttl=6s",
        "secret_id_num_uses=2",
    ]);
    let role = bao.private("role", &bao.ok(&["read", "-field=role_id", "auth/approle/role/host/role-id"]));
    let id =
        bao.private("id", &bao.ok(&["write", "-f", "-field=secret_id", "auth/approle/role/host/secret-id"]));
    let stores = bao.stores(&format!("role-id-file={role}&secret-id-file={id}"));
    let secret = secret();
    let lookup = SecretLookup::Uuid(secret.uuid);
    // Several requests, one login.
    let (found, value) = stores.generate(&secret).unwrap();
    assert_eq!(found.value().unwrap(), value);
    sleep(Duration::from_secs(7));
    // The second and last login that this secret id is good for.
    assert_eq!(stores.find(&lookup, None).unwrap().value().unwrap(), value);
    sleep(Duration::from_secs(7));
    let e = stores.find(&lookup, None).err().unwrap();
    assert!(e.to_string().contains("does not accept the role id and secret id"), "{e}");
}

#[test]
fn what_went_over_a_connection_is_not_left_in_memory() {
    let Some(bao) = Bao::start_with(true) else { return };
    bao.ok(&["secrets", "enable", "transit"]);
    bao.ok(&["write", "-f", "transit/keys/vmward"]);
    let token = bao.private("token", ROOT_TOKEN);
    for query in [format!("token-file={token}"), format!("token-file={token}&transit=transit/vmward")] {
        let stores = bao.stores(&query);
        let secret = secret();
        stores.generate(&secret).unwrap();
        let found = stores.find(&SecretLookup::Uuid(secret.uuid), None).unwrap();
        drop(found.value().unwrap());
        let after = memory();
        let value = found.value().unwrap();
        let during = memory();
        // The stores are still open, as those of a supervisor are.
        assert_eq!(count(&during, value.expose()), 1, "while it is needed");
        assert_eq!(count(&after, &value.expose()[..16]), 0, "after it was dropped");
        drop(stores);
    }
}

#[test]
fn what_ends_and_what_may_do_too_much_is_told() {
    let Some(bao) = Bao::start_with(true) else { return };
    let said = |stores: &Keystores| {
        let health = stores.stores[0].health().unwrap();
        health
            .iter()
            .map(|h| format!("{} {}: {}", h.warning, h.about, h.message))
            .collect::<Vec<_>>()
            .join("\n")
    };
    let root = said(&bao.as_root());
    assert!(root.contains("false token: the token in its file does not end"), "{root}");
    assert!(root.contains("true token: the token in its file may do everything"), "{root}");
    assert!(root.contains("certificate: the server's certificate ends in"), "{root}");
    let token = bao.ok(&["token", "create", "-policy=default", "-ttl=5430s", "-field=token"]);
    let short = said(&bao.stores(&format!("token-file={}", bao.private("short", &token))));
    assert!(short.contains("true token: the token in its file ends in 90 min"), "{short}");
    assert!(!short.contains("everything"), "{short}");
}

#[test]
fn a_lookup_takes_no_longer_among_many() {
    let Some(bao) = Bao::start() else { return };
    let stores = bao.as_root();
    let secret = secret();
    stores.define(&secret).unwrap();
    let found = stores.find(&SecretLookup::Usage(secret.usage.clone().unwrap().id), None).unwrap();
    found.set_value(&SecretValue::copy_of(b"x").unwrap()).unwrap();
    let time = || {
        let start = Instant::now();
        for _ in 0..20 {
            let usage = secret.usage.clone().unwrap();
            let found = stores.find(&SecretLookup::Usage(usage.id), Some(usage.kind)).unwrap();
            assert_eq!(found.value().unwrap().expose(), b"x");
        }
        start.elapsed() / 20
    };
    // The least of three: others use the machine as well.
    let time = || (0..3).map(|_| time()).min().unwrap();
    let few = time();
    for _ in 0..200 {
        stores.stores[0].define(&self::secret()).unwrap();
    }
    let many = time();
    println!("{few:?} with 1 secret, {many:?} with 201");
    assert!(many < few * 5 + Duration::from_millis(50), "{few:?}, {many:?}");
    let listing = stores.stores[0].list().unwrap();
    assert_eq!((listing.definitions.len(), listing.broken.len()), (201, 0));
}
