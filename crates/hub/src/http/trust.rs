//! Whose certificates are believed.

use std::fs;
use std::path::Path;

use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use crate::settings::SettingsError;

/// Mozilla's list, or the certificates of a file in its place: that is how programs behind a proxy which looks into TLS are told of its own.
pub(super) fn of(file: Option<&Path>) -> Result<TlsConfig, SettingsError> {
    let roots = match file {
        Some(path) => RootCerts::new_with_certs(&read(path)?),
        None => RootCerts::WebPki,
    };
    Ok(TlsConfig::builder().root_certs(roots).build())
}

fn read(path: &Path) -> Result<Vec<Certificate<'static>>, SettingsError> {
    let refused = |reason: String| SettingsError::Certificates { path: path.to_owned(), reason };
    let bytes = fs::read(path).map_err(|error| refused(error.to_string()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&bytes) {
        match item.map_err(|error| refused(error.to_string()))? {
            PemItem::Certificate(certificate) => certificates.push(certificate),
            _ => continue,
        }
    }
    if certificates.is_empty() { Err(refused("there are none in it".to_owned())) } else { Ok(certificates) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_named() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("ca.pem");
        for (content, word) in
            [(None, "No such file"), (Some("x"), "none in it"), (Some("-----BEGIN CERTIFICATE-----\nx"), "ca.pem")]
        {
            if let Some(content) = content {
                fs::write(&path, content).unwrap();
            }
            let error = of(Some(&path)).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("SSL_CERT_FILE"), "{error}");
        }
        assert!(of(None).is_ok());
    }
}
