//! Talking to the supervisor of a running guest: what all client commands share, and those that only press
//! its buttons.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use zlink::tokio::unix::{Connection, Stream};

use crate::supervisor::control::api::{ControlError, diagnostics};
use crate::supervisor::control::{CONTROL_SOCKET, DomainProxy};

use super::config::Paths;
use super::input::Input;
use super::{CliError, Exit};

/// How long a supervisor may take for what it answers at once. QEMU may be deriving keys meanwhile.
const ANSWER_DEADLINE: Duration = Duration::from_secs(150);
/// How long a thread waits for more blocking work.
const IDLE_THREADS: Duration = Duration::from_millis(10);
/// How long a supervisor that has closed its socket may take to tidy up.
const TIDY_DEADLINE: Duration = Duration::from_secs(10);

/// Arguments of commands that take nothing but a name.
#[derive(clap::Args)]
pub(crate) struct GuestArgs {
    /// The guest's name
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// Arguments of `vmward shutdown`.
#[derive(clap::Args)]
pub(crate) struct ShutdownArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// Return when the guest is off and everything of it is gone
    #[arg(long)]
    wait: bool,
    /// Wait no longer than this, in seconds
    #[arg(long, value_name = "S", requires = "wait")]
    timeout: Option<u32>,
}

/// A button of a running guest.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Button {
    /// Power off at once.
    Destroy,
    /// Shut down, and start again.
    Reboot,
    /// The reset button.
    Reset,
    /// Stop the processors.
    Suspend,
    /// Let them go on.
    Resume,
}

/// A connection to the supervisor of a guest.
pub(crate) struct Guest {
    name: String,
    socket: PathBuf,
    pub connection: Connection,
}

impl Guest {
    /// Connects to the supervisor of the guest of that name.
    pub(crate) async fn connect(name: &str) -> Result<Self, CliError> {
        let runtime = Paths::from_environment()?.runtime_dir;
        Self::connect_in(&runtime, name).await
    }

    async fn connect_in(runtime: &Path, name: &str) -> Result<Self, CliError> {
        // A name is one component of a path, whatever the shell made of it.
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(CliError::new(Exit::Usage, format!("'{name}' is no name of a guest")));
        }
        let socket = runtime.join(name).join(CONTROL_SOCKET);
        let failure = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => {
                CliError::new(Exit::NoInput, format!("no guest named '{name}' is running"))
                    .hint("`vmward list` shows the guests that are")
            }
            io::ErrorKind::ConnectionRefused => CliError::new(
                Exit::Unavailable,
                format!("the supervisor of '{name}' is gone without having tidied up"),
            )
            .hint("`vmward run` with the guest's XML takes over what it left"),
            io::ErrorKind::PermissionDenied => {
                CliError::new(Exit::NoPermission, format!("the guest '{name}' is another user's"))
                    .hint("try again as that user or as root")
            }
            _ => CliError::new(Exit::Unavailable, format!("the supervisor of '{name}' cannot be reached"))
                .caused_by(e),
        };
        let stream = UnixStream::connect(&socket).await.map_err(failure)?;
        let stream = Stream::try_from(stream).map_err(|e| lost(name, e))?;
        Ok(Self { name: name.to_owned(), socket, connection: Connection::new(stream) })
    }

    /// What became of a call.
    pub(crate) fn result<T>(
        &self,
        reply: zlink::Result<Result<T, ControlError>>,
        input: Option<&Input>,
    ) -> Result<T, CliError> {
        reply.map_err(|e| lost(&self.name, e))?.map_err(|e| refused(&e, input))
    }

    /// A further connection, which ends when the supervisor does.
    async fn watch(&self) -> Result<UnixStream, CliError> {
        UnixStream::connect(&self.socket).await.map_err(|e| lost(&self.name, zlink::Error::Io(e)))
    }

    /// Waits until the supervisor and the lib dir are gone.
    async fn gone(&self, mut watch: UnixStream) -> Result<(), CliError> {
        // Nothing is ever sent here unasked, and an error is an end as well.
        let _ = watch.read(&mut [0; 1]).await;
        let tidy = async {
            while self.socket.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(TIDY_DEADLINE, tidy).await.map_err(|_| {
            CliError::new(
                Exit::Unavailable,
                format!("the supervisor of '{}' ended without tidying up", self.name),
            )
            .hint("`vmward list` shows what is left; `vmward run` with the guest's XML takes it over")
        })
    }
}

/// A main loop for a command.
pub(crate) fn runtime() -> Result<Runtime, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // A thread that waits for work is one more to be confined, and holds memory.
        .thread_keep_alive(IDLE_THREADS)
        .build()
        .map_err(|e| CliError::new(Exit::Internal, "the runtime cannot start").caused_by(e))
}

/// Runs one command's conversation.
pub(crate) fn block_on<T>(task: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    runtime()?.block_on(task)
}

/// The same with a deadline, for what is answered at once.
pub(crate) fn block_on_briefly<T>(task: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    block_on(async {
        tokio::time::timeout(ANSWER_DEADLINE, task)
            .await
            .unwrap_or_else(|_| Err(CliError::new(Exit::TryAgain, "the supervisor did not answer in time")))
    })
}

/// Runs `vmward shutdown`.
pub(crate) fn shutdown(args: &ShutdownArgs) -> Result<ExitCode, CliError> {
    block_on(async {
        let mut guest = Guest::connect(&args.guest.name).await?;
        let watch = guest.watch().await?;
        let reply = guest.connection.shutdown().await;
        guest.result(reply, None)?;
        if !args.wait {
            return Ok(ExitCode::SUCCESS);
        }
        let gone = guest.gone(watch);
        match args.timeout {
            None => gone.await?,
            Some(seconds) => tokio::time::timeout(Duration::from_secs(seconds.into()), gone)
                .await
                .unwrap_or_else(|_| {
                    Err(CliError::new(Exit::TryAgain, format!("'{}' is still running", args.guest.name))
                        .hint("its system may ignore the power button; `vmward destroy` ends it at once"))
                })?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Runs `vmward destroy`, `reboot`, `reset`, `suspend` and `resume`.
pub(crate) fn press(button: Button, args: &GuestArgs) -> Result<ExitCode, CliError> {
    block_on_briefly(async {
        let mut guest = Guest::connect(&args.name).await?;
        let watch = guest.watch().await?;
        let connection = &mut guest.connection;
        let reply = match button {
            Button::Destroy => connection.destroy().await,
            Button::Reboot => connection.reboot().await,
            Button::Reset => connection.reset().await,
            Button::Suspend => connection.suspend().await,
            Button::Resume => connection.resume().await,
        };
        guest.result(reply, None)?;
        if matches!(button, Button::Destroy) {
            guest.gone(watch).await?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn lost(name: &str, error: zlink::Error) -> CliError {
    match error {
        zlink::Error::UnexpectedEof => {
            CliError::new(Exit::Unavailable, format!("the supervisor of '{name}' ended before it answered"))
        }
        zlink::Error::VarlinkService(_) | zlink::Error::UnknownErrorReply(_) => CliError::new(
            Exit::Unavailable,
            format!("the supervisor of '{name}' is another version of vmward, which does not know this"),
        )
        .caused_by(error),
        _ => CliError::new(Exit::Unavailable, format!("the talk with the supervisor of '{name}' broke off"))
            .caused_by(error),
    }
}

fn refused(error: &ControlError, input: Option<&Input>) -> CliError {
    use ControlError as E;
    let exit = match error {
        E::InvalidXml(_) | E::InvalidRequest(_) | E::SecretUnusable(_) | E::StorageMismatch(_) => Exit::Data,
        E::SecretUnavailable(_) | E::NoSuchDevice(_) | E::StorageMissing(_) => Exit::NoInput,
        E::DeviceStillThere(_)
        | E::ImageInUse(_)
        | E::StillInUse(_)
        | E::StorageNotReady(_)
        | E::KeystoreNotReady(_)
        | E::Busy(_) => Exit::TryAgain,
        E::WrongKey(_) | E::NotAllowed(_) | E::SecretForbidden(_) | E::StorageForbidden(_) => {
            Exit::NoPermission
        }
        E::GuestRefused(_)
        | E::QemuRefused(_)
        | E::QemuUnavailable(_)
        | E::KeystoreUnavailable(_)
        | E::HelperUnavailable(_) => Exit::Unavailable,
        E::Failed(_) => Exit::Internal,
    };
    let failure = error.failure();
    if let Some(input) = input.filter(|_| !failure.problems.is_empty()) {
        return CliError::new(exit, diagnostics(&failure.problems).render(&input.name, &input.source));
    }
    let mut result = CliError::new(exit, &failure.message);
    if !failure.causes.is_empty() {
        result = result.caused_by(failure.causes.join(": "));
    }
    result.hint.clone_from(&failure.hint);
    result
}
