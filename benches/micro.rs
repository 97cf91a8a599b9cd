//! Single steps of a hit, by how many instructions they take: a verdict that is the same on every machine of a kind, however
//! busy it is.
//!
//! Each step is run by this program under valgrind's callgrind, some times and some times more; the difference, by how many
//! times more, is the step's. Without valgrind each step is run once, and that is said.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![expect(clippy::print_stdout, reason = "a bench reports on stdout")]

use std::hint::black_box;
use std::process::Command;

use bytes::Bytes;
use clap::Parser;
use http::HeaderMap;
use layerhold::cache::{Cache, Config, Grant, Metrics, Repository, Share};
use layerhold::net::RangeSet;
use layerhold::oci::{Algorithm, Digest, EndpointPath, MediaType, Namespace, RepositoryName};
use layerhold::proxy::{Body, Content, Outcome};
use layerhold::server::bench_response;

/// What is run.
#[derive(Parser)]
struct Args {
    /// Few times: a smoke test
    #[arg(long)]
    short: bool,

    /// Run one step and tell nothing, as each is run under valgrind
    #[arg(long, requires = "times", hide = true)]
    step: Option<String>,

    /// How many times
    #[arg(long, hide = true)]
    times: Option<u64>,

    /// What cargo says to each bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    if let (Some(name), Some(times)) = (&args.step, args.times) {
        let (_, step) = STEPS.iter().find(|(it, _)| it == name).unwrap();
        return step(times);
    }
    let is_counting = Command::new("valgrind").arg("--version").output().is_ok();
    if !is_counting {
        println!("valgrind is not installed: each step is run, and no instruction is counted");
    }
    println!("{:<44}instructions", "step");
    for (name, step) in STEPS {
        if is_counting {
            let times = if args.short { 20 } else { 2000 };
            let each = (counted(name, 10 + times) - counted(name, 10)) / times;
            println!("{name:<44}{each}");
        } else {
            step(1);
            println!("{name:<44}-");
        }
    }
}

/// Instructions of a run of this program with so many times of a step.
fn counted(step: &str, times: u64) -> u64 {
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(["--step", step, "--times", &times.to_string()])
        .output()
        .unwrap();
    let told = String::from_utf8(run.stderr).unwrap();
    assert!(run.status.success(), "{told}");
    let mut lines = told.lines();
    let line = lines.find_map(|it| it.split_once("Collected : "));
    line.unwrap().1.trim().parse().unwrap()
}

type Step = fn(times: u64);

const STEPS: [(&str, Step); 6] = [
    ("path of a manifest by digest", |times| {
        parse(times, &format!("/v2/{NAME}/manifests/{DIGEST}"));
    }),
    ("path of a manifest by tag", |times| {
        parse(times, &format!("/v2/{NAME}/manifests/1.27-alpine"));
    }),
    ("path of a blob", |times| {
        parse(times, &format!("/v2/{NAME}/blobs/{DIGEST}"));
    }),
    ("grant of a manifest, in memory", look_up),
    ("range, parsed and resolved", |times| {
        for _ in 0..times {
            let ranges = RangeSet::parse(black_box("bytes=1048576-2097151")).unwrap();
            black_box(ranges.resolve(1 << 30));
        }
    }),
    ("head of a manifest from memory", render),
];

fn parse(times: u64, path: &str) {
    for _ in 0..times {
        let path = EndpointPath::split(black_box(path)).unwrap();
        black_box(path.endpoint().unwrap());
    }
}

fn look_up(times: u64) {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        dir: dir.path().join("cache"),
        size: Some(1 << 30),
        free_space_min: Share::Bytes(0),
        high_watermark: Share::Percent(100.0),
        low_watermark: Share::Percent(100.0),
        repositories_max: 1000,
        scrub_rate: 0,
        fills_max: 1,
        faults: Default::default(),
    };
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let cache = Cache::open(&config, metrics).unwrap();
    let repository = Repository {
        namespace: Namespace::parse("bench.example").unwrap(),
        name: RepositoryName::parse(NAME).unwrap(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    // As many as a repository has in use.
    for n in 0..100_u32 {
        let digest = Digest::of(Algorithm::Sha256, &n.to_be_bytes());
        let asked = cache.purges().now();
        let grant = cache.grant(&repository, &digest, Grant::Manifest(manifest()), asked);
        assert!(runtime.block_on(grant));
    }
    let digest = Digest::of(Algorithm::Sha256, &17_u32.to_be_bytes());
    for _ in 0..times {
        let granted = cache.granted_in_memory(black_box(&repository), black_box(&digest));
        assert!(granted.unwrap().manifest.is_some());
    }
}

fn render(times: u64) {
    let (bytes, headers) = (Bytes::from(vec![b' '; 4096]), HeaderMap::new());
    let digest = Digest::parse(DIGEST).unwrap();
    let media_type = manifest();
    for _ in 0..times {
        let content = Content {
            digest,
            media_type: Some(media_type.clone()),
            size: Some(bytes.len() as u64),
            outcome: Outcome::Hit,
            body: Body::Memory(bytes.clone()),
        };
        assert!(bench_response(black_box(content), &headers) > 0);
    }
}

fn manifest() -> MediaType {
    MediaType::parse("application/vnd.oci.image.manifest.v1+json").unwrap()
}

const NAME: &str = "library/nginx";
const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
