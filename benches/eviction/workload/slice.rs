//! A recorded trace: lines of `v2`, `v2/<owner>/<name>/manifests/<reference>` and `v2/<owner>/<name>/blobs/<digest>`, names
//! and digests as any hexadecimal digits. It has no sizes.

use std::collections::HashMap;
use std::io::BufRead;

use super::{BlobRequest, Request, Workload};

pub(crate) fn read(trace: impl BufRead) -> Workload {
    let (mut manifests, mut urls) = (Numbers::default(), Numbers::default());
    let (mut numbers, mut digests) = (Numbers::default(), Vec::new());
    let request = |line: String| {
        if let Some((_, digest)) = line.rsplit_once("/blobs/") {
            let number = numbers.of(digest);
            if number as usize == digests.len() {
                digests.push(u64::from_str_radix(digest, 16).unwrap());
            }
            let url = urls.of(&line);
            return Request::Blob(BlobRequest {
                digest: number,
                url,
            });
        }
        if line.contains("/manifests/") {
            return Request::Manifest(manifests.of(&line));
        }
        Request::Ping
    };
    let lines = trace.lines().map(|line| line.unwrap());
    let requests = lines.map(request).collect();
    Workload {
        name: "the recorded trace".to_owned(),
        requests,
        digests,
    }
}

/// Names, numbered as they come.
#[derive(Default)]
struct Numbers(HashMap<String, u32>);

impl Numbers {
    fn of(&mut self, name: &str) -> u32 {
        let next = u32::try_from(self.0.len()).unwrap();
        *self.0.entry(name.to_owned()).or_insert(next)
    }
}
