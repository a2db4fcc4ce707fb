//! `-rtc` and the timers that are no properties of machine or processor.

use jiff::SignedDuration;
use jiff::civil::DateTime;

use crate::domain::Domain;
use crate::domain::clock::{Clock, ClockBasis, ClockOffset, TickPolicy, TimerName, TimerTrack};
use crate::qemu::{Capabilities, CommandLine, Host};

/// The guest's clock.
pub(super) fn arguments(domain: &Domain, capabilities: &Capabilities, line: &mut CommandLine) {
    let clock = &domain.clock;
    let mut rtc = format!("base={}", base(clock, &capabilities.host));
    if let Some(timer) = clock.timer(TimerName::Rtc) {
        rtc.push_str(match timer.track {
            Some(TimerTrack::Guest) => ",clock=vm",
            Some(TimerTrack::Wall) => ",clock=host",
            Some(TimerTrack::Realtime) => ",clock=rt",
            None => "",
        });
        if timer.tick_policy == Some(TickPolicy::Catchup) {
            rtc.push_str(",driftfix=slew");
        }
    }
    line.text("-rtc", rtc);
    if let Some(zone) = &clock.timezone {
        // QEMU asks the C library for the local time.
        line.environment.push(("TZ".to_owned(), zone.clone()));
    }
    if let Some(timer) = clock.timer(TimerName::Pit) {
        match timer.tick_policy.unwrap_or(TickPolicy::Delay) {
            policy @ (TickPolicy::Delay | TickPolicy::Discard) => {
                line.text("-global", format!("kvm-pit.lost_tick_policy={}", policy.as_str()));
            }
            TickPolicy::Catchup | TickPolicy::Merge => {}
        }
    }
}

fn base(clock: &Clock, host: &Host) -> String {
    match clock.offset {
        None | Some(ClockOffset::Utc) => "utc".to_owned(),
        Some(ClockOffset::Localtime | ClockOffset::Timezone) => "localtime".to_owned(),
        Some(ClockOffset::Absolute) => date(clock.start.unwrap_or_default()),
        Some(ClockOffset::Variable) => {
            let local = clock.basis == Some(ClockBasis::Localtime);
            let now = if local { host.local_now() } else { host.now };
            date(now.saturating_add(clock.adjustment))
        }
    }
}

/// Seconds since 1970 as `-rtc` takes them; what no calendar has is its last day.
fn date(seconds: i64) -> String {
    let date = DateTime::constant(1970, 1, 1, 0, 0, 0, 0).saturating_add(SignedDuration::from_secs(seconds));
    format!("{date}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_400, "2000-02-29T00:00:00"),
            (1_234_567_890, "2009-02-13T23:31:30"),
            (1_709_251_199, "2024-02-29T23:59:59"),
            (-1, "1969-12-31T23:59:59"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }
}
