//! Opens the storage service of a location.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, Checksum};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::secret::SecretSource;
use crate::error::{Error, Result};

/// What S3 wants to know besides the bucket. What is not given is taken from the usual `AWS_*` variables,
/// and the credentials at last from the instance.
#[derive(Debug, Clone, Default)]
pub struct S3Settings {
    /// The bucket's region.
    pub region: Option<String>,
    /// The public half of the key.
    pub access_key_id: Option<String>,
    /// The secret half of the key.
    pub secret_access_key: Option<SecretSource>,
}

/// The region that servers other than Amazon's do not look at.
const NO_REGION: &str = "us-east-1";

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// How long one request may take: a pack over a slow line.
const REQUEST: Duration = Duration::from_secs(600);

fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: 6,
        retry_timeout: Duration::from_secs(60),
    }
}

fn client() -> ClientOptions {
    ClientOptions::new().with_connect_timeout(CONNECT).with_timeout(REQUEST)
}

fn opened<S: ObjectStore>(
    store: object_store::Result<S>,
    prefix: &str,
) -> Result<(Arc<dyn ObjectStore>, Path)> {
    let store = store.map_err(|error| {
        Error::invalid("the repository's url and credentials do not make sense").caused_by(error)
    })?;
    Ok((Arc::new(store), Path::from(prefix)))
}

pub(super) fn s3(
    endpoint: Option<&str>,
    bucket: &str,
    prefix: &str,
    settings: &S3Settings,
) -> Result<(Arc<dyn ObjectStore>, Path)> {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_retry(retries())
        .with_checksum_algorithm(Checksum::SHA256);
    let mut options = client();
    if let Some(endpoint) = endpoint {
        let plain = endpoint.starts_with("http://");
        options = options.with_allow_http(plain);
        builder = builder.with_endpoint(endpoint).with_allow_http(plain);
    }
    builder = builder.with_client_options(options);
    let known =
        ["AWS_REGION", "AWS_DEFAULT_REGION"].iter().any(|name| std::env::var_os(name).is_some());
    if let Some(region) = &settings.region {
        builder = builder.with_region(region);
    } else if endpoint.is_some() && !known {
        builder = builder.with_region(NO_REGION);
    }
    if let Some(id) = &settings.access_key_id {
        builder = builder.with_access_key_id(id);
    }
    if let Some(source) = &settings.secret_access_key {
        builder = builder.with_secret_access_key(source.read()?.reveal());
    }
    opened(builder.build(), prefix)
}

pub(super) fn gcs(bucket: &str, prefix: &str) -> Result<(Arc<dyn ObjectStore>, Path)> {
    let builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(bucket)
        .with_retry(retries())
        .with_client_options(client());
    opened(builder.build(), prefix)
}

pub(super) fn azure(container: &str, prefix: &str) -> Result<(Arc<dyn ObjectStore>, Path)> {
    let builder = MicrosoftAzureBuilder::from_env()
        .with_container_name(container)
        .with_retry(retries())
        .with_client_options(client());
    opened(builder.build(), prefix)
}
