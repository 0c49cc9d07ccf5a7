//! Where a repository is, as users write it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Where a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A directory of this host.
    Directory(PathBuf),
    /// A directory of an NFS export, which is mounted while it is used.
    Nfs {
        /// The server's name or address.
        server: String,
        /// The path that the server knows, beginning with a slash.
        path: String,
    },
    /// A bucket of S3, or of what speaks its protocol.
    S3 {
        /// The server's URL; none is Amazon's.
        endpoint: Option<String>,
        /// The bucket.
        bucket: String,
        /// What the names of all objects begin with; may be empty.
        prefix: String,
    },
    /// A bucket of Google Cloud Storage.
    Gcs {
        /// The bucket.
        bucket: String,
        /// What the names of all objects begin with; may be empty.
        prefix: String,
    },
    /// A container of Azure Blob Storage.
    Azure {
        /// The container.
        container: String,
        /// What the names of all objects begin with; may be empty.
        prefix: String,
    },
}

impl Location {
    /// Whether reading it costs a network's time, so that what is read again is worth keeping here.
    pub fn is_remote(&self) -> bool {
        !matches!(self, Self::Directory(_))
    }
}

const FORMS: &str = "write /path, nfs://server/export/path, s3:https://server/bucket/prefix, s3:bucket/prefix, \
                     gs:bucket/prefix or azure:container/prefix";

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // What was written may hold a password, so it is not repeated.
        let wrong = |what: &str| Error::invalid(format!("the repository's url {what}")).hint(FORMS);
        if text.starts_with('/') {
            return Ok(Self::Directory(PathBuf::from(text)));
        }
        let (scheme, rest) = text
            .split_once(':')
            .ok_or_else(|| wrong("is no absolute path and names no service"))?;
        if scheme != "file" && text.contains('@') {
            return Err(wrong("has an @: credentials have keys of their own"));
        }
        match scheme {
            "file" => {
                let path = rest.strip_prefix("//").unwrap_or(rest);
                match path.starts_with('/') {
                    true => Ok(Self::Directory(PathBuf::from(path))),
                    false => Err(wrong("is no absolute path")),
                }
            }
            "nfs" => {
                let rest = rest.strip_prefix("//").ok_or_else(|| wrong("wants // after nfs:"))?;
                let (server, path) =
                    rest.split_once('/').ok_or_else(|| wrong("names no path of the server"))?;
                if server.is_empty() || path.is_empty() {
                    return Err(wrong("names no server or no path"));
                }
                Ok(Self::Nfs { server: server.to_owned(), path: format!("/{path}") })
            }
            "s3" => {
                let (endpoint, rest) = match rest.split_once("://") {
                    None => (None, rest.trim_start_matches('/')),
                    Some((scheme @ ("http" | "https"), rest)) => {
                        let (server, rest) =
                            rest.split_once('/').ok_or_else(|| wrong("names no bucket"))?;
                        (Some(format!("{scheme}://{server}")), rest)
                    }
                    Some(_) => return Err(wrong("wants http:// or https:// after s3:")),
                };
                let (bucket, prefix) = bucket(rest).ok_or_else(|| wrong("names no bucket"))?;
                Ok(Self::S3 { endpoint, bucket, prefix })
            }
            "gs" => {
                let (bucket, prefix) =
                    bucket(rest.trim_start_matches('/')).ok_or_else(|| wrong("names no bucket"))?;
                Ok(Self::Gcs { bucket, prefix })
            }
            "azure" => {
                let (container, prefix) = bucket(rest.trim_start_matches('/'))
                    .ok_or_else(|| wrong("names no container"))?;
                Ok(Self::Azure { container, prefix })
            }
            _ => Err(wrong("names a service that is not known")),
        }
    }
}

/// The bucket and the prefix of `bucket/prefix`; restic writes `bucket:/prefix` for some.
fn bucket(text: &str) -> Option<(String, String)> {
    let (bucket, prefix) = text.split_once(['/', ':']).unwrap_or((text, ""));
    let prefix = prefix.trim_matches('/');
    (!bucket.is_empty()).then(|| (bucket.to_owned(), prefix.to_owned()))
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = |prefix: &str| if prefix.is_empty() { "" } else { "/" };
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Nfs { server, path } => write!(f, "nfs://{server}{path}"),
            Self::S3 { endpoint: Some(endpoint), bucket, prefix } => {
                write!(f, "s3:{endpoint}/{bucket}{}{prefix}", slash(prefix))
            }
            Self::S3 { endpoint: None, bucket, prefix } => {
                write!(f, "s3:{bucket}{}{prefix}", slash(prefix))
            }
            Self::Gcs { bucket, prefix } => write!(f, "gs:{bucket}{}{prefix}", slash(prefix)),
            Self::Azure { container, prefix } => {
                write!(f, "azure:{container}{}{prefix}", slash(prefix))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_printed_the_same() {
        for text in [
            "/srv/backups",
            "/mnt/@backups",
            "nfs://nas.internal/exports/backups",
            "s3:https://s3.eu-west-1.amazonaws.com/bucket/some/prefix",
            "s3:http://127.0.0.1:9000/bucket",
            "s3:bucket/prefix",
            "gs:bucket/prefix",
            "azure:container",
        ] {
            assert_eq!(text.parse::<Location>().unwrap().to_string(), text);
        }
        let restic: Location = "gs:bucket:/prefix/".parse().unwrap();
        assert_eq!(restic.to_string(), "gs:bucket/prefix");
        assert_eq!("file:///srv".parse::<Location>().unwrap().to_string(), "/srv");
    }

    #[test]
    fn what_is_no_place_is_refused_and_never_repeated() {
        for text in [
            "",
            "relative/path",
            "file:x",
            "nfs:server/x",
            "nfs://server",
            "s3:",
            "s3:ftp://x/y",
            "gs:",
            "s3:https://key:secret@server/bucket",
            "ftp://secret",
            "azure:",
        ] {
            let error = text.parse::<Location>().unwrap_err();
            assert!(!error.full_message().contains("secret"), "{error}");
            assert!(error.hint_text().unwrap().contains("s3:https://"), "{text}");
        }
    }
}
