//! `-rtc` and the timers that are no properties of machine or processor.

use crate::domain::Domain;
use crate::domain::clock::{Clock, ClockBasis, ClockOffset, TickPolicy, TimerName, TimerTrack};
use crate::qemu::{Capabilities, CommandLine};

const DAY: i64 = 24 * 60 * 60;

/// The guest's clock.
pub(super) fn arguments(domain: &Domain, capabilities: &Capabilities, line: &mut CommandLine) {
    let clock = &domain.clock;
    let mut rtc = format!("base={}", base(clock, capabilities.host.now));
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
    let policy = clock.timer(TimerName::Pit).and_then(|t| t.tick_policy);
    if let Some(policy) = policy.filter(|p| matches!(p, TickPolicy::Delay | TickPolicy::Discard)) {
        line.text("-global", format!("kvm-pit.lost_tick_policy={}", policy.as_str()));
    }
}

fn base(clock: &Clock, now: i64) -> String {
    match clock.offset {
        None | Some(ClockOffset::Utc) => "utc".to_owned(),
        Some(ClockOffset::Localtime | ClockOffset::Timezone) => "localtime".to_owned(),
        Some(ClockOffset::Absolute) => date(clock.start.unwrap_or_default()),
        Some(ClockOffset::Variable) if clock.basis == Some(ClockBasis::Localtime) => "localtime".to_owned(),
        Some(ClockOffset::Variable) => date(now.saturating_add(clock.adjustment)),
    }
}

/// A time of UTC as `-rtc` takes it.
fn date(seconds: i64) -> String {
    let (day, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (year, month, day) = civil(day);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// The date of a day counted from 1970-01-01 in the Gregorian calendar. Years are counted from March, so that
/// the leap day is the last of its year.
fn civil(day: i64) -> (i64, i64, i64) {
    const ERA: i64 = 146_097;
    // Days from 0000-03-01 to 1970-01-01.
    let day = day + 719_468;
    let (era, of_era) = (day.div_euclid(ERA), day.rem_euclid(ERA));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
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
