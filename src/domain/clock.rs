//! `<clock>`: what time the guest is told, and by which timers.

use crate::keywords;
use crate::xml::{Diagnostics, Element, Span};

keywords! {
    /// What the guest's clock is set to.
    pub enum ClockOffset {
        /// UTC.
        Utc = "utc",
        /// The host's local time.
        Localtime = "localtime",
        /// The time of a time zone.
        Timezone = "timezone",
        /// An offset to UTC or to local time.
        Variable = "variable",
        /// A time since 1970.
        Absolute = "absolute",
    }
}

keywords! {
    /// What a variable offset is counted from.
    pub enum ClockBasis {
        /// UTC.
        Utc = "utc",
        /// The host's local time.
        Localtime = "localtime",
    }
}

keywords! {
    /// A timer of the guest.
    pub enum TimerName {
        /// The real time clock.
        Rtc = "rtc",
        /// The 8254.
        Pit = "pit",
        /// The high precision event timer.
        Hpet = "hpet",
        /// The processor's time stamp counter.
        Tsc = "tsc",
        /// KVM's clock.
        Kvmclock = "kvmclock",
        /// Hyper-V's clock.
        Hypervclock = "hypervclock",
    }
}

keywords! {
    /// What becomes of ticks that the guest missed.
    pub enum TickPolicy {
        /// They come late.
        Delay = "delay",
        /// They come faster until the guest has caught up.
        Catchup = "catchup",
        /// They become one.
        Merge = "merge",
        /// They are lost.
        Discard = "discard",
    }
}

keywords! {
    /// What the real time clock follows.
    pub enum TimerTrack {
        /// The guest's time, which stands still while the guest does.
        Guest = "guest",
        /// The host's clock, corrections included.
        Wall = "wall",
        /// The host's clock without corrections.
        Realtime = "realtime",
    }
}

/// `<timer>`.
#[derive(Debug, Clone)]
pub struct Timer {
    /// Which one.
    pub name: TimerName,
    /// Whether the guest has it.
    pub present: Option<bool>,
    /// What becomes of missed ticks.
    pub tick_policy: Option<TickPolicy>,
    /// What the real time clock follows.
    pub track: Option<TimerTrack>,
    /// Of the time stamp counter, in Hz.
    pub frequency: Option<u64>,
    /// Where it stands.
    pub span: Span,
}

/// `<clock>`.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    /// `offset=`.
    pub offset: Option<ClockOffset>,
    /// `timezone=`: a name of the zoneinfo database.
    pub timezone: Option<String>,
    /// `adjustment=`: seconds.
    pub adjustment: i64,
    /// `basis=`.
    pub basis: Option<ClockBasis>,
    /// `start=`: seconds since 1970.
    pub start: Option<i64>,
    /// The timers.
    pub timers: Vec<Timer>,
}

impl Clock {
    /// Reads `<clock>`.
    pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Self {
        let Some(clock) = root.only_child("clock", diagnostics) else { return Self::default() };
        let mut this = Self { offset: clock.keyword("offset", diagnostics), ..Self::default() };
        match this.offset {
            Some(ClockOffset::Timezone) => {
                this.timezone = clock.require("timezone", diagnostics).map(str::to_owned);
            }
            Some(ClockOffset::Variable) => {
                this.adjustment = clock.number("adjustment", diagnostics).unwrap_or_default();
                this.basis = clock.keyword("basis", diagnostics);
            }
            Some(ClockOffset::Absolute) => {
                clock.require("start", diagnostics);
                this.start = clock.number("start", diagnostics);
                if this.start.is_some_and(|start| start < 0) {
                    diagnostics.error(clock.span, "the guest's clock starts at or after 1970");
                }
            }
            Some(ClockOffset::Utc | ClockOffset::Localtime) | None => this.read_fixed(clock, diagnostics),
        }
        for element in clock.children("timer") {
            let Some(timer) = Timer::from_xml(element, diagnostics) else { continue };
            if let Some(other) = this.timers.iter().find(|t| t.name == timer.name) {
                diagnostics
                    .error(timer.span, format!("there are two timers '{}'", timer.name.as_str()))
                    .related(other.span, "the other one");
            }
            this.timers.push(timer);
        }
        this
    }

    /// A clock of UTC or local time. "reset" is libvirt's word for: whatever the guest set the clock to is forgotten,
    /// and so it is here. A number is an older way to write a variable offset.
    fn read_fixed(&mut self, clock: &Element, diagnostics: &mut Diagnostics) {
        if clock.get("adjustment").is_none_or(|a| a == "reset") {
            return;
        }
        self.adjustment = clock.number("adjustment", diagnostics).unwrap_or_default();
        self.basis = Some(match self.offset {
            Some(ClockOffset::Localtime) => ClockBasis::Localtime,
            _ => ClockBasis::Utc,
        });
        self.offset = Some(ClockOffset::Variable);
    }

    /// The timer of that name, if the XML has one.
    pub fn timer(&self, name: TimerName) -> Option<&Timer> {
        self.timers.iter().find(|t| t.name == name)
    }
}

impl Timer {
    fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let name = element.require_keyword("name", diagnostics)?;
        let mut timer = Self {
            name,
            present: element.yes_no("present", diagnostics),
            tick_policy: element.keyword("tickpolicy", diagnostics),
            track: None,
            frequency: None,
            span: element.span,
        };
        match name {
            TimerName::Rtc => timer.track = element.keyword("track", diagnostics),
            TimerName::Tsc => {
                timer.frequency = element.number("frequency", diagnostics);
                if let Some(mode) = element.attribute("mode").filter(|m| m.value != "auto") {
                    diagnostics
                        .warning(mode.span, "'mode' of this timer is Xen's: it changes nothing in QEMU");
                }
            }
            _ => {}
        }
        if let Some(catchup) = element.only_child("catchup", diagnostics) {
            if timer.tick_policy != Some(TickPolicy::Catchup) {
                diagnostics.error(catchup.span, "<catchup> belongs to tickpolicy='catchup'");
            }
            catchup.mark_read();
            diagnostics.warning(catchup.span, "QEMU catches up at its own pace: <catchup> changes nothing");
        }
        timer.check(diagnostics);
        Some(timer)
    }

    /// What QEMU can do with each timer. libvirt tells it nothing of the rest, nor is that here what the guest gets.
    fn check(&self, diagnostics: &mut Diagnostics) {
        use TickPolicy as P;
        let policies: &[P] = match self.name {
            TimerName::Rtc => &[P::Delay, P::Catchup],
            TimerName::Pit => &[P::Delay, P::Catchup, P::Discard],
            TimerName::Hpet => &[P::Delay, P::Catchup],
            _ => &[],
        };
        if let Some(policy) = self.tick_policy.filter(|p| !policies.contains(p)) {
            let message =
                format!("QEMU has no tickpolicy '{}' of the timer '{}'", policy.as_str(), self.name.as_str());
            match self.name {
                TimerName::Hpet | TimerName::Tsc => diagnostics.outside_qemu(self.span, message),
                _ => diagnostics.error(self.span, message),
            };
        }
        if self.present == Some(false)
            && matches!(self.name, TimerName::Rtc | TimerName::Pit | TimerName::Tsc)
        {
            diagnostics.outside_qemu(
                self.span,
                format!("QEMU's guests always have the timer '{}'", self.name.as_str()),
            );
        }
    }
}
