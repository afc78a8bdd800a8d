//! Assignment of units to buckets and variations: the hash, the bucket ranges of the variations,
//! and namespaces. The algorithm is GrowthBook's, so that assignments made elsewhere agree with
//! those made here.
//!
//! Source: GrowthBook SDK specification, hash versions 1 and 2.

/// 32-bit FNV-1a hash over UTF-16 code units. JavaScript strings consist of UTF-16 units, and
/// the SDKs of all other languages follow JavaScript.
fn fnv1a32(text: &str) -> u32 {
    text.encode_utf16().fold(0x811c_9dc5, |hash, unit| {
        (hash ^ u32::from(unit)).wrapping_mul(0x0100_0193)
    })
}

/// Returns the bucket of a unit, 0.0 ≤ n < 1.0. Returns `None` for an unknown hash version,
/// which excludes the unit.
pub fn bucket(seed: &str, unit: &str, hash_version: u32) -> Option<f64> {
    match hash_version {
        1 => Some(f64::from(fnv1a32(&format!("{unit}{seed}")) % 1_000) / 1_000.0),
        2 => {
            let inner = fnv1a32(&format!("{seed}{unit}"));
            Some(f64::from(fnv1a32(&inner.to_string()) % 10_000) / 10_000.0)
        }
        _ => None,
    }
}

/// A half-open range of buckets.
pub type BucketRange = (f64, f64);

/// Returns the bucket range of each variation. A range starts at the sum of the weights before
/// it, and its width is the coverage times its own weight. Growing coverage therefore moves no
/// unit to another variation.
pub fn bucket_ranges(variations: usize, coverage: f64, weights: &[f64]) -> Vec<BucketRange> {
    let coverage = coverage.clamp(0.0, 1.0);
    let sum: f64 = weights.iter().sum();
    let usable = weights.len() == variations && (0.99..=1.01).contains(&sum);
    let equal = vec![1.0 / variations.max(1) as f64; variations];
    let weights = if usable { weights } else { &equal };
    let mut start = 0.0;
    weights
        .iter()
        .map(|weight| {
            let range = (start, start + coverage * weight);
            start += weight;
            range
        })
        .collect()
}

/// Returns the index of the variation whose range contains the bucket.
pub fn choose(bucket: f64, ranges: &[BucketRange]) -> Option<usize> {
    ranges.iter().position(|&range| in_range(bucket, range))
}

pub fn in_range(bucket: f64, (start, end): BucketRange) -> bool {
    start <= bucket && bucket < end
}

/// Returns true if a unit is in the experiment's range of a namespace.
pub fn in_namespace(namespace_id: &str, unit: &str, range: BucketRange) -> bool {
    bucket(&format!("__{namespace_id}"), unit, 1).is_some_and(|n| in_range(n, range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_agree_with_the_published_vectors() {
        let vectors = [
            ("seed", "a", 2, Some(0.0505)),
            ("seed", "b", 2, Some(0.2696)),
            ("foo", "ab", 2, Some(0.2575)),
            ("89123klj", "8952klfjas09ujkasdf", 2, Some(0.124)),
            ("", "josé", 2, Some(0.1315)),
            ("", "😀", 2, Some(0.4971)),
            ("", "a", 1, Some(0.22)),
            ("abc", "def", 99, None),
        ];
        for (seed, unit, version, expected) in vectors {
            assert_eq!(
                bucket(seed, unit, version),
                expected,
                "({seed}, {unit}, {version})"
            );
        }
    }

    fn assert_ranges(actual: &[BucketRange], expected: &[BucketRange]) {
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!(
                (a.0 - e.0).abs() < 1e-12 && (a.1 - e.1).abs() < 1e-12,
                "{actual:?} is not {expected:?}"
            );
        }
    }

    #[test]
    fn ranges_agree_with_the_published_vectors() {
        assert_ranges(&bucket_ranges(2, 0.5, &[]), &[(0.0, 0.25), (0.5, 0.75)]);
        assert_ranges(
            &bucket_ranges(3, 0.2, &[0.2, 0.3, 0.5]),
            &[(0.0, 0.04), (0.2, 0.26), (0.5, 0.6)],
        );
        assert_ranges(
            &bucket_ranges(2, 1.0, &[0.4, 0.1]),
            &[(0.0, 0.5), (0.5, 1.0)],
        );
    }

    #[test]
    fn growing_coverage_moves_no_unit_to_another_variation() {
        let weights = [0.2, 0.3, 0.5];
        for step in 1..10 {
            let narrow = bucket_ranges(3, f64::from(step) / 10.0, &weights);
            let wide = bucket_ranges(3, f64::from(step + 1) / 10.0, &weights);
            for n in (0..10_000).map(|n| f64::from(n) / 10_000.0) {
                if let Some(variation) = choose(n, &narrow) {
                    assert_eq!(choose(n, &wide), Some(variation));
                }
            }
        }
    }
}
