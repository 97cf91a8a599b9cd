//! The sum of a metric's series, for whoever tells it in words.

use prometheus::IntCounterVec;
use prometheus::core::Collector;

/// The sum of the series whose label of this name has one of these values; of all series without a label.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the counters are whole numbers, shown as floating ones"
)]
pub fn total(counters: &IntCounterVec, label: Option<(&str, &[&str])>) -> u64 {
    let families = counters.collect();
    let series = families.iter().flat_map(|family| family.get_metric());
    let counted = series.filter(|series| {
        label.is_none_or(|(name, values)| {
            let mut labels = series.get_label().iter();
            labels.any(|it| it.name() == name && values.contains(&it.value()))
        })
    });
    counted
        .map(|series| series.get_counter().get_value() as u64)
        .sum()
}

#[cfg(test)]
mod tests {
    use prometheus::Opts;

    use super::*;

    #[test]
    fn series_are_summed_by_a_label() {
        let counters = IntCounterVec::new(Opts::new("eggs", "eggs"), &["hen", "colour"]).unwrap();
        assert_eq!(total(&counters, None), 0);
        for (hen, colour, eggs) in [("a", "white", 1), ("a", "brown", 2), ("b", "white", 4)] {
            counters.with_label_values(&[hen, colour]).inc_by(eggs);
        }
        assert_eq!(total(&counters, None), 7);
        assert_eq!(total(&counters, Some(("colour", &["white", "green"]))), 5);
        assert_eq!(total(&counters, Some(("hen", &["white"]))), 0);
    }
}
