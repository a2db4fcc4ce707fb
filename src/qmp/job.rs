//! Jobs: commands that QEMU answers before it has done what they ask for (docs/interop/qmp-spec, "job" of the QAPI
//! schema). Amending an image, making one, and copying are jobs.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use super::{COMMAND_DEADLINE, Qmp, QmpError};

/// The status of a job that has ended, one way or the other, and waits to be dismissed.
const CONCLUDED: &str = "concluded";
/// How often a job of somebody else is looked at.
const JOB_INTERVAL: Duration = Duration::from_millis(50);
/// QEMU up to 9.1 measures the speed of the key derivation with the thread's CPU time, and gives up with this
/// message when the kernel's accounting has not moved in between. On some machines that is every other time,
/// so it is tried again.
pub const BAD_CLOCK: &str = "Unable to get accurate CPU usage";
/// How often a job is started again that ends with it: nothing has been done yet then.
const BAD_CLOCK_RETRIES: usize = 20;
/// The status of a job that keeps two images the same until it is told to complete.
const READY: &str = "ready";

impl Qmp {
    /// Starts a job, waits for its end, and has QEMU forget it. `arguments` are those of the command without its
    /// `job-id`. Past the deadline the job goes on in QEMU; whoever gives up on it cancels it by its id.
    pub async fn run_job(
        &self,
        command: &str,
        job: &str,
        arguments: &Map<String, Value>,
        deadline: Duration,
    ) -> Result<(), QmpError> {
        let mut left = BAD_CLOCK_RETRIES;
        loop {
            match self.run_job_once(command, job, arguments, deadline).await {
                Err(QmpError::Refused { desc, .. }) if left > 0 && desc.contains(BAD_CLOCK) => left -= 1,
                done => return done,
            }
        }
    }

    async fn run_job_once(
        &self,
        command: &str,
        job: &str,
        arguments: &Map<String, Value>,
        deadline: Duration,
    ) -> Result<(), QmpError> {
        // Before the command, so that no event is missed.
        let mut events = self.events();
        let mut arguments = arguments.clone();
        arguments.insert("job-id".to_owned(), job.into());
        self.execute_json(command, Some(&arguments), COMMAND_DEADLINE).await?;
        let concluded = async {
            loop {
                match events.next().await {
                    Ok(event) if event.name == "JOB_STATUS_CHANGE" && event.text("id") == Some(job) => {
                        if self.go_on(job, event.text("status")).await? {
                            return Ok(());
                        }
                    }
                    Ok(_) => {}
                    Err(QmpError::EventsMissed(_)) => {
                        let known = self.job(job).await?;
                        let status = known.as_ref().map(|j| j.get("status").and_then(Value::as_str));
                        if self.go_on(job, status.unwrap_or(Some(CONCLUDED))).await? {
                            return Ok(());
                        }
                    }
                    Err(e) => return Err(e),
                }
            }
        };
        tokio::time::timeout(deadline, concluded)
            .await
            .map_err(|_| QmpError::Timeout { command: command.to_owned(), deadline })??;
        let error =
            self.job(job).await?.and_then(|j| j.get("error").and_then(Value::as_str).map(str::to_owned));
        self.execute_json("job-dismiss", Some(&json!({ "id": job })), COMMAND_DEADLINE).await?;
        match error {
            None => Ok(()),
            Some(desc) => {
                Err(QmpError::Refused { command: command.to_owned(), class: "GenericError".to_owned(), desc })
            }
        }
    }

    /// Whether a job of that status has ended. One that has copied everything waits to be told that this is all.
    async fn go_on(&self, job: &str, status: Option<&str>) -> Result<bool, QmpError> {
        if status == Some(READY) {
            self.execute_json("job-complete", Some(&json!({ "id": job })), COMMAND_DEADLINE).await?;
        }
        Ok(status == Some(CONCLUDED))
    }

    /// Has QEMU forget the jobs that an earlier process started and did not dismiss, under ids that begin so. Those that
    /// still go on are waited for until the deadline, and then left.
    pub async fn dismiss_jobs(&self, prefix: &str, deadline: Duration) -> Result<(), QmpError> {
        let start = Instant::now();
        loop {
            let jobs = self.execute_json("query-jobs", None::<&()>, COMMAND_DEADLINE).await?;
            let mut goes_on = false;
            for job in jobs.as_array().into_iter().flatten() {
                let text = |name: &str| job.get(name).and_then(Value::as_str).unwrap_or_default();
                let id = text("id");
                if !id.starts_with(prefix) {
                    continue;
                }
                match text("status") {
                    CONCLUDED => {
                        let arguments = json!({ "id": id });
                        self.execute_json("job-dismiss", Some(&arguments), COMMAND_DEADLINE).await?;
                    }
                    _ => goes_on = true,
                }
            }
            if !goes_on || start.elapsed() >= deadline {
                return Ok(());
            }
            sleep(JOB_INTERVAL).await;
        }
    }

    /// Breaks off the jobs that an earlier process started under ids that begin so, and has QEMU forget them and those that
    /// have ended.
    pub async fn cancel_jobs(&self, prefix: &str, deadline: Duration) -> Result<(), QmpError> {
        let jobs = self.execute_json("query-jobs", None::<&()>, COMMAND_DEADLINE).await?;
        for job in jobs.as_array().into_iter().flatten() {
            let text = |name: &str| job.get(name).and_then(Value::as_str).unwrap_or_default();
            if text("id").starts_with(prefix) && text("status") != CONCLUDED {
                // By force: without it, one that is ready would end as if it had been completed.
                let arguments = json!({ "device": text("id"), "force": true });
                match self.execute_json("block-job-cancel", Some(&arguments), COMMAND_DEADLINE).await {
                    // It has ended meanwhile.
                    Ok(_) | Err(QmpError::Refused { .. }) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        self.dismiss_jobs(prefix, deadline).await
    }

    /// What QEMU says about a job, if it knows it.
    async fn job(&self, job: &str) -> Result<Option<Value>, QmpError> {
        let jobs = self.execute_json("query-jobs", None::<&()>, COMMAND_DEADLINE).await?;
        let jobs = jobs.as_array().into_iter().flatten();
        Ok(jobs.into_iter().find(|j| j.get("id").and_then(Value::as_str) == Some(job)).cloned())
    }
}
