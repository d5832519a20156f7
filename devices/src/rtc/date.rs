//! Seconds since 1970 and dates of the Gregorian calendar.

use super::HeldClockV1;

const DAY_SECONDS: i64 = 86_400;

/// A calendar date in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) year: i64,
    pub(super) month: u8,
    pub(super) day: u8,
    /// 1 is Sunday.
    pub(super) weekday: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

impl Date {
    pub(super) fn save(self) -> HeldClockV1 {
        let Self { year, month, day, weekday: _, hour, minute, second } = self;
        HeldClockV1 { year: u16::try_from(year).unwrap_or(0), month, day, hour, minute, second }
    }

    pub(super) fn restore(saved: &HeldClockV1) -> Self {
        let HeldClockV1 { year, month, day, hour, minute, second } = *saved;
        Self { year: year.into(), month, day, weekday: 1, hour, minute, second }
    }

    pub(super) fn is_legal(saved: &HeldClockV1) -> bool {
        let HeldClockV1 { year, month, day, hour, minute, second } = *saved;
        year <= 9999
            && (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && hour <= 23
            && minute <= 59
            && second <= 59
    }

    // Days are counted in 400-year eras from 1 March of year 0, so that the leap day comes last.
    pub(super) fn from_seconds(seconds: i64) -> Self {
        let (days, rest) = (seconds.div_euclid(DAY_SECONDS), seconds.rem_euclid(DAY_SECONDS));
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = (month_from_march + 2) % 12 + 1;
        Self {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month: to_u8(month),
            day: to_u8(day_of_year - (153 * month_from_march + 2) / 5 + 1),
            weekday: to_u8((days + 4).rem_euclid(7) + 1),
            hour: to_u8(rest / 3600),
            minute: to_u8(rest % 3600 / 60),
            second: to_u8(rest % 60),
        }
    }

    pub(super) fn to_seconds(self) -> i64 {
        let Self { year, month, day, weekday: _, hour, minute, second } = self;
        let year = year - i64::from(month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let month_from_march = (i64::from(month) + 9) % 12;
        let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        days * DAY_SECONDS + i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second)
    }
}

pub(super) fn to_u8(value: i64) -> u8 {
    u8::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_dates() {
        for (seconds, expected) in [
            (0, (1970, 1, 1, 5, 0, 0, 0)),
            (951_782_399, (2000, 2, 28, 2, 23, 59, 59)),
            (951_782_400, (2000, 2, 29, 3, 0, 0, 0)),
            (4_107_542_399, (2100, 2, 28, 1, 23, 59, 59)),
            (4_107_542_400, (2100, 3, 1, 2, 0, 0, 0)),
        ] {
            let Date { year, month, day, weekday, hour, minute, second } = Date::from_seconds(seconds);
            assert_eq!((year, month, day, weekday, hour, minute, second), expected);
        }
    }

    proptest! {
        #[test]
        fn dates_come_back(seconds in -2_000_000_000i64..200_000_000_000) {
            prop_assert_eq!(Date::from_seconds(seconds).to_seconds(), seconds);
        }
    }
}
