//! What has to stay free, so that whatever is told of can start.

use std::collections::BTreeMap;

use super::Amount;

/// What one execution of each queue takes, with the greatest of it at hand.
#[derive(Debug, Default)]
pub(super) struct Largest {
    cpu_millicores: BTreeMap<u64, usize>,
    memory_mb: BTreeMap<u64, usize>,
}

impl Largest {
    pub(super) fn add(&mut self, each: Amount) {
        for (of, size) in [(&mut self.cpu_millicores, each.cpu_millicores), (&mut self.memory_mb, each.memory_mb)] {
            *of.entry(size).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, each: Amount) {
        for (of, size) in [(&mut self.cpu_millicores, each.cpu_millicores), (&mut self.memory_mb, each.memory_mb)] {
            if let Some(count) = of.get_mut(&size) {
                *count -= 1;
                if *count == 0 {
                    of.remove(&size);
                }
            }
        }
    }

    /// In each dimension the greatest, and no more than half of the node: a larger one would leave idle queues no turn. Of
    /// slots there is a reserve of its own.
    pub(super) fn within(&self, total: Amount) -> Amount {
        let greatest = |of: &BTreeMap<u64, usize>| of.last_key_value().map_or(0, |(size, _)| *size);
        let half = total.over(2);
        Amount {
            tasks: 0,
            cpu_millicores: greatest(&self.cpu_millicores).min(half.cpu_millicores),
            memory_mb: greatest(&self.memory_mb).min(half.memory_mb),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_of_those_that_are_there_counts_and_half_of_the_node_at_most() {
        let total = Amount { tasks: 8, cpu_millicores: 1_000, memory_mb: 1_000 };
        let of = |cpu_millicores, memory_mb| Amount { tasks: 1, cpu_millicores, memory_mb };
        let mut largest = Largest::default();
        assert_eq!(largest.within(total), Amount::default());
        for each in [of(100, 300), of(400, 20), of(400, 20), of(50, 900)] {
            largest.add(each);
        }
        assert_eq!(largest.within(total), Amount { tasks: 0, cpu_millicores: 400, memory_mb: 500 });
        largest.remove(of(50, 900));
        largest.remove(of(400, 20));
        assert_eq!(largest.within(total), Amount { tasks: 0, cpu_millicores: 400, memory_mb: 300 });
        largest.remove(of(400, 20));
        assert_eq!(largest.within(total), Amount { tasks: 0, cpu_millicores: 100, memory_mb: 300 });
    }
}
