//! placeholder
pub mod control;
pub mod hotplug;
