//! Whoever runs it: purges, reloads, stops, kills.

use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use crate::Run;
use crate::damage;
use crate::harness::Binary;
use crate::journal::OPERATOR;
use crate::watch;

/// Works until the time is up; processes end only within `restless`, so that the last one sees a lot.
pub(crate) async fn work(run: &Run, restless: Duration) {
    let mut choices = run.choices(20);
    let began = Instant::now();
    while !run.is_over() {
        let pause = Duration::from_millis(choices.random_range(100..1500));
        run.pause(pause).await;
        if run.is_over() {
            break;
        }
        let can_end = began.elapsed() < restless;
        let now = Instant::now();
        let what = match choices.random_range(0..100) {
            0..45 => purge(run, &mut choices).await,
            45..52 => damage::while_it_is_served(run, &mut choices),
            52..60 => damage::check_while_it_serves(run).await,
            60..72 => {
                let n = choices.random_range(0..2);
                run.fleet.reload(Some(n)).await;
                format!("reload of configuration {n}")
            }
            72..77 => {
                run.fleet.reload(None).await;
                // What is read by then is the broken file, or nothing of it.
                run.pause(Duration::from_millis(300)).await;
                run.fleet.repair();
                "reload of nonsense".to_owned()
            }
            77..89 if can_end => {
                watch::counted_no_more_than_was_asked(run).await;
                let status = run.fleet.succeed().await;
                if !status.success() {
                    let wrong = format!("exited with {status}");
                    run.journal.violation(run, OPERATOR, &wrong);
                }
                "stop, with a successor".to_owned()
            }
            89..100 if can_end => {
                watch::counted_no_more_than_was_asked(run).await;
                let meanwhile = damage::while_nobody_looks(run, &mut choices);
                format!("kill; {}", run.fleet.kill(meanwhile).await)
            }
            _ => continue,
        };
        run.journal.note(OPERATOR, now, what);
    }
}

/// Has a tag, a repository or a digest forgotten, by the command.
async fn purge(run: &Run, choices: &mut SmallRng) -> String {
    let world = &run.world;
    let n = choices.random_range(0..world.repositories.len());
    let repository = &world.repositories[n];
    let name = format!("{}/{}", repository.namespace(), repository.name);
    let (reference, forgotten) = match choices.random_range(0..10) {
        0..4 => {
            let tag = &repository.tags[choices.random_range(0..repository.tags.len())];
            (format!("{name}:{tag}"), Some(Some(tag.as_str())))
        }
        4..6 => (name, Some(None)),
        _ => {
            let blob = &world.blobs[choices.random_range(0..world.blobs.len())];
            (blob.digest().to_owned(), None)
        }
    };
    let admin = run.fleet.current().await.front.admin.to_string();
    let began = Instant::now();
    let (code, out, err) = Binary::command(&["purge", "--admin", &admin, &reference]).await;
    // Nobody else ends processes meanwhile.
    if code != Some(0) {
        let wrong = format!("purge of {reference}: {code:?} {out}{err}");
        run.journal.violation(run, OPERATOR, &wrong);
        return wrong;
    }
    if let Some(tag) = forgotten {
        world.purged(n, tag);
    }
    format!(
        "purge of {reference} in {:?}: {}",
        began.elapsed(),
        out.trim()
    )
}
