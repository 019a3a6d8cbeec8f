//! Weights of servers from shares of colours.

use lockkeeper_crds::Weights;

/// HAProxy's heaviest server.
const HEAVIEST: u64 = 256;

/// Weights for the servers of both colours, whose weights in the configuration are given (0 counts as 1: green's
/// servers may well begin with none). The sums are in the ratio of the shares exactly; within a colour they are as
/// near to the configuration's ratio as whole numbers go.
pub(super) fn spread(shares: Weights, blue: &[u64], green: &[u64]) -> (Vec<u64>, Vec<u64>) {
    let factor = most(blue).min(most(green));
    (
        divide(u64::from(shares.blue) * factor, blue),
        divide(u64::from(shares.green) * factor, green),
    )
}

/// The largest factor at which no server of a colour gets more than [`HEAVIEST`], whatever the colour's share: the sum
/// of all weights is then the same in every step, and from one to the next a colour only gains or only loses. At least
/// 2, and 2 for one server a colour.
fn most(initial: &[u64]) -> u64 {
    let sum: u64 = initial.iter().map(|weight| weight.max(&1)).sum();
    let largest = initial.iter().copied().max().unwrap_or(1).max(1);
    match sum {
        0 => HEAVIEST,
        _ => HEAVIEST * sum / (100 * largest),
    }
}

/// `total` in whole parts, in the ratio of `initial`; what rounding leaves goes to the largest remainders.
fn divide(total: u64, initial: &[u64]) -> Vec<u64> {
    let sum: u64 = initial.iter().map(|weight| weight.max(&1)).sum();
    let exact = |weight: &u64| total * weight.max(&1);
    let mut parts: Vec<u64> = initial
        .iter()
        .map(|weight| exact(weight).checked_div(sum).unwrap_or(0))
        .collect();
    let mut order: Vec<usize> = (0..initial.len()).collect();
    let remainder = |at: &usize| initial.get(*at).map_or(0, |weight| exact(weight) % sum.max(1));
    order.sort_by_key(|at| std::cmp::Reverse(remainder(at)));
    let left = total.saturating_sub(parts.iter().sum());
    for at in order
        .into_iter()
        .take(usize::try_from(left).unwrap_or(usize::MAX))
    {
        if let Some(part) = parts.get_mut(at) {
            *part += 1;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::nearest;
    use proptest::prelude::*;

    #[test]
    fn uneven_colours_get_exact_shares() {
        assert_eq!(
            spread(Weights::of_green(25), &[100], &[0]),
            (vec![150], vec![50]),
            "one server each"
        );
        assert_eq!(
            spread(Weights::of_green(1), &[1, 1, 1], &[1, 1]),
            (vec![165; 3], vec![3, 2])
        );
        assert_eq!(
            spread(Weights::BLUE, &[200, 100], &[7]).1,
            vec![0],
            "no share, no weight"
        );
    }

    proptest! {
        #[test]
        fn what_is_set_is_what_is_read(
            green in 0_u8..=100,
            a in prop::collection::vec(0_u64..=256, 1..64),
            b in prop::collection::vec(0_u64..=256, 1..64),
        ) {
            let wanted = Weights::of_green(green);
            let (blue, green) = spread(wanted, &a, &b);
            prop_assert!(blue.iter().chain(&green).all(|weight| *weight <= HEAVIEST));
            let sums = (blue.iter().sum(), green.iter().sum());
            prop_assert_eq!(nearest(sums.0, sums.1), Some(wanted));
            prop_assert_eq!(sums.0 * u64::from(wanted.green), sums.1 * u64::from(wanted.blue), "exactly");
        }
    }
}
