//! Who we are in some repositories of a registry, and that nobody there is taken for somebody else.

use toml::{Table, Value};

use crate::harness::token::basic;
use crate::harness::{
    Blob, FakeRegistry, HelperScript, KIB, PasswordFile, ProxyBuilder, TestProxy, TokenServer, any,
};

/// Who we are in a folder: its name is the user's, and the password is in a file.
fn by_file(folder: &str, file: &PasswordFile) -> Value {
    let keys = [
        ("repositories", folder.to_owned()),
        ("username", user(folder)),
        ("password_file", file.path()),
    ];
    table(&keys)
}

fn table(keys: &[(&str, String)]) -> Value {
    let pairs = keys.iter().cloned();
    let table: Table = pairs
        .map(|(key, value)| (key.to_owned(), value.into()))
        .collect();
    table.into()
}

fn user(folder: &str) -> String {
    folder.replace('/', "-")
}

/// What the user of a folder shows.
fn shows(folder: &str) -> String {
    basic(&user(folder), &password(folder))
}

fn password(folder: &str) -> String {
    format!("s3cr3t-of-{folder}")
}

/// The folders that somebody else is for, the outer ones first.
const FOLDERS: [&str; 3] = ["org", "org/team", "other/team/app"];

/// Repositories, and the folder whose user is for them.
const REPOSITORIES: [(&str, &str); 8] = [
    ("org", "org"),
    ("org/teamwork", "org"),
    ("org/team", "org/team"),
    ("org/team/app/x", "org/team"),
    ("other/team/app", "other/team/app"),
    ("other/team/app2", ""),
    ("other/team", ""),
    ("team/org", ""),
];

fn files() -> Vec<(&'static str, PasswordFile)> {
    let file = |folder| (folder, PasswordFile::new(&password(folder)));
    FOLDERS.into_iter().map(file).collect()
}

fn brief(upstream: &FakeRegistry) -> ProxyBuilder {
    TestProxy::in_front_of(upstream)
        .set("freshness.fresh_for", "0s")
        .set("freshness.negative_for", "0s")
        .set("freshness.retry_after", "1m")
        .set("timeouts.first_byte", "2s")
}

fn credentials(files: &[(&str, PasswordFile)]) -> Vec<Value> {
    files
        .iter()
        .map(|(folder, file)| by_file(folder, file))
        .collect()
}

/// Pulls something new from a repository: the status.
async fn pull(upstream: &FakeRegistry, proxy: &TestProxy, repository: &str) -> u16 {
    let blob = Blob::random(KIB);
    upstream.serve_blob(repository, &blob);
    let whole = proxy.blob(repository, blob.digest()).whole().await;
    assert!(!whole.text().contains("s3cr3t"), "{}", whole.text());
    whole.head.status
}

/// Lets in everybody, by their own passwords.
fn unlock(server: &FakeRegistry) {
    server.lock("rest", "s3cr3t-of-rest");
    for folder in FOLDERS {
        server.lock_too(&user(folder), &password(folder));
    }
}

#[tokio::test]
async fn pitfall_34_in_each_folder_of_repositories_we_are_who_the_longest_prefix_says() {
    let (upstream, files) = (FakeRegistry::start().await, files());
    let rest = PasswordFile::new("s3cr3t-of-rest");
    unlock(&upstream);
    let proxy = brief(&upstream)
        .upstream("username", "rest")
        .upstream("password_file", rest.path())
        .upstream("credential", credentials(&files))
        .start()
        .await;
    for (repository, folder) in REPOSITORIES {
        for _ in 0..2 {
            let status = pull(&upstream, &proxy, repository).await;
            assert_eq!(status, 200, "{repository}");
        }
        let expected = if folder.is_empty() {
            basic("rest", "s3cr3t-of-rest")
        } else {
            shows(folder)
        };
        let seen = upstream.seen(&any(format!("/v2/{repository}/blobs/")));
        let shown = seen.iter().filter_map(|it| it.header("authorization"));
        let shown: Vec<_> = shown.collect();
        assert!(shown.len() >= 2, "{repository}: {shown:?}");
        assert!(
            shown.iter().all(|it| *it == expected),
            "{repository}: {shown:?}"
        );
    }
}

#[tokio::test]
async fn pitfall_34_two_credentials_on_one_host_never_share_a_token() {
    let (tokens, upstream) = (TokenServer::start().await, FakeRegistry::start().await);
    let files = files();
    upstream.require_token(&tokens);
    unlock(&tokens);
    let proxy = brief(&upstream).upstream("credential", credentials(&files));
    let proxy = proxy.start().await;
    // In turn, so that one who took the other's place would be found out.
    for _ in 0..3 {
        for (repository, folder) in REPOSITORIES {
            // Whoever is nobody shows nothing, and gets nothing here.
            let expected = if folder.is_empty() { 401 } else { 200 };
            let status = pull(&upstream, &proxy, repository).await;
            assert_eq!(status, expected, "{repository}");
        }
    }
    let mut exchanges = 0;
    for (repository, folder) in REPOSITORIES {
        let scope = format!("repository%3A{}%3Apull", repository.replace('/', "%2F"));
        let log = tokens.log();
        let mut about = log.iter().filter(|it| {
            let mut pairs = it.query.as_deref().unwrap_or_default().split('&');
            pairs.any(|it| it == format!("scope={scope}"))
        });
        if folder.is_empty() {
            assert!(about.all(|it| it.header("authorization").is_none()));
            continue;
        }
        let shown: Vec<_> = about.map(|it| it.header("authorization")).collect();
        assert_eq!(shown, [Some(&*shows(folder))], "{repository}");
        exchanges += 1;
    }
    assert_eq!(exchanges, 5);
}

#[tokio::test]
async fn pitfall_34_a_refusal_in_one_folder_is_none_in_another_and_a_rotation_heals_it() {
    let (tokens, plain) = (TokenServer::start().await, FakeRegistry::start().await);
    let guarded = FakeRegistry::start().await;
    guarded.require_token(&tokens);
    for upstream in [&plain, &guarded] {
        let files = files();
        unlock(&plain);
        unlock(&tokens);
        let [(_, org), (_, team), _] = &files[..] else {
            panic!("not three");
        };
        team.write("s3cr3t-that-is-wrong");
        let proxy = brief(upstream).upstream("credential", credentials(&files));
        let proxy = proxy.start().await;
        for _ in 0..2 {
            assert_eq!(pull(upstream, &proxy, "org/team/app").await, 401);
            assert_eq!(pull(upstream, &proxy, "org/app").await, 200);
        }
        // What was refused is not shown again until it changes.
        let server = if std::ptr::eq(upstream, &raw const guarded) {
            &*tokens
        } else {
            upstream
        };
        let wrong = basic("org-team", "s3cr3t-that-is-wrong");
        let shown = |wanted: &str| {
            let log = server.log();
            log.iter()
                .filter(|it| it.header("authorization") == Some(wanted))
                .count()
        };
        assert_eq!(shown(&wrong), 1);
        team.write(&password("org/team"));
        assert_eq!(pull(upstream, &proxy, "org/team/app").await, 200);
        // And one that was right, and then changed at the registry and here.
        plain.lock("org", "s3cr3t-that-is-new");
        tokens.lock("org", "s3cr3t-that-is-new");
        tokens.expire();
        org.write("s3cr3t-that-is-new");
        assert_eq!(pull(upstream, &proxy, "org/app").await, 200);
    }
}

#[tokio::test]
async fn a_helper_of_a_folder_is_asked_for_that_folder_and_once_more_when_its_word_was_refused() {
    let upstream = FakeRegistry::start().await;
    upstream.lock("org", "s3cr3t-of-org");
    let (old, new) = ["s3cr3t-of-old", "s3cr3t-of-org"]
        .map(|it| crate::harness::secret::says("org", it))
        .into();
    let script = format!("if [ \"$(wc -l < runs)\" -eq 1 ]; then {old}; else {new}; fi");
    let helper = HelperScript::new(&script);
    let keys = [
        ("repositories", "org".to_owned()),
        ("credential_helper", helper.path()),
    ];
    let proxy = brief(&upstream).upstream("credential", vec![table(&keys)]);
    let proxy = proxy.start().await;
    assert_eq!(pull(&upstream, &proxy, "elsewhere/app").await, 401);
    assert_eq!(helper.runs(), 0);
    for _ in 0..2 {
        assert_eq!(pull(&upstream, &proxy, "org/app").await, 200);
    }
    assert_eq!(helper.runs(), 2);
    for seen in upstream.seen(&any("/v2/elsewhere/")) {
        assert_eq!(seen.header("authorization"), None);
    }
}

#[tokio::test]
async fn a_mirrors_folders_are_named_without_the_path_before_them() {
    let (upstream, mirror) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let files = files();
    unlock(&mirror);
    let keys = [("credential", Value::Array(credentials(&files)))];
    let proxy = brief(&upstream).mirror_with(&mirror, "/hub", &keys);
    let proxy = proxy.start().await;
    for (repository, folder) in REPOSITORIES {
        let blob = Blob::random(KIB);
        mirror.serve_blob(&format!("hub/{repository}"), &blob);
        upstream.serve_blob(repository, &blob);
        proxy.pull_blob(repository, &blob).await;
        let seen = mirror.seen(&any(format!("/v2/hub/{repository}/blobs/")));
        let shown = seen.last().and_then(|it| it.header("authorization"));
        let expected = (!folder.is_empty()).then(|| shows(folder));
        assert_eq!(shown, expected.as_deref(), "{repository}");
        let asked = upstream.count(&any(format!("/v2/{repository}/blobs/")));
        assert_eq!(asked, usize::from(folder.is_empty()), "{repository}");
    }
}

#[tokio::test]
async fn an_official_image_of_docker_hub_is_in_the_folder_of_those() {
    let (upstream, file) = (
        FakeRegistry::start().await,
        PasswordFile::new("s3cr3t-of-library"),
    );
    upstream.lock("library", "s3cr3t-of-library");
    let proxy = TestProxy::in_front_of_named("docker.io", &upstream)
        .upstream("credential", vec![by_file("library", &file)])
        .start()
        .await;
    let blob = Blob::random(KIB);
    upstream.serve_blob("library/debian", &blob);
    proxy.pull_blob("debian", &blob).await;
}
