//! Trouble at the registries and the mirror, and tags that move.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use crate::Run;
use crate::harness::{Fault, KIB, MIB, any};
use crate::trouble::{Place, Target};
use crate::world::World;

/// Trouble at one place, for a while, again and again.
pub(crate) async fn at_place(run: Arc<Run>, n: u64) {
    let places = [Place::Registry(0), Place::Registry(1), Place::Mirror];
    let place = places[usize::try_from(n).unwrap()];
    let mut choices = run.choices(n);
    while !run.is_over() {
        let calm = Duration::from_millis(choices.random_range(1000..9000));
        run.pause(calm).await;
        if run.is_over() {
            break;
        }
        let (fault, target) = some(&run.world, &mut choices);
        let length = Duration::from_millis(choices.random_range(200..2500));
        let fake = run.world.at(place);
        let part = match &target {
            Target::Everything => "",
            Target::Blobs => "/blobs/",
            Target::Manifests => "/manifests/",
            Target::Digest(digest) => digest,
        };
        let began = run.world.troubles().begin(place, fault, target.clone());
        match fault {
            Some(fault) => fake.always(any(part), fault),
            None => fake.stop().await,
        }
        run.pause(length).await;
        match fault {
            Some(_) => fake.heal(),
            None => fake.restart(),
        }
        run.world.troubles().end(began);
    }
}

/// Tags that move, vanish and come back.
pub(crate) async fn of_tags(run: Arc<Run>) {
    let mut choices = run.choices(10);
    while !run.is_over() {
        let repository = choices.random_range(0..run.world.repositories.len());
        let it = &run.world.repositories[repository];
        let tag = &it.tags[choices.random_range(0..it.tags.len())];
        let is_there = run.world.meaning(repository, tag).is_some();
        let gone = is_there && choices.random_bool(0.15);
        let to = (!gone).then(|| choices.random_range(0..it.manifests.len()));
        let began = Instant::now();
        run.world.point(repository, tag, to);
        let what = to.map_or("gone", |n| it.manifests[n].digest());
        let object = format!("{}:{tag}", it.name);
        run.journal.note(&object, began, format!("now {what}"));
        let pause = Duration::from_millis(choices.random_range(10..400));
        run.pause(pause).await;
    }
}

/// What goes wrong next, and for what. Lies are about one digest, since they are held against it for half a minute.
fn some(world: &World, choices: &mut SmallRng) -> (Option<Fault>, Target) {
    let at = choices.random_range(0..MIB);
    let early = choices.random_range(0..KIB);
    let fault = match choices.random_range(0..24) {
        0 | 1 => None,
        2 => Some(Fault::Status(500)),
        3 => Some(Fault::Status(503)),
        4 | 5 => Some(Fault::Status(404)),
        6 | 7 => Some(Fault::RateLimit(1)),
        8 => Some(Fault::Refuse),
        9 => Some(Fault::Silence),
        10 | 11 => Some(Fault::CutAfter(at)),
        12 => Some(Fault::CutUnmeasured(at)),
        13 | 14 => Some(Fault::StallAfter(at)),
        15 => return (Some(Fault::LongLength), one(world, choices)),
        16 => Some(Fault::WrongRange),
        17 => Some(Fault::Html200),
        18 => Some(Fault::NoLength),
        19 => Some(Fault::NoRange),
        20 => Some(Fault::Gzip),
        21 => Some(Fault::NoDigestHeader),
        22 => return (Some(Fault::Corrupt(early)), one(world, choices)),
        _ => return (Some(Fault::ShortLength), one(world, choices)),
    };
    let target = match choices.random_range(0..4) {
        0 if fault.is_some() => Target::Blobs,
        1 if fault.is_some() => Target::Manifests,
        _ => Target::Everything,
    };
    (fault, target)
}

/// One blob or manifest.
fn one(world: &World, choices: &mut SmallRng) -> Target {
    let n = choices.random_range(0..world.blobs.len());
    let digest = if choices.random_bool(0.7) {
        world.blobs[n].digest()
    } else {
        let repository = &world.repositories[n % world.repositories.len()];
        repository.manifests[n % repository.manifests.len()].digest()
    };
    Target::Digest(digest.to_owned())
}
