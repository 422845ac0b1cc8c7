//! What samples say and how sure it is: order statistics, spread, outliers, the bootstrap, the
//! Mann-Whitney U test. Nothing here assumes that times are distributed normally, since they are not.

/// Mean, which is what the bootstrap and hyperfine's tables want besides the median.
pub fn mean(samples: &[f64]) -> f64 {
    if samples.is_empty() { f64::NAN } else { samples.iter().sum::<f64>() / count(samples.len()) }
}

/// Standard deviation of a sample (n - 1).
pub fn deviation(samples: &[f64]) -> f64 {
    if samples.len() < 2 {
        return 0.0;
    }
    let mean = mean(samples);
    let squares: f64 = samples.iter().map(|x| (x - mean).powi(2)).sum();
    (squares / count(samples.len() - 1)).sqrt()
}

#[allow(clippy::cast_precision_loss)] // numbers of samples
fn count(n: usize) -> f64 {
    n as f64
}

/// In rising order.
pub fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut all = samples.to_vec();
    all.sort_by(f64::total_cmp);
    all
}

/// A quantile of sorted samples, between two of them by distance (as numpy and R's type 7 do).
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = q.clamp(0.0, 1.0) * count(last);
    let low = at.floor();
    let (i, part) = (low as usize, at - low);
    let next = sorted[(i + 1).min(last)];
    sorted[i] + (next - sorted[i]) * part
}

pub fn median(samples: &[f64]) -> f64 {
    quantile(&sorted(samples), 0.5)
}

/// Median absolute deviation from the median: spread that one slow sample does not move.
pub fn mad(samples: &[f64]) -> f64 {
    let centre = median(samples);
    median(&samples.iter().map(|x| (x - centre).abs()).collect::<Vec<_>>())
}

/// Samples outside Tukey's fences: 1.5 and 3 interquartile ranges from the quartiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fences {
    pub low: usize,
    pub high: usize,
    /// Of these, outside the wider fences.
    pub severe: usize,
}

pub fn outliers(samples: &[f64]) -> Fences {
    let sorted = sorted(samples);
    let (q1, q3) = (quantile(&sorted, 0.25), quantile(&sorted, 0.75));
    let range = q3 - q1;
    let mut found = Fences::default();
    for x in sorted {
        if x < q1 - 1.5 * range {
            found.low += 1;
        } else if x > q3 + 1.5 * range {
            found.high += 1;
        }
        found.severe += usize::from(x < q1 - 3.0 * range || x > q3 + 3.0 * range);
    }
    found
}

/// Random numbers that are the same every time, so that a comparison says the same twice (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is not 0; the bias of 2^-40 for such small numbers is of no matter.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.draw()) * n as u128) >> 64) as usize
    }

    pub fn shuffle<T>(&mut self, all: &mut [T]) {
        for i in (1..all.len()).rev() {
            all.swap(i, self.below(i + 1));
        }
    }
}

/// How often samples are drawn again.
const RESAMPLES: usize = 2000;

fn resampled(samples: &[f64], random: &mut Random, into: &mut Vec<f64>) -> f64 {
    into.clear();
    into.extend((0..samples.len()).map(|_| samples[random.below(samples.len())]));
    let middle = into.len() / 2;
    let (below, &mut upper, _) = into.select_nth_unstable_by(middle, f64::total_cmp);
    if samples.len() % 2 == 1 {
        return upper;
    }
    let lower = below.iter().copied().max_by(f64::total_cmp).unwrap_or(upper);
    f64::midpoint(lower, upper)
}

/// Interval that holds the median with this confidence, by the percentile bootstrap.
pub fn median_interval(samples: &[f64], confidence: f64) -> (f64, f64) {
    if samples.len() < 2 {
        return samples.first().map_or((f64::NAN, f64::NAN), |x| (*x, *x));
    }
    let (mut random, mut room) = (Random::new(SEED), Vec::new());
    let all: Vec<f64> =
        (0..RESAMPLES).map(|_| resampled(samples, &mut random, &mut room)).collect();
    middle(&all, confidence)
}

/// Interval of `median(b) / median(a) - 1`, each drawn again by itself.
pub fn change_interval(a: &[f64], b: &[f64], confidence: f64) -> (f64, f64) {
    if a.is_empty() || b.is_empty() {
        return (f64::NAN, f64::NAN);
    }
    let (mut random, mut room) = (Random::new(SEED), Vec::new());
    let all: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let from = resampled(a, &mut random, &mut room);
            resampled(b, &mut random, &mut room) / from - 1.0
        })
        .collect();
    middle(&all, confidence)
}

const SEED: u64 = 0x0072_696e_6766_656e;

fn middle(all: &[f64], confidence: f64) -> (f64, f64) {
    let all = sorted(all);
    let tail = (1.0 - confidence) / 2.0;
    (quantile(&all, tail), quantile(&all, 1.0 - tail))
}

/// Below this many samples on each side, and without ties, p is counted exactly.
const EXACT: usize = 20;

/// Two-sided p of the Mann-Whitney U test: how likely samples so far apart are if both come from the
/// same distribution. Exact for few samples without ties, else by the normal approximation with
/// corrections for ties and continuity. 1 where there is nothing to tell.
#[allow(clippy::many_single_char_names)] // as in the literature
pub fn mann_whitney(a: &[f64], b: &[f64]) -> f64 {
    let (n, m) = (a.len(), b.len());
    if n == 0 || m == 0 {
        return 1.0;
    }
    let mut all: Vec<(f64, bool)> =
        a.iter().map(|x| (*x, true)).chain(b.iter().map(|x| (*x, false))).collect();
    all.sort_by(|x, y| x.0.total_cmp(&y.0));
    let (mut rank_sum, mut ties, mut at) = (0.0, 0.0, 0);
    while at < all.len() {
        let same = all[at..].iter().take_while(|x| x.0.total_cmp(&all[at].0).is_eq()).count();
        let rank = count(2 * at + same + 1) / 2.0;
        rank_sum += rank * count(all[at..at + same].iter().filter(|x| x.1).count());
        ties += count(same).powi(3) - count(same);
        at += same;
    }
    let u = rank_sum - count(n * (n + 1)) / 2.0;
    let low = u.min(count(n * m) - u);
    if ties == 0.0 && n <= EXACT && m <= EXACT {
        return exact(n, m, low as usize);
    }
    let total = count(n + m);
    let variance = count(n * m) / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)).max(1.0));
    if variance <= 0.0 {
        return 1.0;
    }
    let distance = (count(n * m) / 2.0 - low - 0.5).max(0.0);
    (2.0 * upper_tail(distance / variance.sqrt())).min(1.0)
}

/// Of all orders of `n` and `m` samples, the part whose U is `low` or less, on either side.
fn exact(n: usize, m: usize, low: usize) -> f64 {
    // ways[j][u]: orders of i and j samples with this U, for i counted up.
    let most = n * m;
    let mut ways = vec![vec![0.0; most + 1]; m + 1];
    for row in &mut ways {
        row[0] = 1.0;
    }
    for _ in 1..=n {
        let mut next = vec![vec![0.0; most + 1]; m + 1];
        next[0][0] = 1.0;
        for j in 1..=m {
            for u in 0..=most {
                // The largest is of the first kind, above all j of the second, or of the second.
                let first = if u >= j { ways[j][u - j] } else { 0.0 };
                next[j][u] = first + next[j - 1][u];
            }
        }
        ways = next;
    }
    let all: f64 = ways[m].iter().sum();
    let tail: f64 = ways[m][..=low.min(most)].iter().sum();
    (2.0 * tail / all).min(1.0)
}

/// Two-sided p of Wilcoxon's signed-rank test: how likely differences so far to one side are if either
/// side is as likely. For samples that belong together one by one; equal ones say nothing. Exact for few
/// without ties, else by the normal approximation. 1 where there is nothing to tell.
pub fn signed_rank(differences: &[f64]) -> f64 {
    let mut all: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    all.sort_by(|x, y| x.abs().total_cmp(&y.abs()));
    let n = all.len();
    let (mut above, mut ties, mut at) = (0.0, 0.0, 0);
    while at < n {
        let same =
            all[at..].iter().take_while(|d| d.abs().total_cmp(&all[at].abs()).is_eq()).count();
        let rank = count(2 * at + same + 1) / 2.0;
        above += rank * count(all[at..at + same].iter().filter(|d| **d > 0.0).count());
        ties += count(same).powi(3) - count(same);
        at += same;
    }
    let whole = count(n * (n + 1)) / 2.0;
    let low = above.min(whole - above);
    if n == 0 {
        return 1.0;
    }
    if ties == 0.0 && n <= EXACT {
        return exact_ranks(n, low as usize);
    }
    let variance = whole * count(2 * n + 1) / 12.0 - ties / 48.0;
    let distance = (whole / 2.0 - low - 0.5).max(0.0);
    (2.0 * upper_tail(distance / variance.max(f64::MIN_POSITIVE).sqrt())).min(1.0)
}

/// Of all choices of signs, the part whose sum of ranks is `low` or less, on either side.
fn exact_ranks(n: usize, low: usize) -> f64 {
    let most = n * (n + 1) / 2;
    let mut ways = vec![0.0; most + 1];
    ways[0] = 1.0;
    for rank in 1..=n {
        for sum in (rank..=most).rev() {
            ways[sum] += ways[sum - rank];
        }
    }
    let tail: f64 = ways[..=low.min(most)].iter().sum();
    (2.0 * tail / ways.iter().sum::<f64>()).min(1.0)
}

/// How many deviations from the mean a part of this size begins, of the standard normal distribution.
pub fn deviations(tail: f64) -> f64 {
    let (mut low, mut high) = (0.0, 8.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if upper_tail(middle) > tail { low = middle } else { high = middle }
    }
    low
}

/// P(Z > z) of the standard normal distribution, z >= 0 (Abramowitz and Stegun 26.2.17, 7.5e-8).
fn upper_tail(z: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let sum = [1.330_274_429, -1.821_255_978, 1.781_477_937, -0.356_563_782, 0.319_381_530]
        .iter()
        .fold(0.0, |sum, c| (sum + c) * t);
    sum * (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

/// Adjusts p values of one family so that the chance of a single false alarm among all of them stays
/// what it would be for one (Holm).
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let (mut adjusted, mut least) = (vec![1.0; p.len()], 0.0_f64);
    for (i, &at) in order.iter().enumerate() {
        least = least.max((p[at] * count(p.len() - i)).min(1.0));
        adjusted[at] = least;
    }
    adjusted
}

#[cfg(test)]
#[path = "stats_tests.rs"]
mod tests;
