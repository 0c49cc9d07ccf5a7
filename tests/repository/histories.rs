//! Random histories of volumes and their backups: every restore is what was backed up, and restic agrees.

use holdfast::model::Backup;
use holdfast::repository::Prune;
use proptest::prelude::{Just, Strategy, any};
use proptest::sample::Index;
use proptest::test_runner::{Config, RngSeed};
use proptest::{prop_assert, prop_assert_eq, prop_oneof, proptest};

use crate::world::{Cut, Disk, World, progress};

const MIB: usize = 1 << 20;

/// Volumes that share what is equal in them.
const VOLUMES: usize = 2;

/// No volume grows beyond this.
const LARGEST: usize = 24 * MIB;

#[derive(Debug, Clone)]
enum Step {
    Write { volume: usize, at: Index, length: usize, seed: u64 },
    Discard { volume: usize, at: Index, length: usize },
    Grow { volume: usize, bytes: usize },
    BackUp { volume: usize, base: Base },
    Restore(Index),
    Remove(Index),
    Prune(Prune),
}

#[derive(Debug, Clone)]
enum Base {
    None,
    Newest,
    /// Any of the volume, removed or not.
    Any(Index),
}

fn step() -> impl Strategy<Value = Step> {
    let volume = || 0..VOLUMES;
    let base = prop_oneof![
        1 => Just(Base::None),
        3 => Just(Base::Newest),
        2 => any::<Index>().prop_map(Base::Any),
    ];
    // A few seeds only, so that the same content comes again.
    let write = (volume(), any::<Index>(), 1..3 * MIB, 1..4_u64);
    let discard = (volume(), any::<Index>(), 1..6 * MIB);
    let how = prop_oneof![Just(Prune::Plan), Just(Prune::Mark), Just(Prune::Now)];
    prop_oneof![
        4 => write.prop_map(|(volume, at, length, seed)| Step::Write { volume, at, length, seed }),
        2 => discard.prop_map(|(volume, at, length)| Step::Discard { volume, at, length }),
        1 => (volume(), 1..5 * MIB).prop_map(|(volume, bytes)| Step::Grow { volume, bytes }),
        5 => (volume(), base).prop_map(|(volume, base)| Step::BackUp { volume, base }),
        2 => any::<Index>().prop_map(Step::Restore),
        2 => any::<Index>().prop_map(Step::Remove),
        1 => how.prop_map(Step::Prune),
    ]
}

/// A campaign of a few cases, or of as many as the soak wants.
fn campaign() -> Config {
    let cases = std::env::var("HOLDFAST_SOAK_BACKUPS").map_or(4, |text| text.parse().unwrap());
    let seed = std::env::var("HOLDFAST_SOAK_SEED").map_or(7, |text| text.parse::<u8>().unwrap());
    Config {
        cases,
        rng_seed: RngSeed::Fixed(seed.into()),
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    }
}

/// What the repository should have.
struct Model {
    world: World,
    disks: Vec<Disk>,
    /// With those that were removed.
    made: Vec<(usize, Backup, Cut)>,
    removed: Vec<bool>,
}

impl Model {
    fn new() -> Self {
        let disks = (0..VOLUMES).map(|i| Disk::new(1 + i as u128, (5 + i) * MIB + 4096 * i));
        Self { world: World::new(), disks: disks.collect(), made: vec![], removed: vec![] }
    }

    fn there(&self) -> Vec<usize> {
        (0..self.made.len()).filter(|i| !self.removed[*i]).collect()
    }

    fn range(&self, volume: usize, at: &Index, length: usize) -> std::ops::Range<usize> {
        let size = self.disks[volume].content.len();
        let start = at.index(size);
        start..(start + length).min(size)
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Write { volume, at, length, seed } => {
                let range = self.range(*volume, at, *length);
                self.disks[*volume].fill(range, *seed);
            }
            Step::Discard { volume, at, length } => {
                let range = self.range(*volume, at, *length);
                self.disks[*volume].content[range].fill(0);
            }
            Step::Grow { volume, bytes } => {
                let content = &mut self.disks[*volume].content;
                let size = (content.len() + bytes).min(LARGEST) / 4096 * 4096;
                content.resize(size.max(content.len()), 0);
            }
            Step::BackUp { volume, base } => self.back_up(*volume, base),
            Step::Restore(which) => {
                let there = self.there();
                if !there.is_empty() {
                    self.assert_restores(*which.get(&there));
                }
            }
            Step::Remove(which) => {
                let there = self.there();
                if !there.is_empty() {
                    let i = *which.get(&there);
                    self.world.repository.remove(self.made[i].1.id).unwrap();
                    self.removed[i] = true;
                }
            }
            Step::Prune(how) => {
                self.world.repository.prune(*how, &progress()).unwrap();
            }
        }
    }

    fn back_up(&mut self, volume: usize, base: &Base) {
        let cut = self.disks[volume].cut();
        let of_volume: Vec<usize> =
            (0..self.made.len()).filter(|i| self.made[*i].0 == volume).collect();
        let base = match base {
            _ if of_volume.is_empty() => None,
            Base::None => None,
            Base::Newest => of_volume.last(),
            Base::Any(which) => Some(which.get(&of_volume)),
        };
        let base = base.map(|i| (&self.made[*i].1, &self.made[*i].2));
        let stored = self.world.repository.back_up_image(&cut.job(base), &progress()).unwrap();
        self.made.push((volume, stored.backup, cut));
        self.removed.push(false);
    }

    fn assert_restores(&self, i: usize) {
        let (_, backup, cut) = &self.made[i];
        assert!(
            self.world.restored(backup) == cut.content,
            "backup {i} is not what it was made of"
        );
    }
}

proptest! {
    #![proptest_config(campaign())]

    #[test]
    fn random_histories_of_backups(steps in proptest::collection::vec(step(), 10..30)) {
        let mut model = Model::new();
        for step in &steps {
            model.take(step);
        }
        let there = model.there();
        for i in &there {
            model.assert_restores(*i);
        }
        let backups = model.world.repository.backups().unwrap();
        prop_assert_eq!(backups.len(), there.len());
        prop_assert!(there.iter().all(|i| backups.iter().any(|one| one.id == model.made[*i].1.id)));
        model.world.assert_sound();
        if let Some(last) = there.last() {
            let (_, backup, cut) = &model.made[*last];
            prop_assert!(model.world.restored_by_restic(backup.id) == cut.content);
        }
    }
}
