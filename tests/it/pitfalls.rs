//! What must never happen to a pull: fifty statements, each from a real bug of a cache, a registry or a client.
//!
//! A test that holds one has its number in its name, `pitfall_07_…`, and stands where its subject is; those that fit nowhere
//! else are here. This file knows which numbers there are, and sees to it that each has a test.
//!
//! Integrity and commit
//!
//! 1. A blob whose bytes do not hash to its digest is never visible to a later request, and its response does not end in
//!    order.
//! 2. After `kill -9` at any point of a fill nobody gets fewer bytes than the digest stands for; what was staged is gone or
//!    taken up again.
//! 3. A body that ends before its `Content-Length` is not committed; its reader sees an error, or a whole body after all.
//! 4. A blob of unknown length is stored and served; the stored copy has a `Content-Length`.
//! 5. A `Content-Encoding` that nobody asked for is undone before anything is hashed, and its header goes no further.
//! 6. We never encode a blob, whatever the client could decode.
//! 7. A `Docker-Content-Digest` of the same algorithm that the bytes contradict leads to nothing being stored, under either
//!    name. Without the header the bytes say what they are.
//! 8. A `Docker-Content-Digest` that is no digest is an error, not an absent header.
//! 9. A manifest is no blob and a blob no manifest. A manifest has the type that the registry gave it, which its own
//!    `mediaType` must not contradict; it need not have one.
//! 10. A manifest beyond the limit is refused without being buffered; blobs have no such limit.
//! 11. A sha512 digest is verified as one.
//!
//! Tags and freshness
//!
//! 12. A tag that moved is seen no later than its freshness allows, and content that is here is served without a question.
//! 13. What is addressed by a digest has no age.
//! 14. A fresh tag costs no question, and any number of clients of one that is not cost one.
//! 15. An outage is bridged by the last manifest, marked as stale; a 404, 401 or 403 is no outage and never served over.
//! 16. A dead registry costs one question in a while, not one a pull.
//! 17. A tag belongs to its upstream and its repository; HEAD and GET of one agree.
//! 18. The registry is always asked for every manifest type, so that a client that knows few spoils nothing for others.
//! 19. A wall clock that jumps neither pins a tag nor throws everything away.
//!
//! Images of several platforms, and shared layers
//!
//! 20. Indexes and manifests keep every byte.
//! 21. The eviction of a layer that several repositories share leaves all of them able to pull, and never yields a 200 with
//!     a short body.
//! 22. What is being filled or read is not evicted, and a hit renews.
//! 23. After a crash index and files agree; a missing file is a miss.
//!
//! Concurrency and streaming
//!
//! 24. A hundred clients at once, and a hundred in the middle, cost one transfer.
//! 25. The first client leaves, and nobody notices.
//! 26. A client that reads slowly slows down nobody else, and costs no memory.
//! 27. Ranges of a cold blob are answered as those of a hit; ten open ranges that are closed early cost one transfer.
//! 28. A cut is mended by a range; an answer that is another range, or the whole, is never appended.
//! 29. Followers of a fill that failed do not all ask at once.
//! 30. The hop through us costs less than it saves. (A matter of speed: a bench has it, and no test.)
//!
//! Credentials and isolation
//!
//! 31. Credentials go to no token server but the registry's own or a listed one, and never from https to http.
//! 32. A redirect takes no credentials along, leads nobody into a network where the registry is not, and its query is told
//!     to nobody.
//! 33. A presigned address is used once, and asked for anew when it has ended.
//! 34. A token belongs to one credential and repository; a 401 costs one refresh; a wrong password is forgotten when it was
//!     corrected.
//! 35. What one client may pull, another may not by asking under another name. (For upstreams that decide by the client's
//!     own credentials.)
//! 36. A digest that is here is not served through a repository that was not proven to hold it, and HEAD tells no more than
//!     GET.
//! 37. A namespace that is not configured is not dialled, however it is written.
//! 38. No secret is ever said: in no log, no metric, no error.
//! 39. Names that mean mischief are refused, and unusual ones are names.
//! 40. What one registry does not have is not looked for at another.
//!
//! Errors and limits
//!
//! 41. A rate limit becomes a 503 that says when, and is not tried before its time.
//! 42. Each cause has its status; an outage is never a 404.
//! 43. A full or broken disk costs no client its pull.
//! 44. Registries with quirks are pulled from.
//! 45. A list has pages that lead back to us; too large a page is a large one; an outage is bridged by the last list, marked
//!     as stale.
//! 46. What was pulled is served after a start without any upstream.
//! 47. What was not there is remembered for seconds only, and forgotten by a purge.
//! 48. A broken configuration changes nothing, and says so.
//! 49. Memory is a matter of streams and not of bytes.
//! 50. A stop lets responses end, keeps what was staged, and is told first.

use std::collections::BTreeSet;
use std::fs;

use futures_util::future::join_all;

use crate::harness::proxy::{ONE, TWO};
use crate::harness::{APP, At, Blob, FakeRegistry, Fault, Image, KIB, TestProxy, any, head, pair};
use crate::tidy::sources;

/// The statements that no test can hold today; why stands beside them.
const UNTESTED: [u32; 1] = [30];

#[test]
fn each_statement_has_a_test_that_is_named_after_it() {
    let stated: BTreeSet<u32> = include_str!("pitfalls.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//! ")?.split_once(". ")?.0.parse().ok())
        .collect();
    assert_eq!(stated, (1..=50).collect());

    let mut held = BTreeSet::new();
    for file in sources("tests".as_ref())
        .into_iter()
        .chain(sources("src".as_ref()))
    {
        let text = fs::read_to_string(file).unwrap();
        let named = text.lines().filter_map(|line| line.split_once("fn "));
        for (_, name) in named {
            let numbers = name.split("pitfall_").skip(1);
            held.extend(numbers.filter_map(|it| it.get(..2)?.parse::<u32>().ok()));
        }
    }
    let expected = stated.into_iter().filter(|it| !UNTESTED.contains(it));
    assert_eq!(held, expected.collect());
}

#[tokio::test]
async fn pitfall_14_a_tag_that_is_no_longer_fresh_costs_one_check_for_all_who_ask() {
    let upstream = FakeRegistry::start().await;
    upstream.serve_image(APP, "v1", &Image::random(&[KIB]));
    let proxy = TestProxy::in_front_of(&upstream)
        .set("freshness.fresh_for", "1ms")
        .start()
        .await;
    proxy.pull_manifest(APP, "v1").await;
    let heads = upstream.count(&head("/v1"));

    let gate = upstream.hold(head("/v1"), At::Head);
    let request = proxy.head(format!("/v2/{APP}/manifests/v1"));
    let clients = join_all((0..60).map(|_| request.dispatch())).await;
    proxy
        .wait_for_metric("layerhold_connections", &[], |n| n >= 60.0)
        .await;
    // Whoever was accepted before these is being answered after them.
    for _ in 0..3 {
        proxy.get("/v2/").whole().await.is(200, b"{}");
    }
    gate.open();
    for client in clients {
        assert_eq!(client.head("HEAD").await.whole().await.head.status, 200);
    }
    assert_eq!(upstream.count(&head("/v1")) - heads, 1);
}

#[tokio::test]
async fn pitfall_40_what_one_registry_lacks_or_keeps_is_not_looked_for_at_another() {
    let (one, two) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let (image, blob) = (Image::random(&[KIB]), Blob::random(KIB));
    two.serve_image(APP, "v1", &image);
    two.serve_blob(APP, &blob);
    let proxy = TestProxy::in_front_of(&one)
        .set("freshness.negative_for", "0s")
        .and(TWO, &two)
        .start()
        .await;
    let targets = [
        format!("/v2/{APP}/manifests/v1"),
        format!("/v2/{APP}/manifests/{}", image.manifest.digest()),
        format!("/v2/{APP}/blobs/{}", blob.digest()),
        format!("/v2/{APP}/tags/list"),
    ];
    let ask = async |status: u16| {
        for target in &targets {
            for place in ["".to_owned(), format!("?ns={ONE}")] {
                let whole = proxy.get(format!("{target}{place}")).whole().await;
                assert_eq!(whole.head.status, status, "{target}{place}");
            }
        }
    };
    ask(404).await;
    one.always(any(""), Fault::Status(403));
    let private = format!("/v2/{APP}/manifests/v2");
    assert_eq!(proxy.get(private).whole().await.head.status, 403);
    one.stop().await;
    ask(502).await;
    assert!(two.log().is_empty(), "{:#?}", two.log());
}

#[tokio::test]
async fn pitfall_45_an_outage_is_bridged_by_the_last_list() {
    let (upstream, proxy) = pair().await;
    upstream.serve_image(APP, "v1", &Image::random(&[KIB]));
    let list = || async { proxy.get(format!("/v2/{APP}/tags/list")).whole().await };
    let first = list().await;
    assert_eq!(first.head.status, 200);

    upstream.always(any("tags/list"), Fault::Status(500));
    let stale = list().await;
    assert_eq!(stale.bytes, first.bytes);
    let status = "layerhold; fwd=stale; detail=upstream-unavailable";
    assert_eq!(stale.head.cache_status(), status);
    let other = proxy.get(format!("/v2/{APP}/tags/list?n=1")).whole().await;
    assert_eq!(other.head.status, 502);
    // What the registry itself says is no outage.
    for status in [401, 403, 404] {
        upstream.always(any("tags/list"), Fault::Status(status));
        assert_eq!(list().await.head.status, status);
    }

    upstream.heal();
    assert_eq!(list().await.head.cache_status(), "layerhold; fwd=miss");
}
