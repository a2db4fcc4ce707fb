//! Asking a Vault server: one session is one operation of the store, with its deadline and its connections. When it is
//! over they are closed, and the buffers through which values went are wiped.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use ureq::Agent;
use ureq::http::{HeaderValue, Method, Request, StatusCode, header};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector, TcpConnector};
use zeroize::Zeroizing;

use crate::keystore::{Failure, KeystoreError};
use crate::secret::{MAX_VALUE_LEN, SecretValue};

use super::reply::{Body, SecretText, shown, to_json};
use super::tls::{self, TlsConnector};
use super::uri::{Auth, VaultUri, encoded};

/// The longest reply about one secret: a value of the largest size, each byte of it escaped, and some room.
const MAX_REPLY: usize = 6 * MAX_VALUE_LEN + (256 << 10);
/// The longest reply about all secrets of a store: some hundred thousand of them.
const MAX_LIST: usize = 256 << 20;

/// A server and what it is asked with.
pub(super) struct Server {
    pub(super) uri: VaultUri,
    timeout: Duration,
    tls: OnceLock<Arc<ClientConfig>>,
    /// The token of an AppRole login, for as long as the server takes it.
    login: Mutex<Option<Arc<SecretValue>>>,
    /// Set once it is known that the mount is what it should be.
    engine_checked: OnceLock<()>,
}

/// One operation.
pub(super) struct Session<'a> {
    server: &'a Server,
    agent: Agent,
    deadline: Instant,
    /// The certificate that the server has shown.
    pub(super) certificate: Arc<Mutex<Option<CertificateDer<'static>>>>,
}

/// What the server is asked.
pub(super) struct Question<'a> {
    method: Method,
    /// After `/v1/`, encoded.
    path: String,
    body: Option<&'a [u8]>,
    /// For messages.
    object: Option<&'a str>,
    /// A value that is sent, which must not come back in a message.
    value: Option<&'a SecretValue>,
    longest: usize,
}

/// What it answers.
pub(super) enum Answer {
    /// It did it, or has it.
    Done(Body),
    /// It has no such thing. What was deleted may still have a version.
    Absent(Body),
    /// Somebody else has written it in between.
    Conflict,
}

impl<'a> Question<'a> {
    pub(super) fn new(method: Method, path: &str) -> Self {
        Self { method, path: encoded(path), body: None, object: None, value: None, longest: MAX_REPLY }
    }

    pub(super) fn get(path: &str) -> Self {
        Self::new(Method::GET, path)
    }

    pub(super) fn about(self, object: &'a str) -> Self {
        Self { object: Some(object), ..self }
    }

    pub(super) fn with(self, body: &'a [u8]) -> Self {
        Self { body: Some(body), ..self }
    }

    pub(super) fn hiding(self, value: &'a SecretValue) -> Self {
        Self { value: Some(value), ..self }
    }

    /// What is in a folder, as the HTTP method LIST would ask, which not every proxy lets through.
    pub(super) fn list(path: &str) -> Self {
        let question = Self::get(path);
        Self { path: format!("{}/?list=true", question.path), longest: MAX_LIST, ..question }
    }
}

impl Server {
    pub(super) fn new(uri: VaultUri, timeout: Duration) -> Self {
        Self { uri, timeout, tls: OnceLock::new(), login: Mutex::new(None), engine_checked: OnceLock::new() }
    }

    /// Begins an operation.
    pub(super) fn session(&self) -> Result<Session<'_>, KeystoreError> {
        let deadline = Instant::now() + self.timeout;
        let certificate = Arc::default();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Another host is not the one that is trusted; no proxy of the environment sees tokens.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(concat!("vmward/", env!("CARGO_PKG_VERSION")))
            .build();
        let tcp = ().chain(TcpConnector::default());
        let agent = if self.uri.tls {
            let config_tls = match self.tls.get() {
                Some(config) => Arc::clone(config),
                None => {
                    let config = tls::client_config(&self.uri.options)?;
                    Arc::clone(self.tls.get_or_init(|| config))
                }
            };
            let connector = TlsConnector {
                config: config_tls,
                host: self.uri.host.clone(),
                deadline,
                seen: Arc::clone(&certificate),
            };
            Agent::with_parts(config, tcp.chain(connector), DefaultResolver::default())
        } else {
            Agent::with_parts(config, tcp, DefaultResolver::default())
        };
        Ok(Session { server: self, agent, deadline, certificate })
    }

    fn failed(&self, failure: Failure, object: Option<&str>) -> KeystoreError {
        failure.of(&self.uri.shown, object)
    }

    fn locked_login(&self) -> MutexGuard<'_, Option<Arc<SecretValue>>> {
        self.login.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session<'_> {
    /// A failure of the server.
    pub(super) fn failed(&self, failure: Failure, object: Option<&str>) -> KeystoreError {
        self.server.failed(failure, object)
    }

    /// An answer that makes no sense.
    pub(super) fn senseless(&self, object: Option<&str>, why: &str) -> KeystoreError {
        self.failed(Failure::BadAnswer(why.to_owned()), object)
    }

    /// Nothing is found in an engine of another version either: then it is seen to, once, what it is.
    pub(super) fn check_engine(&self) -> Result<(), KeystoreError> {
        if self.server.engine_checked.get().is_none() {
            self.check_engine_now()?;
            let _ = self.server.engine_checked.set(());
        }
        Ok(())
    }

    /// The same, again.
    pub(super) fn check_engine_now(&self) -> Result<(), KeystoreError> {
        #[derive(Deserialize)]
        struct Mount {
            #[serde(rename = "type", default)]
            kind: String,
            #[serde(default)]
            options: Option<Options>,
        }
        #[derive(Deserialize)]
        struct Options {
            #[serde(default)]
            version: Option<String>,
        }
        let mount = &self.server.uri.mount;
        let answer = match self.ask(&Question::get(&format!("sys/internal/ui/mounts/{mount}"))) {
            Ok(Answer::Done(body)) => body.data::<Mount>(),
            Ok(_) => {
                return Err(self.senseless(None, "it knows nothing of its engines: is it a Vault server?"));
            }
            // That is not for everybody to know. The engine itself answered.
            Err(KeystoreError::Failed { failure: Failure::Denied | Failure::Missing(_), .. }) => None,
            Err(e) => return Err(e),
        };
        let Some(engine) = answer else { return Ok(()) };
        let missing = match (engine.kind.as_str(), engine.options.and_then(|o| o.version).as_deref()) {
            ("kv", Some("2")) => return Ok(()),
            ("kv", _) => format!("version 2 of the key-value engine at {mount}: it is version 1"),
            (kind, _) => format!("key-value engine at {mount}: it is {}", shown(kind)),
        };
        Err(self.failed(Failure::Missing(missing), None))
    }

    /// Asks, as whom the URI says. A token that the server does not take any more is replaced by a new login, once.
    pub(super) fn ask(&self, question: &Question<'_>) -> Result<Answer, KeystoreError> {
        let token = self.token()?;
        let (status, body) = self.send(question, Some(&token))?;
        if status != StatusCode::FORBIDDEN {
            return self.answer(question, status, body, Some(&token));
        }
        // The server says the same to an invalid token and to one that may not do this.
        let (own, _) = self.send(&Question::get("auth/token/lookup-self"), Some(&token))?;
        match &self.server.uri.options.auth {
            _ if own != StatusCode::FORBIDDEN => {
                let denied = self.server.failed(Failure::Denied, question.object);
                Err(denied.because(body.words(&[&token])))
            }
            Some(Auth::AppRole { .. }) => {
                self.forget(&token);
                let token = self.token()?;
                let (status, body) = self.send(question, Some(&token))?;
                self.answer(question, status, body, Some(&token))
            }
            Some(Auth::Token(file)) => {
                let who = format!("the token in {}", file.path().display());
                Err(self.server.failed(Failure::NotAuthenticated(who), question.object))
            }
            None => Err(self.server.failed(Failure::Denied, question.object)),
        }
    }

    /// The token to ask with.
    fn token(&self) -> Result<Arc<SecretValue>, KeystoreError> {
        match &self.server.uri.options.auth {
            Some(Auth::Token(file)) => file.line().map(Arc::new),
            Some(Auth::AppRole { mount, role_id, secret_id }) => {
                // Others wait here, so that all of them log in once.
                let mut login = self.server.locked_login();
                if let Some(token) = &*login {
                    return Ok(Arc::clone(token));
                }
                let role_id = role_id.line()?;
                let secret_id = secret_id.as_ref().map(|file| file.line()).transpose()?;
                let token = Arc::new(self.log_in(mount, &role_id, secret_id.as_ref())?);
                *login = Some(Arc::clone(&token));
                Ok(token)
            }
            // The URI was refused before.
            None => {
                Err(self.server.failed(Failure::NotAuthenticated("a client without a token".into()), None))
            }
        }
    }

    /// Forgets a login, unless another thread has renewed it.
    fn forget(&self, token: &Arc<SecretValue>) {
        let mut login = self.server.locked_login();
        if login.as_ref().is_some_and(|known| Arc::ptr_eq(known, token)) {
            *login = None;
        }
    }

    fn log_in(
        &self,
        mount: &str,
        role_id: &SecretValue,
        secret_id: Option<&SecretValue>,
    ) -> Result<SecretValue, KeystoreError> {
        #[derive(Serialize)]
        struct Ids<'a> {
            role_id: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            secret_id: Option<&'a str>,
        }
        #[derive(Deserialize)]
        struct Login<'a> {
            #[serde(borrow)]
            auth: Token<'a>,
        }
        #[derive(Deserialize)]
        struct Token<'a> {
            #[serde(borrow)]
            client_token: &'a RawValue,
        }
        // A line of a credential's file is ASCII.
        fn text(id: &SecretValue) -> &str {
            std::str::from_utf8(id.expose()).unwrap_or_default()
        }
        let room = role_id.len() + secret_id.map_or(0, SecretValue::len) + 64;
        let json = to_json(&Ids { role_id: text(role_id), secret_id: secret_id.map(text) }, room);
        let object = format!("a login at auth/{mount}");
        let question = Question::new(Method::POST, &format!("auth/{mount}/login")).with(&json).about(&object);
        let (status, body) = self.send(&question, None)?;
        if matches!(status, StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN) && body.errors().is_some() {
            let mut secrets = vec![role_id];
            secrets.extend(secret_id);
            let words = body.words(&secrets);
            let why = Failure::NotAuthenticated("the role id and secret id".to_owned());
            return Err(self.server.failed(why, Some(&object)).because(words));
        }
        if status == StatusCode::NOT_FOUND {
            return Err(self
                .server
                .failed(Failure::Missing(format!("AppRole method at {mount}")), Some(&object)));
        }
        let Answer::Done(body) = self.answer(&question, status, body, None)? else {
            return Err(self.senseless(Some(&object), "it is no answer to a login"));
        };
        let token = body.json::<Login<'_>>().map(|login| login.auth.client_token);
        match token.map(|raw| serde_json::from_str::<SecretText>(raw.get())) {
            Some(Ok(SecretText(Ok(token)))) if !token.is_empty() => Ok(token),
            _ => Err(self.senseless(Some(&object), "there is no token in its answer to a login")),
        }
    }

    /// What a status means.
    fn answer(
        &self,
        question: &Question<'_>,
        status: StatusCode,
        body: Body,
        token: Option<&SecretValue>,
    ) -> Result<Answer, KeystoreError> {
        let secrets: Vec<_> = token.into_iter().chain(question.value).collect();
        let failed = |failure| self.server.failed(failure, question.object);
        // To a patch of what is not there the server says no more than that.
        let nothing =
            status == StatusCode::NOT_FOUND && question.method == Method::PATCH && body.0.is_empty();
        let errors = if nothing { Some(Vec::new()) } else { body.errors() };
        if status.is_success() {
            return match errors {
                None if !body.0.is_empty() => Err(failed(Failure::BadAnswer("it is not JSON".to_owned()))),
                _ => Ok(Answer::Done(body)),
            };
        }
        let Some(errors) = errors else { return Err(failed(not_vault(status, &body))) };
        let words = body.words(&secrets);
        let says = |text: &str| errors.iter().any(|e| e.to_ascii_lowercase().contains(text));
        let mount = question.path.split('/').next().unwrap_or_default();
        let failure = match status.as_u16() {
            404 if errors.is_empty() => return Ok(Answer::Absent(body)),
            404 => Failure::Missing(format!("engine at {mount} that knows this")),
            400 if says("check-and-set") => return Ok(Answer::Conflict),
            403 => Failure::Denied,
            429 => Failure::NotReady("it limits how often it is asked".to_owned()),
            472 | 473 => Failure::NotReady("it is a standby".to_owned()),
            503 if says("sealed") => Failure::Locked("sealed"),
            502..=504 => Failure::NotReady(format!("it says {status}")),
            code => Failure::Other(format!("it says {code}")),
        };
        let error = failed(failure);
        Err(if words.is_empty() { error } else { error.because(words) })
    }

    /// Sends a question and reads the reply.
    fn send(
        &self,
        question: &Question<'_>,
        token: Option<&SecretValue>,
    ) -> Result<(StatusCode, Body), KeystoreError> {
        let server = self.server;
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(server.failed(Failure::TimedOut(server.timeout), question.object));
        }
        let scheme = if server.uri.tls { "https" } else { "http" };
        let mut request = Request::builder()
            .method(&question.method)
            .uri(format!("{scheme}://{}/v1/{}", server.uri.authority, question.path))
            .header("X-Vault-Request", "true");
        if let Some(namespace) = &server.uri.options.namespace {
            request = request.header("X-Vault-Namespace", encoded(namespace));
        }
        if let Some(token) = token.map(|t| HeaderValue::from_bytes(t.expose())) {
            let unfit = || Failure::NotAuthenticated("a token with such characters".to_owned());
            let mut token = token.map_err(|_| server.failed(unfit(), question.object))?;
            token.set_sensitive(true);
            request = request.header("X-Vault-Token", token);
        }
        if question.body.is_some() {
            let patch = question.method == Method::PATCH;
            let kind = if patch { "application/merge-patch+json" } else { "application/json" };
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let cannot = |e: ureq::Error| server.failed(self.failure(&e), question.object).because(plain(e));
        let sent = match question.body {
            Some(body) => request.body(body).map_err(ureq::Error::from).and_then(|r| self.run(r, left)),
            None => request.body(()).map_err(ureq::Error::from).and_then(|r| self.run(r, left)),
        };
        let response = sent.map_err(cannot)?;
        let status = response.status();
        if status.is_redirection() {
            let to =
                response.headers().get(header::LOCATION).and_then(|l| l.to_str().ok()).unwrap_or("nowhere");
            let why = format!(
                "it sends to {}, and nobody is followed there",
                shown(to.split('?').next().unwrap_or(to))
            );
            return Err(server.failed(Failure::BadAnswer(why), question.object));
        }
        let mut body = Zeroizing::new(Vec::new());
        let mut reader = response.into_body().into_reader().take(question.longest as u64 + 1);
        if let Err(e) = reader.read_to_end(&mut body) {
            return Err(cannot(ureq::Error::from(e)));
        }
        if body.len() > question.longest {
            let why = format!("it is longer than {} KiB", question.longest >> 10);
            return Err(server.failed(Failure::BadAnswer(why), question.object));
        }
        Ok((status, Body(body)))
    }

    fn run(
        &self,
        request: Request<impl ureq::AsSendBody>,
        left: Duration,
    ) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        self.agent.run(self.agent.configure_request(request).timeout_global(Some(left)).build())
    }

    /// What a failed connection means.
    fn failure(&self, error: &ureq::Error) -> Failure {
        use ureq::Error as E;
        let ended = || Failure::BadAnswer("it ended in the middle".to_owned());
        match error {
            E::Timeout(_) => Failure::TimedOut(self.server.timeout),
            E::HostNotFound | E::ConnectionFailed => Failure::Unreachable,
            E::Io(e) => match e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
                Some(e) => tls::failure(e, &self.server.uri.host)
                    .unwrap_or_else(|| Failure::BadAnswer("TLS with it does not work".to_owned())),
                None if e.kind() == io::ErrorKind::UnexpectedEof => ended(),
                None if matches!(e.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {
                    Failure::TimedOut(self.server.timeout)
                }
                None => Failure::Unreachable,
            },
            E::Protocol(_) | E::LargeResponseHeader(..) | E::BodyStalled | E::Http(_) => {
                Failure::BadAnswer("it is not HTTP".to_owned())
            }
            _ => Failure::Unreachable,
        }
    }
}

/// The cause of a failed connection, without what only ureq knows it as.
fn plain(error: ureq::Error) -> Box<dyn std::error::Error + Send + Sync> {
    match error {
        ureq::Error::Io(e) => Box::new(e),
        other => Box::new(other),
    }
}

/// What answers, when it is no Vault server.
fn not_vault(status: StatusCode, body: &Body) -> Failure {
    const SPEAKS_TLS: &[u8] = b"Client sent an HTTP request to an HTTPS server";
    if body.0.windows(SPEAKS_TLS.len()).any(|w| w == SPEAKS_TLS) {
        return Failure::BadAnswer("it speaks TLS there: the URI has to begin with vault+https".to_owned());
    }
    match status.as_u16() {
        // A proxy before the server.
        429 | 502..=504 => Failure::NotReady(format!("something before it says {status}")),
        code => Failure::BadAnswer(format!("it says {code} and is not JSON")),
    }
}
