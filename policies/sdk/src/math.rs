//! `exp` and `ln_1p` without branches and tables, so that a loop over candidates becomes SIMD code,
//! and the results have the same bits in WebAssembly and natively. The standard library's versions
//! call a function per value, and a different one on each target.
//!
//! Always inlined, because a call in a loop would keep the loop scalar.
//!
//! Sources: argument reduction after Cody and Waite; `ln` after fdlibm's `e_log.c` (reduction to
//! [√½, √2), series in s = f / (2 + f)); the rounding correction of `ln_1p` after its `s_log1p.c`.

/// 1.5 · 2^52. Adding it rounds to an integer, which is then in the low bits.
const ROUND: f64 = 6_755_399_441_055_744.0;
/// ln 2 in two parts. The high part ends in zeros, so that its product with an exponent is exact.
const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
const MANTISSA_BITS: u32 = 52;

/// Returns the larger of two numbers, or `bound` for NaN. It is one instruction, whereas `f64::max`
/// takes several because it checks both arguments for NaN.
#[inline(always)]
pub fn at_least(x: f64, bound: f64) -> f64 {
    if x > bound { x } else { bound }
}

/// Returns the smaller of two numbers, or `bound` for NaN.
#[inline(always)]
pub fn at_most(x: f64, bound: f64) -> f64 {
    if x < bound { x } else { bound }
}

/// Returns `e^x` within 1e-13 relative, for -708 ≤ x ≤ 708. Beyond that, the value at the bound.
#[inline(always)]
pub fn exp(x: f64) -> f64 {
    let x = at_most(at_least(x, -708.0), 708.0);
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    // Taylor series. |r| ≤ ln 2 / 2, so the first omitted term is below 1e-14.
    let mut power = 1.0 / 39_916_800.0;
    for factorial in [
        3_628_800.0,
        362_880.0,
        40_320.0,
        5_040.0,
        720.0,
        120.0,
        24.0,
        6.0,
        2.0,
        1.0,
        1.0,
    ] {
        power = power * r + 1.0 / factorial;
    }
    // Multiplies by 2^n by adding n to the exponent.
    f64::from_bits(
        power
            .to_bits()
            .wrapping_add(shifted.to_bits() << MANTISSA_BITS),
    )
}

/// Returns `ln(1 + x)` within 1e-13 relative, for any finite x ≥ 0. A negative x counts as 0.
#[inline(always)]
pub fn ln_1p(x: f64) -> f64 {
    const SQRT_HALF_BITS: u64 = 0x3fe6_a09e_667f_3bcd;
    const EXPONENT_MASK: u64 = 0xfff << MANTISSA_BITS;
    /// An integer stored in its low bits is the difference to it.
    const TWO_TO_52: f64 = 4_503_599_627_370_496.0;
    let x = at_least(x, 0.0);
    let u = 1.0 + x;
    let lost = x - (u - 1.0);
    // u ≥ 1 > √½, so this difference is not negative and its top bits are the exponent.
    let above = u.to_bits().wrapping_sub(SQRT_HALF_BITS);
    let k = f64::from_bits(TWO_TO_52.to_bits() | (above >> MANTISSA_BITS)) - TWO_TO_52;
    let m = f64::from_bits(u.to_bits().wrapping_sub(above & EXPONENT_MASK));
    let f = m - 1.0;
    let s = f / (2.0 + f);
    let z = s * s;
    // |s| ≤ 0.1716, so the first omitted term is below 1e-14.
    let mut series = 2.0 / 17.0;
    for odd in [15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        series = series * z + 2.0 / odd;
    }
    let ln_m = 2.0 * s + s * z * series;
    k * LN_2_HIGH + (ln_m + (k * LN_2_LOW + lost / u))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(found: f64, wanted: f64, at: f64) {
        let error = (found - wanted).abs() / wanted.abs().max(f64::MIN_POSITIVE);
        assert!(
            error < 1e-13 || found == wanted,
            "at {at:e}: {found:e} is not {wanted:e}"
        );
    }

    #[test]
    fn exp_agrees_with_the_standard_library() {
        assert_eq!(exp(0.0), 1.0);
        for step in -70_800..=70_800 {
            let x = f64::from(step) / 100.0;
            assert_close(exp(x), x.exp(), x);
        }
        assert_eq!(exp(-1e9), exp(-708.0));
    }

    #[test]
    fn ln_1p_agrees_with_the_standard_library() {
        assert_eq!((ln_1p(0.0), ln_1p(-3.0)), (0.0, 0.0));
        for exponent in -300..=300 {
            for mantissa in 10..100 {
                let x = f64::from(mantissa) / 10.0 * 10f64.powi(exponent);
                assert_close(ln_1p(x), x.ln_1p(), x);
            }
        }
    }
}
