//! Header names that registries have of their own.

use http::HeaderName;

/// The digest of what an answer is about (distribution-spec, "Pulling manifests").
pub const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// `registry/2.0`, by which older clients know a registry.
pub const DOCKER_DISTRIBUTION_API_VERSION: HeaderName =
    HeaderName::from_static("docker-distribution-api-version");
/// The filters that a list of referrers went through (distribution-spec, "Listing Referrers").
pub const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
/// The namespace that was used (distribution-spec, "Registry Proxying").
pub const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
