//! The format of the filter of seen posts: one byte string of bits for each viewer and time slice.
//! Redis stores it, and [`mark_seen.lua`](super::seen) extends it.
//!
//! A filter sized for 10,000 posts would waste memory on a viewer who saw 30. So a filter has
//! layers, each eight times as large as the one before, stored one after the other in the
//! string. A layer takes posts until a quarter of its bits are set; then the next layer is
//! opened. At a quarter, seven hashes have false positives for 0.25⁷ = 0.006 % of posts. All
//! layers of all slices of a day together therefore stay far below 1 %, regardless of how the
//! posts of the day are spread over them.

/// First bytes of every filter. Must be raised when layers or hashes change, because bits of
/// another format are meaningless.
pub const FORMAT: &[u8; 4] = b"sf\0\x01";
/// Number of hash functions.
pub const HASHES: u32 = 7;
/// Sizes of the layers in bits: 512 B, 4 KiB and 32 KiB. The last one holds 10,000 posts within
/// its quarter and accepts more beyond it.
pub const LAYERS_BITS: [u32; 3] = [1 << 12, 1 << 15, 1 << 18];
/// A layer is full when 1/4 of its bits are set; this is the divisor.
pub const FULL_DIVISOR: u32 = 4;

/// The position of a post in every layer: its bit `i` is `first + i · step`, modulo the layer's
/// size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hash {
    pub first: u32,
    /// Odd, so that the bits of one post differ.
    pub step: u32,
}

impl Hash {
    /// Hashes a post id. The function is part of the format: all hosts, of all versions, must
    /// agree on it.
    pub fn new(post_id: u64) -> Self {
        let mixed = mix(post_id);
        Self {
            first: mixed as u32,
            step: (mixed >> 32) as u32 | 1,
        }
    }

    fn bits(self, layer_bits: u32) -> impl Iterator<Item = usize> {
        (0..u64::from(HASHES)).map(move |i| {
            let bit = u64::from(self.first) + i * u64::from(self.step);
            (bit % u64::from(layer_bits)) as usize
        })
    }
}

/// The output function of SplitMix64 (Steele, Lea, Flood 2014): every input bit changes
/// half of the output bits.
fn mix(id: u64) -> u64 {
    let mut z = id.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The filter of one slice, as read from Redis.
#[derive(Debug, Clone, Copy)]
pub struct Filter<'a>(&'a [u8]);

impl<'a> Filter<'a> {
    /// Returns `None` if the bytes are not a filter of this format.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let layers = bytes.strip_prefix(FORMAT)?;
        let bytes_max: u32 = LAYERS_BITS.iter().map(|bits| bits / 8).sum();
        (layers.len() <= bytes_max as usize).then_some(Self(layers))
    }

    /// Each layer that exists, with its size in bits. Redis stores no zeros after the
    /// last bit that was set.
    fn layers(self) -> impl Iterator<Item = (&'a [u8], u32)> {
        let mut rest = self.0;
        LAYERS_BITS.into_iter().map_while(move |bits| {
            let (layer, behind) = rest.split_at(rest.len().min(bits as usize / 8));
            rest = behind;
            (!layer.is_empty()).then_some((layer, bits))
        })
    }

    pub fn contains(self, post: Hash) -> bool {
        self.layers().any(|(layer, bits)| {
            post.bits(bits)
                .all(|bit| layer.get(bit / 8).is_some_and(|byte| byte & mask(bit) != 0))
        })
    }

    /// Estimates the number of posts that set these bits: `−m/k · ln(1 − X/m)`, with X of m bits
    /// set by k hashes (Swamidass, Baldi 2007).
    pub fn estimate(self) -> f64 {
        let layers = self.layers().map(|(layer, bits)| {
            let set: u32 = layer.iter().map(|byte| byte.count_ones()).sum();
            let (set, bits) = (f64::from(set), f64::from(bits));
            // The formula is infinite for a layer without a zero bit, so assume at least one zero.
            let zeros = (1.0 - set / bits).max(1.0 / bits);
            -bits / f64::from(HASHES) * zeros.ln()
        });
        layers.sum()
    }
}

/// Mask of a bit in its byte. Redis counts the bits of a byte from the highest.
fn mask(bit: usize) -> u8 {
    0x80 >> (bit % 8)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A model of `mark_seen.lua` for filters that are not in Redis. Returns `true` if a post
    /// was new.
    pub fn mark(filter: &mut Vec<u8>, posts: &[u64]) -> bool {
        if Filter::read(filter).is_none() {
            *filter = FORMAT.to_vec();
        }
        let (start, bits) = layer_with_room(filter, posts.len() as u32);
        let mut joined = false;
        for hash in posts.iter().map(|post| Hash::new(*post)) {
            if Filter::read(filter).is_some_and(|read| read.contains(hash)) {
                continue;
            }
            joined = true;
            for bit in hash.bits(bits) {
                let byte = start + bit / 8;
                filter.resize(filter.len().max(byte + 1), 0);
                filter[byte] |= mask(bit);
            }
        }
        joined
    }

    fn layer_with_room(filter: &[u8], posts: u32) -> (usize, u32) {
        let mut start = FORMAT.len();
        for bits in LAYERS_BITS {
            let end = start + bits as usize / 8;
            let layer = filter.get(start..end.min(filter.len())).unwrap_or_default();
            let set: u32 = layer.iter().map(|byte| byte.count_ones()).sum();
            let is_last = bits == LAYERS_BITS[2];
            if is_last || filter.len() <= end && set + posts * HASHES <= bits / FULL_DIVISOR {
                return (start, bits);
            }
            start = end;
        }
        unreachable!("the last layer has room")
    }

    fn errors(filters: &[Vec<u8>], strangers: impl Iterator<Item = u64>) -> usize {
        let filters: Vec<Filter> = filters
            .iter()
            .filter_map(|bytes| Filter::read(bytes))
            .collect();
        strangers
            .filter(|post| filters.iter().any(|one| one.contains(Hash::new(*post))))
            .count()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Holds for any distribution of a day's 10,000 posts over slices and batches.
        #[test]
        fn every_marked_post_is_found_and_false_positives_stay_below_one_percent(
            first in 1_u64..1 << 52,
            stride in 1_u64..1_000,
            shares in prop::array::uniform9(0_u32..100),
            batch in 1_usize..101,
        ) {
            let posts: Vec<u64> = (0..10_000).map(|n| first + n * stride).collect();
            let total = shares.iter().sum::<u32>().max(1) as usize;
            let mut filters = vec![Vec::new(); 9];
            let mut rest = &posts[..];
            for (slice, share) in shares.into_iter().enumerate() {
                let part = if slice == 8 { rest.len() } else { posts.len() * share as usize / total };
                let (these, others) = rest.split_at(part.min(rest.len()));
                rest = others;
                for posts in these.chunks(batch) {
                    mark(&mut filters[slice], posts);
                }
            }
            let last = first + 10_000 * stride;
            prop_assert_eq!(errors(&filters, posts.iter().copied()), 10_000, "no false negatives");
            let strangers = last..last + 20_000;
            let wrong = errors(&filters, strangers);
            prop_assert!(wrong < 200, "{} of 20,000", wrong);
        }
    }

    #[test]
    fn few_posts_take_little_memory_and_their_number_is_estimated() {
        let mut filter = Vec::new();
        assert!(mark(&mut filter, &(1..=30).collect::<Vec<_>>()));
        assert!(!mark(&mut filter, &[7, 30]), "they are not new");
        assert!(filter.len() <= 516, "{}", filter.len());
        for posts in (31..=3_000).collect::<Vec<_>>().chunks(50) {
            mark(&mut filter, posts);
        }
        let estimate = Filter::read(&filter).map_or(0.0, Filter::estimate);
        assert!((2_850.0..3_150.0).contains(&estimate), "{estimate}");
    }

    #[test]
    fn bytes_of_another_format_are_not_a_filter() {
        assert!(Filter::read(b"").is_none());
        assert!(Filter::read(b"sf\0\x02\xff\xff").is_none());
        assert!(Filter::read(&[0xff; 600]).is_none());
        let too_long = [&FORMAT[..], &[0xff; 40_000]].concat();
        assert!(Filter::read(&too_long).is_none());
    }

    #[test]
    fn hashes_never_change() {
        // The first output of SplitMix64 seeded with 1.
        let (first, step) = (0x8902_5cc1, 0x910a_2dec | 1);
        assert_eq!(Hash::new(1), Hash { first, step });
    }
}
