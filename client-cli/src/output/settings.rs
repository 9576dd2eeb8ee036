//! Events about the settings in force, which print themselves.

use petals_settings::{FileInForce, SettingInForce};

use super::Event;

impl Event for FileInForce {
    const NAME: &'static str = "settings_file";
}

impl Event for SettingInForce {
    const NAME: &'static str = "setting";
}
