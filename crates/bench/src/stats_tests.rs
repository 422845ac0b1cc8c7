//! Against figures counted by hand or by Python's `statistics`, and against chance itself.
#![allow(clippy::unwrap_used)] // tests

use super::*;

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-4 * b.abs().max(1e-3), "{a} is not {b}");
}

#[test]
fn order_statistics() {
    let samples = [7.0, 15.0, 36.0, 39.0, 40.0, 41.0];
    let s = sorted(&samples);
    close(quantile(&s, 0.25), 20.25);
    close(quantile(&s, 0.5), 37.5);
    close(quantile(&s, 0.75), 39.75);
    close(mad(&samples), 3.0);
    close(mean(&samples), 29.666_67);
    close(deviation(&samples), 14.77385);
    assert!(quantile(&[], 0.5).is_nan());
    close(quantile(&[3.0], 0.99), 3.0);
}

#[test]
fn outliers_are_counted_by_side_and_distance() {
    let mut samples: Vec<f64> = (0..20).map(|i| 100.0 + f64::from(i)).collect();
    samples.extend([135.0, 500.0, 60.0]);
    let found = outliers(&samples);
    assert_eq!((found.low, found.high, found.severe), (1, 2, 2));
    assert_eq!(outliers(&[1.0; 9]), Fences::default(), "all the same are none");
}

#[test]
fn signed_ranks_are_those_of_the_literature() {
    // Darwin's maize, as SciPy has it: a sum of 24 of 15 pairs.
    let maize = [6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75].map(f64::from);
    close(signed_rank(&maize), 0.041_259_766);
    // 2 of 32 choices of signs; nothing; nothing to tell; as many on both sides.
    close(signed_rank(&[1.0, 2.0, 3.0, 4.0, 5.0]), 0.0625);
    close(signed_rank(&[]), 1.0);
    close(signed_rank(&[0.0; 40]), 1.0);
    let even: Vec<f64> = (1..=40).flat_map(|i| [f64::from(i), -f64::from(i)]).collect();
    assert!(signed_rank(&even) > 0.99);
    let all: Vec<f64> = (1..=60).map(f64::from).collect();
    assert!(signed_rank(&all) < 1e-9);
    assert!((deviations(0.025) - 1.96).abs() < 1e-3 && (deviations(0.2) - 0.8416).abs() < 1e-3);
}

#[test]
fn mann_whitney_is_exact_for_few() {
    // Of the orders, those as far apart or farther: 2 of 20, 2 of 252, 48 of 70, 30 of 35.
    close(mann_whitney(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]), 0.1);
    close(mann_whitney(&[1.0, 2.0, 3.0, 4.0, 5.0], &[6.0, 7.0, 8.0, 9.0, 10.0]), 0.007_936_508);
    close(mann_whitney(&[1.0, 3.0, 5.0, 7.0], &[2.0, 4.0, 6.0, 8.0]), 0.685_714_3);
    close(mann_whitney(&[1.1, 2.2, 3.3], &[0.4, 1.5, 9.6, 7.7]), 0.857_142_9);
}

#[test]
fn mann_whitney_of_many_is_near_the_exact_one() {
    // Twenty against twenty-one is approximated, twenty against twenty counted.
    let a: Vec<f64> = (0..20).map(|i| f64::from(i * 2)).collect();
    let b: Vec<f64> = (0..20).map(|i| f64::from(i * 2 + 11)).collect();
    let counted = mann_whitney(&a, &b);
    let mut c = b.clone();
    c.push(29.5);
    let near = mann_whitney(&a, &c);
    assert!((counted - near).abs() < 0.02, "{counted} {near}");
    assert!(mann_whitney(&[2.0; 50], &[2.0; 50]) > 0.999, "ties alone say nothing");
    assert!(mann_whitney(&[], &[1.0]) > 0.999);
}

/// Two draws from the same skewed distribution look different as often as alpha says, not more.
#[test]
fn false_alarms_are_as_rare_as_promised() {
    let mut random = Random::new(7);
    let mut draw = |scale: f64| -> Vec<f64> {
        (0..40)
            .map(|_| {
                let unit = (random.draw() >> 11) as f64 / (1u64 << 53) as f64;
                scale * (1.0 - 0.2 * (1.0 - unit).ln())
            })
            .collect()
    };
    let alarms = (0..400).filter(|_| mann_whitney(&draw(1.0), &draw(1.0)) < 0.05).count();
    assert!((5..=35).contains(&alarms), "{alarms} of 400 at 5 %");
    let found = (0..100).filter(|_| mann_whitney(&draw(1.0), &draw(1.2)) < 0.05).count();
    assert!(found > 95, "{found} of 100 shifts by 20 % were found");
}

#[test]
fn intervals_hold_what_they_should() {
    let mut random = Random::new(11);
    let mut missed = 0;
    for _ in 0..100 {
        let samples: Vec<f64> = (0..31).map(|_| random.below(1000) as f64).collect();
        let (low, high) = median_interval(&samples, 0.95);
        assert!(low <= median(&samples) && median(&samples) <= high);
        missed += u32::from(!(low..=high).contains(&499.5));
    }
    assert!(missed <= 12, "{missed} of 100 intervals of 95 % miss the median");
    let (low, high) = change_interval(&[10.0; 9], &[10.5; 9], 0.95);
    close(low, 0.05);
    close(high, 0.05);
}

#[test]
fn holm_adjusts_in_steps() {
    // In rising order times 4, 3, 2, 1, and never less than the one before.
    let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
    for (a, b) in adjusted.iter().zip([0.03, 0.06, 0.06, 0.02]) {
        close(*a, b);
    }
    assert!(holm(&[]).is_empty());
}

#[test]
fn shuffling_keeps_everything() {
    let mut all: Vec<u32> = (0..50).collect();
    Random::new(3).shuffle(&mut all);
    assert_ne!(all, (0..50).collect::<Vec<_>>());
    all.sort_unstable();
    assert_eq!(all, (0..50).collect::<Vec<_>>());
}
